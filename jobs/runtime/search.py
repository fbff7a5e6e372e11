"""A search with Ray Tune as jobs.tune runs it: its options, its trials, what came of them."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher

from caan import config, storage
from caan.errors import redact
from caan.experiments.search_report import SearchTrial
from caan.experiments.search_space import Axis
from caan.features.packed import PackedVideos
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.training.config import TrainConfig
from caan.training.loop import fit
from caan.training.recipes import Recipe
from jobs import train as train_job
from jobs.runtime import cluster

FEATURES = "features"
"""Option of a trial that says which of several --features it learns from."""
RUN = "trials"
"""Folder of the trials' own files under the output."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.tune."""

    features: tuple[str, ...]
    """Output folders of jobs.extract; of several (other backbones) each trial takes one."""
    output: str
    """Folder of the results; local or s3://."""
    space: str
    """YAML file: dotted options of jobs.train, each with a list of values or a sampler."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """random draws, grid tries every combination of lists, optuna learns from earlier trials."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """none runs trials in full, asha stops the worse ones early, pbt copies the better ones."""
    num_trials: int = 20
    """Trials of random and optuna, and the population of pbt."""
    resume: bool = False
    """Continue the interrupted search in --output."""
    grace_epochs: int = 5
    """Epochs that every trial gets under asha."""
    reduction_factor: int = 3
    """asha keeps one in so many trials at each rung."""
    perturbation_epochs: int = 5
    """Epochs between two exchanges of pbt."""
    workers_per_trial: int = 1
    """Worker processes of a trial; more than one run Ray Train inside the trial."""
    cpus_per_trial: float = 1.0
    """CPU cores of a trial (of each of its workers)."""
    gpus_per_trial: float = -1.0
    """GPUs of a trial (of each of its workers), shares allowed; -1: a quarter if there are any."""
    manifest: str = ""
    """Labels and splits from another manifest than the features' own."""
    split: str = "train"
    """Split to learn from; where the manifest names no splits, all labelled videos."""
    validation_fraction: float = 0.15
    """Share of the training videos that chooses; a `val` split is used instead."""
    preset: Literal["default", "paper"] = "default"
    """What the options outside the space are."""
    mlflow: str = ""
    """Tracking URI of an MLflow server or folder that gets every trial too (extra `mlflow`)."""
    seed: int = 0
    """Seed of the draws, the validation part and, unless in the space, of each trial."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The head, but for the space."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Its training, but for the space."""


def train_job_of(job: Job, features: str, settings: Mapping[str, Any]) -> train_job.Job:
    """The training run of jobs.train that a trial with these settings is."""
    name = settings.get("model.name", job.model.name)
    return train_job.Job(
        features=features,
        output=storage.join(job.output, "model"),
        manifest=job.manifest,
        split=job.split,
        validation_fraction=job.validation_fraction,
        preset=job.preset,
        num_workers=job.workers_per_trial,
        seed=job.seed,
        model=dataclasses.replace(job.model, name=name),
        train=job.train,
    )


