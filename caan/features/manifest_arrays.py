"""What the manifest alone says of its videos, as arrays: labels, votes, splits, marked faces."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from caan.errors import InputError


def manifest_arrays(manifest: pa.Table, label_set: Sequence[str]) -> dict[str, Any]:
    """What PackedVideos knows of its videos from the manifest alone."""
    return {
        "labels_V": _label_numbers(manifest, label_set),
        "video_ids_V": np.array(manifest["video_id"].to_pylist(), dtype=np.str_),
        "splits_V": np.array([s or "" for s in _texts(manifest, "split")], dtype=np.str_),
        "label_set": tuple(label_set),
    }


def soft_labels(manifest: pa.Table, label_set: Sequence[str]) -> np.ndarray | None:
    """Shares of the votes, float32 [V, K]; votes for emotions outside the set do not count."""
    if "votes" not in manifest.column_names or manifest["votes"].null_count == manifest.num_rows:
        return None
    numbers = {label: number for number, label in enumerate(label_set)}
    counts_VK = np.zeros((manifest.num_rows, len(label_set)), np.float32)
    for row, (votes, label) in enumerate(
        zip(manifest["votes"].to_pylist(), _texts(manifest, "label"), strict=True)
    ):
        for emotion, count in votes or ():
            if emotion in numbers:
                counts_VK[row, numbers[emotion]] += count
        if not counts_VK[row].any() and label in numbers:
            counts_VK[row, numbers[label]] = 1
    return counts_VK / np.maximum(counts_VK.sum(axis=1, keepdims=True), 1)


def marked_boxes(manifest: pa.Table) -> np.ndarray:
    """The manifest's `face_box` of each video, float32 [V, 4]; NaN where nothing is marked."""
    marked_V4 = np.full((manifest.num_rows, 4), np.nan, dtype=np.float32)
    if "face_box" in manifest.column_names:
        for row, box in enumerate(manifest["face_box"].to_pylist()):
            if box is not None:
                marked_V4[row] = box
    return marked_V4


def _label_numbers(manifest: pa.Table, label_set: Sequence[str]) -> np.ndarray:
    numbers = {label: number for number, label in enumerate(label_set)}
    labels = _texts(manifest, "label")
    if unknown := sorted({label for label in labels if label is not None} - set(numbers)):
        raise InputError(
            f"label `{unknown[0]}` is not in the label set {', '.join(label_set)}; "
            "choose another label set, or correct the manifest"
        )
    return np.array([-1 if label is None else numbers[label] for label in labels], dtype=np.int64)


def _texts(table: pa.Table, column: str) -> list[str | None]:
    if column not in table.column_names:
        return [None] * table.num_rows
    return table[column].to_pylist()
