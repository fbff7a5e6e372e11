"""Train a head with Ray Train: start the workers, keep their states, write the model folder."""

import contextlib
import dataclasses
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from tensorboardX import SummaryWriter

from caan import config, storage
from caan.backbones.weights import finetuned_of
from caan.errors import InputError
from caan.experiments.trials import match_pool5_shape
from caan.extraction.config import ExtractionConfig
from caan.models import checkpoint
from caan.models.build import build_model
from caan.models.checkpoint import LoadedModel, ModelInfo
from caan.models.config import ModelConfig
from caan.models.head import Head
from caan.models.net2net import grow_from
from caan.outputs import layout
from caan.training.config import TrainConfig, fingerprint_values
from caan.training.loop import FitResult, epoch_line, fit, keeps_state
from jobs.runtime import cluster, node_files, worker_log
from jobs.runtime.train_options import TrainPlace
from jobs.runtime.training_data import Data

logger = logging.getLogger(__name__)

SCRATCH = "unfinished"
"""Folder of the output with the checkpoints of a run on several nodes; deleted at its end."""

STATE_EPOCHS = 5
"""Epochs between two training states with --storage-path, if no option sets them."""


@dataclass(frozen=True, kw_only=True)
class TrainRun(TrainPlace):
    """A training's place, and what its record says of it."""

    options: dict[str, Any]
    """All options of the job, as run.json records them."""


def model_info(data: Data, model: ModelConfig, train: TrainConfig, temperature: float) -> ModelInfo:
    """Collect what a model folder needs to label videos without the features of its training."""
    record = data.record
    extraction = {
        name: record["config"][name]
        for name in (item.name for item in dataclasses.fields(ExtractionConfig))
        if name in record["config"]
    }
    identity = record["identity"]
    return ModelInfo(
        model=model,
        label_set=data.train.label_set,
        face_dim=data.train.face_dim,
        context_dim=data.train.context_dim,
        face_backbone=extraction["face_backbone"],
        context_backbone=extraction["context_backbone"],
        face_backbone_identity=identity["face_backbone"],
        context_backbone_identity=identity["context_backbone"],
        detector=extraction["detector"],
        detector_identity=identity["detector"],
        fps=extraction["fps"],
        face_policy=extraction["face_policy"],
        no_face=extraction["no_face"],
        rule=train.rule,
        temperature=temperature,
        extraction=tuple(extraction.items()),
        training=tuple((name, str(value)) for name, value in config.to_dict(train).items()),
    )


def adapt_model(model: ModelConfig, data: Data) -> ModelConfig:
    """Set the options that the features decide: `null_face` and the shape of pool5 maps."""
    if data.record["config"]["no_face"] == "context_only" and model.name == "caan":
        model = dataclasses.replace(model, null_face=True)
    return match_pool5_shape(model, data.train)


def train_worker(options: dict[str, Any]) -> None:
    """Train on one of Ray Train's workers; worker 0 logs, and saves the model at the end."""
    train: TrainConfig = options["train"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    data: Data = ray.get(options["data"][0])
    if "vectors" in options:
        data = data.vectors_in(node_files.local_folder(options["vectors"]))
    start: ray.train.Checkpoint | None = ray.train.get_checkpoint() or options["start"]
    if device.type == "cpu":
        torch.set_num_threads(max(1, cluster.physical_cpus() // world_size))
    head = build_head(data, options["model"], train.seed, options["init"])
    if rank == 0 and "progress" in options:
        worker_log.say(options["progress"], logger.name)
    folder = options.get("tensorboard") if rank == 0 else None
    writer = SummaryWriter(folder) if folder else None

    def report(metrics: dict[str, float], state: Path | None) -> None:
        if rank == 0:
            logger.info("%s", epoch_line(metrics, train.epochs))
        if writer is not None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, int(metrics["epoch"]))
            writer.flush()
        if not (options["reports_all"] or keeps_state(train, int(metrics["epoch"]))):
            return  # Ray drops metrics without a checkpoint, and a report makes all workers wait.
        kept = ray.train.Checkpoint.from_directory(state) if state else None
        ray.train.report(metrics, checkpoint=kept)

    with contextlib.ExitStack() as stack:
        resume = Path(stack.enter_context(start.as_directory())) if start else None
        if resume is not None and (resume / "model").exists():
            # The driver died after the last epoch: only publishing is left.
            ray.train.report({"epoch": float(train.epochs)}, checkpoint=start if not rank else None)
            return
        place: dict[str, Any] = {"rank": rank, "world_size": world_size, "device": device}
        progress: dict[str, Any] = {"report": report, "resume": resume}
        result = fit(head, data.train, data.validation, train, **place, **progress)
    with tempfile.TemporaryDirectory() as folder:
        saved = None
        if rank == 0:
            save_result(Path(folder) / "model", head, data, options, result)
            saved = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"epoch": float(len(result.history)), **result.metrics}, checkpoint=saved)
    if "vectors" in options:
        node_files.remove_copy(options["vectors"])


