"""What surrounds a search: the checks of its options, its data, its output and its best model."""

import dataclasses
import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from ray import tune

from caan import config, storage
from caan.errors import InputError
from caan.experiments import search_space
from caan.experiments.config import SearchOptions
from caan.experiments.search_report import SearchTrial
from caan.experiments.search_space import Axis
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.training.config import fingerprint_values
from jobs.runtime import cluster
from jobs.runtime.search import FEATURES, trial_configs
from jobs.runtime.train import TrainRun, adapt_model, train_model
from jobs.runtime.training_data import Data, DataOptions, check_context, read_data

logger = logging.getLogger(__name__)


def check_options(options: SearchOptions) -> tuple[Axis, ...]:
    """Read the space and check it with the other options, before any data is read.

    Raises:
        InputError: what cannot be searched, and why.
    """
    for name in ("num_trials", "workers_per_trial", "grace_epochs", "perturbation_epochs"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1.")
    if options.reduction_factor < 2:
        raise InputError(f"--reduction-factor {options.reduction_factor}: at least 2.")
    if not storage.exists(options.space):
        raise InputError(f"there is no space `{options.space}`.")
    text = storage.read_bytes(options.space).decode(errors="replace")
    axes = search_space.parse_space(text, options.space)
    search_space.check_space(axes, lambda settings: try_head(options, settings), options.space)
    if options.searcher == "grid":
        search_space.grid_size(axes)
    if options.searcher == "optuna" and importlib.util.find_spec("optuna") is None:
        raise InputError(
            "--searcher optuna needs the package `optuna`, which is not installed: "
            "`pip install optuna`, or choose --searcher random."
        )
    if options.mlflow and importlib.util.find_spec("mlflow") is None:
        raise InputError(
            "--mlflow needs the package `mlflow`, which is not installed: `pip install "
            "'.[mlflow]'`, or leave it out; TensorBoard's files are written anyway."
        )
    if options.scheduler == "pbt":
        _check_pbt(options, axes)
    return axes


def try_head(options: SearchOptions, settings: Mapping[str, Any]) -> ModelConfig:
    """Build a trial's head at small sizes; give its config.

    Raises:
        InputError: such a head cannot be built, or not be compared with the others.
    """
    if "train.selection" in settings:
        raise InputError("`train.selection` decides what is best and cannot vary within a search")
    model, _ = trial_configs(options, settings)
    build_model(model, face_dim=4, context_dim=4, num_emotions=3)
    return model


def _check_pbt(options: SearchOptions, axes: tuple[Axis, ...]) -> None:
    if options.workers_per_trial > 1:
        raise InputError(
            "--scheduler pbt copies a trial's weights through Ray Tune's checkpoints, and a trial "
            "of several workers keeps its weights with Ray Train, where Tune cannot reach them: "
            "take --workers-per-trial 1, or --scheduler asha."
        )
    if options.searcher != "random":
        raise InputError(
            f"--scheduler pbt draws its own options: take --searcher random, not "
            f"{options.searcher}."
        )
    if len(options.features) > 1:
        raise InputError("--scheduler pbt copies weights, which fit one --features only.")
    search_space.check_population(axes)


def read_features(options: SearchOptions, axes: tuple[Axis, ...]) -> dict[str, Data]:
    """Read what the trials learn from, by the name of its features folder.

    Raises:
        InputError: no finished features, no labels, no validation videos, features folders that
            would be judged on different videos, or heads that look at frames that are not there.
    """
    maps = options.model.modality if options.model.name == "pool5_attention" else ""
    data = {
        name: read_data(config.part(DataOptions, options, features=name, maps=maps))
        for name in options.features
    }
    first = next(iter(data.values()))
    if not len(first.validation):
        raise InputError(
            "no validation videos are left to choose a trial by: give more labelled videos, a "
            "split `val`, or a larger --validation-fraction."
        )
    for name, part in data.items():
        if set(part.validation.video_ids_V) != set(first.validation.video_ids_V):
            raise InputError(
                f"features `{name}` would be judged on other videos than `{options.features[0]}`: "
                "give the manifest a split `val` for all of them, and extract the same videos."
            )

        def look(settings: Mapping[str, Any], part: Data = part) -> None:
            check_context(part, trial_configs(options, settings)[0])

        search_space.check_space(axes, look, options.space)
    return data


def identify(
    options: SearchOptions, axes: tuple[Axis, ...], data: dict[str, Data]
) -> dict[str, Any]:
    """What must be the same for a search to be continued, as search.json holds it."""
    values = config.to_dict(options)
    for name in ("resume", "output", "space", "cpus_per_trial", "gpus_per_trial", "mlflow"):
        del values[name]
    values["train"] = fingerprint_values(options.train)
    return {
        "job": values,
        "space": [config.to_dict(axis) for axis in axes],
        "features": {name: part.record["fingerprint"] for name, part in data.items()},
    }


def open_output(options: SearchOptions, identity: dict[str, Any]) -> None:
    """Check that the output is free, or with `resume` that it holds this search.

    Raises:
        InputError: it is not, or does not.
    """
    file = storage.join(options.output, "search.json")
    if not storage.exists(file):
        if options.resume:
            raise InputError(f"--resume: `{options.output}` holds no search.")
        storage.check_writable(options.output)
        return
    if not options.resume:
        raise InputError(
            f"`{options.output}` holds a search: continue it with --resume, or choose another "
            "--output."
        )
    if storage.read_json(file) != identity:
        raise InputError(
            f"the search in `{options.output}` has another space, options or features: resume it "
            "with its own, or choose another --output."
        )


def share_cluster(options: SearchOptions) -> tuple[int, float]:
    """Trials that run side by side on the running Ray, and GPUs of a trial (of each worker).

    Raises:
        InputError: the cluster is too small for one trial.
    """
    num_gpus = cluster.num_gpus()
    share = 0.25 if options.workers_per_trial == 1 else 1.0
    gpus = options.gpus_per_trial
    if gpus < 0:
        gpus = share if num_gpus else 0.0
    num_parallel = search_space.max_concurrent(
        num_cpus=cluster.physical_cpus(),
        num_gpus=num_gpus,
        cpus_per_trial=options.cpus_per_trial * options.workers_per_trial,
        gpus_per_trial=gpus * options.workers_per_trial,
    )
    return num_parallel, gpus


def publish_best(
    options: SearchOptions, best: SearchTrial, result: tune.Result, data: dict[str, Data]
) -> None:
    """Write the best model: trained again in full, or from a population's weights.

    Without pbt a trial depends on its options alone. Training it again costs one trial, and no
    trial has to keep its weights.
    """
    name = str(best.settings.get(FEATURES, options.features[0]))
    model, train = trial_configs(options, best.settings)
    start = result.checkpoint if options.scheduler == "pbt" else None
    if start is not None:
        train = dataclasses.replace(train, epochs=max(1, len(best.epochs)))
    logger.info("training the best model: %s", dict(best.settings))
    run = TrainRun(
        output=storage.join(options.output, "model"),
        num_workers=options.workers_per_trial,
        options=config.to_dict(options),
    )
    train_model(run, data[name], adapt_model(model, data[name]), train, start=start)
