"""What a head is trained on: features and labels, packed and split."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caan.backbones.weights import finetuned_of
from caan.datasets.registry import require_context
from caan.errors import InputError
from caan.features.batches import check_classes
from caan.features.open_features import open_features
from caan.features.packed import PackedVideos
from caan.features.splits import Division, divided
from caan.models.build import build_model
from caan.models.config import ModelConfig
from jobs.runtime.train_options import LearnedData


@dataclass(frozen=True, kw_only=True)
class DataOptions(LearnedData):
    """What is learned from, and which pool5 maps are read with it."""

    maps: str = ""
    """Modality whose pool5 maps are read; empty: none."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run trains on."""

    train: PackedVideos
    """Training videos."""
    validation: PackedVideos
    """Held out of the training split, or the manifest's own validation split."""
    record: dict[str, Any]
    """run.json of the features."""

    def without_vectors(self) -> "Data":
        """The same videos without their vectors: small enough to send to workers."""
        return dataclasses.replace(
            self, train=self.train.without_vectors(), validation=self.validation.without_vectors()
        )

    def vectors_in(self, folder: Path) -> "Data":
        """The same videos with their vectors mapped from the files of a folder on this node."""
        return dataclasses.replace(
            self, train=self.train.vectors_in(folder), validation=self.validation.vectors_in(folder)
        )


def read_data(options: DataOptions, folder: Path | None = None) -> Data:
    """Features and labels, packed and split; with an empty `folder` mapped from files in it.

    Raises:
        InputError: no features, no labels, an unfinished extraction, or fine-tuned backbones that
            are gone or have seen what is to be judged.
    """
    features = open_features(options.features, (options.manifest,) if options.manifest else ())
    finetuned_of(features.record)  # the model folder will take them along
    videos = features.pack(
        features.honest_manifest(0, options.split),
        no_face=features.record["config"]["no_face"],
        folder=folder,
    )
    if options.maps:
        if options.maps not in features.map_shapes():
            raise InputError(
                f"--model.name pool5_attention needs pool5 maps of the {options.maps}, and the "
                f"features in `{options.features}` have none: extract with "
                f"`--pool5 {options.maps}`, or train `caan` with "
                f"`--model.modality {options.maps}`, which scores from fc6."
            )
        videos = features.with_maps(
            videos, (options.maps,), max_gib=options.pool5_gib, folder=folder
        )
    division = Division(
        split=options.split, fraction=options.validation_fraction, seed=options.seed
    )
    train, validation = divided(videos, division)
    check_classes(np.bincount(train.labels_V, minlength=len(train.label_set)), train.label_set)
    if options.shuffle_labels:
        rng = np.random.default_rng(options.seed)
        # Votes would still tell the truth.
        train = dataclasses.replace(train, labels_V=rng.permutation(train.labels_V), soft_VK=None)
    return Data(train=train, validation=validation, record=features.record)


def check_context(data: Data, model: ModelConfig) -> None:
    """Refuse a head that looks at whole frames where the data set has only cut-out faces.

    Raises:
        InputError: it does.
    """
    if data.record["face_crops"]:
        head = build_model(model, face_dim=4, context_dim=4, num_emotions=2)
        require_context(data.record["face_crops"], head.modalities)
