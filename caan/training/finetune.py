"""The network and the training loop of a fine-tuning, for backbones and the detector, without Ray.

A backbone learns from single frames with their video's label, under a new last layer that is
dropped at the end (paper 4.1). State, best epoch and reports are those of `caan.training.loop`.

Legend: B images, H and W image sides, D features, V videos, K emotions.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from caan import metrics
from caan.backbones.backbone import Backbone
from caan.errors import InputError
from caan.training.config import FinetuneConfig
from caan.training.finetune_data import picture_batch
from caan.training.loop import Report, TrainingRun, epoch_line, rate_of_epoch, report_epoch

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""Time between two progress lines."""


class PictureClassifier(nn.Module):
    """A backbone with a new last layer: its loss is the cross-entropy of the videos' labels.

    Batch norms keep the statistics that came with their weights. So an image's vector depends on
    no other image, and the number of workers does not change the result.

    Source: paper section 4.1. There the new layer follows fc7. Here it follows the vector that
    extraction takes (our choice), so that no other layer is dropped.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_emotions: int,
        *,
        dropout: float = 0.5,
        label_smoothing: float = 0.0,
        freeze_convolutions: bool = False,
        weights_K: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.float()
        self.norm = nn.LayerNorm(backbone.dim, elementwise_affine=False)
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.last = nn.Linear(backbone.dim, num_emotions)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.zeros_(self.last.bias)
        self.weights_K: Tensor | None
        self.register_buffer("weights_K", weights_K, persistent=False)
        convolutions = (nn.Conv2d, nn.BatchNorm2d)
        for module in backbone.modules():
            frozen = freeze_convolutions and isinstance(module, convolutions)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(not frozen)
        unused = getattr(backbone.network, "classifier", None)
        if backbone.colours is None and unused is not None:
            unused.requires_grad_(False)  # the starter's own emotions
        if not any(parameter.requires_grad for parameter in backbone.parameters()):
            raise InputError(
                f"--freeze-convolutions leaves nothing of `{backbone.name}` to train, because it "
                "has convolutions only: leave the option out, or take vggface or vgg16."
            )

    def train(self, mode: bool = True) -> "PictureClassifier":
        """Put everything but the batch norms into training mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, K] of RGB images [B, H, W, 3] in 0..255."""
        vectors_BD = self.norm(self.backbone(images).float())
        return self.last(functional.dropout(vectors_BD, self.dropout, self.training))

    def forward(self, images: Tensor, label_B: Tensor) -> Tensor:
        """The batch's loss, a scalar."""
        return functional.cross_entropy(
            self.logits(images).float(),
            label_B,
            weight=self.weights_K,
            label_smoothing=self.label_smoothing,
        )


