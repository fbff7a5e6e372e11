"""A search with Ray Tune: its space, its trials, and their results."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher

from caan import config, storage
from caan.errors import redact
from caan.experiments.config import SearchOptions
from caan.experiments.search_report import SearchTrial
from caan.experiments.search_space import Axis
from caan.features.packed import PackedVideos
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.training import recipes
from caan.training.config import TrainConfig
from caan.training.loop import fit
from caan.training.recipes import Recipe
from jobs.runtime import cluster
from jobs.runtime.train import adapt_model, train_worker
from jobs.runtime.training_data import Data

FEATURES = "features"
"""Setting of a trial: which of several --features it learns from."""
RUN = "trials"
"""Folder of the trials' own files under the output."""


def trial_configs(
    options: SearchOptions, settings: Mapping[str, Any]
) -> tuple[ModelConfig, TrainConfig]:
    """The configuration of a trial: the search's, changed by the trial's settings.

    Raises:
        InputError: an option that does not exist or does not take the value.
    """
    head = dataclasses.replace(options.model, name=settings.get("model.name", options.model.name))
    model, train = recipes.configure(options.preset, head, options.train, seed=options.seed)
    changes = {name: value for name, value in settings.items() if name != FEATURES}
    changed = config.override(Recipe(model=model, train=train), changes)
    return changed.model, changed.train


def run_trial(settings: dict[str, Any], options: SearchOptions, data: dict[str, Any]) -> None:
    """Run a trial in one process; `data` has references into Ray's object store."""
    name = settings.get(FEATURES, options.features[0])
    chosen: Data = ray.get(data[name])
    assert isinstance(chosen.train, PackedVideos)
    assert isinstance(chosen.validation, PackedVideos)
    train_videos, validation_videos = chosen.train, chosen.validation
    model, train = trial_configs(options, settings)
    if options.scheduler == "pbt":
        train = dataclasses.replace(train, checkpoint_every_epochs=options.perturbation_epochs)
    use_gpu = bool(ray.get_gpu_ids())
    torch.set_num_threads(max(1, int(options.cpus_per_trial)))
    head = build_model(
        adapt_model(model, chosen),
        face_dim=chosen.train.face_dim,
        context_dim=chosen.train.context_dim,
        num_emotions=len(chosen.train.label_set),
        seed=train.seed,
    )

    def report(metrics: dict[str, float], state: Path | None) -> None:
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(state) if state else None)

    def learn(resume: Path | None) -> None:
        fit(
            head,
            train_videos,
            validation_videos,
            train,
            report=report,
            device="cuda" if use_gpu else "cpu",
            resume=resume,
        )

    start = tune.get_checkpoint()
    if start is None:
        learn(None)
        return
    with start.as_directory() as folder:
        learn(Path(folder))


def run_trial_on_workers(
    settings: dict[str, Any],
    options: SearchOptions,
    data: dict[str, Any],
    gpus: float,
    claim: float,
) -> None:
    """Run a trial on several workers: Ray Train trains, and the trial's own process waits."""
    name = settings.get(FEATURES, options.features[0])
    model, train = trial_configs(options, settings)
    filesystem, path = storage.filesystem(storage.join(options.output, RUN, "workers"))
    cluster.poll_training_often()
    ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "data": [data[name]],
            "model": adapt_model(model, ray.get(data[name])),
            "train": train,
            "start": None,
            "init": None,
            "reports_all": True,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=options.workers_per_trial,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": claim, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # two classes of one name
        ),
    ).fit()


def domains(options: SearchOptions, axes: tuple[Axis, ...]) -> dict[str, Any]:
    """The space in Ray Tune's own terms."""
    makers: dict[str, Callable[..., Any]] = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "randint": tune.randint,
    }
    listed = tune.grid_search if options.searcher == "grid" else tune.choice
    space = {
        axis.option: listed(list(axis.values))
        if axis.is_choice
        else makers[axis.sampler](*axis.values)
        for axis in axes
    }
    if len(options.features) > 1:
        space[FEATURES] = listed(list(options.features))
    return space


