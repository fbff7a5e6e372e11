"""Seconds of the fc6 heads' trials, default schedules with early stopping.

Run:

    python -m benchmarks.speed.heads [--videos 1000] [--seeds 1] [--systems caan faa] [--budget 600]

Vectors of 4096 numbers, 16 frames per video, held once; 70% of the videos are for training. Trials
run on one thread, one after another, until the budget in seconds is spent; heads.json keeps those
that are done, and the same command does the next. `--fresh` forgets them. CPU seconds count where
the machine has other work. The videos are synthetic: their accuracy only says that training had
something to learn and something to miss. `--systems pool5_face transferred_encoding` and the like
measure what reads pool5 maps (of VGG's size) and the encoders of Table 6, apart from the sum.

`--reproduce` instead writes the features as jobs.extract does, runs all fc6 heads x 5 seeds over
them by jobs.reproduce, and records minutes, epochs and memory of each process in heads_grid.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.measuring import RESULTS, read_record, write_record
from benchmarks.speed.head_epoch import DIM, STORED, synthetic_videos, with_maps
from benchmarks.speed.training import write_features
from caan import storage
from caan.experiments.trials import FROM_POOL5, grid, run_trial
from caan.features.packed import PackedVideos
from caan.training.recipes import RECIPES

RESULT = RESULTS / "heads.json"
GRID_RESULT = RESULTS / "heads_grid.json"
HEADS = [name for name, recipe in RECIPES.items() if recipe.model.name != "pool5_attention"]
CORES, SEEDS, LIMIT_MINUTES = 2, 5, 90


def summary(rows: list[dict[str, Any]], num_systems: int) -> dict[str, Any]:
    """What the trials say of all heads over five seeds on two cores, once each head was run."""
    by_system: dict[str, list[float]] = {}
    for row in (row for row in rows if row["system"] in HEADS):
        by_system.setdefault(row["system"], []).append(row["cpu_seconds"])
    if len(by_system) < num_systems:
        return {}
    one_seed = sum(float(np.mean(seconds)) for seconds in by_system.values())
    return {
        "cpu_minutes_of_one_seed": round(one_seed / 60, 1),
        "predicted_minutes": round(SEEDS * one_seed / CORES / 60, 1),
        "prediction": f"mean CPU time of each head, times {SEEDS} seeds, over {CORES} cores",
        "limit_minutes": LIMIT_MINUTES,
    }


def through_reproduce(videos: PackedVideos, systems: list[str]) -> None:
    """All trials by jobs.reproduce; its processes' own memory is sampled meanwhile."""
    with tempfile.TemporaryDirectory(prefix="caan-benchmark-") as name:
        features, output = Path(name) / "features", Path(name) / "report"
        write_features(features, videos)
        words = [sys.executable, "-m", "jobs.reproduce", "--features", str(features)]
        words += ["--output", str(output), "--systems", *systems]
        words += ["--seeds", *map(str, range(SEEDS))]
        started, own_mb = time.perf_counter(), 0.0
        job = subprocess.Popen(words)
        while job.poll() is None:
            for process in psutil.Process(job.pid).children(recursive=True):
                try:
                    if "_trial" in " ".join(process.cmdline()):
                        own_mb = max(own_mb, process.memory_full_info().uss / 2**20)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(2)
        minutes = (time.perf_counter() - started) / 60
        if job.returncode:
            raise SystemExit(job.returncode)
        trials = [storage.read_json(path) for path in sorted(output.glob("trials/*.json"))]
        record = storage.read_json(output / "run.json")
    epochs = {
        system: [trial["epochs_run"] for trial in trials if trial["system"] == system]
        for system in systems
    }
    result = {
        "videos": len(videos),
        "frames_per_video": STORED,
        "dim": DIM,
        "trials": len(trials),
        "minutes": round(minutes, 1),
        "limit_minutes": LIMIT_MINUTES,
        "features_mb": round(record["features"]["num_bytes"] / 2**20),
        "own_memory_of_a_trial_mb": round(own_mb),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "epochs_run": epochs,
    }
    write_record(GRID_RESULT, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--systems", nargs="+", default=HEADS)
    parser.add_argument("--budget", type=float, default=600.0)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--reproduce", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if RESULT.exists() and not options.fresh:
        before = read_record(RESULT)
        if before["videos"] == options.videos and before["torch"] == torch.__version__:
            rows = before["trials"]
    videos = synthetic_videos(options.videos)
    splits = np.where(np.arange(options.videos) % 10 < 7, "train", "test")
    videos = replace(videos, splits_V=splits)
    if options.reproduce:
        through_reproduce(videos, options.systems)
        return
    videos = with_maps(videos, {FROM_POOL5[s] for s in options.systems if s in FROM_POOL5})
    started = time.perf_counter()
    for trial in grid(options.systems, range(options.seeds), ["split0"]):
        if any((row["system"], row["seed"]) == (trial.system, trial.seed) for row in rows):
            continue
        if time.perf_counter() - started > options.budget:
            break
        cpu_started = time.process_time()
        record, _ = run_trial(trial, videos)
        rows.append(
            {
                "system": trial.system,
                "seed": trial.seed,
                "epochs_run": record["epochs_run"],
                "best_epoch": record["best_epoch"],
                "accuracy": round(record["rules"][record["rule"]]["accuracy"], 3),
                "seconds": record["seconds"],
                "cpu_seconds": round(time.process_time() - cpu_started, 2),
            }
        )
        result = {
            "videos": options.videos,
            "frames_per_video": STORED,
            "dim": DIM,
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            **summary(rows, len(HEADS)),
            "trials": rows,
        }
        write_record(RESULT, result)


if __name__ == "__main__":
    main()