def parameter_groups(
    new: nn.Module, brought: nn.Module, config: FinetuneConfig
) -> list[dict[str, Any]]:
    """Parameter groups for SGD: pretrained layers at `learning_rate`, new at `head_learning_rate`.

    Layers of `brought` that lie in `new` too count as new; frozen ones are left out.
    """
    fresh = {id(parameter) for parameter in new.parameters()}
    old = [p for p in brought.parameters() if p.requires_grad and id(p) not in fresh]
    return [
        {"params": old, "lr": config.learning_rate, "highest": config.learning_rate},
        {
            "params": list(new.parameters()),
            "lr": config.head_learning_rate,
            "highest": config.head_learning_rate,
        },
    ]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The record of a fine-tuning; the network holds the weights of the best epoch."""

    history: list[dict[str, float]]
    """The metrics of each epoch."""
    best_epoch: int
    """Number of the epoch whose weights were kept, from 0."""


def fit_pictures(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    batches: Callable[[int], Iterable[tuple[Any, ...]]],
    validate: Callable[[], dict[str, float]],
    config: FinetuneConfig,
    *,
    report: Report | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    resume: Path | None = None,
) -> FinetuneResult:
    """Train a network whose `forward` gives a loss; load the weights of its best epoch at the end.

    `batches(epoch)` gives this worker's batches, equally many on every worker; the loss is
    `model(*batch)`. `validate()` gives `validation_*` metrics, the same on every worker.

    Raises:
        InputError: training that diverged.
    """
    device = torch.device(device)
    model.to(device)
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    run = TrainingRun(model, config, optimizer)
    if resume is not None:
        run.load(resume)
    # find_unused_parameters: some batches do not reach every layer.
    trained = (
        DistributedDataParallel(model, find_unused_parameters=True) if world_size > 1 else model
    )
    for epoch in range(run.next_epoch, config.epochs):
        started = time.perf_counter()
        torch.manual_seed((seed * 100_003 + epoch) * 1009 + rank)
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * rate_of_epoch(config, epoch)
        loss = _epoch(trained, batches(epoch), optimizer, config, device, epoch, rank)
        if world_size > 1:
            dist.all_reduce(loss)
            loss /= world_size
        train_loss = float(loss)
        if not math.isfinite(train_loss):
            raise InputError(
                f"fine-tuning diverged in epoch {epoch}; lower `learning_rate` "
                f"(it is {config.learning_rate})"
            )
        row = {"epoch": float(epoch), "train_loss": train_loss}
        row["train_seconds"] = time.perf_counter() - started
        model.eval()
        row |= validate()
        row["seconds"] = time.perf_counter() - started
        run.take(row, epoch)
        if rank == 0:
            logger.info("%s", epoch_line(row))
        if report is not None:
            report_epoch(report, row, run, keep=rank == 0 and run.is_kept(epoch))
        if run.is_over():
            break
    model.load_state_dict(run.best_state)
    model.eval()
    return FinetuneResult(history=run.history, best_epoch=run.best_epoch)


def _epoch(
    trained: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    optimizer: torch.optim.Optimizer,
    config: FinetuneConfig,
    device: torch.device,
    epoch: int,
    rank: int,
) -> Tensor:
    """Train on this worker's batches once; give their mean loss.

    Raises:
        InputError: there are none.
    """
    total = torch.zeros((), device=device)
    num_batches = 0
    logged = started = time.perf_counter()
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = trained(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip > 0:
            nn.utils.clip_grad_norm_(trained.parameters(), config.grad_clip)
        optimizer.step()
        total += loss.detach()
        num_batches += 1
        now = time.perf_counter()
        if rank == 0 and now - logged > PROGRESS_SECONDS:
            logged = now
            logger.info(
                "epoch %d: %d steps, loss %.3f, %.1f steps/s",
                epoch,
                num_batches,
                float(total) / num_batches,
                num_batches / (now - started),
            )
    if not num_batches:
        raise InputError("there are fewer training pictures than workers: nothing to train on.")
    return total / num_batches


def video_metrics(
    model: PictureClassifier,
    batches: Iterable[pa.Table],
    labels_V: np.ndarray,
    num_emotions: int,
    *,
    device: torch.device | str,
    world_size: int = 1,
) -> dict[str, float]:
    """Metrics of held-out videos by the mean probability of each video's images.

    `batches` are this worker's part; a video's images may lie on several workers. Videos without
    an image are left out.
    """
    sums = torch.zeros(len(labels_V), num_emotions + 1)
    with torch.inference_mode():
        for table in batches:
            images, _, video_B = picture_batch(table)
            probabilities = model.logits(images.to(device)).softmax(1).cpu()
            sums[:, :num_emotions].index_add_(0, video_B, probabilities)
            sums[:, num_emotions].index_add_(0, video_B, torch.ones(len(video_B)))
    if world_size > 1:
        sums = sums.to(device)
        dist.all_reduce(sums)
        sums = sums.cpu()
    seen = sums[:, num_emotions] > 0
    if not seen.any():
        return {}
    mean_VK = sums[seen, :num_emotions] / sums[seen, num_emotions:]
    truth_V = labels_V[seen.numpy()]
    matrix = metrics.confusion_matrix(truth_V, mean_VK.argmax(1).numpy(), num_emotions)
    loss = functional.nll_loss(mean_VK.clamp(min=1e-9).log(), torch.from_numpy(truth_V))
    return {
        "validation_accuracy": metrics.accuracy(matrix),
        "validation_uar": metrics.uar(matrix),
        "validation_loss": float(loss),
        "validation_videos": float(len(truth_V)),
    }
