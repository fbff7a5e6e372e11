"""Images of a video at given times; a sandboxed child runs it, so it imports little."""

from collections.abc import Sequence

import numpy as np

from caan import storage
from caan.media.sampling import Source, decode_at


def open_source(path: str) -> Source:
    """What the decoders take: a local path as it is, an S3 object as a file read by ranges."""
    return storage.open_ranges(path) if storage.is_s3(path) else path


def thumbnails(path: str, times_seconds: Sequence[float], max_side_pixels: int) -> list[np.ndarray]:
    """Upright images uint8 [H, W, 3] RGB shown at these times, as `sampling.decode_at`."""
    return decode_at(open_source(path), times_seconds, max_side_pixels=max_side_pixels)
