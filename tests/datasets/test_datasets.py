import json
import re
from collections import Counter
from pathlib import Path

import openpyxl
import pytest

from caan import storage
from caan.datasets.registry import (
    DATASETS,
    check_labels,
    check_splits,
    compare_counts,
    require_context,
)
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig
from caan.schema import MANIFEST_SCHEMA, table_of
from jobs.index import Job, list_rows
from jobs.runtime.run import Run

SPLITS = Path(__file__).resolve().parents[3] / "shared" / "data" / "splits"
PARTS = ("train", "test")


def touch(root, *names, content=None):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content or name)


def read(name, root, lists="", split=1):
    dataset = DATASETS[name]
    rows = dataset.read(str(root), str(lists) if lists else "", split)
    check_labels(rows, dataset, name)
    assert table_of(rows, MANIFEST_SCHEMA).num_rows == len(rows)
    return {
        row["uri"][len(str(root)) + 1 :]: (row["label"], row["split"], row.get("status"))
        for row in rows
    }


def test_ekman6_reads_lists_without_a_last_newline_and_names_what_is_missing(tmp_path):
    touch(tmp_path, "videos/anger/1000.mp4", "videos/joy/1000.mp4", "videos/joy/7.mp4")
    touch(tmp_path, "trainlist01.txt", content="anger/1000 1\njoy/1000 4")
    touch(tmp_path, "testlist01.txt", content="fear/9 3")
    assert read("ekman6", tmp_path) == {
        "videos/anger/1000.mp4": ("anger", "train", None),
        "videos/joy/1000.mp4": ("joy", "train", None),
        "fear/9": ("fear", "test", "missing"),
    }


def test_videoemotion8_takes_the_split_that_is_named_and_titles_with_dots(tmp_path):
    touch(tmp_path / "v", "Trust/Mr.Bean_360p.mp4", "Anticipation/a.mp4", "Trust/b.mp4")
    for number, (train, test) in {1: ("b", "Mr.Bean_360p"), 3: ("Mr.Bean_360p", "b")}.items():
        touch(tmp_path / "l", f"trainlist{number:02d}.txt", content=f"Trust/{train} 8\n")
        touch(tmp_path / "l", f"testlist{number:02d}.txt", content=f"Trust/{test}\n")
    assert read("ve8", tmp_path / "v", tmp_path / "l", 3) == {
        "Trust/Mr.Bean_360p.mp4": ("trust", "train", None),
        "Trust/b.mp4": ("trust", "test", None),
    }
    with pytest.raises(InputError, match=r"no files `trainlist02.txt`.*--lists"):
        read("ve8", tmp_path / "v", tmp_path / "l", 2)


def workbook(path, columns):
    book = openpyxl.Workbook()
    sheet = book.create_sheet("splits")
    for number, names in enumerate(columns, start=1):
        for row, name in enumerate(names, start=3):
            sheet.cell(row, number, name)
    book.save(path)


def test_videoemotion8_takes_a_split_of_the_workbook_and_classes_from_folders(tmp_path):
    touch(tmp_path, "Trust/a.mp4", "Joy/Mr.B_360p.mp4", "Fear/12.mp4", "Disgust/12.mp4")
    workbook(tmp_path / "splits.xlsx", [["b"], ["a"], ["a", 12], ["Mr.B_360p", "gone"]])
    assert read("ve8", tmp_path, split=2) == {
        "Trust/a.mp4": ("trust", "train", None),
        "Disgust/12.mp4": ("disgust", "train", None),
        "Fear/12.mp4": ("fear", "train", None),
        "Joy/Mr.B_360p.mp4": ("joy", "test", None),
        "gone": (None, "test", "missing"),
    }
    with pytest.raises(InputError, match=r"`splits` .* has no split 3"):
        read("ve8", tmp_path, split=3)


