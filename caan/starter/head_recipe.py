"""Train the starter head: CAAN on face vectors, which learns the frames to trust.

    python -m caan.starter head --faces fer2013.parquet --output caan/starter/model

CAAN's layers are set to the face network's own classifier. So a video of one frame gets the
network's own probabilities. Only the scorer is trained, on sequences of face vectors of FER2013
that mix clear, neutral and spoiled images.
"""

import dataclasses
import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from caan.backbones.starter_face import NUM_EMBEDDED, WEIGHTS, StarterFace
from caan.models.build import build_model
from caan.models.checkpoint import ModelInfo, save_model
from caan.models.config import ModelConfig
from caan.models.head import FrameBatch, Head
from caan.schema import EMOTIONS
from caan.starter.augmentation import blur, cover, warp
from caan.starter.faces import load_faces

LOGGER = logging.getLogger(__name__)

NEUTRAL = EMOTIONS.index("neutral")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Options of the training of the starter head."""

    faces: Path
    """FER2013 as a Parquet file with the columns split, label and jpeg."""
    output: Path
    """Model folder to write."""
    weights: Path = WEIGHTS
    """Weights of the face network."""
    pictures: int = 4000
    """Number of training faces; each is used once clear and once spoiled."""
    steps: int = 2000
    """Optimiser steps."""
    batch: int = 128
    """Videos per step."""
    longest: int = 16
    """Frames of the longest composed video; the shortest has 2."""
    learning_rate: float = 1e-3
    """Highest learning rate of the scorer (AdamW, cosine)."""
    trust_weight: float = 0.6
    """Weight of the loss on the raw scores, whose targets are the kinds of the frames."""
    seed: int = 7
    """Seed of all random numbers."""


def as_cropped(faces_B1HW: Tensor) -> Tensor:
    """Change clear faces float [B, 1, 96, 96] a little, as a detector's crops differ."""
    faces = warp(faces_B1HW, 96, 0.4)
    return (faces + torch.randn_like(faces) * 2.0).clamp(0, 255)


def spoil(faces_B1HW: Tensor) -> Tensor:
    """Spoil faces float [B, 1, 96, 96] so that they show little emotion.

    Seven kinds in equal parts: strongly blurred, half covered from any side, nearly dark, tiny,
    turned by 90 to 270 degrees, smeared by motion, no face at all.
    """
    faces = as_cropped(faces_B1HW)
    for kind, part in enumerate(torch.randperm(len(faces)).chunk(7)):
        some = faces[part]
        if len(some) == 0:
            continue
        if kind == 0:
            some = blur(some, float(torch.rand(()) * 5 + 5))
        elif kind == 1:
            share = 0.5 + 0.15 * float(torch.rand(()))
            turns = int(torch.randint(0, 4, ())) if torch.rand(()) < 0.5 else 0
            some = torch.rot90(some, turns, (2, 3)).clone()
            some[:, :, round(96 * (1 - share)) :] = torch.rand(len(some), 1, 1, 1) * 190 + 30
            some = torch.rot90(some, -turns, (2, 3))
        elif kind == 2:
            some = some * (torch.rand(len(some), 1, 1, 1) * 0.15 + 0.08)
            some = some + torch.randn_like(some) * 3
        elif kind == 3:
            side = int(torch.randint(5, 11, ()))
            some = functional.interpolate(some, size=(side, side), mode="bilinear", antialias=True)
            some = functional.interpolate(some, size=(96, 96), mode="bilinear")
        elif kind == 4:
            some = torch.rot90(some, int(torch.randint(1, 4, ())), (2, 3))
        elif kind == 5:
            some = functional.avg_pool2d(
                functional.pad(some, (15, 15, 0, 0), mode="replicate"), (1, 31), 1
            )
        else:
            corner = some[:, :, :28, :28]
            some = functional.interpolate(corner, size=(96, 96), mode="bilinear")
        faces[part] = some
    return cover(faces, 0.1).clamp(0, 255)


def embed_faces(network: StarterFace, images_B1HW: Tensor) -> Tensor:
    """Face vectors float [B, D] of grey images float [B, 1, H, W] in 0..255."""
    images = images_B1HW.round().byte().expand(-1, 3, -1, -1).movedim(1, 3)
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(64)])


def head_of(network: StarterFace, model: ModelConfig, seed: int) -> Head:
    """Build a CAAN on face vectors that classifies a single frame exactly as the network does.

    The network's features are 0 or more, so the ReLUs between its layers change nothing.
    """
    head = build_model(
        model, face_dim=network.dim, context_dim=0, num_emotions=len(EMOTIONS), seed=seed
    )
    passed = model.projection_size
    assert passed == model.feature_size == network.dim
    with torch.no_grad():
        project, feature, classifier = head.project_face, head.frame_feature, head.classifier
        for layer in (project, feature):
            assert isinstance(layer, nn.Linear)
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        assert isinstance(classifier, nn.Linear)
        weight = network.classifier.weight / network.temperature
        nn.init.zeros_(classifier.weight)
        classifier.weight[:, :NUM_EMBEDDED] = weight
        classifier.bias.copy_(network.classifier.bias / network.temperature)
    return head