def save_result(
    folder: Path, head: Any, data: Data, options: dict[str, Any], result: FitResult
) -> None:
    """Write the trained head and its metrics to `folder` as a complete model folder."""
    train: TrainConfig = options["train"]
    info = model_info(data, options["model"], train, result.temperatures.get(train.rule, 1.0))
    metrics = {
        "best_epoch": result.best_epoch,
        "num_train_videos": len(data.train),
        "num_validation_videos": len(data.validation),
        "validation": result.metrics,
        "temperatures": result.temperatures,
        "history": result.history,
    }
    checkpoint.save_model(folder, head, info, metrics=metrics, centroids_KR=result.centroids_KR)


def check_workers(run: TrainRun) -> None:
    """Check the numbers of workers.

    Raises:
        InputError: a number is out of range, or fewer workers are allowed without a storage path.
    """
    if run.num_workers < 1:
        raise InputError(f"--num-workers {run.num_workers} is too small: give at least 1.")
    if not 0 <= run.min_workers <= run.num_workers:
        raise InputError(
            f"--min-workers {run.min_workers} is out of range: give 0 to {run.num_workers}, the "
            "value of --num-workers."
        )
    if 0 < run.min_workers < run.num_workers and not run.storage_path:
        raise InputError(
            "--min-workers resumes from the last training state when workers are lost: give its "
            "folder with --storage-path."
        )


def is_trained(run: TrainRun, name: str) -> bool:
    """Return whether the output holds the finished model of run `name`.

    Raises:
        InputError: the output belongs to another job, or is another model and `on_change` is error.
    """
    run_file = storage.join(run.output, "run.json")
    if storage.exists(run_file):
        found = storage.read_json(run_file)
        if found.get("job") != "train":
            raise InputError(
                f"`{run.output}` holds the output of jobs.{found.get('job')}: choose another "
                "--output for the model."
            )
        if found.get("run") == name:
            return True
    elif not storage.exists(storage.join(run.output, checkpoint.CONFIG_FILE)):
        return False
    if run.on_change == "error":
        raise InputError(
            f"`{run.output}` holds a model of other features, labels or options: choose another "
            "--output, or replace it with `--on-change recompute`."
        )
    return False


def train_model(
    run: TrainRun,
    data: Data,
    model: ModelConfig,
    train: TrainConfig,
    *,
    vectors: Path | None = None,
    start: ray.train.Checkpoint | None = None,
    init: LoadedModel | None = None,
) -> None:
    """Train a head on the running Ray and write its model folder to `run.output`.

    Args:
        run: output and use of the cluster.
        data: training and validation videos.
        model: options of the head.
        train: options of the training.
        vectors: local folder that `data` is mapped from; each node gets a copy of its files. None:
            the arrays are sent to the workers.
        start: training state to resume from.
        init: model to grow the head from.

    Raises:
        InputError: `caan.training.loop.fit` refuses the data or the options.
        RuntimeError: Ray Train ends without a checkpoint.
    """
    use_gpu = cluster.num_gpus() >= (run.min_workers or run.num_workers)
    if run.storage_path and not train.checkpoint_every_epochs:
        train = dataclasses.replace(train, checkpoint_every_epochs=STATE_EPOCHS)
    cluster.poll_training_often()
    is_elastic = 0 < run.min_workers < run.num_workers
    num_workers: Any = (run.min_workers, run.num_workers) if is_elastic else run.num_workers
    name = run_name(data, model, train, init)
    with _scratch(run) as scratch, worker_log.shown(logger) as latest:
        filesystem, path = storage.filesystem(run.storage_path or scratch)
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config={
                "data": [ray.put(data.without_vectors() if vectors else data)],
                **({"vectors": node_files.share_files(vectors, name)} if vectors else {}),
                "model": model,
                "train": train,
                "init": init,
                "start": start,
                "reports_all": False,
                "tensorboard": run.tensorboard,
                "progress": latest,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=filesystem,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(
                    max_failures=run.max_failures if run.storage_path else 0
                ),
            ),
        )
        result = trainer.fit()
        if result.checkpoint is None:
            raise RuntimeError("training ended without a model")
        with result.checkpoint.as_directory() as folder:
            _publish(Path(folder) / "model", run, data, name)


