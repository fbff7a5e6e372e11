"""A data set as jobs.index sees it: its reader, its published figures, and checks of its splits."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from caan import storage
from caan.errors import InputError, redact
from caan.schema import LABEL_SETS

Row = dict[str, Any]

PART_BYTES = 1 << 20
"""Bytes that are read and hashed at once."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set: its reader and its published figures."""

    read: Callable[[str, str, int], list[Row]]
    """(folder, folder of the lists, number of the published split) -> manifest rows."""
    label_set: tuple[str, ...] = ()
    """The emotions of the data set; empty: any."""
    published: Mapping[str, int] = field(default_factory=dict)
    """Published number of videos per split. Differences are reported and are no error."""
    num_splits: int = 1
    """Number of published train-test splits."""
    is_face_crops: bool = False
    """Whether its videos show cropped faces only, so that a context branch would see the face."""


def face_crops_of(manifest: pa.Table) -> str:
    """Name of the data set of a manifest if that has face crops only; else empty."""
    facts = manifest.schema.metadata or {}
    return facts.get(b"dataset", b"").decode() if facts.get(b"face_crops") == b"True" else ""


def require_context(face_crops: str, modalities: Sequence[str]) -> None:
    """Refuse a model with a context branch for a data set of face crops.

    Raises:
        InputError: `face_crops` names such a data set, and "context" is among the modalities.
    """
    if face_crops and "context" in modalities:
        raise InputError(
            f"data set `{face_crops}` holds cut-out faces only, so its frames have no context: use "
            "a model of faces alone (`--model.modality face`, `--model.name faa`), or the original "
            "videos with `jobs.index --dataset folder`."
        )


def check_labels(rows: Sequence[Row], dataset: Dataset, name: str) -> None:
    """Refuse labels that the data set does not have.

    Raises:
        InputError: a label is not in the data set's label set.
    """
    found = {row["label"] for row in rows if row.get("label")}
    if dataset.label_set and (strange := sorted(found - set(dataset.label_set))):
        raise InputError(
            f"data set `{name}` has no emotion {', '.join(strange)}; it has "
            f"{', '.join(dataset.label_set)}: check that the files are those of `{name}`."
        )


def compare_counts(rows: Sequence[Row], dataset: Dataset) -> list[str]:
    """One line per published split: number of videos found and published."""
    found = Counter(row.get("split") for row in rows if row.get("status") != "missing")
    return [
        f"{split}: {found[split]} videos, published {count}"
        + ("" if found[split] == count else f" ({found[split] - count:+d})")
        for split, count in dataset.published.items()
    ]


def shared_by_id(rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of rows with the same file or the same video id in more than one split.

    Two time ranges of one file in different splits count too: they show the same people and place.
    """
    groups = _across_splits(rows, "uri") + _across_splits(rows, "video_id")
    return [group for number, group in enumerate(groups) if group not in groups[:number]]


def shared_by_content(rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of different files with equal bytes in more than one split.

    Only files whose size occurs in more than one split are read.
    """
    hashed = []
    for group in _across_splits([r for r in rows if r.get("size_bytes")], "size_bytes"):
        hashes = {uri: content_hash(uri) for uri in {row["uri"] for row in group}}
        hashed += [row | {"content": hashes[row["uri"]]} for row in group]
    groups = _across_splits(hashed, "content")
    return [group for group in groups if len({row["uri"] for row in group}) > 1]


def check_splits(rows: Sequence[Row]) -> None:
    """Refuse splits that share a video, by id or by content.

    Raises:
        InputError: a video is in more than one split; the message names up to three.
    """
    shared = [*shared_by_id(rows), *shared_by_content(rows)]
    if not shared:
        return
    names = [" = ".join(f"{r['split']}: {redact(r['uri'])}" for r in g) for g in shared[:3]]
    raise InputError(
        f"{len(shared)} videos are in more than one split ({'; '.join(names)}): keep each in one "
        "split, or give `--shared-videos keep`."
    )


def content_hash(uri: str) -> str:
    """SHA-256 of the bytes of a file, local or s3://."""
    digest = hashlib.sha256()
    with storage.open_ranges(uri) if storage.is_s3(uri) else open(uri, "rb") as file:
        while part := file.read(PART_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _across_splits(rows: Sequence[Row], key: str) -> list[list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return [g for g in groups.values() if len({r["split"] for r in g if r.get("split")}) > 1]


PLUTCHIK8 = LABEL_SETS["plutchik8"]
SEVEN = LABEL_SETS["heiv7"]
