"""Features -> the best of many models: search a space of jobs.train's options with Ray Tune.

python -m jobs.tune --features features/ --output search/ --space tune_spaces/fusion.yaml

Writes trials.parquet, trials.csv, report.md and, under model/, the best model as a complete folder
that jobs.label takes. --resume continues an interrupted search. The test split is never read.
"""

import logging
import sys
from dataclasses import dataclass

from caan import config
from caan.experiments.config import SearchOptions
from jobs.runtime import cli

logger = logging.getLogger(__name__)

FIRST = ("features", "output", "space", "searcher", "scheduler", "num_trials", "resume",
         "workers_per_trial", "manifest", "train.epochs")  # fmt: skip
"""Options that `--help` shows."""


@dataclass(frozen=True, kw_only=True)
class Job(SearchOptions):
    """Options of jobs.tune."""


def main(job: Job) -> int:
    """Search, write what was found and the best model; give the exit code."""
    from caan import storage
    from caan.experiments import search_report
    from jobs.runtime import cluster, search, search_setup

    options = config.part(SearchOptions, job)
    axes = search_setup.check_options(options)
    data = search_setup.read_features(options, axes)
    identity = search_setup.identify(options, axes, data)
    search_setup.open_output(options, identity)
    cluster.start()
    num_parallel, gpus = search_setup.share_cluster(options)
    storage.write_json(storage.join(job.output, "search.json"), identity)
    logger.info(
        "searching %s, %d trials at a time", ", ".join(a.option for a in axes), num_parallel
    )
    results = search.search(options, axes, data, num_parallel, gpus)
    trials = search.collected(results)
    metric = f"validation_{search.trial_configs(options, {})[1].selection}"
    num_videos = len(next(iter(data.values())).validation)
    search_report.write_search(job.output, trials, metric, num_videos)
    order = search_report.ranked(trials, metric)
    if not order:
        logger.error("no trial succeeded; %s", trials[0].error if trials else "there is none")
        return 1
    best = order[0]
    search_setup.publish_best(options, best, results[trials.index(best)], data)
    logger.info("report: %s", storage.join(job.output, "report.md"))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main, first=FIRST))
