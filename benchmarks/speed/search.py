"""What ASHA saves and what it costs: 30 trials stopped early against the same 30 in full.

Run: `python -m benchmarks.speed.search [--trials 30] [--epochs 27] [--seeds 3]`.

600 synthetic videos of 4 frames, vectors of 64 numbers, 150 of them held out for validation,
batches of 112; 2,000 other videos for the test. The best trial of a search, chosen on the
validation videos, is trained again in full, as jobs.tune does, and tested. Each seed draws other
trials; both schedulers run the same ones, two at a time. Recorded seed by seed: the same command
continues, `--fresh` begins anew.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import RESULTS, read_record, write_record
from benchmarks.speed.synthetic import equal_videos
from caan.experiments import search_report, search_space
from caan.experiments.config import SearchOptions
from caan.features.packed import PackedVideos
from caan.features.splits import Division, divided
from caan.models.build import build_model
from caan.training.config import TrainConfig
from caan.training.loop import fit
from caan.training.validation import judge
from jobs.runtime import cluster
from jobs.runtime.search import collected, search, trial_configs
from jobs.runtime.training_data import Data

RESULT = RESULTS / "search.json"
DIM, FRAMES, CLASSES = 64, 4, 7
NUM_VIDEOS, NUM_TEST = 600, 2000
METRIC = "validation_accuracy"
SPACE = """
model.scorer_depth: [1, 2, 3]
model.fusion: [concat, concat_fc, sum_fc, product, gated]
model.projection_size: [16, 32, 64]
model.fusion_size: [32, 64, 128]
model.feature_size: [16, 32, 64]
model.dropout: [0.0, 0.2, 0.5]
train.learning_rate: {loguniform: [1.0e-4, 3.0e-2]}
train.losses.triplet_weight: {uniform: [0.0, 2.0]}
"""


def synthetic_videos(num_videos: int, seed: int) -> PackedVideos:
    """Noise around a vector per class, and one per video, in both modalities; half the frames tell.

    The best classifier is far from perfect, so that trials differ.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(num_videos) % CLASSES
    directions = np.random.default_rng(99).normal(size=(2, CLASSES, DIM))
    label_N = np.repeat(labels, FRAMES)
    told_N1 = rng.random((len(label_N), 1)) > 0.5
    vectors = []
    for direction_KD in directions:
        of_video = np.repeat(rng.normal(size=(num_videos, DIM)), FRAMES, axis=0)
        noise = 1.5 * rng.normal(size=(len(label_N), DIM))
        vectors.append(
            (0.6 * told_N1 * direction_KD[label_N] + of_video + noise).astype(np.float16)
        )
    return equal_videos(vectors[0], vectors[1], labels, split="train")


def run_search(
    scheduler: str, seed: int, options: argparse.Namespace, data: Data, test: PackedVideos
) -> dict[str, Any]:
    """One search and the test of its best model."""
    axes = search_space.parse_space(SPACE, "benchmark")
    with tempfile.TemporaryDirectory(prefix="caan-search-") as folder:
        options_of_search = SearchOptions(
            features=("synthetic",),
            output=folder,
            space="",
            scheduler=scheduler,  # type: ignore[arg-type]
            num_trials=options.trials,
            grace_epochs=3,
            reduction_factor=3,
            seed=seed,
            train=TrainConfig(
                epochs=options.epochs, batch_videos=112, patience_epochs=0, selection="accuracy"
            ),
        )
        started = time.perf_counter()
        trials = collected(
            search(options_of_search, axes, {"synthetic": data}, num_parallel=2, gpus=0.0)
        )
        seconds = time.perf_counter() - started
    best = search_report.ranked(trials, METRIC)[0]
    model, train = trial_configs(options_of_search, best.settings)
    head = build_model(model, face_dim=DIM, context_dim=DIM, num_emotions=CLASSES, seed=train.seed)
    fit(head, data.train, data.validation, train)
    return {
        "epochs": sum(len(trial.epochs) for trial in trials),
        "failed": sum(bool(trial.error) for trial in trials),
        "validation_accuracy": round(best.best(METRIC)[METRIC], 4),
        "test_accuracy": round(judge(head, test).accuracy_and_uar("head")[0], 4),
        "seconds": round(seconds, 1),
        "best": {name: value for name, value in best.settings.items()},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of the epochs, and what the early stops cost on the test videos."""
    lost = [row["none"]["test_accuracy"] - row["asha"]["test_accuracy"] for row in rows]
    shares = [row["asha"]["epochs"] / row["none"]["epochs"] for row in rows]
    return {
        "share_of_epochs": round(float(np.mean(shares)), 3),
        "share_of_epochs_most": round(max(shares), 3),
        "test_accuracy_none": round(float(np.mean([r["none"]["test_accuracy"] for r in rows])), 4),
        "test_accuracy_asha": round(float(np.mean([r["asha"]["test_accuracy"] for r in rows])), 4),
        "points_lost": round(100 * float(np.mean(lost)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    setting = {"trials": options.trials, "epochs": options.epochs, "videos": NUM_VIDEOS}
    rows: list[dict[str, Any]] = []
    if RESULT.exists() and not options.fresh:
        before = read_record(RESULT)
        if before["setting"] == setting:
            rows = before["seeds"]
    torch.set_num_threads(1)
    train, validation = divided(synthetic_videos(NUM_VIDEOS, 0), Division(fraction=0.25))
    record = {"fingerprint": "synthetic", "config": {"no_face": "drop"}}
    data = Data(train=train, validation=validation, record=record)
    test = replace(synthetic_videos(NUM_TEST, 1), splits_V=np.full(NUM_TEST, "test"))
    cluster.start()
    for seed in range(len(rows), options.seeds):
        found = {kind: run_search(kind, seed, options, data, test) for kind in ("none", "asha")}
        rows.append({"seed": seed, **found})
        write_record(RESULT, {"setting": setting, **summary(rows), "seeds": rows})


if __name__ == "__main__":
    main()
