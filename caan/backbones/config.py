"""Which backbone, and with which weights: options without torch."""

from dataclasses import dataclass

RANDOM = "random"
"""The value of `weights` that asks for seeded random weights."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network turns images into vectors, and with which weights."""

    name: str = "vgg16"
    """`vggface`, `vgg16`, `starter_face` or `starter_context`."""
    weights: str = ""
    """"": the official file (downloaded once), a starter's own; else a path, a folder (as
    jobs.finetune writes), an s3:// or https:// URL, or `random`."""
    seed: int = 0
    """Seed of `random` weights."""
    precision: str = "auto"
    """`fp32`, `bf16`, `fp16`, or `auto`: what the device computes fastest. The starters always
    compute in fp32."""
