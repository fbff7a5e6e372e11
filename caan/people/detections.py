"""What following faces begins with: the detections of one video, its options, and distances."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Metric = Literal["cosine", "euclidean"]

DROPPED = -1
"""Track and person of a face that belongs to none (a short false track)."""

IDENTITY_DISTANCES: dict[str, tuple[Metric, float]] = {
    "dlib": ("euclidean", 0.4),
    "vggface": ("cosine", 0.5),
}
"""Metric and `person_distance` of means over a track, per vector that tells people apart. dlib: on
14 people of real clips the means of a clip's two halves were at most 0.28 apart, those of two
people at least 0.44. vggface (fc6 after the ReLU): our choice, not yet measured."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """How faces are followed and joined to people."""

    max_gap_seconds: float = 2.0
    """A track survives this long without a detection."""
    max_speed: float = 3.0
    """Fastest motion of a face between two sampled frames, in face sizes per second (plus half a
    size of jitter)."""
    max_growth: float = 2.0
    """Largest factor between a face's sizes in two sampled frames."""
    cut_distance: float = 0.4
    """Total variation, 0..1, of two neighbouring frames' colour histograms from which there is a
    cut between them; above 1: never. On 25 real clips at 1 to 5 frames per second neighbours
    within a shot were at most 0.20 apart, those across the two true cuts at least 0.79."""
    min_track_faces: int = 2
    """Shorter tracks are dropped as false; 1: none. A track that fills its whole shot stays, and
    so does everything if no track is long enough."""
    metric: Metric = "cosine"
    """How appearance vectors compare: `cosine` (0..2) or `euclidean`."""
    person_distance: float | None = None
    """Tracks nearer than this on average are one person; none: appearance tells nobody apart (a
    vector of expression, a random network), so every track is a person of its own; it then only
    helps to follow a face from frame to frame."""

    def __post_init__(self) -> None:
        if self.metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric `{self.metric}` is unknown: give cosine or euclidean")
        if self.max_gap_seconds < 0 or self.max_speed <= 0 or self.max_growth < 1:
            raise ValueError(
                f"max_gap_seconds {self.max_gap_seconds} must be at least 0, max_speed "
                f"{self.max_speed} above 0, max_growth {self.max_growth} at least 1"
            )


def with_identity(config: TrackConfig, vector: str) -> TrackConfig:
    """`config` with the metric and distance of `IDENTITY_DISTANCES`, unless it has its own."""
    if config.person_distance is not None or vector not in IDENTITY_DISTANCES:
        return config
    metric, distance = IDENTITY_DISTANCES[vector]
    return replace(config, metric=metric, person_distance=distance)


@dataclass(frozen=True, kw_only=True)
class Detections:
    """All faces of one video in time order."""

    frame_index: np.ndarray
    """Grid index of each face's frame: int64 [N], never falling."""
    pts_seconds: np.ndarray
    """Its time: float64 [N]."""
    boxes: np.ndarray
    """x0, y0, x1, y1 in pixels: float [N, 4]."""
    scores: np.ndarray
    """The detector's confidence, 0..1: float [N]."""
    appearance: np.ndarray | None = None
    """Appearance vectors: float [N, D]; NaN where a face has none."""

    def __post_init__(self) -> None:
        if np.any(np.diff(self.frame_index) < 0):
            raise ValueError("detections must come in the order of their frames")


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All sampled frames of one video in time order, those without a face too."""

    frame_index: np.ndarray
    """Grid index: int64 [F], rising."""
    histograms: np.ndarray | None = None
    """Colour histograms, each of any sum: float [F, B]."""


def comparable(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors [N, D] as `distances_between` takes them: float32, of length 1 where angles count."""
    vectors = vectors.astype(np.float32)
    if metric == "cosine":
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def distances_between(a: np.ndarray, b: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances of vectors [N, D] and [M, D] made by `comparable` (or means of those): [N, M]."""
    if metric == "cosine":
        lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
        return 1 - a @ b.T / np.maximum(lengths, 1e-12)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def centres(boxes: np.ndarray) -> np.ndarray:
    """Middles of boxes [N, 4]: x, y in pixels [N, 2]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def sizes(boxes: np.ndarray) -> np.ndarray:
    """Square roots of the areas of boxes [N, 4], in pixels [N]."""
    return np.sqrt(np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6))


def centres_apart(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Distances of the middles of boxes [N, 4] and [M, 4], in pixels: [N, M]."""
    return np.linalg.norm(centres(boxes_a)[:, None] - centres(boxes_b)[None], axis=2)
