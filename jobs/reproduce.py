"""Features -> the paper's tables: train and compare every system of the paper over several seeds.

python -m jobs.reproduce --features features/ --output report/

The systems learn from the manifest's `train` split and are scored on its `test` split. Choose some
with --systems caan faa ffaa and --seeds 0 1 2. For several divisions (VideoEmotion-8 has ten) give
--manifest s0.parquet s1.parquet ... Each finished trial is a file under trials/; run the same
command again to do the rest.
"""

import logging
import sys
from dataclasses import dataclass, field
from typing import Literal

from caan import config
from caan.experiments.config import EncoderConfig
from jobs.runtime import cli

logger = logging.getLogger(__name__)

FIRST = (
    "features",
    "output",
    "manifest",
    "systems",
    "seeds",
    "train_split",
    "test_split",
    "epochs",
)
"""Options that `--help` shows."""


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
    """What to do with trials in --output that have other features, splits or options."""


def main(job: Job) -> int:
    """Run the trials that are left and write the report; give the exit code."""
    from caan import storage
    from caan.experiments import results, tables, trials
    from caan.experiments.comparison import read_comparison
    from caan.outputs import layout
    from jobs.runtime.reproduce import check_output, run_trials, share_videos

    check_output(job.output)
    data = read_comparison(
        job.features,
        job.manifest,
        job.systems,
        train_split=job.train_split,
        pool5_gib=job.pool5_gib,
    )
    todo = trials.grid(
        data.systems,
        job.seeds,
        data.splits_DV,
        train_split=job.train_split,
        test_split=job.test_split,
        validation_fraction=job.validation_fraction,
        epochs=job.epochs,
        encoders=job.encoders,
    )
    for trial in todo:  # refuse what cannot be learned from before anything is written
        trials.divide_videos(data.of_division(trial.split), trial)
    storage.check_writable(job.output)
    prints = {
        name: trials.data_fingerprint(data.of_division(name), data.fingerprint)
        for name in data.splits_DV
    }
    recompute = job.on_change == "recompute"
    left = trials.unfinished_trials(job.output, todo, prints, recompute=recompute)
    logger.info("%d trials, %d of them done before", len(todo), len(todo) - len(left))
    label_set, splits_DV = data.videos.label_set, data.splits_DV
    features = {"fingerprint": data.fingerprint, "num_bytes": data.videos.num_bytes}
    logger.info("%.2f GB of features, held once per node", data.videos.num_bytes / 1e9)
    if left:
        shared = share_videos(data.videos)
        del data  # the workers read the object store's copy; a second one only takes memory
        run_trials(left, shared, splits_DV, prints, job.output)
    tables.write_report(job.output, results.read_results(job.output, todo), label_set)
    record = {"job": "reproduce", "config": config.to_dict(job), "features": features}
    storage.write_json(
        storage.join(job.output, "run.json"),
        record | {"num_trials": len(todo), "versions": layout.versions()},
    )
    logger.info("report: %s", storage.join(job.output, "report.md"))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main, first=FIRST))
