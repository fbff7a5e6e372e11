"""Options of jobs.finetune. Importing them costs no Ray and no torch."""

from dataclasses import dataclass, field
from typing import Literal

from caan.extraction.config import ExtractionConfig
from caan.training.config import FinetuneConfig
from jobs.runtime.options import Limits, Resources


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(ExtractionConfig):
    """What is trained on which data, where it is written, and how the cluster is used."""

    output: str
    """Folder of the weights; local (shared by all nodes) or s3://."""
    manifest: str = ""
    """Manifest of labelled videos: fine-tunes the backbone of `modality`."""
    wider_face: str = ""
    """Folder of WIDER FACE as published: trains the detector faster_rcnn."""
    modality: Literal["face", "context"] = "face"
    """Which of the two backbones is fine-tuned: on faces, or on whole frames."""
    split: str = "train"
    """Split to learn from; where the manifest names no splits, all labelled videos."""
    validation_fraction: float = 0.15
    """Share of its videos held out to choose the epoch; a split `val` is used instead."""
    split_seed: int = 0
    """Seed of that choice: give both backbones the same."""
    num_workers: int = 1
    """Worker processes."""
    max_failures: int = 3
    """Lost workers that a run survives; -1: any number."""
    detector_network: Literal["resnet50", "mobilenet"] = "resnet50"
    """Network of the detector: the paper's, or one of a sixth of its work."""
    detector_base: str = ""
    """File of torchvision's ImageNet weights for it; empty: mobilenet's own, resnet50's none."""
    keep_pictures: bool = False
    """Keep the decoded pictures after the end."""
    min_ok: float = 0.0
    """Lowest accepted share of videos that are ok, partial or no_face; below it the exit is 1."""
    train: FinetuneConfig = field(default_factory=FinetuneConfig)
    """The fine-tuning."""
    limits: Limits = field(default_factory=Limits)
    """Limits on the decoding of one segment."""
    resources: Resources = field(default_factory=Resources)
    """How the cluster is used while it decodes."""
