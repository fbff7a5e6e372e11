"""Choose held-out videos by a hash of the video id and the seed."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from caan.errors import InputError


def hold_out(
    rows: Sequence[Mapping[str, Any]], *, fraction: float, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Split rows into training and held-out rows, with the same held-out share of every label.

    The order of the rows does not matter, so two runs hold out the same videos. A label with two or
    more videos gives at least one to each side; a label with one video keeps it for training.

    Raises:
        InputError: `fraction` is not between 0 and 1.
    """
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    train: list[Mapping[str, Any]] = []
    held: list[Mapping[str, Any]] = []
    for label in sorted(by_label):
        members = sorted(by_label[label], key=lambda row: shuffle_key(row["video_id"], seed))
        count = num_held_out(len(members), fraction)
        held += members[:count]
        train += members[count:]
    return train, held


def num_held_out(num_videos: int, fraction: float) -> int:
    """How many videos of a label are held out: at least one of two or more, none of a single one.

    Raises:
        InputError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--validation-fraction {fraction} must lie between 0 and 1.")
    return max(round(fraction * num_videos), 1) if num_videos > 1 else 0


def shuffle_key(video_id: str, seed: int) -> str:
    """Sort key for a random-looking order that depends on the video id and the seed alone."""
    return hashlib.sha256(f"{seed}|{video_id}".encode()).hexdigest()
