"""MODELS by name, and the options that make one."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch

from caan.errors import InputError
from caan.models.attention_baselines import QAN, AdaptiveFusion, AttentionClusters, EmotionFAN
from caan.models.averaging import CAA, FAA, FFAA, ContextFusionNet, EmoticNet
from caan.models.caan import CAAN
from caan.models.head import Head
from caan.models.pool5 import PoolFiveAttention
from caan.models.recurrent import LateFusionLSTM, ScoreTree

MODELS: dict[str, Callable[..., Head]] = {
    "caan": CAAN,
    "faa": FAA,
    "caa": CAA,
    "ffaa": FFAA,
    "qan": QAN,
    "fan_lstm": LateFusionLSTM,
    "vielzeuf": ScoreTree,
    "chen": ContextFusionNet,
    "kosti": EmoticNet,
    "attention_clusters": AttentionClusters,
    "emotion_fan": EmotionFAN,
    "caer_net": AdaptiveFusion,
    "pool5_attention": PoolFiveAttention,
}


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


def build_model(
    config: ModelConfig, *, face_dim: int, context_dim: int, num_emotions: int, seed: int = 0
) -> Head:
    """The head that `config` names, freshly initialised from `seed` (torch's own state stays).

    Raises:
        InputError: unknown name, or an option set that this head does not have.
    """
    if config.name not in MODELS:
        raise InputError(f"unknown model `{config.name}`; there are {', '.join(MODELS)}")
    head = MODELS[config.name]
    accepted = inspect.signature(head).parameters
    options = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "name" or (field.name == "dropout" and value is None):
            continue
        if field.name in accepted:
            options[field.name] = value
        elif value != field.default:
            raise InputError(f"option `{field.name}` has no effect on model `{config.name}`")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return head(
            face_dim=face_dim, context_dim=context_dim, num_emotions=num_emotions, **options
        )
