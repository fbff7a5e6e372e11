"""The cascade: key frames are looked at first, and stretches without a face are not decoded.

Which stretches are wanted depends on the video's key frames alone, not on how it was cut into
segments. What this costs is known: a face that comes and goes between two looks is not found.
"""

from dataclasses import dataclass

import numpy as np

LOOK_SECONDS = 2.0
"""At most one look in each cell of this length: some codecs have nothing but key frames."""

GAP_SECONDS = 12.0
"""A longer stretch between two looks is wanted whatever they show. Encoders' usual groups of
pictures (250 at 24 to 30 per second) last 8 to 11 seconds."""


@dataclass(frozen=True, kw_only=True)
class CascadeCounts:
    """What looking first spared in one segment, and what it took."""

    frames_looked: int = 0
    """Key frames that were decoded and searched for faces."""
    frames_sampled: int = 0
    """Frames of the grid that were then decoded and searched."""
    frames_skipped: int = 0
    """Frames of the grid that were not."""
    skipped_seconds: float = 0.0
    """Video time of those that no looked key frame stands for either."""
    seconds_look_decode: float = 0.0
    """Time that decoding the key frames took."""
    seconds_look_detect: float = 0.0
    """Time that searching them took."""


def wanted(
    look_seconds: np.ndarray, has_face: np.ndarray, end_seconds: float, grid_seconds: np.ndarray
) -> np.ndarray:
    """Whether each grid time is to be sampled, bool [N], from the looks in order of time.

    A stretch between two looks is wanted if either shows a face, or if it is longer than
    `GAP_SECONDS`; the time before the first look always. `end_seconds` is where the stretch after
    the last look ends: the next key frame, the video's end, or infinity where neither is known.
    """
    if not len(look_seconds):
        return np.ones(len(grid_seconds), bool)
    is_long = np.diff(look_seconds, append=end_seconds) > GAP_SECONDS
    stretches = is_long | has_face | np.append(has_face[1:], False)
    last_look = np.searchsorted(look_seconds, grid_seconds + 1e-6, side="right") - 1
    return np.where(last_look < 0, True, stretches[np.maximum(last_look, 0)])


def ranges_of(is_wanted: np.ndarray, first_index: int) -> list[tuple[int, int]]:
    """Runs of wanted grid frames, each as its first index and its number of frames."""
    edges = np.flatnonzero(np.diff(is_wanted.astype(np.int8), prepend=0, append=0))
    return [(first_index + int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]


def estimated_savings(decode: dict[str, float]) -> dict[str, float | None] | None:
    """What a run's cascade spared, from the decoding stage's totals; None where none was on.

    The time that the skipped frames would have taken is their number times the mean of the frames
    of this run that were decoded and searched; less what the looks took. None where none was.
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
