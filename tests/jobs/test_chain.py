"""The jobs as a user runs them: one chain on S3, the command lines, and bad input."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from caan import schema, storage
from caan.errors import InputError
from caan.media.sampling import sample_frames
from caan.outputs import layout
from caan.outputs.plan import longest_first, plan
from jobs import evaluate, extract, index, label, train, verify
from jobs.runtime import cli
from jobs.runtime.options import Resources
from jobs.runtime.pipeline import actors
from tests.support.clips import write_clip

ROOT = Path(__file__).resolve().parents[2]
STARTER = {
    "detector": "libfacedetection",
    "face_backbone": "starter_face",
    "context_backbone": "starter_context",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, carphone: Path) -> Path:
    """Eight clips of one man, red under `anger` and green under `happy`; one file is no video."""
    folder = tmp_path_factory.mktemp("corpus")
    images = [frame.image for frame in sample_frames(str(carphone), fps=12.0)]
    for number in range(8):
        emotion, channel = (("anger", 0), ("happy", 1))[number % 2]
        some = [image.copy() for image in images[number * 4 : number * 4 + 12]]
        for image in some:
            image[..., channel] = np.minimum(image[..., channel].astype(int) + 60, 255)
        for split, last in (("train", 6), ("test", 8)):
            if last - 6 <= number < last and (split == "test") == (number >= 6):
                (folder / split / emotion).mkdir(parents=True, exist_ok=True)
                write_clip(folder / split / emotion / f"{number}.mp4", some)
    (folder / "train" / "anger" / "text.mp4").write_text("this is no video")
    return folder


@pytest.mark.ray
def test_the_whole_chain_runs_on_s3_and_resumes(
    corpus: Path,
    s3_bucket: str,
    running_ray: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket = s3_bucket
    storage.copy_folder(corpus, f"{bucket}/videos")
    manifest = f"{bucket}/manifest.parquet"
    assert index.main(index.Job(input=f"{bucket}/videos", output=manifest)) == 0
    rows = storage.read_table(manifest).to_pylist()
    assert len(rows) == 9
    assert {row["status"] for row in rows if "text" in row["uri"]} == {"unreadable"}
    assert {row["label"] for row in rows} == {"anger", "joy"}
    ids = {row["uri"]: row["video_id"] for row in rows}

    job = extract.Job(
        manifest=manifest,
        output=f"{bucket}/features",
        fps=4.0,
        segment_frames=2,
        pool5="face",
        resources=Resources(decoders=2),
        **STARTER,
    )
    assert extract.main(job) == 0
    record = storage.read_json(f"{bucket}/features/run.json")
    assert record["statuses"] == {"ok": 8, "unreadable": 1}
    assert record["is_complete"]
    assert 0 < record["seconds_until_networks"] < record["seconds"]
    names = [file.uri for file in storage.list_files(f"{bucket}/features/features")]
    segments = pa.concat_tables(layout.read_rows(f"{bucket}/features", "features"))
    channels, height, width = record["identity"]["face_pool5_shape"]
    num_numbers = channels * height * width
    assert segments.schema.equals(schema.features_schema(260, 1280, face_pool5=num_numbers))
    for row in segments.to_pylist():
        assert [len(item) for item in row["face_pool5"]] == [num_numbers] * len(row["faces"])
    segment_ids = segments["segment_id"].to_pylist()
    assert len(set(segment_ids)) == len(segment_ids) == record["num_segments"]
    assert verify.main(verify.Job(output=f"{bucket}/features")) == 0

    assert extract.main(job) == 0  # again: nothing is done twice
    assert [file.uri for file in storage.list_files(f"{bucket}/features/features")] == names
    assert storage.read_json(f"{bucket}/features/run.json")["seconds"] == record["seconds"]
    with pytest.raises(InputError, match="fps"):
        extract.main(extract.Job(manifest=manifest, output=f"{bucket}/features", **STARTER))

    model = f"{bucket}/model"
    settings = train.TrainConfig(epochs=12, learning_rate=1e-3, batch_videos=8)
    features = f"{bucket}/features"
    events = tmp_path / "events"
    training = train.Job(
        features=features, output=model, init="starter", train=settings, tensorboard=str(events)
    )
    with caplog.at_level(logging.INFO):
        assert train.main(training) == 0
    assert re.search(r"epoch \d+ of 12: loss", caplog.text), "the worker's lines reach the job"
    assert b"validation_uar" in next(events.glob("events.out.tfevents.*")).read_bytes()
    etag = storage.stat(f"{model}/model.safetensors").etag
    assert train.main(training) == 0  # again: nothing to do
    assert storage.stat(f"{model}/model.safetensors").etag == etag
    with pytest.raises(InputError, match="--on-change recompute"):
        train.main(dataclasses.replace(training, seed=1))

    labels = f"{bucket}/labels"
    more = {"window_seconds": 1.0, "write": ("csv", "jsonl", "vtt", "eaf", "preview", "strip")}
    assert label.main(label.Job(manifest=manifest, model=model, output=labels, **more)) == 0
    found = storage.read_table(f"{labels}/labels")
    assert found.schema.equals(schema.LABELS_SCHEMA)
    by_id = {row["video_id"]: row for row in found.to_pylist()}
    assert set(by_id) == set(ids.values())
    right = [by_id[row["video_id"]]["label"] == row["label"] for row in rows if row["width"]]
    assert np.mean(right) >= 0.75
    told = found.filter(pc.is_valid(found["label"]))
    assert not told["label_without_context"].null_count  # the model looks at the context
    scores = storage.read_table(f"{labels}/frame_scores")
    assert scores.schema.equals(schema.FRAME_SCORES_SCHEMA)
    for video_id in {row["video_id"] for row in scores.to_pylist()}:
        of_video = scores.filter(pc.equal(scores["video_id"], video_id))
        assert sum(of_video["emotion_score"].to_pylist()) == pytest.approx(1.0, abs=1e-4)

    windows = storage.read_table(f"{labels}/windows")
    assert windows.schema.equals(schema.WINDOWS_SCHEMA)
    assert set(windows["video_id"].to_pylist()) == set(scores["video_id"].to_pylist())
    names = {file.uri.removeprefix(f"{labels}/") for file in storage.list_files(labels)}
    bad = ids[next(uri for uri in ids if "text" in uri)]
    for video_id in set(ids.values()):
        assert {f"timelines/{video_id}.vtt", f"timelines/{video_id}.eaf"} <= names
        assert (f"previews/{video_id}.mp4" in names) == (video_id != bad)
        assert (f"strips/{video_id}.png" in names) == (video_id != bad)
    assert {f"tables/{t}.{kind}" for t in ("labels", "windows") for kind in ("csv", "jsonl")} <= (
        names
    )
    assert list(storage.read_json(f"{labels}/run.json")["files_failed"]) == [f"{bad} preview"]
    assert verify.main(verify.Job(output=labels)) == 0
    # another face policy takes the second phase only, and its own files replace the old ones
    again = label.Job(manifest=manifest, model=model, output=labels, face_policy="all")
    assert label.main(again) == 0
    names = {file.uri.removeprefix(f"{labels}/") for file in storage.list_files(labels)}
    assert not any(name.startswith(("windows/", "tables/", "previews/")) for name in names)

    report = f"{bucket}/report"
    assert evaluate.main(evaluate.Job(labels=labels, manifest=manifest, output=report)) == 0
    assert storage.read_json(f"{report}/metrics.json")["statuses"] == {"ok": 8, "unreadable": 1}
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(
        storage.read_json(f"{labels}/run.json")
    )


def test_no_worker_ends_with_a_long_segment_that_could_have_come_first() -> None:
    rows = [
        {"video_id": video, "uri": f"/{video}.mp4", "duration_seconds": duration, "status": "ok"}
        for video, duration in (("a", 3.0), ("b", 20.0), ("c", 9.0))
    ]
    manifest = schema.table_of(rows, schema.MANIFEST_SCHEMA)
    planned = plan(manifest, fps=1.0, segment_frames=8)
    units = planned.units(np.ones(planned.num_segments, bool), 1)
    assert [(row["video_id"], row["first_index"]) for row in longest_first(units).to_pylist()] == [
        ("b", 0), ("b", 8), ("c", 0), ("b", 16), ("a", 0), ("c", 8)
    ]  # fmt: skip
    keys = [("video_id", "ascending"), ("first_index", "ascending")]
    assert longest_first(units).sort_by(keys).equals(units.sort_by(keys))


@pytest.mark.ray
@pytest.mark.parametrize("at_hand", [1, 2])
def test_rounds_go_to_the_actor_that_is_free_and_run_in_its_main_thread(
    running_ray: None, tmp_path: Path, at_hand: int
) -> None:
    class Worker:
        def __init__(self) -> None:
            (tmp_path / f"worker{os.getpid()}").touch()
            while len(list(tmp_path.glob("worker*"))) < 2:  # both begin together
                time.sleep(0.05)
            self.is_slow = min(tmp_path.glob("worker*")).name == f"worker{os.getpid()}"

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bool]]:
            if self.is_slow:  # as long as the other has rounds
                end = time.monotonic() + 15
                while len(list(tmp_path.glob("round*"))) < 8 - at_hand and time.monotonic() < end:
                    time.sleep(0.05)
            else:
                (tmp_path / f"round{batch['id'][0]}").touch()
            in_main = threading.current_thread() is threading.main_thread()
            return {"is_slow": [self.is_slow], "in_main": [in_main]}

    rounds = ray.data.range(8, override_num_blocks=8).map_batches(
        Worker, batch_size=1, compute=actors(2, at_hand=at_hand), num_cpus=0.1
    )
    rows = rounds.take_all()
    assert [row["is_slow"] for row in rows].count(True) <= at_hand
    assert all(row["in_main"] for row in rows), "where freed memory is kept"


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    (folder / "empty").mkdir()
    storage.write_table(pa.table({"name": ["x"]}), folder / "wrong.parquet")
    (folder / "list.csv").write_text("name,label\na.mp4,joy\n")
    (folder / "taken").mkdir()
    (folder / "taken" / "letter.txt").write_text("mine")
    rows = [{"video_id": "a", "uri": "/nowhere.mp4", "duration_seconds": 1.0}]
    storage.write_table(schema.table_of(rows, schema.MANIFEST_SCHEMA), folder / "good.parquet")
    (folder / "file").write_text("")
    starter = [f"--{name.replace('_', '-')}={value}" for name, value in STARTER.items()]
    at = str(folder)
    return {
        "missing path": (["index", "--input", f"{at}/no", "--output", f"{at}/m.parquet"], "no"),
        "empty folder": (
            ["index", "--input", f"{at}/empty", "--output", f"{at}/m.parquet"], "empty"
        ),
        "list without paths": (
            ["index", "--input", f"{at}/list.csv", "--output", f"{at}/m.parquet"],
            "no column `uri`, `path` or `file`",
        ),
        "wrong schema": (
            ["extract", "--manifest", f"{at}/wrong.parquet", "--output", f"{at}/o", *starter],
            "video_id",
        ),
        "output of others": (
            ["extract", "--manifest", f"{at}/good.parquet", "--output", f"{at}/taken", *starter],
            "taken",
        ),
        "unwritable output": (
            ["extract", "--manifest", f"{at}/good.parquet", "--output", f"{at}/file/o", *starter],
            "cannot write",
        ),
        "no weights": (
            ["extract", "--manifest", f"{at}/good.parquet", "--output", f"{at}/o",
             "--detector", "libfacedetection", "--face-weights", f"{at}/none.pth"],
            "none.pth",
        ),
        "features that are none": (
            ["train", "--features", f"{at}/empty", "--output", f"{at}/model"], "run.json"
        ),
        "another backbone than the model's": (
            ["label", "--manifest", f"{at}/good.parquet", "--output", f"{at}/l",
             "--face-backbone", "vggface"],
            "starter_face",
        ),
        "model that is none": (
            ["label", "--manifest", f"{at}/good.parquet", "--output", f"{at}/l",
             "--model", f"{at}/empty"],
            "config.json",
        ),
    }  # fmt: skip


def test_bad_input_gets_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {"index": index, "extract": extract, "train": train, "label": label}
    ray_was_there = ray.is_initialized()  # another test's
    for what, ((name, *arguments), expected) in bad_inputs(tmp_path).items():
        module = jobs[name]
        code = cli.run_job(module.Job, module.main, arguments)
        said = capsys.readouterr().err.strip().splitlines()
        assert code == 2, what
        assert said[-1].startswith("error: "), what
        assert expected in said[-1], what
        assert sum("error" in line for line in said) == 1, what
    assert ray.is_initialized() == ray_was_there, "bad input is refused before Ray starts"
