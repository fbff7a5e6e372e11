"""The training loop of the heads: one worker or many, resumable, without any knowledge of Ray."""

import logging
import math
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from caan.errors import InputError
from caan.features.batches import Loader, check_classes, check_faces
from caan.features.packed import PackedVideos
from caan.models.evidence import check_dimensions, frames_to
from caan.models.head import Head, HeadOutput
from caan.training import losses
from caan.training.config import TrainConfig
from caan.training.objective import batch_loss
from caan.training.predict import Predictions
from caan.training.validation import centroids, epoch_metrics, judge, metrics_by_rule

log = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"

Report = Callable[[dict[str, float], Path | None], None]
"""Called once per epoch on every worker, with the epoch's metrics and, on worker 0 of an epoch
that is to be kept, a folder with the training state that lives until the call returns."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The trained head's record; the head itself holds the weights of the best epoch."""

    history: list[dict[str, float]]
    """The metrics of each epoch, as they were reported."""
    best_epoch: int
    """Number of the epoch whose weights were kept, from 0."""
    metrics: dict[str, float]
    """Validation metrics of the best epoch; accuracy and UAR by every prediction rule."""
    temperatures: dict[str, float]
    """Temperature of each prediction rule, calibrated on the validation videos."""
    centroids_KR: Tensor
    """Mean R of each class over the training videos."""
    validation: Predictions
    """What the head says of the usable validation videos, in their order (of several workers, this
    one's share of them)."""


def fit(
    model: Head,
    train: PackedVideos,
    validation: PackedVideos,
    config: TrainConfig,
    *,
    report: Report | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    resume: Path | None = None,
) -> FitResult:
    """Train a head on packed videos and leave it with the weights of its best epoch.

    With several workers torch.distributed must be initialised, and every worker calls this with
    the same arguments but `rank`. Without usable validation videos the last epoch is kept.

    Raises:
        InputError: a class without training videos, or only one class; dimensions that the head
            does not have; training that diverged in its first epoch.
    """
    loader = Loader(
        train,
        modalities=model.modalities,
        maps=model.map_shapes,
        batch_videos=config.batch_videos,
        num_frames=config.num_frames,
        sampling=config.sampling,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
    )
    train, validation = train.usable(), validation.usable()
    check_dimensions(model, train)
    check_faces(model, train)
    check_classes(loader.label_counts_K, train.label_set)
    if config.losses.frame_weight > 0 and not model.trains_frames:
        raise InputError(
            f"option `frame_weight` is {config.losses.frame_weight}, and this head has no frame "
            "branch to train; set it to 0"
        )
    device = torch.device(device)
    model.to(device)
    run = TrainingRun(model, config, _optimizer(model, config))
    if resume is not None:
        run.load(resume)
    else:
        for modality in model.modalities:
            standardize = getattr(model, f"standardize_{modality}")
            if not standardize.is_fixed:
                mean_D, std_D = loader.moments(modality)
                if config.standardize:
                    standardize.set(mean_D, std_D)
                standardize.mean_D.copy_(mean_D)  # what stands for a modality that is left out
    # Some loss weights leave a branch without a gradient, hence find_unused_parameters.
    trained = (
        DistributedDataParallel(model, find_unused_parameters=True) if world_size > 1 else model
    )
    weights_K = losses.class_weights(
        np.repeat(np.arange(len(loader.label_counts_K)), loader.label_counts_K),
        len(loader.label_counts_K),
        config.losses.class_weights,
    ).to(device)
    for epoch in range(run.next_epoch, config.epochs):
        started, cpu_started = time.perf_counter(), time.process_time()
        torch.manual_seed((config.seed * 100_003 + epoch) * 1009 + rank)
        train_loss = _train_epoch(trained, loader, epoch, run, weights_K, device, world_size)
        if not math.isfinite(train_loss):
            if run.best_epoch < 0:
                raise InputError(
                    f"training diverged in epoch {epoch}; lower `learning_rate` "
                    f"(it is {config.learning_rate}) or choose another `score_fn`"
                )
            log.warning("training diverged in epoch %d; epoch %d is kept", epoch, run.best_epoch)
            break
        row = {
            "epoch": float(epoch),
            "train_loss": train_loss,
            "train_seconds": time.perf_counter() - started,
            "train_cpu_seconds": time.process_time() - cpu_started,
        }
        if len(validation):
            judged = judge(model, validation, device=device, rank=rank, world_size=world_size)
            # Centroids cost a pass over the training videos: R's classifier stands in for them.
            rule = "frames" if config.rule == "frames" else "head"
            row |= epoch_metrics(judged, rule)
        row["seconds"] = time.perf_counter() - started
        run.take(row, epoch)
        if report is not None:
            report_epoch(report, row, run, keep=rank == 0 and run.is_kept(epoch))
        if run.is_over():
            break
    return run.finish(train, validation, device, rank, world_size)


def epoch_line(row: dict[str, float], num_epochs: int = 0) -> str:
    """One line on an epoch, from its metrics; `num_epochs`: how many there may be, 0: not said."""
    found = ", ".join(
        f"{name.removeprefix('validation_')} {value:.3f}"
        for name, value in row.items()
        if name.startswith("validation_") and not name.endswith(("videos", "images"))
    )
    of = f" of {num_epochs}" if num_epochs else ""
    line = f"epoch {row['epoch']:.0f}{of}: loss {row['train_loss']:.3f}, {row['seconds']:.1f} s"
    return f"{line}; held out: {found}" if found else line


