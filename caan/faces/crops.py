"""Resize images for detectors and networks, and crop faces."""

import cv2
import numpy as np

from caan.faces.detection import Box, DetectorConfig


def resize_for_detector(image: np.ndarray, config: DetectorConfig) -> np.ndarray:
    """`image` with its longest side at `detect_size_pixels`, or enlarged by `max_enlargement`."""
    height, width = image.shape[:2]
    factor = min(config.detect_size_pixels / max(height, width), config.max_enlargement)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return _resize(image, size)


def crop_face(
    image: np.ndarray, box: Box, *, expand: float = 1.2, size_pixels: int = 224
) -> np.ndarray:
    """The square around `box`, as uint8 [size_pixels, size_pixels, 3].

    Its side is `expand` times the box's longer side. Outside the image, the edge is repeated.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    side = max(1, round(expand * max(x1 - x0, y1 - y0)))
    centre_x, centre_y = np.clip((x0 + x1) / 2, 0, width), np.clip((y0 + y1) / 2, 0, height)
    left = min(round(centre_x - side / 2), width - 1)
    top = min(round(centre_y - side / 2), height - 1)
    inside = image[max(top, 0) : max(top + side, 1), max(left, 0) : max(left + side, 1)]
    crop = cv2.copyMakeBorder(
        inside,
        max(-top, 0),
        side - inside.shape[0] - max(-top, 0),
        max(-left, 0),
        side - inside.shape[1] - max(-left, 0),
        cv2.BORDER_REPLICATE,
    )
    return _resize(crop, (size_pixels, size_pixels))


def resize_context(image: np.ndarray, size_pixels: int = 224) -> np.ndarray:
    """The whole image stretched to uint8 [size_pixels, size_pixels, 3].

    Source: paper section 4.1, the scene as context.
    """
    return _resize(image, (size_pixels, size_pixels))


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` at (width, height): averaging when it shrinks, bilinear when it grows."""
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    shrinks = size[0] * size[1] < width * height
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
