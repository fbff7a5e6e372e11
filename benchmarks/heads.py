"""Seconds of the fc6 heads' trials, default schedules with early stopping, one after another.

Run: `python -m benchmarks.heads [--videos 1000] [--seeds 1] [--systems caan faa] [--budget 600]`.
Vectors of 4096 numbers, 16 frames per video, held once; 70% of the videos are for training. Trials
run on one thread until the budget in seconds is spent; heads.json says which did, and their epochs.
The synthetic videos are easy and measure time only.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.head_epoch import synthetic_videos
from caan.comparison import grid, run_trial
from caan.recipes import RECIPES

RESULT = Path(__file__).with_suffix(".json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--systems", nargs="+", default=list(RECIPES))
    parser.add_argument("--budget", type=float, default=600.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    videos = synthetic_videos(options.videos)
    splits = np.where(np.arange(options.videos) % 10 < 7, "train", "test")
    videos = replace(videos, splits_V=splits)
    trials = grid(options.systems, range(options.seeds), ["split0"])
    rows = []
    started = time.perf_counter()
    for trial in trials:
        if time.perf_counter() - started > options.budget:
            break
        cpu_started = time.process_time()
        record, _ = run_trial(trial, videos)
        rows.append(
            {
                "system": trial.system,
                "seed": trial.seed,
                "epochs_run": record["epochs_run"],
                "seconds": record["seconds"],
                "cpu_seconds": round(time.process_time() - cpu_started, 2),
            }
        )
        print(rows[-1], flush=True)
        result = {
            "videos": options.videos,
            "frames_per_video": 16,
            "dim": videos.face_dim,
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "trials_planned": len(trials),
            "trials_run": len(rows),
            "seconds": round(time.perf_counter() - started, 1),
            "trials": rows,
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
