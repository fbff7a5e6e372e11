"""MODELS: every head by name, and how one is built from a `ModelConfig`.

To add a head: write its class in a file of its own as a subclass of `Head`, add its name to
`ModelName` in config.py and its entry in MODELS. Options that it takes as keyword arguments come
from the `ModelConfig` fields of the same names; the choices of one are its `Literal` there.
"""

import dataclasses
import inspect
from collections.abc import Callable

import torch

from caan.config import check_choice
from caan.errors import InputError
from caan.models.attention_baselines import QAN, AdaptiveFusion, AttentionClusters, EmotionFAN
from caan.models.averaging import CAA, FAA, FFAA, ContextFusionNet, EmoticNet
from caan.models.caan import CAAN
from caan.models.config import ModelConfig
from caan.models.head import Head, HeadSizes
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


def build_model(
    config: ModelConfig, *, face_dim: int, context_dim: int, num_emotions: int, seed: int = 0
) -> Head:
    """Build the head that `config` names, initialised from `seed`; torch's random state stays.

    Raises:
        InputError: an unknown name, a value that is none of the head's choices, or a changed option
            that this head does not have.
    """
    if config.name not in MODELS:
        raise InputError(f"unknown model `{config.name}`; there are {', '.join(MODELS)}")
    head = MODELS[config.name]
    accepted = inspect.signature(head, eval_str=True).parameters
    options = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "name" or (field.name == "dropout" and value is None):
            continue
        if field.name in accepted:
            check_choice(field.name, value, accepted[field.name].annotation)
            options[field.name] = value
        elif value != field.default:
            raise InputError(f"option `{field.name}` has no effect on model `{config.name}`")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return head(HeadSizes(face_dim, context_dim, num_emotions), **options)
