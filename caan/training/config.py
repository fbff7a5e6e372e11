"""How heads and backbones are trained: options without torch, for the command line."""

from dataclasses import dataclass, field
from typing import Any, Literal

from caan import config
from caan.errors import InputError
from caan.features.config import Sampling
from caan.models.config import Rule

TripletMining = Literal["semi_hard", "batch_all"]
ClassWeights = Literal["none", "balanced", "log"]
Schedule = Literal["cosine", "step", "constant"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which losses, and their weights. A weight of 0 leaves a loss out."""

    frame_weight: float = 1.0
    """Weight of the softmax loss on each frame (paper 4.2)."""
    triplet_weight: float = 1.0
    """Weight of the triplet loss on R (paper 4.2)."""
    video_weight: float = 1.0
    """Weight of the softmax loss on the video (our addition; 0 in the preset `paper`)."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive loss on R (QAN)."""
    video_loss: Literal["cross_entropy", "l2"] = "cross_entropy"
    """Loss on the video; l2: squared error of sigmoids as in EMOTIC (Kosti et al.)."""
    triplet_margin: float = 0.3
    """Margin between squared distances of normalised R (0 to 4)."""
    triplet_mining: TripletMining = "semi_hard"
    """semi_hard: the nearest negative beyond the positive; batch_all: every violating triplet."""
    contrastive_margin: float = 0.8
    """Squared distance of normalised R beyond which unlike videos cost nothing (QAN)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all emotions, 0 to 1."""
    votes_share: float = 0.0
    """Share of the annotators' votes (soft labels) in the targets, 0 to 1; the rest is the label's.
    Triplets, contrasts and class weights go by the label."""
    class_weights: ClassWeights = "none"
    """balanced: 1/share; log: 1/ln(1.2 + share) (Kosti et al.). Mean over classes is 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.votes_share <= 1:
            raise InputError(f"option `votes_share` is {self.votes_share}; it lies from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained. Source: the paper names none of these; all are our choice."""

    epochs: int = 60
    """Most epochs; `patience_epochs` usually ends training earlier."""
    batch_videos: int = 56
    """Videos per batch, over all workers."""
    num_frames: int = 8
    """Frames of a video in a training batch, one of each of as many equal segments."""
    sampling: Sampling = "balanced"
    """balanced: equally many videos of each class in a batch; shuffled: in random order."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser."""
    learning_rate: float = 1e-4
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """Weight decay."""
    schedule: Schedule = "cosine"
    """Learning rate; cosine: to 0; step: a tenth after two thirds of the epochs."""
    grad_clip: float = 5.0
    """Greatest norm of the gradient; 0: no limit."""
    patience_epochs: int = 6
    """Epochs without a better validation result before training ends; 0: never ends early."""
    selection: Literal["uar", "accuracy"] = "uar"
    """Validation metric that the best epoch is chosen by."""
    rule: Rule = "head"
    """Prediction rule of the trained model."""
    standardize: bool = True
    """Scale the vectors by mean and deviation of the training frames."""
    precision: Precision = "float32"
    """Arithmetic; bfloat16: autocast, for GPUs."""
    checkpoint_every_epochs: int = 0
    """Epochs between two training states that are handed to `report`; 0: none."""
    seed: int = 0
    """Decides batches, frames and dropout of every epoch."""
    losses: LossConfig = field(default_factory=LossConfig)
    """Which losses, and their weights."""

    def __post_init__(self) -> None:
        _check_at_least_1(self, "epochs", "batch_videos", "num_frames")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a network is fine-tuned. Source: the paper names none of these; all are our choice."""

    epochs: int = 15
    """Most epochs; `patience_epochs` may end it earlier."""
    batch_pictures: int = 32
    """Images per step, over all workers (the detector: `batch_images`)."""
    batch_images: int = 8
    """Images per step of the detector, over all workers."""
    learning_rate: float = 1e-3
    """Learning rate of the layers that have pretrained weights (SGD)."""
    head_learning_rate: float = 1e-2
    """Learning rate of the new layer."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 5e-4
    """Weight decay."""
    schedule: Schedule = "step"
    """Learning rate; step: a tenth after two thirds of the epochs; cosine: to 0."""
    grad_clip: float = 5.0
    """Greatest norm of the gradient; 0: no limit."""
    dropout: float = 0.5
    """Share of the vector that is hidden from the new layer in training."""
    label_smoothing: float = 0.0
    """Share of the target spread over all emotions, 0 to 1."""
    class_weights: ClassWeights = "balanced"
    """balanced: 1/share; log: 1/ln(1.2 + share). By images, mean over classes 1."""
    freeze_convolutions: bool = False
    """Train only the layers after the convolutions."""
    changes: float = 1.0
    """Strength of the random changes of the images (mirrored, cropped, relit); 0: none."""
    precision: Precision = "float32"
    """Arithmetic; bfloat16: autocast, for GPUs."""
    selection: Literal["uar", "accuracy", "average_precision"] = "uar"
    """Metric on held-out videos that a backbone's best epoch is chosen by (the detector's is
    always average_precision)."""
    patience_epochs: int = 5
    """Epochs without a better held-out result before training ends; 0: never ends early."""
    checkpoint_every_epochs: int = 1
    """Epochs between two training states, from which an interrupted run continues."""
    shuffle_pictures: int = 1024
    """Images that are mixed with each other on each worker (150 KB each)."""

    def __post_init__(self) -> None:
        _check_at_least_1(
            self, "epochs", "batch_pictures", "batch_images", "checkpoint_every_epochs"
        )


def _check_at_least_1(options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise InputError(f"option `{name}` is {getattr(options, name)}; at least 1")


def fingerprint_values(train: TrainConfig) -> dict[str, Any]:
    """Plain values of a training for fingerprints and comparisons with an earlier run.

    They include the removed option `losses.frame_share` with its default, so that runs from
    before its removal still resume.
    """
    values = config.to_dict(train)
    values["losses"]["frame_share"] = "equal"
    return values
