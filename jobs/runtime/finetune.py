"""What jobs.finetune's two kinds of training share: the workers, their states, the output."""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from jobs.runtime import cluster, relay

if TYPE_CHECKING:
    from jobs.finetune import Job

logger = logging.getLogger(__name__)

PICTURES = "pictures"
"""Folder of the decoded pictures, and name of their table."""


def worker_place() -> tuple[int, int]:
    """Rank and number of workers."""
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def work(
    model: torch.nn.Module,
    groups: list[dict[str, Any]],
    batches: Callable[[int], Iterator[tuple[Any, ...]]],
    validate: Callable[[], dict[str, float]],
    options: FinetuneConfig,
    seed: int,
    save: Callable[[Path, FinetuneResult], None],
    *,
    resume_file: str,
) -> None:
    """Run the loop on this worker and report its states, then the network as `save` writes it."""
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
        if resume is not None and (resume / resume_file).exists():
            # A run whose driver died after the last epoch has nothing left but to publish.
            ray.train.report({"epoch": -1.0}, checkpoint=start if not rank else None)
            return
        result = finetune.fit_pictures(
            model,
            groups,
            batches,
            validate,
            options,
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


def train_network(
    job: "Job",
    worker: Callable[[dict[str, Any]], None],
    options: dict[str, Any],
    datasets: dict[str, ray.data.Dataset],
    name: str,
) -> None:
    """Train on the running Ray and copy what the worker saved to the output."""
    slots = int(ray.cluster_resources().get("CPU", 0))
    if slots < job.num_workers + 2:
        raise InputError(
            f"--num-workers {job.num_workers} needs {job.num_workers + 2} CPU slots, two of them "
            f"for reading, and the Ray cluster has {slots}: start it with more, or take fewer."
        )
    cluster.poll_training_often()
    use_gpu = cluster.num_gpus() >= job.num_workers
    filesystem, path = storage.filesystem(storage.join(job.output, "state"))
    with relay.shown(logger) as latest:
        trainer = ray.train.torch.TorchTrainer(
            partial(_telling, worker),
            train_loop_config=options | {"progress": latest},
            datasets=datasets,  # type: ignore[arg-type]
            dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.num_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=filesystem,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=job.max_failures),
            ),
        )
        result = trainer.fit()
    if result.checkpoint is None:
        raise RuntimeError("fine-tuning ended without weights")
    with result.checkpoint.as_directory() as folder:
        storage.copy_folder(folder, job.output)


def _telling(worker: Callable[[dict[str, Any]], None], options: dict[str, Any]) -> None:
    """Runs a worker; the first one's progress goes to the job's log."""
    if worker_place()[0] == 0:
        relay.say(options["progress"], "caan.training.config")
    worker(options)


def begin(job: "Job", identity: dict[str, Any]) -> bool:
    """Open the output; whether an earlier run has finished this very work.

    Raises:
        InputError: it holds something else.
    """
    layout.open_output(job.output, identity, config.fingerprint(identity), "error")
    record = storage.read_json(storage.join(job.output, "run.json"))
    if record["is_complete"]:
        logger.info("%s is finished: nothing is left to do", job.output)
    return bool(record["is_complete"])


def finish(job: "Job", identity: dict[str, Any], facts: dict[str, Any], option: str) -> None:
    """Write run.json, drop what only the work needed, and say what to do with the result."""
    metrics = storage.read_json(storage.join(job.output, "metrics.json"))
    best = metrics["history"][metrics["best_epoch"]]
    storage.write_json(
        storage.join(job.output, "run.json"),
        {
            "job": "finetune",
            "is_complete": True,
            "fingerprint": config.fingerprint(identity),
            "fingerprint_of": identity,
            "config": config.to_dict(job),
            "versions": layout.versions(),
            **facts,
        },
    )
    storage.delete(storage.join(job.output, "state"))
    if not job.keep_pictures and storage.exists(storage.join(job.output, PICTURES)):
        storage.delete(storage.join(job.output, PICTURES))
    logger.info(
        "%s: best epoch %d of %d; %s; use it with %s",
        job.output,
        metrics["best_epoch"] + 1,
        len(metrics["history"]),
        epoch_line(best),
        option,
    )
