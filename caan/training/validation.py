"""What a head makes of videos that are shared among workers, each video judged exactly once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from caan import metrics
from caan.features.packed import PackedVideos
from caan.models.config import RULES
from caan.models.evidence import calibrated_temperature
from caan.models.head import Head
from caan.training.predict import Predictions, joined, predict


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a head says of all videos, the same on every worker."""

    evidence_VK: dict[str, np.ndarray]
    """Logits of each prediction rule; the videos are in the order of the workers."""
    labels_V: np.ndarray
    """Their labels."""
    own: Predictions
    """What the head says of this worker's videos, in their order."""

    def accuracy_and_uar(self, rule: str) -> tuple[float, float]:
        """Shares of 1 by one rule."""
        evidence_VK = self.evidence_VK[rule]
        matrix = metrics.confusion_matrix(
            self.labels_V, evidence_VK.argmax(axis=1), evidence_VK.shape[1]
        )
        return metrics.accuracy(matrix), metrics.uar(matrix)


def judge(
    model: Head,
    videos: PackedVideos,
    *,
    centroids_KR: Tensor | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Judged:
    """The head over every frame of every video; each worker takes its share and learns the rest."""
    parts, labels = [], []
    for part in videos.shares(rank, world_size):
        parts.append(predict(model, part, centroids_KR=centroids_KR, device=device))
        labels.append(part.labels_V)
    rules = RULES if centroids_KR is not None else RULES[:2]
    own = joined(parts, len(videos.label_set), rules)
    labels_V = np.concatenate([*labels, np.empty(0, np.int64)])
    evidence_VK = own.evidence_VK
    if world_size > 1:
        gathered: list[Any] = [None] * world_size
        dist.all_gather_object(gathered, (evidence_VK, labels_V))
        evidence_VK = {
            rule: np.concatenate([evidence[rule] for evidence, _ in gathered]) for rule in rules
        }
        labels_V = np.concatenate([labels for _, labels in gathered])
    return Judged(evidence_VK=evidence_VK, labels_V=labels_V, own=own)


def epoch_metrics(judged: Judged, rule: str) -> dict[str, float]:
    """The metrics of an epoch by one rule."""
    accuracy, uar = judged.accuracy_and_uar(rule)
    evidence = torch.from_numpy(judged.evidence_VK[rule])
    return {
        "validation_accuracy": accuracy,
        "validation_uar": uar,
        "validation_loss": float(F.cross_entropy(evidence, torch.from_numpy(judged.labels_V))),
        "validation_videos": float(len(judged.labels_V)),
    }


def metrics_by_rule(judged: Judged) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy and UAR by every prediction rule, and each rule's calibrated temperature."""
    found, temperatures = {}, {}
    for rule, evidence_VK in judged.evidence_VK.items():
        temperatures[rule] = calibrated_temperature(evidence_VK, judged.labels_V)
        if len(judged.labels_V):
            accuracy, uar = judged.accuracy_and_uar(rule)
            found[f"validation_accuracy_{rule}"] = accuracy
            found[f"validation_uar_{rule}"] = uar
    return found, temperatures


def centroids(
    model: Head,
    videos: PackedVideos,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Mean of the normalised R of each class, normalised: float32 [K, R]; 0 for an empty class.

    Source: our choice; the paper trains R with a triplet loss and names no rule for the test.
    """
    sums: list[Tensor] = []
    for part in videos.shares(rank, world_size):
        unit_VR = F.normalize(
            torch.from_numpy(predict(model, part, device=device).embedding_VR), dim=1
        )
        sum_KR = torch.zeros(len(videos.label_set), unit_VR.shape[1])
        sums.append(sum_KR.index_add_(0, torch.from_numpy(part.labels_V), unit_VR))
    if world_size > 1:
        gathered: list[Any] = [None] * world_size
        dist.all_gather_object(gathered, torch.stack(sums).sum(dim=0) if sums else None)
        sums = [sum_KR for sum_KR in gathered if sum_KR is not None]
    return F.normalize(torch.stack(sums).sum(dim=0), dim=1)
