"""The cascade: search key frames for faces first, and do not decode stretches without a face.

Which stretches are wanted depends on the video's key frames alone, not on the segments. A face that
appears only between two searched key frames is missed.
"""

from dataclasses import dataclass

import numpy as np

LOOK_SECONDS = 2.0
"""Length of a cell, in each of which at most one key frame is searched (one look): some codecs have
only key frames."""

GAP_SECONDS = 12.0
"""A stretch between two looks that is longer than this is wanted in any case. Usual groups of
images of encoders (250 at 24 to 30 per second) last 8 to 11 seconds."""


@dataclass(frozen=True, kw_only=True)
class CascadeCounts:
    """What the cascade saved in one segment, and what it cost."""

    frames_looked: int = 0
    """Key frames that were decoded and searched for faces."""
    frames_sampled: int = 0
    """Frames of the grid that were decoded and searched after that."""
    frames_skipped: int = 0
    """Frames of the grid that were not decoded."""
    skipped_seconds: float = 0.0
    """Video time of the skipped frames that no searched key frame replaces."""
    seconds_look_decode: float = 0.0
    """Time to decode the key frames."""
    seconds_look_detect: float = 0.0
    """Time to search them for faces."""


def wanted(
    look_seconds: np.ndarray, has_face: np.ndarray, end_seconds: float, grid_seconds: np.ndarray
) -> np.ndarray:
    """Whether each grid time is sampled, bool [N], from the looks in order of time.

    A stretch between two looks is wanted if either shows a face or if it is longer than
    `GAP_SECONDS`. The time before the first look is always wanted. `end_seconds` is the end of the
    stretch after the last look: the next key frame, the video's end, or infinity if neither is
    known.
    """
    if not len(look_seconds):
        return np.ones(len(grid_seconds), bool)
    is_long = np.diff(look_seconds, append=end_seconds) > GAP_SECONDS
    stretches = is_long | has_face | np.append(has_face[1:], False)
    last_look = np.searchsorted(look_seconds, grid_seconds + 1e-6, side="right") - 1
    return np.where(last_look < 0, True, stretches[np.maximum(last_look, 0)])


def ranges_of(is_wanted: np.ndarray, first_index: int) -> list[tuple[int, int]]:
    """Ranges of wanted grid frames: first index and number of frames."""
    edges = np.flatnonzero(np.diff(is_wanted.astype(np.int8), prepend=0, append=0))
    return [(first_index + int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]


def estimated_savings(decode: dict[str, float]) -> dict[str, float | None] | None:
    """What a run's cascade saved, from the totals of the decoding stage; None without a cascade.

    Saved time is the number of skipped frames times the mean time of the frames that this run
    decoded and searched, less the time of the looks. It is None if the run decoded no frame.
    """
    if "frames_looked" not in decode:
        return None
    sampled, looked = decode["frames_sampled"], decode["frames_looked"]
    skipped = decode["frames_skipped"]
    look = {name: decode[f"seconds_look_{name}"] for name in ("decode", "detect")}
    decode_seconds = detect_seconds = None
    if sampled:
        each = (decode["seconds_decode"] - look["decode"]) / sampled
        decode_seconds = skipped * each - look["decode"]
    if sampled + looked:
        each = decode["seconds_detect"] / (sampled + looked)
        detect_seconds = skipped * each - look["detect"]
    return {
        "frames_looked": looked,
        "frames_sampled": sampled,
        "frames_skipped": skipped,
        "seconds_look_decode": look["decode"],
        "seconds_look_detect": look["detect"],
        "saved_seconds_decode": decode_seconds,
        "saved_seconds_detect": detect_seconds,
    }