class TrainingRun:
    """What a training run knows besides the weights: optimiser, history, the best epoch.

    It serves heads and backbones; `config` is a TrainConfig, or has those fields of it that are
    asked for here.
    """

    def __init__(self, model: Any, config: Any, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.config = config
        self.optimizer = optimizer
        self.next_epoch = 0
        self.history: list[dict[str, float]] = []
        self.best_epoch = -1
        self.best_key = (-math.inf, -math.inf)
        self.best_state: dict[str, Tensor] = {}

    def take(self, row: dict[str, float], epoch: int) -> None:
        """Note an epoch's metrics, and its weights if it is the best so far."""
        self.history.append(row)
        self.next_epoch = epoch + 1
        # Without validation videos the latest epoch is the best.
        score = row.get(f"validation_{self.config.selection}", float(epoch))
        key = (score, -row.get("validation_loss", 0.0))
        if key > self.best_key:
            self.best_key, self.best_epoch = key, epoch
            self.best_state = {
                name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()
            }

    def is_kept(self, epoch: int) -> bool:
        """Whether this epoch's training state goes to `report`."""
        return keeps_state(self.config, epoch)

    def is_over(self) -> bool:
        """Whether patience has run out."""
        waited = self.next_epoch - 1 - self.best_epoch
        return 0 < self.config.patience_epochs <= waited

    def save(self, folder: Path) -> None:
        """Write the training state; randomness needs none, as each epoch seeds itself."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "next_epoch": self.next_epoch,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_key": self.best_key,
            "best_state": self.best_state,
        }
        torch.save(state, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Continue from a training state.

        Raises:
            InputError: none there, damaged, or a pickle that holds more than plain values.
        """
        path = folder / STATE_FILE
        if not path.exists():
            raise InputError(f"{folder} holds no {STATE_FILE}, so training cannot resume from it")
        device = next(self.model.parameters()).device
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise InputError(
                f"{path} cannot be read as a training state (damaged, or a pickle that wants to "
                f"run code, which is refused): {str(error).partition(chr(10))[0]}"
            ) from error
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # The state holds the options of its own run, and a search goes on with others.
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
            if "momentum" in group:
                group["momentum"] = self.config.momentum
        self.next_epoch = state["next_epoch"]
        self.history = state["history"]
        self.best_epoch = state["best_epoch"]
        self.best_key = tuple(state["best_key"])
        self.best_state = state["best_state"]

    def finish(
        self,
        train: PackedVideos,
        validation: PackedVideos,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> FitResult:
        """Put the best weights back, and measure and calibrate every prediction rule."""
        model: Head = self.model
        model.load_state_dict(self.best_state)
        place: dict[str, Any] = {"device": device, "rank": rank, "world_size": world_size}
        centroids_KR = centroids(model, train, **place).to(device)
        judged = judge(model, validation, centroids_KR=centroids_KR, **place)
        by_rule, temperatures = metrics_by_rule(judged)
        best = {
            name: value
            for name, value in self.history[self.best_epoch].items()
            if not name.endswith("seconds")
        }
        return FitResult(
            history=self.history,
            best_epoch=self.best_epoch,
            metrics=best | by_rule,
            temperatures=temperatures,
            centroids_KR=centroids_KR.cpu(),
            validation=judged.own,
        )


def keeps_state(config: Any, epoch: int) -> bool:
    """Whether the training state after this epoch goes to `report`; `config` as of TrainingRun."""
    every = config.checkpoint_every_epochs
    return every > 0 and ((epoch + 1) % every == 0 or epoch + 1 == config.epochs)


def _train_epoch(
    trained: nn.Module,
    loader: Loader,
    epoch: int,
    run: TrainingRun,
    weights_K: Tensor,
    device: torch.device,
    world_size: int,
) -> float:
    """One pass over the training batches; the mean loss over all workers."""
    config: TrainConfig = run.config
    trained.train()
    for group in run.optimizer.param_groups:
        group["lr"] = config.learning_rate * rate_of_epoch(config, epoch)
    use_bfloat16 = config.precision == "bfloat16"
    total = torch.zeros((), device=device)
    num_batches = 0
    for frames, targets_B, soft_BK in loader.training(epoch):
        frames, targets_B = frames_to(frames, device), targets_B.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
            output: HeadOutput = trained(frames)
        soft_BK = soft_BK if soft_BK is None else soft_BK.to(device)
        loss = batch_loss(output, frames, targets_B, config.losses, weights_K, world_size, soft_BK)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip > 0:
            nn.utils.clip_grad_norm_(trained.parameters(), config.grad_clip)
        run.optimizer.step()
        total += loss.detach()
        num_batches += 1
    total /= num_batches
    if world_size > 1:
        dist.all_reduce(total)
        total /= world_size
    return float(total)


def report_epoch(report: Report, row: dict[str, float], run: TrainingRun, *, keep: bool) -> None:
    """Hand an epoch's metrics to `report`, with the training state if it is to be kept."""
    if not keep:
        report(row, None)
        return
    with tempfile.TemporaryDirectory(prefix="caan-training-") as folder:
        run.save(Path(folder))
        report(row, Path(folder))


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), rate, momentum=config.momentum, weight_decay=decay
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), rate, weight_decay=decay, fused=True)


def rate_of_epoch(config: Any, epoch: int) -> float:
    """Share of the learning rate in this epoch, 0 to 1."""
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * epoch / config.epochs))
    if config.schedule == "step":
        return 0.1 if epoch >= 2 * config.epochs / 3 else 1.0
    return 1.0