def configs(job: Job, settings: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The configuration of a trial: the job's, changed by the trial's settings.

    Raises:
        InputError: an option that does not exist or does not take the value.
    """
    model, train = train_job.configs_of(train_job_of(job, "", settings))
    changes = {name: value for name, value in settings.items() if name != FEATURES}
    changed = config.override(Recipe(model=model, train=train), changes)
    return changed.model, changed.train


def adapted(model: ModelConfig, data: train_job.Data) -> ModelConfig:
    """The head for features that keep frames without a face."""
    if data.record["config"]["no_face"] == "context_only" and model.name == "caan":
        return dataclasses.replace(model, null_face=True)
    return model


def run_trial(settings: dict[str, Any], job: Job, data: dict[str, Any]) -> None:
    """One trial of one process; `data` names references into the object store."""
    name = settings.get(FEATURES, job.features[0])
    chosen: train_job.Data = ray.get(data[name])
    assert isinstance(chosen.train, PackedVideos)
    assert isinstance(chosen.validation, PackedVideos)
    train_videos, validation_videos = chosen.train, chosen.validation
    model, train = configs(job, settings)
    if job.scheduler == "pbt":
        train = dataclasses.replace(train, checkpoint_every_epochs=job.perturbation_epochs)
    use_gpu = bool(ray.get_gpu_ids())
    torch.set_num_threads(max(1, int(job.cpus_per_trial)))
    head = build_model(
        adapted(model, chosen),
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
    settings: dict[str, Any], job: Job, data: dict[str, Any], gpus: float, claim: float
) -> None:
    """One trial of several processes: Ray Train inside the trial, which itself only waits."""
    name = settings.get(FEATURES, job.features[0])
    model, train = configs(job, settings)
    filesystem, path = storage.filesystem(storage.join(job.output, RUN, "workers"))
    cluster.poll_training_often()
    ray.train.torch.TorchTrainer(
        train_job.train_worker,
        train_loop_config={
            "data": [data[name]],
            "model": adapted(model, ray.get(data[name])),
            "train": train,
            "start": None,
            "init": None,
            "reports_all": True,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.workers_per_trial,
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


def domains(job: Job, axes: tuple[Axis, ...]) -> dict[str, Any]:
    """The space as Ray Tune takes it."""
    makers: dict[str, Callable[..., Any]] = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "randint": tune.randint,
    }
    listed = tune.grid_search if job.searcher == "grid" else tune.choice
    space = {
        axis.option: listed(list(axis.values))
        if axis.is_choice
        else makers[axis.sampler](*axis.values)
        for axis in axes
    }
    if len(job.features) > 1:
        space[FEATURES] = listed(list(job.features))
    return space


def _scheduler(job: Job, space: dict[str, Any], epochs: int) -> TrialScheduler | None:
    if job.scheduler == "asha":
        return ASHAScheduler(
            time_attr="training_iteration",
            max_t=epochs,
            grace_period=min(job.grace_epochs, epochs),
            reduction_factor=job.reduction_factor,
        )
    if job.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=job.perturbation_epochs,
            hyperparam_mutations=space,
        )
    return None


def _searcher(job: Job, num_parallel: int) -> Searcher | SearchAlgorithm:
    if job.searcher == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(seed=job.seed)
    return BasicVariantGenerator(random_state=job.seed, max_concurrent=num_parallel)


class Lines(tune.Callback):
    """Logs one line for each trial that ends."""

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


def callbacks_of(job: Job, metric: str) -> list[tune.Callback]:
    """What follows the trials: lines in the log, and MLflow if it is wanted.

    Ray adds its own, which write each trial's result.json, progress.csv and TensorBoard events.
    """
    callbacks: list[tune.Callback] = [Lines(metric)]
    if job.mlflow:
        callbacks.append(
            MLflowLoggerCallback(
                tracking_uri=job.mlflow, experiment_name=redact(job.output.rstrip("/"))
            )
        )
    return callbacks


def search(
    job: Job,
    axes: tuple[Axis, ...],
    data: dict[str, train_job.Data],
    num_parallel: int,
    gpus: float,
) -> tune.ResultGrid:
    """Run the search, or the rest of it."""
    _, train = train_job.configs_of(train_job_of(job, "", {}))
    metric = f"validation_{train.selection}"
    slots = float(ray.cluster_resources().get("CPU", 1)) / cluster.physical_cpus()
    claim = job.cpus_per_trial * slots
    references = {name: ray.put(part) for name, part in data.items()}
    resources: dict[str, float]
    if job.workers_per_trial > 1:
        # The waiting driver takes no core, so the workers always find theirs; a claim of nothing
        # at all is refused by Ray.
        resources = {"cpu": 0, "memory": 2**20}
        trainable = tune.with_parameters(
            run_trial_on_workers, job=job, data=references, gpus=gpus, claim=claim
        )
    else:
        resources = {"cpu": claim, "gpu": gpus}
        trainable = tune.with_parameters(run_trial, job=job, data=references)
    trainable = tune.with_resources(trainable, resources)
    filesystem, path = storage.filesystem(job.output)
    space = domains(job, axes)
    if job.resume:
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
            scheduler=_scheduler(job, space, train.epochs),
            search_alg=_searcher(job, num_parallel),
            num_samples=1 if job.searcher == "grid" else job.num_trials,
            # The other searchers count for themselves.
            max_concurrent_trials=num_parallel if job.searcher == "optuna" else None,
            # A new process costs seconds, more than a trial of small heads.
            reuse_actors=job.workers_per_trial == 1,
        ),
        run_config=tune.RunConfig(
            name=RUN,
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=callbacks_of(job, metric),
        ),
    ).fit()


def collected(results: tune.ResultGrid) -> list[SearchTrial]:
    """The trials of a search with their epochs."""
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
