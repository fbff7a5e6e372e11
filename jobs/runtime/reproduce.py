"""The trials of jobs.reproduce as Ray tasks, one CPU core each."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import ray
import torch

from caan import storage
from caan.errors import InputError
from caan.experiments.trials import Trial, run_trial, write_trial
from caan.features.packed import PackedVideos
from jobs.runtime import cluster

logger = logging.getLogger(__name__)


def check_output(output: str) -> None:
    """Refuse a folder that holds another job's output.

    Raises:
        InputError: it does.
    """
    run_file = storage.join(output, "run.json")
    other = storage.read_json(run_file).get("job") if storage.exists(run_file) else "reproduce"
    if other != "reproduce":
        raise InputError(
            f"`{output}` holds the output of jobs.{other}: choose another --output for the tables."
        )


def share_videos(videos: PackedVideos) -> ray.ObjectRef:
    """Start Ray, or connect to it, and put the videos into its object store once for all nodes."""
    cluster.start()
    return ray.put(videos)


def run_trials(
    trials: Sequence[Trial],
    shared: ray.ObjectRef,
    splits_DV: Mapping[str, np.ndarray],
    data: Mapping[str, str],
    output: str,
) -> None:
    """Run the trials on the running Ray and write each one's files when it ends.

    `shared` are the packed videos in Ray's object store; `splits_DV` and `data` have the splits
    and the `data_fingerprint` of each division.
    """
    # An embedded Ray has more CPU slots than cores; a trial takes a whole core.
    slots = float(ray.cluster_resources().get("CPU", 1)) / cluster.physical_cpus()
    task = ray.remote(num_cpus=max(1, int(slots)))(_run_one)
    waiting = [
        task.remote(trial, shared, splits_DV[trial.split], data[trial.split], output)
        for trial in trials
    ]
    num_done = 0
    while waiting:
        ready, waiting = ray.wait(waiting)
        for line in ray.get(ready):
            num_done += 1
            logger.info("%d/%d %s", num_done, len(trials), line)


def _run_one(
    trial: Trial, videos: PackedVideos, splits_V: np.ndarray, data: str, output: str
) -> str:
    torch.set_num_threads(1)
    videos = dataclasses.replace(videos, splits_V=splits_V)
    record, predictions = run_trial(trial, videos)
    write_trial(output, trial, data, record, predictions)
    rule = record["rules"][record["rule"]]
    return (
        f"{trial.name}: accuracy {rule['accuracy']:.3f}, {record['epochs_run']} epochs, "
        f"{record['seconds']:.0f} s"
    )