def _scheduler(options: SearchOptions, space: dict[str, Any], epochs: int) -> TrialScheduler | None:
    if options.scheduler == "asha":
        return ASHAScheduler(
            time_attr="training_iteration",
            max_t=epochs,
            grace_period=min(options.grace_epochs, epochs),
            reduction_factor=options.reduction_factor,
        )
    if options.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=options.perturbation_epochs,
            hyperparam_mutations=space,
        )
    return None


def _searcher(options: SearchOptions, num_parallel: int) -> Searcher | SearchAlgorithm:
    if options.searcher == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(seed=options.seed)
    return BasicVariantGenerator(random_state=options.seed, max_concurrent=num_parallel)


class TrialLines(tune.Callback):
    """Log one line for each trial that ends."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.num_ended = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log its last result."""
        self.num_ended += 1
        last = trial.last_result or {}
        logging.getLogger("caan").info(
            "%d trials done; %s: %d epochs, %s %.3f",
            self.num_ended,
            trial.trial_id,
            last.get("training_iteration", 0),
            self.metric,
            last.get(self.metric, float("nan")),
        )


def callbacks_of(options: SearchOptions, metric: str) -> list[tune.Callback]:
    """Callbacks of the trials: lines in the log, and MLflow with `mlflow`.

    Ray adds its own. They write each trial's result.json, progress.csv and TensorBoard events.
    """
    callbacks: list[tune.Callback] = [TrialLines(metric)]
    if options.mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(
            MLflowLoggerCallback(
                tracking_uri=options.mlflow, experiment_name=redact(options.output.rstrip("/"))
            )
        )
    return callbacks


def search(
    options: SearchOptions,
    axes: tuple[Axis, ...],
    data: dict[str, Data],
    num_parallel: int,
    gpus: float,
) -> tune.ResultGrid:
    """Run the search, or with `resume` the rest of it."""
    _, train = trial_configs(options, {})
    metric = f"validation_{train.selection}"
    slots = float(ray.cluster_resources().get("CPU", 1)) / cluster.physical_cpus()
    claim = options.cpus_per_trial * slots
    references = {name: ray.put(part) for name, part in data.items()}
    resources: dict[str, float]
    if options.workers_per_trial > 1:
        # The trial's own process claims no core, so that its workers find theirs. Ray refuses an
        # empty claim, hence the memory.
        resources = {"cpu": 0, "memory": 2**20}
        trainable = tune.with_parameters(
            run_trial_on_workers, options=options, data=references, gpus=gpus, claim=claim
        )
    else:
        resources = {"cpu": claim, "gpu": gpus}
        trainable = tune.with_parameters(run_trial, options=options, data=references)
    trainable = tune.with_resources(trainable, resources)
    filesystem, path = storage.filesystem(options.output)
    space = domains(options, axes)
    if options.resume:
        tuner = tune.Tuner.restore(
            storage.join(path, RUN),
            trainable,
            resume_unfinished=True,
            restart_errored=True,
            param_space=space,
            storage_filesystem=filesystem,
        )
        return tuner.fit()
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=metric,
            mode="max",
            scheduler=_scheduler(options, space, train.epochs),
            search_alg=_searcher(options, num_parallel),
            num_samples=1 if options.searcher == "grid" else options.num_trials,
            # The other searchers limit this themselves.
            max_concurrent_trials=num_parallel if options.searcher == "optuna" else None,
            # A new process takes seconds, longer than a trial of a small head.
            reuse_actors=options.workers_per_trial == 1,
        ),
        run_config=tune.RunConfig(
            name=RUN,
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=callbacks_of(options, metric),
        ),
    ).fit()


def collected(results: tune.ResultGrid) -> list[SearchTrial]:
    """The trials of a search with the metrics of their epochs."""
    trials = []
    for result in (results[number] for number in range(len(results))):
        frame = result.metrics_dataframe
        rows: list[dict[str, float]] = []
        if frame is not None and "seconds" in frame:
            numbers = frame[frame["seconds"].notna()].select_dtypes("number")
            rows = numbers.drop_duplicates("epoch", keep="last").to_dict("records")
        error = result.error
        said = str(error).strip().splitlines()[-1] if error else ""
        trials.append(
            SearchTrial(
                trial_id=(result.metrics or {}).get("trial_id", Path(result.path or "").name),
                settings=dict(result.config or {}),
                epochs=rows,
                error=(said or type(error).__name__) if error else "",
            )
        )
    return trials
