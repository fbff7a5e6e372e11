"""Which backbone, and with which weights: options without torch."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16"]

RANDOM = "random"
"""The value of `weights` that asks for seeded random weights."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network turns images into vectors, and with which weights."""

    name: str = "vgg16"
    """A name in `BACKBONES`: `vggface`, `vgg16`, `starter_face`, `starter_context`, or your own."""
    weights: str = ""
    """"": the official file (downloaded once), a starter's own; else a path, a folder (as
    jobs.finetune writes), an s3:// or https:// URL, or `random`."""
    seed: int = 0
    """Seed of `random` weights."""
    precision: Precision = "auto"
    """`fp32`, `bf16`, `fp16`, or `auto`: what the device computes fastest. The starters always
    compute in fp32."""
