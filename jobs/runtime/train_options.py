"""Options of a training that jobs share. Importing them costs no Ray and no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LearnedData:
    """Which features and labels are learned from."""

    features: str
    """Output folder of jobs.extract; local or s3://."""
    manifest: str = ""
    """Labels and splits from another manifest than the features' own."""
    split: str = "train"
    """Split to train on; where the manifest names no splits, all labelled videos."""
    validation_fraction: float = 0.15
    """Share of the training videos held out; a `val` split of the manifest is used instead."""
    shuffle_labels: bool = False
    """Train on labels dealt out at random: a control that must end at chance."""
    pool5_gib: float = 8.0
    """Most room for pool5 maps, which model pool5_attention reads, in GiB."""
    seed: int = 0
    """Seed of initial weights, batches and the validation part."""


@dataclass(frozen=True, kw_only=True)
class TrainPlace:
    """Where a training writes, and how it uses the cluster."""

    output: str
    """Model folder to write; local or s3://."""
    num_workers: int = 1
    """Worker processes."""
    min_workers: int = 0
    """Fewest workers that a run goes on with when others are lost for good; 0: --num-workers."""
    storage_path: str = ""
    """Folder for the training state, local (shared by all nodes) or s3://; empty: none is kept."""
    max_failures: int = 3
    """Lost workers that a run with --storage-path survives; -1: any number."""
    on_change: Literal["error", "recompute"] = "error"
    """When the model in --output was trained on other data or with other options."""
    tensorboard: str = ""
    """Local folder for TensorBoard's event files, written every epoch; empty: none."""
