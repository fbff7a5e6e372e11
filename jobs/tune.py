"""Features -> the best of many models: search a space of jobs.train's options with Ray Tune.

python -m jobs.tune --features features/ --output search/ --space tune_spaces/fusion.yaml

Writes trials.parquet, trials.csv, report.md and, under model/, the best model as a complete folder
that jobs.label takes. --resume continues an interrupted search. The test split is never read.
"""

import dataclasses
import functools
import importlib.util
import logging
import sys
from collections.abc import Mapping
from typing import Any

from ray import tune

from caan import config, storage
from caan.errors import InputError
from caan.experiments import search_report, search_space
from caan.experiments.search_report import SearchTrial
from caan.experiments.search_space import Axis
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.training.config import TrainConfig, fingerprint_values
from jobs import train as train_job
from jobs.runtime import cli, cluster
from jobs.runtime.search import FEATURES, Job, adapted, collected, configs, search, train_job_of

logger = logging.getLogger(__name__)


def checked_configs(job: Job, settings: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """`configs`, and whether such a head can be built and compared with the others.

    Raises:
        InputError: it cannot.
    """
    if "train.selection" in settings:
        raise InputError("`train.selection` decides what is best and cannot vary within a search")
    model, train = configs(job, settings)
    build_model(model, face_dim=4, context_dim=4, num_emotions=3)
    return model, train


def check_job(job: Job) -> tuple[Axis, ...]:
    """The job's space, checked with the rest of its options, before any data is read.

    Raises:
        InputError: what cannot be searched, and why.
    """
    for option in ("num_trials", "workers_per_trial", "grace_epochs", "perturbation_epochs"):
        if getattr(job, option) < 1:
            raise InputError(f"--{option.replace('_', '-')} {getattr(job, option)}: at least 1.")
    if job.reduction_factor < 2:
        raise InputError(f"--reduction-factor {job.reduction_factor}: at least 2.")
    if not storage.exists(job.space):
        raise InputError(f"there is no space `{job.space}`.")
    text = storage.read_bytes(job.space).decode(errors="replace")
    axes = search_space.parse_space(text, job.space)
    search_space.check_space(axes, lambda settings: checked_configs(job, settings), job.space)
    if job.searcher == "grid":
        search_space.grid_size(axes)
    if job.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError(
            "--searcher optuna needs the package `optuna`, which is not installed: "
            "`pip install optuna`, or choose --searcher random."
        )
    if job.mlflow and importlib.util.find_spec("mlflow") is None:
        raise InputError(
            "--mlflow needs the package `mlflow`, which is not installed: `pip install "
            "'.[mlflow]'`, or leave it out; TensorBoard's files are written anyway."
        )
    if job.scheduler == "pbt":
        if job.workers_per_trial > 1:
            raise InputError(
                "--scheduler pbt copies a trial's weights through Ray Tune's checkpoints, and a "
                "trial of several workers keeps its own with Ray Train, where Tune cannot reach "
                "them: take --workers-per-trial 1, or --scheduler asha."
            )
        if job.searcher != "random":
            raise InputError(
                f"--scheduler pbt draws its own options: take --searcher random, not "
                f"{job.searcher}."
            )
        if len(job.features) > 1:
            raise InputError("--scheduler pbt copies weights, which fit one --features only.")
        search_space.check_population(axes)
    return axes


def read_data(job: Job) -> dict[str, train_job.Data]:
    """What the trials learn from, by the name of its features folder.

    Raises:
        InputError: no finished features, no labels, no validation videos, or features folders that
            would be judged on different videos.
    """
    data = {name: train_job.read_data(train_job_of(job, name, {})) for name in job.features}
    first = next(iter(data.values()))
    if not len(first.validation):
        raise InputError(
            "no validation videos are left to choose a trial by: give more labelled videos, a "
            "split `val`, or a larger --validation-fraction."
        )
    for name, other in data.items():
        if set(other.validation.video_ids_V) != set(first.validation.video_ids_V):
            raise InputError(
                f"features `{name}` would be judged on other videos than `{job.features[0]}`: "
                "give the manifest a split `val` for all of them, and extract the same videos."
            )
    return data


def identity(job: Job, axes: tuple[Axis, ...], data: dict[str, train_job.Data]) -> dict[str, Any]:
    """What must be the same for a search to be continued."""
    values = config.to_dict(job)
    for name in ("resume", "output", "space", "cpus_per_trial", "gpus_per_trial", "mlflow"):
        del values[name]
    values["train"] = fingerprint_values(job.train)
    return {
        "job": values,
        "space": [config.to_dict(axis) for axis in axes],
        "features": {name: part.record["fingerprint"] for name, part in data.items()},
    }


def _open_output(job: Job, now: dict[str, Any]) -> None:
    file = storage.join(job.output, "search.json")
    if not storage.exists(file):
        if job.resume:
            raise InputError(f"--resume: `{job.output}` holds no search.")
        storage.check_writable(job.output)
        return
    if not job.resume:
        raise InputError(
            f"`{job.output}` holds a search: continue it with --resume, or choose another --output."
        )
    if storage.read_json(file) != now:
        raise InputError(
            f"the search in `{job.output}` has another space, options or features: resume it with "
            "its own, or choose another --output."
        )


def main(job: Job) -> int:
    """Search, write what was found and the best model; gives the exit code."""
    axes = check_job(job)
    data = read_data(job)
    for part in data.values():
        seen = functools.partial(_check_context, job, part)
        search_space.check_space(axes, seen, job.space)
    now = identity(job, axes, data)
    _open_output(job, now)
    cluster.start()
    num_gpus = cluster.num_gpus()
    share = 0.25 if job.workers_per_trial == 1 else 1.0
    gpus = job.gpus_per_trial if job.gpus_per_trial >= 0 else (share if num_gpus else 0.0)
    num_parallel = search_space.max_concurrent(
        num_cpus=cluster.physical_cpus(),
        num_gpus=num_gpus,
        cpus_per_trial=job.cpus_per_trial * job.workers_per_trial,
        gpus_per_trial=gpus * job.workers_per_trial,
    )
    storage.write_json(storage.join(job.output, "search.json"), now)
    logger.info(
        "searching %s, %d trials at a time", ", ".join(a.option for a in axes), num_parallel
    )
    results = search(job, axes, data, num_parallel, gpus)
    trials = collected(results)
    _, base = train_job.configs_of(train_job_of(job, "", {}))
    metric = f"validation_{base.selection}"
    first = next(iter(data.values()))
    search_report.write_search(job.output, trials, metric, len(first.validation))
    order = search_report.ranked(trials, metric)
    if not order:
        logger.error("no trial succeeded; %s", trials[0].error if trials else "there is none")
        return 1
    _publish(job, order[0], results[trials.index(order[0])], data)
    logger.info("report: %s", storage.join(job.output, "report.md"))
    return 0


def _check_context(job: Job, data: train_job.Data, settings: Mapping[str, Any]) -> None:
    train_job.check_context(data, configs(job, settings)[0])


def _publish(
    job: Job, best: SearchTrial, result: tune.Result, data: dict[str, train_job.Data]
) -> None:
    """Write the best model: trained again in full, or from a population's weights.

    Without exchanges a trial depends on its options alone, so training again costs one trial and
    no trial need keep its weights.
    """
    name = str(best.settings.get(FEATURES, job.features[0]))
    model, train = configs(job, best.settings)
    start = result.checkpoint if job.scheduler == "pbt" else None
    if start is not None:
        train = dataclasses.replace(train, epochs=max(1, len(best.epochs)))
    logger.info("making the best model: %s", dict(best.settings))
    train_job.train_model(
        train_job_of(job, name, best.settings),
        data[name],
        adapted(model, data[name]),
        train,
        start=start,
    )


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
