"""jobs.train as a user runs it: several workers, killed workers and drivers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from caan import storage
from caan.errors import InputError
from caan.models.checkpoint import load_model
from jobs import train
from tests.support.training_runs import (
    LABELS,
    QUICK,
    assert_same,
    job_of,
    training_features,
    undisturbed_metrics,
    when_there_is_a_state,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """42 training and 7 validation videos, two segments each, over two files."""
    return training_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def undisturbed(features: str) -> dict[str, Any]:
    """Metrics of one worker that nobody disturbs."""
    return undisturbed_metrics(job_of(features, ""))


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    features: str, running_ray: None, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    killed = []

    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    states = tmp_path / "states"
    thread = when_there_is_a_state(states, kill)
    job = job_of(features, tmp_path / "model", num_workers=2, storage_path=str(states))
    assert train.main(job) == 0
    thread.join(timeout=5)
    assert killed, "a worker was killed"
    assert_same(storage.read_json(tmp_path / "model/metrics.json"), undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_end_where_one_does_with_states_and_model_on_s3(
    features: str, s3_bucket: str, running_ray: None, undisturbed: dict[str, Any]
) -> None:
    job = job_of(features, f"{s3_bucket}/model", num_workers=2, storage_path=f"{s3_bucket}/states")
    assert train.main(job) == 0
    metrics = storage.read_json(f"{s3_bucket}/model/metrics.json")
    assert_same(metrics, undisturbed)
    assert metrics["num_train_videos"] == 42
    with storage.local_folder(f"{s3_bucket}/model") as folder:
        assert load_model(folder).info.label_set == LABELS
    names = [file.uri for file in storage.list_files(f"{s3_bucket}/states")]
    assert any(name.endswith("training_state.pt") for name in names)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_goes_on_by_the_same_command(
    features: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    states, output = tmp_path / "states", tmp_path / "model"
    options = {
        "features": features,
        "output": output,
        "storage-path": states,
        "model.projection-size": 8,
        "model.fusion-size": 16,
        "model.feature-size": 8,
        "train.epochs": QUICK.epochs,
        "train.batch-videos": QUICK.batch_videos,
        "train.learning-rate": QUICK.learning_rate,
        "train.patience-epochs": 0,
        "train.checkpoint-every-epochs": 2,
    }
    command = [sys.executable, "-m", "jobs.train"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command += ["--model.scorer-sizes", "4", "4"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )

    first = start()
    when_there_is_a_state(states, first.kill).join(timeout=120)
    first.communicate()
    assert first.returncode == -9
    assert not list(output.glob("*")), "no model before its end"
    second = start()
    _, said = second.communicate(timeout=180)
    assert second.returncode == 0, said
    assert "epoch 0\n" not in said, "it went on from the state"
    assert_same(storage.read_json(output / "metrics.json"), undisturbed)


def test_impossible_numbers_of_workers_are_refused(features: str, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_workers": 0}, "--num-workers 0"),
        ({"num_workers": 2, "min_workers": 3}, "--min-workers 3"),
        ({"num_workers": 2, "min_workers": 1}, "--storage-path"),
    ]
    for options, expected in cases:
        with pytest.raises(InputError, match=expected):
            train.main(job_of(features, tmp_path / "model", **options))
