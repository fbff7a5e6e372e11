"""Features -> the paper's tables: train and compare every system of the paper over several seeds.

python -m jobs.reproduce --features features/ --output report/

The manifest's `train` split is learned from and its `test` split scored. Choose with --systems caan
faa ffaa and --seeds 0 1 2. Several divisions (VideoEmotion-8 has ten): --manifest s0.parquet
s1.parquet ... Each finished trial is a file under trials/; the same command again does the rest.
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass

import numpy as np
import ray
import torch

from caan import comparison, config, on_ray, runs, storage, tables
from caan.comparison import SYSTEMS, Trial
from caan.datasets import face_crops_of, require_context
from caan.errors import InputError
from caan.packing import PackedVideos, pack_features
from caan.planning import check_manifest
from caan.schema import label_set_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.reproduce."""

    features: str
    """Output folder of jobs.extract; local or s3://."""
    output: str
    """Folder of the report and of trials/; local or s3://."""
    manifest: tuple[str, ...] = ()
    """Manifests with labels and splits, one per division; empty: the features' own."""
    systems: tuple[str, ...] = ()
    """Systems to compare (see docs/reproduce.md); empty: all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds; each trains every system once on every division."""
    train_split: str = "train"
    """Split that is learned from."""
    test_split: str = "test"
    """Split that is scored."""
    validation_fraction: float = 0.15
    """Share of the training videos held out for early stopping, unless there is a split `val`."""
    epochs: int = 0
    """Most epochs of the heads; 0: each recipe's own, ended early by its patience."""


def read_data(job: Job) -> tuple[dict[str, PackedVideos], str]:
    """Videos under the splits of each manifest (sharing one pack), and the features' fingerprint.

    Raises:
        InputError: no finished features, no labels, manifests that disagree.
    """
    run_file = storage.join(job.features, "run.json")
    if not storage.exists(run_file):
        raise InputError(f"`{job.features}` holds no features: it has no run.json.")
    record = storage.read_json(run_file)
    if not record.get("is_complete") or record.get("job") != "extract":
        raise InputError(
            f"the features in `{job.features}` are not finished: run the same jobs.extract again."
        )
    uris = job.manifest or (storage.join(job.features, "manifest.parquet"),)
    read = [storage.read_table(uri) for uri in uris]
    manifests = [check_manifest(table, uri) for table, uri in zip(read, uris, strict=True)]
    face_crops = record.get("face_crops") or face_crops_of(read[0])
    for name in job.systems or SYSTEMS:
        require_context(face_crops, comparison.modalities_of(name))
    labels = [label for label in manifests[0]["label"].to_pylist() if label]
    if not labels:
        raise InputError(f"manifest `{uris[0]}` has no labels: there is nothing to compare.")
    columns = ["segment_id", "video_id", "attempt", "frames", "faces"]
    packed = pack_features(
        runs.latest_segments(job.features, "features", columns), manifests[0], label_set_of(labels)
    )
    divisions = {}
    for number, (uri, manifest) in enumerate(zip(uris, manifests, strict=True)):
        divisions[f"split{number}"] = comparison.with_splits(packed, manifest, uri)
    return divisions, record["fingerprint"]


def _trial(trial: Trial, videos: PackedVideos, splits: np.ndarray, output: str, data: str) -> str:
    torch.set_num_threads(1)
    videos = dataclasses.replace(videos, splits_V=splits)
    record, predictions = comparison.run_trial(trial, videos)
    comparison.write_trial(output, trial, data, record, predictions)
    rule = record["rules"][record["rule"]]
    return (
        f"{trial.name}: accuracy {rule['accuracy']:.3f}, {record['epochs_run']} epochs, "
        f"{record['seconds']:.0f} s"
    )


def main(job: Job) -> int:
    """Run the trials that are left and write the report; gives the exit code."""
    divisions, features = read_data(job)
    trials = comparison.grid(
        job.systems or tuple(SYSTEMS),
        job.seeds,
        divisions,
        train_split=job.train_split,
        test_split=job.test_split,
        validation_fraction=job.validation_fraction,
        epochs=job.epochs,
    )
    for trial in trials:
        comparison.divided(divisions[trial.split], trial)
    storage.check_writable(job.output)
    data = {name: comparison.data_fingerprint(v, features) for name, v in divisions.items()}
    left = [t for t in trials if not comparison.is_done(job.output, t, data[t.split])]
    logger.info("%d trials, %d of them done before", len(trials), len(trials) - len(left))
    if left:
        _run(left, divisions, job.output, data)
    first = next(iter(divisions.values()))
    results = comparison.read_results(job.output, trials)
    tables.write_report(job.output, results, first.label_set)
    storage.write_json(
        storage.join(job.output, "run.json"),
        {
            "job": "reproduce",
            "config": config.to_dict(job),
            "features": {"fingerprint": features},
            "num_trials": len(trials),
            "versions": runs.versions(),
        },
    )
    logger.info("report: %s", storage.join(job.output, "report.md"))
    return 0


def _run(
    trials: list[Trial], divisions: dict[str, PackedVideos], output: str, data: dict[str, str]
) -> None:
    on_ray.start()
    # An embedded Ray has more CPU slots than cores; a trial takes a whole core.
    slots = float(ray.cluster_resources().get("CPU", 1)) / on_ray.physical_cpus()
    task = ray.remote(num_cpus=max(1, int(slots)))(_trial)
    shared = ray.put(next(iter(divisions.values())))
    waiting = [
        task.remote(trial, shared, divisions[trial.split].splits_V, output, data[trial.split])
        for trial in trials
    ]
    num_done = 0
    while waiting:
        ready, waiting = ray.wait(waiting)
        for line in ray.get(ready):
            num_done += 1
            logger.info("%d/%d %s", num_done, len(trials), line)


if __name__ == "__main__":
    sys.exit(on_ray.run_job(Job, main))
