"""Pictures of a video at given times; imports little, as a sandboxed child runs it."""

from collections.abc import Sequence

import numpy as np

from caan import storage
from caan.media.sampling import Source, decode_at


def open_source(path: str) -> Source:
    """What the decoders take: a local path itself, an S3 object as a file read by ranges."""
    return storage.open_ranges(path) if storage.is_s3(path) else path


def thumbnails(path: str, times_seconds: Sequence[float], max_side_pixels: int) -> list[np.ndarray]:
    """Pictures uint8 [H, W, 3] RGB, upright, shown at these times; as `video.decode_at`."""
    return decode_at(open_source(path), times_seconds, max_side_pixels=max_side_pixels)
