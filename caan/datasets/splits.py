"""Which videos are held out: by a hash, so that it depends on nothing else."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from caan.errors import InputError


def hold_out(
    rows: Sequence[Mapping[str, Any]], *, fraction: float, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Training and held-out rows, the same share of every label.

    The order of the rows does not matter, so that the fine-tunings of two backbones hold out the
    same videos. A label keeps at least one training video and, with two or more, gives at least
    one.

    Raises:
        InputError: a fraction outside 0 to 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--validation-fraction {fraction} must lie between 0 and 1.")
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    train: list[Mapping[str, Any]] = []
    held: list[Mapping[str, Any]] = []
    for label in sorted(by_label):
        members = sorted(by_label[label], key=lambda row: shuffle_key(row["video_id"], seed))
        count = max(round(fraction * len(members)), 1) if len(members) > 1 else 0
        held += members[:count]
        train += members[count:]
    return train, held


def shuffle_key(video_id: str, seed: int) -> str:
    """Sorts videos into an order that looks random and depends on nothing else."""
    return hashlib.sha256(f"{seed}|{video_id}".encode()).hexdigest()