def test_the_workbook_gives_what_the_derived_lists_give(tmp_path):
    if not SPLITS.exists():
        pytest.skip("needs data/splits in a folder `shared` beside the checkout")
    lists = {part: (SPLITS / "ve8" / f"{part}list01.txt").read_text().split("\n") for part in PARTS}
    keys = {part: [re.sub(r"\s+\d+$", "", line) for line in lists[part] if line] for part in PARTS}
    touch(tmp_path / "v", *(f"{key}.mp4" for part in PARTS for key in keys[part]))
    titles = [[key.partition("/")[2] for key in keys[part]] for part in PARTS]
    (tmp_path / "l").mkdir()
    workbook(tmp_path / "l" / "splits.xlsx", titles)
    by_lists = read("ve8", tmp_path / "v", SPLITS / "ve8")
    assert len(by_lists) == 1099
    assert read("ve8", tmp_path / "v", tmp_path / "l") == by_lists


@pytest.mark.parametrize("name", ["caer", "afew"])
def test_split_and_class_folders_are_read_and_others_refused(tmp_path, name):
    touch(tmp_path, "Train/Happy/1.avi", "validation/Sad/1.avi", "Test/Angry/2.avi")
    assert read(name, tmp_path) == {
        "Train/Happy/1.avi": ("joy", "train", None),
        "validation/Sad/1.avi": ("sadness", "val", None),
        "Test/Angry/2.avi": ("anger", "test", None),
    }
    touch(tmp_path, "Happy/3.avi")
    with pytest.raises(InputError, match="no folder train, val or test"):
        read(name, tmp_path)
    touch(tmp_path, "Train/Odd/3.avi")
    with pytest.raises(InputError, match="no folder named after an emotion"):
        read(name, tmp_path)


def test_dfew_reads_numbers_as_its_emotions_and_says_where_only_images_are(tmp_path):
    touch(tmp_path, "Clip/original/1.mp4", "Clip/jpg_256/00002/00001.jpg")
    header = "video_name,label\n"
    touch(tmp_path, "train(single-labeled)/set_2.csv", content=header + "00001,1\n2,7\n")
    touch(tmp_path, "test(single-labeled)/set_2.csv", content=header + "00003,4\n")
    rows = DATASETS["dfew"].read(str(tmp_path), "", 2)
    assert [row["label"] for row in rows] == ["joy", "fear", "anger"]
    assert rows[0]["uri"].endswith("original/1.mp4")
    assert "only single images" in rows[1]["error"]
    assert [row.get("status") for row in rows] == [None, "missing", "missing"]


