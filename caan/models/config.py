"""Which head, and its sizes: options without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which head, and its sizes; an option that a head does not have must keep its default."""

    name: str = "caan"
    """One of MODELS."""
    modality: str = "fusion"
    """What caan, qan, emotion_fan, pool5_attention look at: fusion (both), face, context."""
    projection_size: int = 1024
    """Size of the projected face and context vectors."""
    fusion: str = "concat_fc"
    """Fusion function (paper eq. 1): concat, concat_fc, sum_fc, product, gated."""
    fusion_size: int = 2048
    """Size of the fusion layer."""
    feature_size: int = 1024
    """Size of the frame feature g (paper eq. 2)."""
    scorer_depth: int = 3
    """Fully connected layers of the emotion score: 1, 2 or 3 (paper Table 2)."""
    scorer_sizes: tuple[int, ...] = (256, 128)
    """Sizes of the scorer's hidden layers; a depth of d uses the first d-1."""
    score_fn: str = "sigmoid"
    """How scores become weights (paper eq. 4): sigmoid, softplus, softmax, raw."""
    score_temperature: float = 1.0
    """Divides the scores where score_fn is softmax."""
    score_input: str = "g"
    """What the scorer sees: g (eq. 3) or r (Section 5.1)."""
    activation: str = "relu"
    """After projections, fusion and g: relu, tanh, gelu, none (the paper's eqs. are linear)."""
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


RULES = ("head", "frames", "centroids")
"""head: the classifier on R; frames: mean of the frames' softmaxes, weighted by their emotion
scores; centroids: distance of R to the classes' mean R. The paper does not state its rule."""
