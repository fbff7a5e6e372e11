"""Input of face tracking: the detections and frames of one video, and distances between faces."""

from dataclasses import dataclass

import numpy as np

from caan.people.config import Metric

DROPPED = -1
"""Track id and person id of a face that belongs to no track and no person."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """All faces of one video in time order."""

    frame_index: np.ndarray
    """Grid index of each face's frame: int64 [N], ascending, with repeats."""
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
            raise ValueError("frame_index must ascend: sort the detections by frame")


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All sampled frames of one video in time order, with and without faces."""

    frame_index: np.ndarray
    """Grid index: int64 [F], ascending."""
    histograms: np.ndarray | None = None
    """Colour histograms, not normalised: float [F, B]."""


def comparable(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Prepare vectors [N, D] for `distances_between`: float32, of length 1 for cosine."""
    vectors = vectors.astype(np.float32)
    if metric == "cosine":
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def distances_between(a: np.ndarray, b: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances [N, M] between vectors [N, D] and [M, D] from `comparable`, or means of those."""
    if metric == "cosine":
        lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
        return 1 - a @ b.T / np.maximum(lengths, 1e-12)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def centres(boxes: np.ndarray) -> np.ndarray:
    """Centres x, y of boxes [N, 4], in pixels [N, 2]."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def sizes(boxes: np.ndarray) -> np.ndarray:
    """Size of each box [N, 4]: the square root of its area, in pixels [N]."""
    return np.sqrt(np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6))


def centres_apart(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Distances between the centres of boxes [N, 4] and [M, 4], in pixels: [N, M]."""
    return np.linalg.norm(centres(boxes_a)[:, None] - centres(boxes_b)[None], axis=2)
