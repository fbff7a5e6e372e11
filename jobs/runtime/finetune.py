"""Fine-tuning on Ray Train, shared by backbones and the detector: workers, states, the output."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from caan import config, storage
from caan.errors import InputError
from caan.outputs import layout
from caan.training import finetune
from caan.training.config import FinetuneConfig
from caan.training.finetune import FinetuneResult
from caan.training.loop import epoch_line
from jobs.runtime import cluster, worker_log
from jobs.runtime.finetune_options import FinetuneOptions

logger = logging.getLogger(__name__)

PICTURES = "pictures"
"""Folder of the decoded pictures, and name of their table."""


def begin(output: str, identity: dict[str, Any]) -> bool:
    """Open the output; say whether an earlier run has finished the same work.

    Raises:
        InputError: it holds something else.
    """
    layout.open_output(output, identity, config.fingerprint(identity), "error")
    record = storage.read_json(storage.join(output, "run.json"))
    if record["is_complete"]:
        logger.info("%s is finished: nothing is left to do", output)
    return bool(record["is_complete"])


def train_network(
    options: FinetuneOptions,
    worker: Callable[[Any], None],
    task: Any,
    datasets: dict[str, ray.data.Dataset],
    name: str,
) -> None:
    """Run `worker(task)` on every worker of the running Ray; copy what it saved to the output.

    Raises:
        InputError: the cluster has fewer CPU slots than the workers need.
    """
    slots, needed = int(ray.cluster_resources().get("CPU", 0)), options.num_workers + 2
    if slots < needed:
        raise InputError(
            f"--num-workers {options.num_workers} needs {needed} CPU slots, two of them "
            f"for reading, and the Ray cluster has {slots}: start it with more, or take fewer."
        )
    cluster.poll_training_often()
    use_gpu = cluster.num_gpus() >= options.num_workers
    filesystem, path = storage.filesystem(storage.join(options.output, "state"))
    with worker_log.shown(logger) as latest:
        trainer = ray.train.torch.TorchTrainer(
            partial(_start_worker, worker),
            train_loop_config={"task": task, "progress": latest},
            datasets=datasets,  # type: ignore[arg-type]
            dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
            scaling_config=ray.train.ScalingConfig(
                num_workers=options.num_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=filesystem,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
            ),
        )
        result = trainer.fit()
    if result.checkpoint is None:
        raise RuntimeError("fine-tuning ended without weights")
    with result.checkpoint.as_directory() as folder:
        storage.copy_folder(folder, options.output)


def _start_worker(worker: Callable[[Any], None], given: dict[str, Any]) -> None:
    """Run a worker; the first one sends its progress lines to the job's log."""
    if worker_place()[0] == 0:
        worker_log.say(given["progress"], finetune.logger.name)
    worker(given["task"])


def worker_place() -> tuple[int, int]:
    """Rank of this worker, and the number of workers."""
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def shuffled_batches(size: int, shuffle: int, seed: int, epoch: int) -> Iterator[Any]:
    """This worker's share of the training data in tables of `size` rows, mixed anew each epoch.

    `shuffle` is the least number of rows that are mixed with each other.
    """
    return iter(
        ray.train.get_dataset_shard("train").iter_batches(
            batch_size=size,
            batch_format="pyarrow",
            local_shuffle_buffer_size=max(shuffle, size),
            local_shuffle_seed=seed * 1009 + epoch,
        )
    )


def validation_tables(size: int) -> Iterator[Any]:
    """All held-out data in tables of `size` rows, the same on every worker."""
    shard = ray.train.get_dataset_shard("validation")
    return iter(shard.iter_batches(batch_size=size, batch_format="pyarrow"))


def fit_and_report(
    model: torch.nn.Module,
    groups: list[dict[str, Any]],
    batches: Callable[[int], Iterator[tuple[Any, ...]]],
    validate: Callable[[], dict[str, float]],
    train: FinetuneConfig,
    seed: int,
    save: Callable[[Path, FinetuneResult], None],
    *,
    weights_file: str,
) -> None:
    """Train on this worker; report each kept state, then the folder that `save` writes.

    `save` must write `weights_file`: a checkpoint that holds it is the end of a run.
    """
    rank, world_size = worker_place()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, cluster.physical_cpus() // world_size))
    start = ray.train.get_checkpoint()

    def report(metrics: dict[str, float], state: Path | None) -> None:
        kept = ray.train.Checkpoint.from_directory(state) if state else None
        ray.train.report(metrics, checkpoint=kept)

    with contextlib.ExitStack() as stack:
        resume = Path(stack.enter_context(start.as_directory())) if start else None
        if resume is not None and (resume / weights_file).exists():
            # The driver died after the last epoch: only the copy to the output is left to do.
            ray.train.report({"epoch": -1.0}, checkpoint=start if not rank else None)
            return
        result = finetune.fit_pictures(
            model,
            groups,
            batches,
            validate,
            train,
            report=report,
            rank=rank,
            world_size=world_size,
            device=device,
            seed=seed,
            resume=resume,
        )
    with tempfile.TemporaryDirectory(prefix="caan-finetune-") as name:
        saved = None
        if rank == 0:
            save(Path(name), result)
            facts = {"best_epoch": result.best_epoch, "history": result.history}
            storage.write_json(str(Path(name) / "metrics.json"), facts)
            saved = ray.train.Checkpoint.from_directory(name)
        ray.train.report({"epoch": float(len(result.history))}, checkpoint=saved)


def finish(
    options: FinetuneOptions, identity: dict[str, Any], facts: dict[str, Any], usage: str
) -> None:
    """Write run.json, delete states and pictures, and log the best epoch and how to use it.

    `usage` is the option that takes the result.
    """
    metrics = storage.read_json(storage.join(options.output, "metrics.json"))
    best = metrics["history"][metrics["best_epoch"]]
    storage.write_json(
        storage.join(options.output, "run.json"),
        {
            "job": "finetune",
            "format": layout.FORMAT,
            "is_complete": True,
            "fingerprint": config.fingerprint(identity),
            "fingerprint_of": identity,
            "config": config.to_dict(options),
            "versions": layout.versions(),
            **facts,
        },
    )
    storage.delete(storage.join(options.output, "state"))
    if not options.keep_pictures and storage.exists(storage.join(options.output, PICTURES)):
        storage.delete(storage.join(options.output, PICTURES))
    logger.info(
        "%s: best epoch %d of %d; %s; use it with %s",
        options.output,
        metrics["best_epoch"] + 1,
        len(metrics["history"]),
        epoch_line(best),
        usage,
    )
