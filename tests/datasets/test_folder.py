"""Folders and lists of videos become manifest rows, and their headers are probed."""

import shutil

import av
import numpy as np
import pyarrow as pa
import pytest

from caan import storage
from caan.datasets.folder import read_folder
from caan.errors import InputError
from caan.extraction.probe import IndexProber
from caan.schema import MANIFEST_SCHEMA, table_of, video_id_of


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not looked at")


def seen(rows, root):
    return {
        row["uri"].removeprefix(f"{storage.normalise(root)}/"): (row["label"], row["split"])
        for row in rows
    }


def test_folders_named_after_emotions_and_splits_say_label_and_split(tmp_path):
    touch(
        tmp_path,
        *("plain.mp4", "train/Happy/a.avi", "Validation/sad/deep/b", "test/trust/c.mov"),
        *("joy/other/d.gif", "joy/subtitles.srt", "list.csv", ".cache/e.mp4", "joy/.f.mp4"),
    )
    rows = list(read_folder(str(tmp_path)))
    assert seen(rows, tmp_path) == {
        "plain.mp4": (None, None),
        "train/Happy/a.avi": ("joy", "train"),
        "Validation/sad/deep/b": ("sadness", "val"),
        "test/trust/c.mov": ("trust", "test"),
        "joy/other/d.gif": ("joy", None),
    }
    assert table_of(rows, MANIFEST_SCHEMA).num_rows == 5
    assert all(row["size_bytes"] == 13 and row["etag"] for row in rows)


def test_folders_above_the_input_say_nothing(tmp_path):
    root = tmp_path / "joy" / "test" / "clips [1]"
    touch(root, "sad/a.mp4", "b.mp4")
    expected = {"sad/a.mp4": ("sadness", None), "b.mp4": (None, None)}
    assert seen(read_folder(str(root)), root) == expected
    patterns = [f"{tmp_path}/joy/test/clip*/*/a.mp4", f"{tmp_path}/joy/test/clip*/b.mp4"]
    assert {k: v for p in patterns for k, v in seen(read_folder(p), root).items()} == expected
    assert seen(read_folder(str(root / "b.mp4")), root) == {"b.mp4": (None, None)}


def test_folders_on_s3_are_read_alike(s3_bucket, tmp_path):
    touch(tmp_path, "val/fearful/a.mp4", "val/.DS_Store")
    storage.copy_folder(tmp_path / "val", s3_bucket + "/clips/val")
    rows = list(read_folder(s3_bucket + "/clips/"))
    assert seen(rows, s3_bucket + "/clips") == {"val/fearful/a.mp4": ("fear", "val")}


