"""What a head is trained on: features and labels, packed and split."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caan import storage
from caan.backbones.weights import finetuned_of
from caan.datasets.registry import face_crops_of, require_context
from caan.errors import InputError
from caan.features import leakage
from caan.features.batches import check_classes
from caan.features.packed import PackedVideos, add_maps, pack_features
from caan.features.packed_files import PackedFiles
from caan.features.splits import Division, divided
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.outputs import layout
from caan.outputs.plan import check_manifest
from caan.schema import label_set_of
from jobs.runtime import packing


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which features and labels are read, and how."""

    features: str
    """Output folder of jobs.extract; local or s3://."""
    manifest: str = ""
    """Labels and splits from another manifest than the features' own."""
    split: str = "train"
    """Split to train on; where the manifest names no splits, all labelled videos."""
    validation_fraction: float = 0.15
    """Share of the training videos held out; a `val` split of the manifest is used instead."""
    seed: int = 0
    """Seed of the validation part and of shuffled labels."""
    shuffle_labels: bool = False
    """Deal the training labels out at random."""
    loader: str = "auto"
    """memory holds all features on each node, stream reads them from files; auto: as they fit."""
    memory_limit_gb: float = 0.0
    """Most vectors that auto holds in memory, in GB; 0: a quarter of this machine's memory."""
    storage_path: str = ""
    """Folder that keeps packed files; empty: the run's scratch folder."""
    pool5_gib: float = 8.0
    """Most memory for pool5 maps, in GiB."""
    maps: str = ""
    """Modality whose pool5 maps are read; empty: none."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run trains on."""

    train: PackedVideos | PackedFiles
    """Training videos."""
    validation: PackedVideos | PackedFiles
    """Held out of the training split, or the manifest's own validation split."""
    record: dict[str, Any]
    """run.json of the features."""


def read_data(options: DataOptions, scratch: Path | None = None) -> Data:
    """Features and labels, packed and split; in files, with `scratch` for them, if they stream.

    Raises:
        InputError: no features, no labels, an unfinished extraction, or fine-tuned backbones that
            are gone or have seen what is to be judged.
    """
    run_file = storage.join(options.features, "run.json")
    if not storage.exists(run_file):
        raise InputError(f"`{options.features}` holds no features: it has no run.json.")
    record = storage.read_json(run_file)
    if not record.get("is_complete") or record.get("job") != "extract":
        raise InputError(
            f"the features in `{options.features}` are not finished: run the same jobs.extract "
            "again."
        )
    finetuned_of(record)  # the model folder will take them along
    manifest_uri = options.manifest or storage.join(options.features, "manifest.parquet")
    table = storage.read_table(manifest_uri)
    manifest = check_manifest(table, manifest_uri)
    seen = leakage.read_beside(options.features)
    manifest = leakage.honest_splits(manifest, seen, options.split)
    record["face_crops"] = record.get("face_crops") or face_crops_of(table)
    labels = [label for label in manifest["label"].to_pylist() if label]
    if not labels:
        raise InputError(
            f"manifest `{manifest_uri}` has no labels: put videos into folders named after their "
            "emotions, or give a list with a column `label`."
        )
    label_set = label_set_of(labels)
    division = Division(
        split=options.split, fraction=options.validation_fraction, seed=options.seed
    )
    train: PackedVideos | PackedFiles
    validation: PackedVideos | PackedFiles
    if scratch is not None and _is_streamed(options):
        train, validation = packing.packed(
            options.features,
            record,
            manifest,
            label_set,
            division,
            folder=options.storage_path or str(scratch),
            scratch=scratch,
        )
    else:
        whole = pack_features(
            layout.latest_segments(options.features, "features", packing.COLUMNS),
            manifest,
            label_set,
            no_face=record["config"]["no_face"],
        )
        if options.maps:
            whole = _with_maps(options, whole, record, packing.COLUMNS)
        train, validation = divided(whole, division)
    check_classes(np.bincount(train.labels_V, minlength=len(train.label_set)), train.label_set)
    if options.shuffle_labels:
        rng = np.random.default_rng(options.seed)
        labels_V = rng.permutation(train.labels_V)
        # Votes would still tell the truth; streamed videos carry none.
        if isinstance(train, PackedVideos):
            train = dataclasses.replace(train, labels_V=labels_V, soft_VK=None)
        else:
            train = dataclasses.replace(train, labels_V=labels_V)
    return Data(train=train, validation=validation, record=record)


def _is_streamed(options: DataOptions) -> bool:
    if options.maps:
        if options.loader == "stream":
            raise InputError(
                "--loader stream reads no pool5 maps, which --model.name pool5_attention needs: "
                "take --loader memory, or another model."
            )
        return False
    return packing.is_streamed(options.features, options.loader, options.memory_limit_gb)


def check_context(data: Data, model: ModelConfig) -> None:
    """Refuse a head that looks at whole frames where the data set has only cut-out faces.

    Raises:
        InputError: it does.
    """
    if data.record["face_crops"]:
        head = build_model(model, face_dim=4, context_dim=4, num_emotions=2)
        require_context(data.record["face_crops"], head.modalities)


def _with_maps(
    options: DataOptions, packed: PackedVideos, record: dict[str, Any], columns: list[str]
) -> PackedVideos:
    modality = options.maps
    shape = record["identity"].get(f"{modality}_pool5_shape")
    if shape is None:
        raise InputError(
            f"--model.name pool5_attention needs pool5 maps of the {modality}, and the features in "
            f"`{options.features}` have none: extract with `--pool5 {modality}`, or train `caan` "
            f"with `--model.modality {modality}`, which scores from fc6."
        )
    return add_maps(
        packed,
        layout.latest_segments(options.features, "features", [*columns, f"{modality}_pool5"]),
        {modality: shape},
        max_bytes=int(options.pool5_gib * 2**30),
    )
