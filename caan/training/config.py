"""How heads and backbones are trained: options without torch, for the command line."""

from dataclasses import dataclass, field

from caan.errors import InputError
from caan.models.config import RULES

TRIPLET_MININGS = ("semi_hard", "batch_all")
FRAME_SHARES = ("equal", "scores")
CLASS_WEIGHTS = ("none", "balanced", "log")
VIDEO_LOSSES = ("cross_entropy", "l2")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which losses, how strong. A weight of 0 leaves a loss out."""

    frame_weight: float = 1.0
    """Weight of the softmax loss on each frame (paper 4.2)."""
    frame_share: str = "equal"
    """Share of each frame in its video's frame loss. equal; scores: its emotion score (no gradient
    flows into it), so that frames that show another emotion teach less."""
    triplet_weight: float = 1.0
    """Weight of the triplet loss on R (paper 4.2)."""
    video_weight: float = 1.0
    """Weight of the softmax loss on the video (our addition; 0 in the preset `paper`)."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive loss on R (QAN)."""
    video_loss: str = "cross_entropy"
    """cross_entropy, or l2: squared error of sigmoids as in EMOTIC (Kosti et al.)."""
    triplet_margin: float = 0.3
    """Margin between squared distances of normalised R (0 to 4)."""
    triplet_mining: str = "semi_hard"
    """semi_hard or batch_all."""
    contrastive_margin: float = 0.8
    """Squared distance of normalised R beyond which unlike videos cost nothing (QAN)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all emotions, 0 to 1."""
    votes_share: float = 0.0
    """Share of the annotators' votes (soft labels) in the targets, 0 to 1; the rest is the label's.
    Triplets, contrasts and class weights go by the label."""
    class_weights: str = "none"
    """none; balanced: 1/share; log: 1/ln(1.2 + share) (Kosti et al.). Mean over classes is 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.votes_share <= 1:
            raise InputError(f"option `votes_share` is {self.votes_share}; it lies from 0 to 1")
        for option, value, choices in (
            ("frame_share", self.frame_share, FRAME_SHARES),
            ("triplet_mining", self.triplet_mining, TRIPLET_MININGS),
            ("class_weights", self.class_weights, CLASS_WEIGHTS),
            ("video_loss", self.video_loss, VIDEO_LOSSES),
        ):
            if value not in choices:
                raise InputError(
                    f"option `{option}` is `{value}`; choose one of {', '.join(choices)}"
                )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained. Source: the paper names none of these; all are our choice."""

    epochs: int = 60
    """Most epochs; `patience_epochs` usually ends training earlier."""
    batch_videos: int = 56
    """Videos per batch, over all workers."""
    num_frames: int = 8
    """Frames of a video in a training batch, one of each of as many equal segments."""
    sampling: str = "balanced"
    """balanced: equally many videos of each class in a batch; shuffled: as they come."""
    optimizer: str = "adam"
    """adam, adamw or sgd."""
    learning_rate: float = 1e-4
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """Weight decay."""
    schedule: str = "cosine"
    """cosine (to 0), step (a tenth after two thirds of the epochs) or constant."""
    grad_clip: float = 5.0
    """Greatest norm of the gradient; 0 leaves it alone."""
    patience_epochs: int = 6
    """Epochs without a better validation result before training ends; 0 never ends early."""
    selection: str = "uar"
    """What the best epoch is chosen by, on the validation videos: uar or accuracy."""
    rule: str = "head"
    """Prediction rule: head, frames or centroids (chosen on the validation part, if at all)."""
    standardize: bool = True
    """Scale the vectors by mean and deviation of the training frames."""
    precision: str = "float32"
    """float32, or bfloat16 (autocast; for GPUs)."""
    checkpoint_every_epochs: int = 0
    """Hand a training state to `report` every so many epochs; 0 never."""
    seed: int = 0
    """Decides batches, frames and dropout of every epoch."""
    losses: LossConfig = field(default_factory=LossConfig)
    """Which losses, how strong."""

    def __post_init__(self) -> None:
        for option, choices in (
            ("optimizer", ("adam", "adamw", "sgd")),
            ("schedule", ("cosine", "step", "constant")),
            ("selection", ("uar", "accuracy")),
            ("rule", RULES),
            ("precision", ("float32", "bfloat16")),
        ):
            if getattr(self, option) not in choices:
                raise InputError(
                    f"option `{option}` is `{getattr(self, option)}`; "
                    f"choose one of {', '.join(choices)}"
                )
        for option in ("epochs", "batch_videos", "num_frames"):
            if getattr(self, option) < 1:
                raise InputError(f"option `{option}` is {getattr(self, option)}; at least 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a network is fine-tuned. Source: the paper names none of these; all are our choice."""

    epochs: int = 15
    """Most epochs; `patience_epochs` may end it earlier."""
    batch_pictures: int = 32
    """Pictures per step, over all workers (the detector: `batch_images`)."""
    batch_images: int = 8
    """Images per step of the detector, over all workers."""
    learning_rate: float = 1e-3
    """Learning rate of the layers that bring weights (SGD)."""
    head_learning_rate: float = 1e-2
    """Learning rate of the new layer."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 5e-4
    """Weight decay."""
    schedule: str = "step"
    """step (a tenth after two thirds of the epochs), cosine (to 0) or constant."""
    grad_clip: float = 5.0
    """Greatest norm of the gradient; 0 leaves it alone."""
    dropout: float = 0.5
    """Share of the vector that the new layer does not see while it learns."""
    label_smoothing: float = 0.0
    """Share of the target spread over all emotions, 0 to 1."""
    class_weights: str = "balanced"
    """none; balanced: 1/share; log: 1/ln(1.2 + share). By pictures, mean over classes 1."""
    freeze_convolutions: bool = False
    """Leave the convolutions as they are and train the layers after them only."""
    changes: float = 1.0
    """How far the pictures are changed at random (mirrored, cropped, relit); 0: not at all."""
    precision: str = "float32"
    """float32, or bfloat16 (autocast; for GPUs)."""
    selection: str = "uar"
    """What a backbone's best epoch is chosen by, on held-out videos: uar or accuracy."""
    patience_epochs: int = 5
    """Epochs without a better held-out result before it ends; 0 never ends early."""
    checkpoint_every_epochs: int = 1
    """Epochs between two training states, from which an interrupted run goes on."""
    shuffle_pictures: int = 1024
    """Pictures that are mixed with each other on each worker (150 KB each)."""

    def __post_init__(self) -> None:
        for option, choices in (
            ("schedule", ("step", "cosine", "constant")),
            ("selection", ("uar", "accuracy", "average_precision")),
            ("precision", ("float32", "bfloat16")),
            ("class_weights", CLASS_WEIGHTS),
        ):
            if getattr(self, option) not in choices:
                raise InputError(
                    f"option `{option}` is `{getattr(self, option)}`; "
                    f"choose one of {', '.join(choices)}"
                )
        for option in ("epochs", "batch_pictures", "batch_images", "checkpoint_every_epochs"):
            if getattr(self, option) < 1:
                raise InputError(f"option `{option}` is {getattr(self, option)}; at least 1")
