"""Decoded frames as upright RGB arrays of one size."""

from fractions import Fraction

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from caan.errors import DecodeFailed
from caan.media.container import MAX_PIXELS, as_video_error, orientation


class RgbConverter:
    """Convert the frames of one video to upright RGB arrays of the first one's size."""

    def __init__(self, max_side_pixels: int | None) -> None:
        """`max_side_pixels`: longest side of the arrays; None: as stored."""
        self._max_side_pixels = max_side_pixels
        self._size: tuple[int, int] | None = None
        self._to_rgb, self._to_size = VideoReformatter(), VideoReformatter()

    def convert(self, frame: VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], upright.

        Raises:
            DecodeFailed: FFmpeg cannot convert the frame to RGB.
        """
        turns, is_mirrored = orientation(frame)
        image = self._scale(frame)
        if is_mirrored:
            image = image[:, ::-1]
        return np.ascontiguousarray(np.rot90(image, -turns))

    def convert_array(self, image: np.ndarray) -> np.ndarray:
        """The same for an upright RGB array uint8 [H, W, 3]."""
        return self._scale(VideoFrame.from_ndarray(image, format="rgb24"))

    def _scale(self, frame: VideoFrame) -> np.ndarray:
        if self._size is None:
            scale = Fraction(self._max_side_pixels or MAX_PIXELS, max(frame.width, frame.height))
            scale = min(scale, Fraction(1))
            self._size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        try:
            # decord's filter is bicubic; without scaling both decoders give equal bytes.
            rgb = self._to_rgb.reformat(frame, format="rgb24", interpolation="BICUBIC", threads=1)
            if (rgb.width, rgb.height) != self._size:
                rgb = self._to_size.reformat(rgb, *self._size, interpolation="AREA", threads=1)
        except FFmpegError as error:
            raise as_video_error(error, DecodeFailed, "no conversion to RGB") from error
        return rgb.to_ndarray()
