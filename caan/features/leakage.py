"""Which videos a fine-tuned backbone has seen, and the refusal to be judged on them.

The record travels inside the weight file: jobs.finetune writes it there, jobs.extract copies it
beside the features, and whoever trains on those features asks here which videos are still fresh.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from caan import config, storage
from caan.backbones.weights import SEEN_VIDEOS, finetuned_weights
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig

FEATURES_FILE = "seen_videos.json"
"""File beside the features: the records of the backbones that made them, by `face`, `context`."""


@dataclass(frozen=True, kw_only=True)
class SeenVideos:
    """What a fine-tuning has learned from, and what has chosen its best epoch."""

    trained: tuple[str, ...]
    """Ids of the videos that its gradients came from."""
    held_out: tuple[str, ...]
    """Ids of the training split's videos that were held out to choose the epoch."""
    trained_files: tuple[str, ...]
    """`file_key` of each of `trained`, which finds a video that has moved."""
    held_out_files: tuple[str, ...]
    """`file_key` of each of `held_out`."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name this division of videos."""
        return config.fingerprint({"trained": self.trained, "held_out": self.held_out})

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "SeenVideos":
        """The record of `to_json`."""
        return config.from_dict(SeenVideos, json.loads(text))


def file_key(row: Mapping[str, Any]) -> str:
    """16 hex digits of a manifest row's file name, size and time range, wherever the file lies."""
    name = str(row["uri"]).rpartition("/")[2]
    key = f"{name}|{row['size_bytes']}|{row['start_seconds']}|{row['end_seconds']}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def seen_of(train: Sequence[Mapping[str, Any]], held: Sequence[Mapping[str, Any]]) -> SeenVideos:
    """The record of a fine-tuning on these manifest rows."""
    return SeenVideos(
        trained=tuple(sorted(row["video_id"] for row in train)),
        held_out=tuple(sorted(row["video_id"] for row in held)),
        trained_files=tuple(sorted(file_key(row) for row in train)),
        held_out_files=tuple(sorted(file_key(row) for row in held)),
    )


def write_beside(features: str, extraction: ExtractionConfig) -> dict[str, dict[str, str]]:
    """Copy the fine-tuned backbones' records beside their features; what each was made from.

    Raises:
        InputError: weights that cannot be had.
    """
    records: dict[str, Any] = {}
    made: dict[str, dict[str, str]] = {}
    for kind in ("face", "context"):
        own = extraction.backbone_config(kind)  # type: ignore[arg-type]
        file = finetuned_weights(own.name, own.weights)
        if file is not None:
            records[kind] = json.loads(file.metadata[SEEN_VIDEOS])
            made[kind] = {name: file.metadata[name] for name in ("base", "split", "label_set")}
    if records:
        storage.write_json(storage.join(features, FEATURES_FILE), records)
    return made


def read_beside(features: str) -> dict[str, SeenVideos]:
    """The records beside features, by modality; empty where no backbone was fine-tuned."""
    path = storage.join(features, FEATURES_FILE)
    if not storage.exists(path):
        return {}
    values = storage.read_json(path)
    return {kind: config.from_dict(SeenVideos, value) for kind, value in values.items()}


def honest_splits(manifest: pa.Table, seen: Mapping[str, SeenVideos], split: str) -> pa.Table:
    """The manifest with what the backbones held out of `split` as split `val`.

    A backbone gives the videos that it was fine-tuned on better vectors than it gives new ones, so
    they may only be trained on. Nothing changes where no backbone was fine-tuned, or where the
    manifest has its own split `val`.

    Raises:
        InputError: a backbone has seen videos that this manifest judges by, or none is left to
            validate on.
    """
    if not seen:
        return manifest
    columns = ["video_id", "uri", "size_bytes", "start_seconds", "end_seconds", "label", "split"]
    rows = manifest.select(columns).to_pylist()
    keys = [{row["video_id"], file_key(row)} for row in rows]
    splits = [row["split"] or "" for row in rows]
    fresh = [bool(row["label"]) for row in rows]
    for kind, record in seen.items():
        trained = {*record.trained, *record.trained_files}
        held_out = {*record.held_out, *record.held_out_files}
        for name in sorted({*splits} - {split, ""}):
            barred = trained if name == "val" else trained | held_out
            own = [n for n, of_row in enumerate(splits) if of_row == name]
            met = [n for n in own if keys[n] & barred]
            if met:
                raise InputError(
                    f"the {kind} backbone of these features was fine-tuned on {len(met)} of the "
                    f"{len(own)} videos of split `{name}` (such as {rows[met[0]]['video_id']}): "
                    "fine-tune it by this manifest's own splits and extract again, or take a "
                    "backbone that has not seen them."
                )
        fresh = [
            was and bool(own & held_out) and not own & trained
            for was, own in zip(fresh, keys, strict=True)
        ]
    if "val" in splits:
        return manifest
    has_splits = any(splits)
    named = splits if has_splits else [split] * len(splits)
    chosen = [
        "val" if is_fresh and name == split else name
        for is_fresh, name in zip(fresh, named, strict=True)
    ]
    if "val" not in chosen:
        raise InputError(
            "the backbones of these features held out no common video to validate on: fine-tune "
            "both with the same manifest, --validation-fraction and --split-seed, or give the "
            "manifest a split `val`."
        )
    place = manifest.schema.get_field_index("split")
    column = pa.array([name or None for name in chosen], pa.string())
    return manifest.set_column(place, manifest.schema.field(place), column)
