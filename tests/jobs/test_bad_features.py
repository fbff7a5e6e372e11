"""What jobs.train and jobs.reproduce cannot learn from ends them with exit code 2 and says why."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caan import config, storage
from caan.errors import InputError
from caan.experiments.trials import match_pool5_shape
from caan.models.checkpoint import CONFIG_FILE
from caan.models.config import ModelConfig
from caan.schema import features_schema, table_of
from jobs import reproduce, train
from jobs.runtime import cli
from jobs.runtime.train import TrainRun, is_trained
from jobs.runtime.training_data import DataOptions, read_data
from tests.support.stored_features import add_segments, segment_row, write_features

DIM = 6
JOBS: dict[str, Any] = {"train": train, "reproduce": reproduce}


def features_in(folder: Path, rows: list[tuple[str, str]], map_shapes: Any = None) -> str:
    """Videos of two frames; `rows` has label and split of each."""
    rng = np.random.default_rng(0)
    videos, segments = [], []
    for number, (label, split) in enumerate(rows):
        name = f"v{number}"
        videos.append({"video_id": name, "uri": f"{name}.mp4", "label": label, "split": split})
        maps = {kind: rng.normal(size=(2, *shape)) for kind, shape in (map_shapes or {}).items()}
        face_ND, context_ND = rng.normal(size=(2, 2, DIM))
        segments.append(segment_row(name, face_ND, context_ND, maps))
    return write_features(
        folder, videos, segments, face_dim=DIM, context_dim=DIM, map_shapes=map_shapes
    )


GOOD = [(label, split) for split in ("train", "test") for label in ("joy", "fear") * 4]


def said(job: str, capsys: pytest.CaptureFixture[str], features: str, *options: str) -> str:
    """The sentence on stderr; the exit code must be 2 and nothing be written."""
    output = f"{features}-out"
    words = ["--features", features, "--output", output, *options]
    assert cli.run_job(JOBS[job].Job, JOBS[job].main, words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not storage.exists(storage.join(output, "run.json"))
    return error.splitlines()[-1]


@pytest.mark.parametrize("job", JOBS)
def test_data_that_nothing_can_be_learned_from(
    job: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lacking = [("joy", "train"), ("fear", "train"), ("anger", "test")] * 3
    features = features_in(tmp_path / "lacking", lacking)
    assert "no usable training video shows anger" in said(job, capsys, features)
    one = features_in(tmp_path / "one", [("joy", "train"), ("joy", "test")] * 3)
    assert "at least two emotions" in said(job, capsys, one)
    none = features_in(tmp_path / "none", [("", "train")] * 3)
    assert "has no labels" in said(job, capsys, none)


@pytest.mark.parametrize(("job", "option"), [("train", "--split"), ("reproduce", "--test-split")])
def test_a_missing_split(
    job: str, option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    features = features_in(tmp_path / "features", GOOD)
    error = said(job, capsys, features, option, "night")
    assert "no video has the split `night`; the manifest has test, train" in error


@pytest.mark.parametrize("job", JOBS)
def test_features_of_two_backbones(
    job: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    features = features_in(tmp_path / "features", GOOD)
    other = [segment_row("v0", np.ones((1, DIM + 2)), np.ones((1, DIM)))]
    add_segments(features, table_of(other, features_schema(DIM + 2, DIM)))
    assert "features of different backbones" in said(job, capsys, features)


def test_a_model_to_start_from_that_takes_other_vectors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    features = features_in(tmp_path / "features", GOOD)
    error = said("train", capsys, features, "--init", "starter")
    assert "takes face vectors of starter_face" in error
    assert "these features are of vggface" in error


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ("train", ["--model.name", "pool5_attention", "--model.modality", "context"]),
        ("reproduce", ["--systems", "caan", "pool5_context"]),
    ],
)
def test_pool5_maps_that_are_missing_or_too_many(
    job: str, options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    features = features_in(tmp_path / "face", GOOD, {"face": (2, 3, 3)})
    error = said(job, capsys, features, *options)
    assert "pool5 maps of the context" in error
    assert "--pool5" in error
    both = features_in(tmp_path / "context", GOOD, {"context": (2, 3, 3)})
    error = said(job, capsys, both, *options, "--pool5-gib", "1e-7")
    assert "pool5 maps of 32 frames take" in error


def test_training_reads_the_maps_that_its_model_needs_and_no_others(tmp_path: Path) -> None:
    features = features_in(tmp_path / "features", GOOD, {"face": (2, 3, 3), "context": (3, 1, 1)})
    model = ModelConfig(name="pool5_attention", modality="context")
    job = train.Job(features=features, output="unused", model=model)
    videos = read_data(config.part(DataOptions, job, maps="context")).train
    assert {name: maps.shape for name, maps in videos.maps.items()} == {"context": (32, 3, 1, 1)}
    assert match_pool5_shape(job.configs()[0], videos).pool5_shape == (3, 1, 1)
    assert not read_data(config.part(DataOptions, job)).train.maps


def test_unfinished_features_and_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    features = features_in(tmp_path / "features", GOOD)
    record = storage.read_json(storage.join(features, "run.json"))
    storage.write_json(storage.join(features, "run.json"), record | {"is_complete": False})
    for job in JOBS:
        assert "not finished" in said(job, capsys, features)
        assert "holds no features" in said(job, capsys, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("job", JOBS)
def test_the_output_of_another_job_is_not_overwritten(
    job: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    features = features_in(tmp_path / "features", GOOD)
    words = ["--features", features, "--output", features]
    assert cli.run_job(JOBS[job].Job, JOBS[job].main, words) == 2
    assert "holds the output of jobs.extract" in capsys.readouterr().err


def test_another_model_is_replaced_only_when_asked(tmp_path: Path) -> None:
    output = str(tmp_path / "model")
    run = TrainRun(output=output, options={})
    assert not is_trained(run, "train-1")
    storage.write_json(storage.join(output, CONFIG_FILE), {})
    with pytest.raises(InputError, match="--on-change recompute"):
        is_trained(run, "train-1")
    storage.write_json(storage.join(output, "run.json"), {"job": "train", "run": "train-1"})
    assert is_trained(run, "train-1")
    with pytest.raises(InputError, match="other features, labels or options"):
        is_trained(run, "train-2")
    assert not is_trained(replace(run, on_change="recompute"), "train-2")
