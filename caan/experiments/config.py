"""Options of comparisons and searches, without SciPy, scikit-learn and Ray."""

from dataclasses import dataclass, field
from typing import Literal

from caan.models.config import ModelConfig
from caan.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the encoders of Table 6; an option means nothing to an encoder without it.

    The encoders' docstrings say which are published and which are our choice.
    """

    modality: Literal["context", "face", "fusion"] = "context"
    """What they look at; fusion: both encodings side by side."""
    reduced_size: int = 256
    """Size of a frame's vector after PCA."""
    svm_c: float | None = None
    """Cost of the SVM; None: the encoder's own (10, or 1e-3 where the SVM is linear)."""
    sharpness: float | None = None
    """Of the soft assignment to words (10) or the concepts' softmax (20); None: these."""
    dictionary_size: int = 2000
    """Words (transferred_encoding)."""
    num_nearest: int = 10
    """Words that a frame is assigned to (transferred_encoding)."""
    num_steps: int = 64
    """Steps that a video is resampled to (kernelized_features)."""
    num_bins: int = 8
    """Lowest frequencies that are kept (kernelized_features)."""
    degree: int = 2
    """Degree of the polynomial kernel (kernelized_features)."""
    offset: float = 1.0
    """Offset of the polynomial kernel (kernelized_features)."""
    feature_size: int = 512
    """Size of a video's vector after PCA (kernelized_features)."""
    classifier: Literal["svm", "src"] = "svm"
    """src: sparse representation over the training videos (kernelized_features)."""
    num_atoms: int = 30
    """Training videos in a sparse representation (kernelized_features)."""
    num_concepts: int = 1000
    """Concepts (concept_selection)."""
    num_selected: int = 500
    """Scores of concepts that are kept (concept_selection)."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a search varies, how it draws and stops trials, and what they learn from."""

    features: tuple[str, ...]
    """Output folders of jobs.extract; of several (other backbones) each trial takes one."""
    output: str
    """Folder of the results; local or s3://."""
    space: str
    """YAML file: dotted options of jobs.train, each with a list of values or a sampler."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """grid: all combinations of lists; optuna: learns from the trials before."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """none: trials run in full; asha: the worse ones end early; pbt: they copy the better ones."""
    num_trials: int = 20
    """Trials of random and optuna, and the population of pbt."""
    resume: bool = False
    """Continue the interrupted search in --output."""
    grace_epochs: int = 5
    """Epochs that every trial gets under asha."""
    reduction_factor: int = 3
    """At each step asha keeps one trial in this many."""
    perturbation_epochs: int = 5
    """Epochs between two exchanges of pbt."""
    workers_per_trial: int = 1
    """Worker processes of a trial; with several, Ray Train runs inside the trial."""
    cpus_per_trial: float = 1.0
    """CPU cores of a trial (of each of its workers)."""
    gpus_per_trial: float = -1.0
    """GPUs of a trial (of each of its workers), shares allowed; -1: a quarter if there are any."""
    manifest: str = ""
    """Labels and splits from another manifest than the features' own."""
    split: str = "train"
    """Split to learn from; where the manifest names no splits, all labelled videos."""
    validation_fraction: float = 0.15
    """Share of the training videos that chooses; a `val` split is used instead."""
    preset: Literal["default", "paper"] = "default"
    """Preset of model caan for the options outside the space."""
    mlflow: str = ""
    """Tracking URI of an MLflow server or folder that gets every trial too (extra `mlflow`)."""
    seed: int = 0
    """Seed of the draws, the validation part and, unless in the space, of each trial."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The head, except for the options of the space."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Its training, except for the options of the space."""