class Bank:
    """Face vectors of clear and spoiled images, from which videos are composed."""

    def __init__(self, network: StarterFace, faces: Tensor, labels: Tensor) -> None:
        parts = [part.float() for part in faces.split(256)]
        self.clear = torch.cat([embed_faces(network, as_cropped(part)) for part in parts])
        self.spoiled = torch.cat([embed_faces(network, spoil(part)) for part in parts])
        self.members = [torch.nonzero(labels == k).flatten() for k in range(len(EMOTIONS))]

    def draw(self, videos: int, longest: int) -> tuple[FrameBatch, Tensor, Tensor]:
        """Compose videos; return their frames, labels [B] and the kind [B, T] of each frame.

        | kind | frame |
        |---|---|
        | 0 | informative: a clear face of the label's emotion |
        | 1 | a clear neutral face in a video of another emotion |
        | 2 | a spoiled face |
        """
        labels = torch.randint(0, len(EMOTIONS), (videos,))
        lengths = torch.randint(2, longest + 1, (videos,))
        mask_BT = torch.arange(longest)[None] < lengths[:, None]
        told = torch.rand(videos, 1) * 0.6 + 0.2
        draw = torch.rand(videos, longest)
        kind_BT = torch.where(draw < told, 0, torch.where(torch.rand_like(draw) < 0.35, 1, 2))
        kind_BT[(labels == NEUTRAL)[:, None] & (kind_BT == 1)] = 0
        kind_BT[:, 0] = torch.where(torch.rand(videos) < 0.9, 0, kind_BT[:, 0])
        shown_BT = torch.where(kind_BT == 1, NEUTRAL, labels[:, None])
        index_BT = torch.zeros_like(kind_BT)
        for emotion, members in enumerate(self.members):
            where = shown_BT == emotion
            index_BT[where] = members[torch.randint(0, len(members), (int(where.sum()),))]
        vectors = torch.where(
            (kind_BT == 2)[..., None], self.spoiled[index_BT], self.clear[index_BT]
        )
        return FrameBatch(vectors, None, mask_BT), labels, kind_BT


def area_under_curve(high: Tensor, low: Tensor) -> float:
    """Probability 0..1 that a value of `high` is above one of `low` (the ROC AUC)."""
    ordered = low.sort().values
    below = torch.searchsorted(ordered, high, right=False).double()
    not_above = torch.searchsorted(ordered, high, right=True).double()
    return float(((below + not_above) / 2 / len(low)).mean())


def measure(head: Head, bank: Bank, seed: int) -> dict[str, float]:
    """Accuracy with attention and with averaging on 2100 composed videos, and AUC of the scores."""
    torch.manual_seed(seed)
    right, plain, scores, kinds = 0.0, 0.0, [], []
    rounds, videos = 7, 300
    head.eval()
    with torch.no_grad():
        for _ in range(rounds):
            frames, labels, kind_BT = bank.draw(videos, 16)
            output = head(frames)
            right += float((output.video_logits_BK.argmax(1) == labels).float().mean())
            weights = frames.mask_BT / frames.mask_BT.sum(1, keepdim=True)
            mean = (output.frame_logits_BTK * weights[..., None]).sum(1)
            plain += float((mean.argmax(1) == labels).float().mean())
            scores.append(output.raw_scores_BT[frames.mask_BT])
            kinds.append(kind_BT[frames.mask_BT])
    score, kind = torch.cat(scores), torch.cat(kinds)
    return {
        "accuracy": right / rounds,
        "accuracy_of_averaging": plain / rounds,
        "auc_informative_over_spoiled": area_under_curve(score[kind == 0], score[kind == 2]),
        "auc_neutral_over_spoiled": area_under_curve(score[kind == 1], score[kind == 2]),
        "auc_informative_over_neutral": area_under_curve(score[kind == 0], score[kind == 1]),
    }


def train_scorer(head: Head, bank: Bank, config: HeadConfig) -> None:
    """Train the scorer alone to find the frames that show a video's emotion."""
    head.requires_grad_(False)
    scorer = head.scorer
    assert isinstance(scorer, nn.Module)
    scorer.requires_grad_(True)
    optimiser = torch.optim.AdamW(scorer.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    head.train()
    for step in range(config.steps):
        frames, labels, kind_BT = bank.draw(config.batch, config.longest)
        output = head(frames)
        loss = functional.cross_entropy(output.video_logits_BK, labels)
        target = torch.tensor([1.0, 0.4, 0.02])[kind_BT]
        trust = functional.binary_cross_entropy_with_logits(
            output.raw_scores_BT[frames.mask_BT], target[frames.mask_BT]
        )
        optimiser.zero_grad()
        (loss + config.trust_weight * trust).backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            LOGGER.info("step %d video %.3f trust %.3f", step, loss.item(), trust.item())
    head.eval()


def make_head(config: HeadConfig) -> dict[str, float]:
    """Train the starter head and write its model folder; return its figures on test faces.

    Test faces are used because the face network has learned the validation faces too. They were
    used for no choice, here or in the face network's training.
    """
    torch.manual_seed(config.seed)
    network = StarterFace(config.weights)
    faces, labels = load_faces(config.faces, "train")
    chosen = torch.randperm(len(faces))[: config.pictures]
    bank = Bank(network, faces[chosen], labels[chosen])
    model = ModelConfig(
        modality="face",
        projection_size=network.dim,
        feature_size=network.dim,
        scorer_depth=3,
        scorer_sizes=(64, 32),
    )
    head = head_of(network, model, config.seed)
    train_scorer(head, bank, config)
    held_out = Bank(network, *load_faces(config.faces, "test"))
    metrics = measure(head, held_out, config.seed)
    info = ModelInfo(
        model=model,
        label_set=EMOTIONS,
        face_dim=network.dim,
        context_dim=0,
        face_backbone="starter_face",
        context_backbone="starter_context",
        face_backbone_identity=network.identity,
        detector="libfacedetection",
        training=(("recipe", "caan.starter.head_recipe"), ("seed", str(config.seed))),
    )
    save_model(config.output, head, info, metrics=metrics)
    LOGGER.info("%s", metrics)
    return metrics