def test_ids_stay_when_a_folder_grows_or_a_file_changes(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4")
    (first,) = read_folder(str(tmp_path))
    touch(tmp_path, "0.mp4")
    (tmp_path / "a.mp4").write_bytes(b"other")
    monkeypatch.chdir(tmp_path)
    ids = {row["uri"]: row for row in read_folder(".")}
    again = ids[first["uri"]]
    assert again["video_id"] == first["video_id"] == video_id_of(first["uri"], None, None)
    assert again["etag"] != first["etag"]


def test_a_csv_list_gives_what_its_columns_say(tmp_path):
    touch(tmp_path, "clips/a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_text(
        "path,label,split,start_seconds,end_seconds,face_box,gender,note\n"
        'clips/a.mp4,Happy,train,1,2.5,"[1, 2.5, 3, 4]",f,x\n'
        f"{tmp_path}/b.mp4,,,,,,,\n"
        "clips/a.mp4,afraid,val,3,4,,,\n"
        "none.mp4,joy,test,,,,,\n"
    )
    rows = read_folder(str(tmp_path / "list.csv"))
    table = table_of(rows, MANIFEST_SCHEMA)
    assert table["label"].to_pylist() == ["joy", None, "fear", "joy"]
    assert table["split"].to_pylist() == ["train", None, "val", "test"]
    assert table["face_box"].to_pylist() == [[1, 2.5, 3, 4], None, None, None]
    assert table["end_seconds"].to_pylist() == [2.5, None, 4.0, None]
    assert table["gender"].to_pylist() == ["f", None, None, None]
    assert table["status"].to_pylist() == [None, None, None, "missing"]
    assert "none.mp4" in table["error"].to_pylist()[3]
    uri = f"{tmp_path}/clips/a.mp4"
    assert table["video_id"].to_pylist()[:3] == [
        video_id_of(uri, 1.0, 2.5),
        video_id_of(f"{tmp_path}/b.mp4", None, None),
        video_id_of(uri, 3.0, 4.0),
    ]


def test_a_parquet_list_on_s3_names_files_beside_it(s3_bucket):
    storage.write_bytes(s3_bucket + "/x/a.mp4", b"1")
    columns = {"uri": ["a.mp4"], "label": ["anger"], "face_box": [[1.0, 2.0, 3.0, 4.0]]}
    storage.write_table(pa.table(columns | {"start_seconds": [1]}), s3_bucket + "/x/list.parquet")
    (row,) = read_folder(s3_bucket + "/x/list.parquet")
    assert row["uri"] == s3_bucket + "/x/a.mp4"
    assert (row["label"], row["face_box"], row["start_seconds"]) == ("anger", [1, 2, 3, 4], 1.0)
    assert table_of([row], MANIFEST_SCHEMA).num_rows == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,label\na.mp4,joy\n", "has no column `uri`, `path` or `file`; it has name, label"),
        ("path,label\na.mp4,joy\n,sad\n", r"row 2 of the list .* has no path"),
        ("path,face_box\na.mp4,1 2 3\n", r"row 1 of .*: face_box must be four numbers"),
        ("path,start_seconds\na.mp4,soon\n", r"row 1 of .*: start_seconds `soon` is not a number"),
        ("path,start_seconds,end_seconds\na.mp4,3,2\n", r"row 1 of .*: end_seconds 2.0 must"),
        ("path,start_seconds\na.mp4,-3\n", r"row 1 of .*: start_seconds -3.0 must"),
        ("path,label\na.mp4,joy,2\n", "cannot read the list"),
        ("", "cannot read the list"),
        ("path\na.mp4\n./a.mp4\n", r"row 2 of .* names the same video as row 1"),
    ],
)
def test_a_bad_list_is_refused_with_its_row(tmp_path, content, message):
    touch(tmp_path, "a.mp4")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        list(read_folder(str(tmp_path / "list.csv")))


def test_absent_inputs_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no list lies at `.*x.csv`"):
        read_folder(str(tmp_path / "x.csv"))
    for name in ("x", "x*.mp4"):
        with pytest.raises(InputError, match=r"nothing is at `.*x"):
            read_folder(str(tmp_path / name))


def write_clip(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in range(20):
            image = np.full((48, 64, 3), 10 * value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def test_probing_fills_the_header_columns_and_gives_every_file_a_status(tmp_path, s3_bucket):
    write_clip(tmp_path / "clip.mp4")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "gone.mp4").write_bytes(b"")
    shutil.copy(tmp_path / "clip.mp4", tmp_path / "renamed.dat")
    storage.write_bytes(s3_bucket + "/clip.mp4", (tmp_path / "clip.mp4").read_bytes())
    rows = [*read_folder(str(tmp_path)), *read_folder(s3_bucket)]
    known = {"video_id": "k", "uri": "/k", "status": "missing", "error": "known before"}
    (tmp_path / "gone.mp4").unlink()
    prober = IndexProber()
    table = prober(table_of([*rows, known], MANIFEST_SCHEMA))
    prober.sandbox.close()
    assert table.schema == MANIFEST_SCHEMA
    found = {row["uri"].rpartition("/")[2]: row for row in table.to_pylist()[:-2]}
    assert {name: row["status"] for name, row in found.items()} == {
        "clip.mp4": "ok",
        "empty.mp4": "unreadable",
        "gone.mp4": "missing",
        "renamed.dat": "ok",
        "text.mp4": "unreadable",
    }
    on_s3 = table.to_pylist()[-2]
    for row in (found["clip.mp4"], found["renamed.dat"], on_s3):
        assert row["duration_seconds"] == pytest.approx(2.0)
        assert (row["width"], row["height"], row["codec"], row["fps"]) == (64, 48, "h264", 10.0)
        assert (row["container"], row["rotation_degrees"], row["error"]) == ("mov", 0, None)
    assert found["text.mp4"]["error"]
    assert table.to_pylist()[-1] == dict.fromkeys(MANIFEST_SCHEMA.names) | known | {"votes": None}
    counts = prober.take_counts()
    assert (counts["videos"], counts["failed"], counts["status.ok"]) == (7, 4, 3)
    assert prober.take_counts() == {}
