"""Runs of jobs.train for tests: small features, options, and how two runs are compared."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caan import config
from caan.models.config import ModelConfig
from caan.training.config import TrainConfig
from caan.training.loop import fit
from jobs.runtime.train import build_head
from jobs.runtime.training_data import DataOptions, read_data
from jobs.train import Job
from tests.support.feature_files import write_features

LABELS = ("anger", "fear", "joy")
SMALL = ModelConfig(projection_size=8, fusion_size=16, feature_size=8, scorer_sizes=(4, 4))
QUICK = TrainConfig(
    epochs=14, batch_videos=12, learning_rate=3e-3, patience_epochs=0, checkpoint_every_epochs=2
)
RELATIVE = 1e-3
"""Greatest difference of losses that the order of float sums over workers may leave."""


def training_features(folder: Path) -> str:
    """42 training and 7 validation videos, two segments each, over two files."""
    return write_features(
        folder,
        LABELS,
        num_videos=49,
        num_frames=6,
        segment_frames=4,
        files=2,
        splits=("val", *["train"] * 6),
    )


def job_of(features: str, output: Path | str, **options: Any) -> Job:
    job = Job(features=features, output=str(output), model=SMALL, train=QUICK)
    return dataclasses.replace(job, **options)


def undisturbed_metrics(job: Job) -> dict[str, Any]:
    """What one worker that nobody disturbs ends with, without Ray."""
    data = read_data(config.part(DataOptions, job))
    model, options = job.configs()
    head = build_head(data, model, options.seed)
    result = fit(head, data.train, data.validation, options)
    return {"history": result.history, "validation": result.metrics}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every epoch's loss and the final metrics agree."""
    losses, expected_losses = (
        [row["train_loss"] for row in metrics["history"]] for metrics in (found, expected)
    )
    assert losses == pytest.approx(expected_losses, rel=RELATIVE, abs=1e-4)
    assert found["validation"] == pytest.approx(expected["validation"], rel=RELATIVE, abs=1e-3)
    assert found["validation"]["validation_videos"] == 7


def when_there_is_a_state(folder: Path, act: Callable[[], None]) -> threading.Thread:
    """Do something once a training state lies in a storage folder."""

    def wait() -> None:
        while not list(folder.glob("train-*/checkpoint_*/training_state.pt")):
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
