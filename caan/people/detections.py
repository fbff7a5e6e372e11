"""What following faces begins with: the detections of one video, its options, and distances."""

from dataclasses import dataclass

import numpy as np

from caan.people.config import Metric

DROPPED = -1
"""Track and person of a face that belongs to none (a short false track)."""


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