@contextlib.contextmanager
def _scratch(run: TrainRun) -> Iterator[str]:
    """Yield a folder for checkpoints that all nodes reach; delete it afterwards."""
    if cluster.num_nodes() == 1:
        with tempfile.TemporaryDirectory(prefix="caan-train-") as folder:
            yield folder
        return
    shared = storage.join(run.output, SCRATCH)
    storage.delete(shared)
    try:
        yield shared
    finally:
        storage.delete(shared)


def run_name(data: Data, model: ModelConfig, train: TrainConfig, init: LoadedModel | None) -> str:
    """Name a run by a hash of its data and options, so that the same command finds its state."""
    content = hashlib.sha256()
    for videos in (data.train, data.validation):
        content.update("\n".join(videos.video_ids_V).encode())
        content.update(videos.labels_V.tobytes())
        if train.losses.votes_share and videos.soft_VK is not None:
            content.update(videos.soft_VK.tobytes())
    values = {
        "features": data.record["fingerprint"],
        "videos": content.hexdigest(),
        "model": config.to_dict(model),
        "train": fingerprint_values(train),
        "init": init.model_id if init else "",
    }
    return f"train-{config.fingerprint(values)}"


def read_init(uri: str, data: Data, model: ModelConfig) -> LoadedModel:
    """Load the model to start from, and check that it fits the features and the head.

    `uri` is a model folder, local or s3://, or `starter`.

    Raises:
        InputError: the model takes vectors of other backbones, or cannot grow into `model`.
    """
    with storage.local_folder(str(checkpoint.STARTER) if uri == "starter" else uri) as folder:
        source = checkpoint.load_model(folder)
    for kind in source.head.modalities:
        own = getattr(source.info, f"{kind}_backbone_identity")
        found = data.record["identity"][f"{kind}_backbone"]
        if own != found:
            raise InputError(
                f"--init {uri} takes {kind} vectors of {own}, and these features are of {found}: "
                "extract with its backbone, or start from another model."
            )
    build_head(data, model, 0, source)
    return source


def build_head(
    data: Data, model: ModelConfig, seed: int, source: LoadedModel | None = None
) -> Head:
    """Build the head for these features from `seed`, then grow it from `source` if given."""
    head = build_model(
        model,
        face_dim=data.train.face_dim,
        context_dim=data.train.context_dim,
        num_emotions=len(data.train.label_set),
        seed=seed,
    )
    if source is not None:
        grow_from(
            head,
            source.head,
            label_set=data.train.label_set,
            source_label_set=source.info.label_set,
        )
    return head


def _publish(folder: Path, run: TrainRun, data: Data, name: str) -> None:
    info, model_id = checkpoint.read_info(folder)
    storage.write_json(
        str(folder / "run.json"),
        {
            "job": "train",
            "run": name,
            "config": run.options,
            "fingerprint": info.fingerprint,
            "model_id": model_id,
            "features": {"fingerprint": data.record["fingerprint"]},
            "versions": layout.versions(),
        },
    )
    storage.copy_folder(folder, run.output)
    for kind, file in finetuned_of(data.record).items():
        name = checkpoint.BACKBONE_FILE.format(kind)
        storage.write_bytes(storage.join(run.output, name), file.path.read_bytes())
    metrics = storage.read_json(storage.join(run.output, "metrics.json"))
    found = metrics["validation"]
    logger.info(
        "%s: best epoch %d of %d, validation %s",
        run.output,
        metrics["best_epoch"] + 1,
        len(metrics["history"]),
        ", ".join(f"{name} {value:.3f}" for name, value in found.items() if "accuracy" in name),
    )
