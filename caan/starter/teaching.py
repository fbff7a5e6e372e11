"""Training targets of the starter's face network: labels, outputs of other networks, or both."""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from caan.backbones.starter_face import StarterFace
from caan.schema import EMOTIONS
from caan.starter.learner import Learner


def smoothed(labels: Tensor, smoothing: float) -> Tensor:
    """Labels int64 [N] as probabilities [N, K]; `smoothing` is spread over all emotions."""
    told = functional.one_hot(labels, len(EMOTIONS)).float()
    return told * (1 - smoothing) + smoothing / len(EMOTIONS)


@dataclasses.dataclass(frozen=True)
class Seen:
    """The images of one step, each blended from two faces."""

    images: Tensor
    """Standardised images float [B, 1, H, W]."""
    faces_2B: Tensor
    """Indices of the two faces of each image: int64 [2, B]."""
    share: Tensor
    """Share of the first face in each image: float [B]."""


class Labels:
    """Targets: labels, mixed with the network's own running prediction for each face."""

    def __init__(self, labels: Tensor, smoothing: float, memory: float) -> None:
        self.labels = smoothed(labels, smoothing)
        self.opinions = torch.full_like(self.labels, 1 / len(EMOTIONS))
        self.seen = torch.zeros_like(labels)
        self.memory = memory

    def targets(self, seen: "Seen", progress: float) -> Tensor:
        """Target probabilities [B, K] at this progress (0..1) of the schedule."""
        own = self.memory * min(1.0, max(0.0, (progress - 0.15) / 0.3))
        weight = own * (self.seen[seen.faces_2B] > 2)[..., None]
        both = self.labels[seen.faces_2B].lerp(self.opinions[seen.faces_2B], weight)
        return both[1].lerp(both[0], seen.share[:, None])

    def remember(self, seen: "Seen", logits: Tensor) -> None:
        """Update the running predictions of the faces that were not blended."""
        index, alone = seen.faces_2B[0], seen.share == 1
        opinions = self.opinions[index]
        self.opinions[index] = opinions.lerp(logits.softmax(1), 0.3 * alone[:, None])
        self.seen[index] += alone


class Teachers:
    """Targets: the mean output of trained networks for the same image."""

    def __init__(self, networks: list[Learner]) -> None:
        self.networks = [network.folded() for network in networks]

    @torch.no_grad()
    def targets(self, seen: "Seen", progress: float) -> Tensor:
        """Target probabilities [B, K]; `progress` is not used."""
        opinions = [network(seen.images).float().softmax(1) for network in self.networks]
        return torch.stack(opinions).mean(0)


class Refining:
    """Targets: smoothed labels, mixed with the unrefined network's output for the same image."""

    def __init__(self, network: StarterFace, labels: Tensor, trust: Tensor, smoothing: float):
        self.network = network
        self.labels = smoothed(labels, smoothing)
        self.trust = trust
        """Share [N] of the label in each face's target."""

    @torch.no_grad()
    def targets(self, seen: "Seen", progress: float) -> Tensor:
        """Target probabilities [B, K]; `progress` is not used."""
        before = self.network.classifier(self.network.embed(seen.images)).float().softmax(1)
        first, second = self.labels[seen.faces_2B]
        told = second.lerp(first, seen.share[:, None])
        trust_first, trust_second = self.trust[seen.faces_2B]
        return before.lerp(told, trust_second.lerp(trust_first, seen.share)[:, None])
