"""Which head, and its sizes: options without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

ModelName = Literal[
    "caan",
    "faa",
    "caa",
    "ffaa",
    "qan",
    "fan_lstm",
    "vielzeuf",
    "chen",
    "kosti",
    "attention_clusters",
    "emotion_fan",
    "caer_net",
    "pool5_attention",
]
Modality = Literal["fusion", "face", "context"]
FusionName = Literal["concat", "concat_fc", "sum_fc", "product", "gated"]
ScoreFunction = Literal["sigmoid", "softplus", "softmax", "raw"]
ScoreInput = Literal["g", "r"]
Activation = Literal["relu", "tanh", "gelu", "none"]

Rule = Literal["head", "frames", "centroids"]
RULES: tuple[Rule, ...] = get_args(Rule)
"""The prediction rules; the paper does not state its own.

head: the classifier on R. frames: the mean of the frames' softmaxes, weighted by their emotion
scores. centroids: the distance of R to each class's mean R."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which head, and its sizes. An option that a head does not have must keep its default."""

    name: ModelName = "caan"
    """The head; docs/reproduce.md says which system of the paper each one is."""
    modality: Modality = "fusion"
    """What caan, qan, emotion_fan and pool5_attention look at; fusion: face and context."""
    projection_size: int = 1024
    """Size of the projected face and context vectors."""
    fusion: FusionName = "concat_fc"
    """Fusion function (paper eq. 1)."""
    fusion_size: int = 2048
    """Size of the fusion layer."""
    feature_size: int = 1024
    """Size of the frame feature g (paper eq. 2)."""
    scorer_depth: int = 3
    """Fully connected layers of the emotion score: 1, 2 or 3 (paper Table 2)."""
    scorer_sizes: tuple[int, ...] = (256, 128)
    """Sizes of the scorer's hidden layers; a depth of d uses the first d-1."""
    score_fn: ScoreFunction = "sigmoid"
    """How scores become weights (paper eq. 4)."""
    score_temperature: float = 1.0
    """Divides the scores where score_fn is softmax."""
    score_input: ScoreInput = "g"
    """What the scorer sees: g (eq. 3) or r (Section 5.1)."""
    activation: Activation = "relu"
    """After projections, fusion and g; none: the paper's equations are linear."""
    recurrent_size: int = 512
    """State of an LSTM (fan_lstm, vielzeuf)."""
    face_share: float = 0.5
    """Share of the face in the mean of two softmaxes, 0 to 1 exclusive (fan_lstm)."""
    modality_dropout: float = 0.2
    """Probability that a training video loses a modality (vielzeuf)."""
    num_clusters: int = 8
    """Attention units per modality (attention_clusters)."""
    pool5_shape: tuple[int, int, int] = (512, 7, 7)
    """Channels, height and width of pool5 maps (pool5_attention)."""
    dropout: float | None = None
    """Share of inputs dropped before fully connected layers; None: the head's own default."""
    null_face: bool = False
    """Learn a vector for frames without a face (for features packed with context_only)."""
