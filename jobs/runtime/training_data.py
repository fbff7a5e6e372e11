"""What jobs.train learns from: features and labels, packed and split, and its configuration."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from caan.training import recipes
from caan.training.config import TrainConfig
from jobs.runtime import packing

if TYPE_CHECKING:
    from jobs.train import Job


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run trains on."""

    train: PackedVideos | PackedFiles
    """Training videos."""
    validation: PackedVideos | PackedFiles
    """Held out of the training split, or the manifest's own validation split."""
    record: dict[str, Any]
    """run.json of the features."""


def read_data(job: "Job", scratch: Path | None = None) -> Data:
    """Features and labels, packed and split; in files, with `scratch` for them, if they stream.

    Raises:
        InputError: no features, no labels, an unfinished extraction, or fine-tuned backbones that
            are gone or have seen what is to be judged.
    """
    run_file = storage.join(job.features, "run.json")
    if not storage.exists(run_file):
        raise InputError(f"`{job.features}` holds no features: it has no run.json.")
    record = storage.read_json(run_file)
    if not record.get("is_complete") or record.get("job") != "extract":
        raise InputError(
            f"the features in `{job.features}` are not finished: run the same jobs.extract again."
        )
    finetuned_of(record)  # the model folder will take them along
    manifest_uri = job.manifest or storage.join(job.features, "manifest.parquet")
    table = storage.read_table(manifest_uri)
    manifest = check_manifest(table, manifest_uri)
    seen = leakage.read_beside(job.features)
    manifest = leakage.honest_splits(manifest, seen, job.split)
    record["face_crops"] = record.get("face_crops") or face_crops_of(table)
    labels = [label for label in manifest["label"].to_pylist() if label]
    if not labels:
        raise InputError(
            f"manifest `{manifest_uri}` has no labels: put videos into folders named after their "
            "emotions, or give a list with a column `label`."
        )
    label_set = label_set_of(labels)
    division = Division(split=job.split, fraction=job.validation_fraction, seed=job.seed)
    train: PackedVideos | PackedFiles
    validation: PackedVideos | PackedFiles
    if scratch is not None and _is_streamed(job):
        train, validation = packing.packed(
            job.features,
            record,
            manifest,
            label_set,
            division,
            folder=job.storage_path or str(scratch),
            scratch=scratch,
        )
    else:
        whole = pack_features(
            layout.latest_segments(job.features, "features", packing.COLUMNS),
            manifest,
            label_set,
            no_face=record["config"]["no_face"],
        )
        if job.model.name == "pool5_attention":
            whole = _with_maps(job, whole, record, packing.COLUMNS)
        train, validation = divided(whole, division)
    check_classes(np.bincount(train.labels_V, minlength=len(train.label_set)), train.label_set)
    if job.shuffle_labels:
        rng = np.random.default_rng(job.seed)
        labels_V = rng.permutation(train.labels_V)
        # Votes would still tell the truth; streamed videos carry none.
        if isinstance(train, PackedVideos):
            train = dataclasses.replace(train, labels_V=labels_V, soft_VK=None)
        else:
            train = dataclasses.replace(train, labels_V=labels_V)
    return Data(train=train, validation=validation, record=record)


def _is_streamed(job: "Job") -> bool:
    if job.model.name == "pool5_attention":
        if job.loader == "stream":
            raise InputError(
                "--loader stream reads no pool5 maps, which --model.name pool5_attention needs: "
                "take --loader memory, or another model."
            )
        return False
    return packing.is_streamed(job.features, job.loader, job.memory_limit_gb)


def check_context(data: Data, model: ModelConfig) -> None:
    """Refuse a head that looks at whole frames where the data set has only cut-out faces.

    Raises:
        InputError: it does.
    """
    if data.record["face_crops"]:
        head = build_model(model, face_dim=4, context_dim=4, num_emotions=2)
        require_context(data.record["face_crops"], head.modalities)


def _with_maps(
    job: "Job", packed: PackedVideos, record: dict[str, Any], columns: list[str]
) -> PackedVideos:
    modality = configs_of(job)[0].modality
    shape = record["identity"].get(f"{modality}_pool5_shape")
    if shape is None:
        raise InputError(
            f"--model.name pool5_attention needs pool5 maps of the {modality}, and the features in "
            f"`{job.features}` have none: extract with `--pool5 {modality}`, or train `caan` with "
            f"`--model.modality {modality}`, which scores from fc6."
        )
    return add_maps(
        packed,
        layout.latest_segments(job.features, "features", [*columns, f"{modality}_pool5"]),
        {modality: shape},
        max_bytes=int(job.pool5_gib * 2**30),
    )


def configs_of(job: "Job") -> tuple[ModelConfig, TrainConfig]:
    """The preset with the options that the user changed, seeded."""
    name = job.preset if job.model.name == "caan" else job.model.name
    recipe = recipes.recipe(name, seed=job.seed)
    model = _changed(ModelConfig(), job.model, recipe.model)
    train = _changed(TrainConfig(), job.train, recipe.train)
    return model, dataclasses.replace(train, seed=job.seed)


def _changed(default: Any, given: Any, preset: Any) -> Any:
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(given):
        value, before = getattr(given, item.name), getattr(default, item.name)
        if dataclasses.is_dataclass(value):
            changes[item.name] = _changed(before, value, getattr(preset, item.name))
        elif value != before:
            changes[item.name] = value
    return dataclasses.replace(preset, **changes)