def test_ferv39k_and_mafw_read_their_lists(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    touch(a, "2_Clips/Action/Happy/0267.mp4", "2_Clips/Crime/Happy/0267.mp4")
    touch(a, "4_setups/All_scenes/train_All.csv", content="Action/Happy/0267 Happy\n")
    touch(a, "4_setups/All_scenes/test_All.csv", content="Crime/Happy/0267 Happy\n")
    assert [*read("ferv39k", a).values()] == [("joy", "train", None), ("joy", "test", None)]
    touch(b, "data/clips/00001.mp4", "data/clips/00002.mp4")
    touch(b, "split/single/no_caption/set_1/train.txt", content="00001.mp4 happiness\n")
    touch(b, "split/single/no_caption/set_1/test.txt", content="00002.mp4 7\n")
    assert [*read("mafw", b).values()] == [("joy", "train", None), ("contempt", "test", None)]


def test_heiv_and_csv_are_lists_and_foreign_labels_are_refused(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    touch(tmp_path, "l.csv", content="path,label,split\na.mp4,happy,train\nb.mp4,trust,test\n")
    rows = DATASETS["csv"].read(f"{tmp_path}/l.csv", "", 1)
    assert [row["label"] for row in rows] == ["joy", "trust"]
    with pytest.raises(InputError, match="`heiv` has no emotion trust"):
        list_rows(Job(input=f"{tmp_path}/l.csv", output="x.parquet", dataset="heiv"))
    with pytest.raises(InputError, match=r"is not a list: give a .csv"):
        DATASETS["heiv"].read(str(tmp_path), "", 1)


def test_splits_that_share_a_file_or_its_bytes_are_refused_unless_kept(tmp_path):
    touch(tmp_path, "train/joy/a.mp4", "test/joy/b.mp4", "test/joy/c.mp4")
    job = Job(input=str(tmp_path), output="x.parquet", dataset="caer")
    assert len(list_rows(job)) == 3
    touch(tmp_path, "test/joy/b.mp4", content="train/joy/a.mp4")
    with pytest.raises(
        InputError, match=r"1 videos are in more than one split \(test.*b.mp4.*train.*a.mp4"
    ):
        list_rows(job)
    kept = Job(input=str(tmp_path), output="x", dataset="caer", shared_videos="keep")
    assert len(list_rows(kept)) == 3
    same = [{"uri": "u", "video_id": str(n), "split": s} for n, s in enumerate(("train", "test"))]
    with pytest.raises(InputError, match="1 videos are in more than one split"):
        check_splits(same)


def test_counts_are_reported_and_face_crops_have_no_context():
    rows = [{"split": "train"}] * 819 + [{"split": "test"}] * 810
    assert compare_counts(rows, DATASETS["ekman6"]) == [
        "train: 819 videos, published 819",
        "test: 810 videos, published 818 (-8)",
    ]
    crops = {name for name, dataset in DATASETS.items() if dataset.is_face_crops}
    assert crops == {"dfew", "ferv39k", "mafw"}
    with pytest.raises(InputError, match="`dfew` holds cut-out faces only"):
        require_context("dfew", ("face", "context"))
    require_context("dfew", ("face",))
    require_context("", ("face", "context"))


def test_labelling_face_crops_with_a_model_of_whole_frames_is_refused(tmp_path):
    rows = [{"video_id": "a", "uri": f"{tmp_path}/a.mp4", "duration_seconds": 1.0}]
    facts = {"dataset": "mafw", "face_crops": "True"}
    table = table_of(rows, MANIFEST_SCHEMA).replace_schema_metadata(facts)
    storage.write_table(table, f"{tmp_path}/m.parquet")
    run = Run(
        job_name="label",
        manifest=f"{tmp_path}/m.parquet",
        output=f"{tmp_path}/labels",
        config=ExtractionConfig(),
        networks={},
        whole_config={},
        retry_failed=False,
        on_change="error",
        min_ok=0.0,
        modalities=("face", "context"),
    )
    with pytest.raises(InputError, match="`mafw` holds cut-out faces only"), run.opened():
        pass
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(("name", "folder"), [("ekman6", "ek6"), ("ve8", "ve8")])
def test_published_lists_agree_with_their_json_and_the_published_counts(tmp_path, name, folder):
    if not SPLITS.exists():
        pytest.skip("needs data/splits in a folder `shared` beside the checkout")
    dataset = DATASETS[name]
    rows = dataset.read(str(tmp_path), str(SPLITS / folder), 1)
    check_labels(rows, dataset, name)
    check_splits(rows)
    assert Counter(row["split"] for row in rows) == dataset.published
    database = json.loads((SPLITS / folder / f"{folder}_01.json").read_text())["database"]
    parts = {"training": "train", "validation": "test"}
    expected = {
        key: (video["annotations"]["label"].lower(), parts[video["subset"]])
        for key, video in database.items()
    }
    found = {row["uri"].rpartition("/")[2]: (row["label"], row["split"]) for row in rows}
    # One title of VideoEmotion-8 stands in two classes: their JSON loses one, the class keeps both.
    twice = {"3527012618_7ceb8fb27b_700"} if name == "ve8" else set()
    assert {k: v for k, v in found.items() if k not in twice} == {
        k: v for k, v in expected.items() if k not in twice
    }
    assert len({row["video_id"] for row in rows}) == len(database) + len(twice)
