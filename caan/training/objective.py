"""The loss of a batch that may be spread over workers, the same for any number of them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caan.models.head import FrameBatch, HeadOutput
from caan.training import losses
from caan.training.config import LossConfig


def batch_loss(
    output: HeadOutput,
    frames: FrameBatch,
    targets_B: Tensor,
    config: LossConfig,
    weights_K: Tensor,
    world_size: int = 1,
    soft_BK: Tensor | None = None,
) -> Tensor:
    """The weighted losses of this worker's part of a batch.

    The mean of this over workers, and of its gradients, is the loss of the whole batch: the
    cross-entropies are scaled by the batch's true size, and the metric losses see all videos.
    Votes (`soft_BK`) change the softmax losses alone: class weights and like pairs go by the label.
    """
    targets = losses.soft_targets(targets_B, soft_BK, config.votes_share)
    class_weight_B = weights_K[targets_B]
    per_video_B = torch.zeros_like(class_weight_B)
    if config.frame_weight > 0:
        per_video_B = per_video_B + config.frame_weight * losses.frame_cross_entropy(
            output.frame_logits_BTK,
            targets,
            frames.mask_BT,
            config.label_smoothing,
        )
    if config.video_weight > 0:
        if config.video_loss == "l2":
            video_B = losses.video_squared_error(output.video_logits_BK, targets)
        else:
            video_B = losses.video_cross_entropy(
                output.video_logits_BK, targets, config.label_smoothing
            )
        per_video_B = per_video_B + config.video_weight * video_B
    whole_weight = class_weight_B.sum()
    if world_size > 1:
        dist.all_reduce(whole_weight)
    loss = (class_weight_B * per_video_B).sum() * world_size / whole_weight
    if config.triplet_weight > 0 or config.contrastive_weight > 0:
        embedding_NR, labels_N = output.embedding_BR, targets_B
        if world_size > 1:
            sizes = _sizes(len(targets_B), world_size, targets_B.device)
            embedding_NR = _Gather.apply(embedding_NR, sizes)
            labels_N = _gathered(labels_N, sizes)
        if config.triplet_weight > 0:
            loss = loss + config.triplet_weight * losses.triplet_loss(
                embedding_NR, labels_N, config.triplet_margin, config.triplet_mining
            )
        if config.contrastive_weight > 0:
            loss = loss + config.contrastive_weight * losses.contrastive_loss(
                embedding_NR, labels_N, config.contrastive_margin
            )
    return loss


class _Gather(torch.autograd.Function):
    """Rows of all workers on every worker; gradients find their way back to their worker.

    Every worker computes the same loss of all rows, so the sum of the gradients is world_size times
    the gradient; DistributedDataParallel's mean over workers takes that factor out again.
    """

    @staticmethod
    def forward(ctx: Any, rows_BR: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _gathered(rows_BR, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient_NR = gradients[0].contiguous()
        dist.all_reduce(gradient_NR)
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return gradient_NR[start : start + ctx.sizes[rank]], None


def _sizes(own: int, world_size: int, device: torch.device) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    dist.all_gather(sizes, torch.tensor([own], device=device))
    return [int(size) for size in sizes]


def _gathered(rows: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all workers, end to end; workers may hold different numbers of them."""
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
