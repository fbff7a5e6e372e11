"""Heads: models over the face and context vectors of a video."""

from caan.models.build import MODELS, build_model
from caan.models.config import ModelConfig
from caan.models.head import EncodedFrames, FrameBatch, Head, HeadOutput

__all__ = [
    "MODELS",
    "EncodedFrames",
    "FrameBatch",
    "Head",
    "HeadOutput",
    "ModelConfig",
    "build_model",
]
