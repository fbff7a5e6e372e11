"""Face embeddings, the vectors that tell people apart: dlib's 128 numbers, or VGG-Face's fc6.

The decoding child imports this module: it needs no torch.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np

from caan.errors import InputError
from caan.faces.detection import Box, Face
from caan.people.config import DLIB_DIM, VGGFACE_DIM, FaceEmbeddingConfig
from caan.people.dlib_resnet import CHIP_PIXELS, DlibResNet

_MODELS = "face_recognition_models"
_FILES = ("dlib_face_recognition_resnet_model_v1.dat", "shape_predictor_5_face_landmarks.dat")


class DlibEmbedder:
    """Align faces by dlib's five landmarks and embed them with its face recognition network.

    Source: the packages dlib-bin and face_recognition_models (public domain weights).
    """

    def __init__(self) -> None:
        try:
            import _dlib_pybind11 as dlib

            found = {file.name: str(file.locate()) for file in metadata.files(_MODELS) or ()}
            network, landmarks = (found[name] for name in _FILES)
        except (ImportError, KeyError) as error:
            raise InputError(
                "--identity dlib needs the packages dlib-bin and face_recognition_models, which "
                "are not installed: install them, or give --identity none (people are then not "
                "told apart)."
            ) from error
        self._dlib = dlib
        self._network = DlibResNet(network)
        self._landmarks = dlib.shape_predictor(landmarks)

    def __call__(self, image: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
        """Vectors float32 [N, 128] of the faces in these boxes of an image uint8 [H, W, 3] RGB.

        Euclidean distances are mostly below 0.5 for one person and above it for two people.
        """
        if not boxes:
            return np.zeros((0, DLIB_DIM), np.float32)
        image = np.ascontiguousarray(image)
        return self._network(np.array([self._chip(image, box) for box in boxes]))

    def _chip(self, image: np.ndarray, box: Box) -> Any:
        """The aligned face, uint8 [150, 150, 3]."""
        rectangle = self._dlib.rectangle(*(round(value) for value in box))
        landmarks = self._landmarks(image, rectangle)
        return self._dlib.get_face_chip(image, landmarks, CHIP_PIXELS)


@lru_cache(maxsize=1)
def dlib_embedder() -> DlibEmbedder:
    """Load dlib's networks, once per process (30 MB of weights).

    Raises:
        InputError: the packages are not installed.
    """
    return DlibEmbedder()


def face_embeddings(
    config: FaceEmbeddingConfig | None,
    fps: float,
    frame_index: int,
    faces: Sequence[Face],
    image: np.ndarray,
) -> list[np.ndarray | None]:
    """Vector float16 [128] of each face of a frame, or None; boxes are in pixels of `image`."""
    vectors: list[np.ndarray | None] = [None] * len(faces)
    if config is None or config.name != "dlib" or frame_index % config.frame_step(fps):
        return vectors
    large = [n for n, face in enumerate(faces) if _side(face.box) >= config.min_face_pixels]
    found = dlib_embedder()(image, [faces[n].box for n in large])
    for n, vector in zip(large, found, strict=True):
        vectors[n] = vector.astype(np.float16)
    return vectors


def _side(box: Box) -> float:
    return float(np.sqrt((box[2] - box[0]) * (box[3] - box[1])))


@lru_cache(maxsize=1)
def _projection(dim: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(dim, VGGFACE_DIM)) / np.sqrt(VGGFACE_DIM)).astype(np.float32)


def shorten_fc6(vectors: np.ndarray) -> np.ndarray:
    """Shorten fc6 vectors [N, 4096] to float16 [N, 256] of length about 1; cosines are kept.

    Source: a seeded random projection (Johnson and Lindenstrauss 1984).
    """
    vectors = vectors.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return (vectors @ _projection(vectors.shape[1])).astype(np.float16)
