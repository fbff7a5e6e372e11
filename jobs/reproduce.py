"""Features -> the paper's tables: train and compare every system of the paper over several seeds.

python -m jobs.reproduce --features features/ --output report/

The manifest's `train` split is learned from and its `test` split scored. Choose with --systems caan
faa ffaa and --seeds 0 1 2. Several divisions (VideoEmotion-8 has ten): --manifest s0.parquet
s1.parquet ... Each finished trial is a file under trials/; the same command again does the rest.
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import ray
import torch

from caan import config, storage
from caan.datasets.registry import face_crops_of, require_context
from caan.errors import InputError
from caan.experiments import tables
from caan.experiments import trials as comparison
from caan.experiments.config import EncoderConfig
from caan.experiments.trials import FROM_POOL5, SYSTEMS, Trial
from caan.features import leakage
from caan.features.packed import PackedVideos, add_maps, pack_features
from caan.outputs import layout
from caan.outputs.plan import check_manifest
from caan.schema import label_set_of
from jobs.runtime import cli, cluster

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
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    """Options of the encoders of Table 6."""
    pool5_gib: float = 8.0
    """Most memory for pool5 maps, which the pool5 systems of Tables 2 and 3 read, in GiB."""
    on_change: Literal["error", "recompute"] = "error"
    """Of trials that are there and were made with other features, splits or options."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is compared on."""

    videos: PackedVideos
    """All labelled videos, packed once, under the first division."""
    splits_DV: dict[str, np.ndarray]
    """The videos' splits by the name of the division."""
    systems: tuple[str, ...]
    """The systems asked for; if none were, all that these features allow."""
    fingerprint: str
    """The features' own."""

    def under(self, division: str) -> PackedVideos:
        """The videos under the splits of a division."""
        return dataclasses.replace(self.videos, splits_V=self.splits_DV[division])


def read_data(job: Job) -> Data:
    """Videos with the splits of each manifest, and pool5 maps where a system needs them.

    Raises:
        InputError: no finished features, no labels, manifests that disagree, no pool5 maps for a
            system that was asked for.
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
    labelled = manifests[0].filter(pc.is_valid(manifests[0]["label"]))
    packed = pack_features(
        layout.latest_segments(job.features, "features", columns), labelled, label_set_of(labels)
    )
    shapes = {
        name: shape
        for name in ("face", "context")
        if (shape := record.get("identity", {}).get(f"{name}_pool5_shape"))
    }
    systems = job.systems or tuple(
        name for name in SYSTEMS if FROM_POOL5.get(name, "") in ("", *shapes)
    )
    needed = {FROM_POOL5[name] for name in systems if name in FROM_POOL5}
    if missing := sorted(needed - shapes.keys()):
        raise InputError(
            f"the systems {', '.join(n for n in systems if FROM_POOL5.get(n) in missing)} need "
            f"pool5 maps of the {' and the '.join(missing)}, and the features in `{job.features}` "
            "have none: extract with `--pool5 both`, or leave these systems out."
        )
    if needed:
        columns += [f"{name}_pool5" for name in sorted(needed)]
        packed = add_maps(
            packed,
            layout.latest_segments(job.features, "features", columns),
            {name: shapes[name] for name in sorted(needed)},
            max_bytes=int(job.pool5_gib * 2**30),
        )
    seen = leakage.read_beside(job.features)
    splits_DV = {}
    for number, (uri, manifest) in enumerate(zip(uris, manifests, strict=True)):
        honest = leakage.honest_splits(manifest, seen, job.train_split)
        splits_DV[f"split{number}"] = comparison.with_splits(packed, honest, uri).splits_V
    return Data(
        videos=packed,
        splits_DV=splits_DV,
        systems=systems,
        fingerprint=record["fingerprint"],
    )


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
    check_output(job.output)
    data = read_data(job)
    trials = comparison.grid(
        data.systems,
        job.seeds,
        data.splits_DV,
        train_split=job.train_split,
        test_split=job.test_split,
        validation_fraction=job.validation_fraction,
        epochs=job.epochs,
        encoders=job.encoders,
    )
    for trial in trials:
        comparison.divided(data.under(trial.split), trial)
    storage.check_writable(job.output)
    prints = {
        name: comparison.data_fingerprint(data.under(name), data.fingerprint)
        for name in data.splits_DV
    }
    left = comparison.not_done(job.output, trials, prints, recompute=job.on_change == "recompute")
    logger.info("%d trials, %d of them done before", len(trials), len(trials) - len(left))
    label_set, num_bytes = data.videos.label_set, data.videos.num_bytes
    features = {"fingerprint": data.fingerprint, "num_bytes": num_bytes}
    logger.info("%.2f GB of features, held once per node", data.videos.num_bytes / 1e9)
    if left:
        cluster.start()
        shared = ray.put(data.videos)
        splits_DV = data.splits_DV
        del data  # the workers read the object store's copy; a second one would only take memory
        _run(left, shared, splits_DV, job.output, prints)
    results = comparison.read_results(job.output, trials)
    tables.write_report(job.output, results, label_set)
    storage.write_json(
        storage.join(job.output, "run.json"),
        {
            "job": "reproduce",
            "config": config.to_dict(job),
            "features": features,
            "num_trials": len(trials),
            "versions": layout.versions(),
        },
    )
    logger.info("report: %s", storage.join(job.output, "report.md"))
    return 0


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


def _run(
    trials: list[Trial],
    shared: ray.ObjectRef,
    splits_DV: dict[str, np.ndarray],
    output: str,
    data: dict[str, str],
) -> None:
    # An embedded Ray has more CPU slots than cores; a trial takes a whole core.
    slots = float(ray.cluster_resources().get("CPU", 1)) / cluster.physical_cpus()
    task = ray.remote(num_cpus=max(1, int(slots)))(_trial)
    waiting = [
        task.remote(trial, shared, splits_DV[trial.split], output, data[trial.split])
        for trial in trials
    ]
    num_done = 0
    while waiting:
        ready, waiting = ray.wait(waiting)
        for line in ray.get(ready):
            num_done += 1
            logger.info("%d/%d %s", num_done, len(trials), line)


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
