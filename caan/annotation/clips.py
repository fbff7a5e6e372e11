"""Cut a clip out of a long video: copy its packets where that is exact, else encode it again.

A clip is an MP4 file of H.264 without sound, which every browser plays. Its time 0 is the requested
start: time in the clip = time in the source - start.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from caan import storage
from caan.errors import DecodeFailed
from caan.media.container import MediaFile, orientation

COPIED_CODEC, COPIED_PIXELS = "h264", ("yuv420p", "yuvj420p")
"""Codec and pixel formats whose packets are copied: those that browsers play."""

CRF, PRESET = "16", "fast"
"""x264 settings of clips that are encoded again; the loss is hardly visible."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip to cut."""

    source: str
    """The long video, local or s3://."""
    start_seconds: float
    """Start, since the source's first frame."""
    end_seconds: float
    """End, since the source's first frame; not included."""
    target: str
    """Local file to write."""


def cut(clip: Clip) -> str:
    """Write the clip, as a whole or not at all; return `copied` or `encoded`.

    Runs in the sandboxed child.

    Raises:
        VideoError: the source cannot be read, or has no frame in that time.
    """
    part = f"{clip.target}.part"
    try:
        if storage.is_s3(clip.source):
            with storage.open_ranges(clip.source) as file, MediaFile(file) as reader:
                how = _cut(reader, clip, part)
        else:
            with MediaFile(clip.source) as reader:
                how = _cut(reader, clip, part)
        os.replace(part, clip.target)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return how


def _cut(reader: MediaFile, clip: Clip, part: str) -> str:
    first_pts, first = reader.first_image()
    start = first_pts + _ticks(clip.start_seconds, reader.time_base)
    end = first_pts + _ticks(clip.end_seconds, reader.time_base)
    stored = reader.stream.codec_context
    is_upright = orientation(first) == (0, False)
    if stored.name == COPIED_CODEC and stored.pix_fmt in COPIED_PIXELS and is_upright:
        packets = _exact_packets(reader, start, end)
        if packets:
            _copy(reader, packets, part)
            return "copied"
    _encode(reader, start, end, first_pts, part)
    return "encoded"


def _ticks(seconds: float, time_base: Fraction) -> int:
    return round(Fraction(seconds) / time_base)


def _exact_packets(reader: MediaFile, start: int, end: int) -> list[Packet]:
    """The packets of the frames from `start` to `end`; empty if they cannot be copied exactly.

    They can be copied if a key frame is shown at `start` and no frame before `start` or after `end`
    lies between them. Then no packet refers to a frame outside the clip.
    """
    reader.rewind()
    if start > 0 and not reader.seek(start):
        return []
    found: list[Packet] = []
    is_past_end = False
    for packet in reader.packets():
        if not packet.size:
            continue
        if packet.pts is None or packet.dts is None or packet.is_discard:
            return []
        if not found and not (packet.is_keyframe and packet.pts == start):
            if packet.pts > start and packet.is_keyframe:
                return []
            continue
        if packet.dts >= end:
            return found
        if packet.pts >= end:
            is_past_end = True
            continue
        if is_past_end or packet.pts < start:
            return []
        found.append(packet)
    return found


def _copy(reader: MediaFile, packets: list[Packet], part: str) -> None:
    with av.open(part, "w", format="mp4") as container:
        stream = container.add_stream_from_template(reader.stream)
        shift = packets[0].pts or 0
        for packet in packets:
            assert packet.pts is not None
            assert packet.dts is not None
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            container.mux(packet)


def _encode(reader: MediaFile, start: int, end: int, first_pts: int, part: str) -> None:
    with av.open(part, "w", format="mp4") as container:
        stream = None
        last = -1
        for pts, image in _shown(reader, start, end, first_pts):
            pixels = _upright(image)
            if stream is None:
                rate = reader.stream.average_rate or reader.stream.guessed_rate or Fraction(25)
                options = {"crf": CRF, "preset": PRESET}
                stream = container.add_stream("libx264", rate=rate, options=options)
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = reader.time_base
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = max(pts - start, last + 1), reader.time_base
            last = frame.pts
            container.mux(stream.encode(frame))
        if stream is None:
            raise DecodeFailed("no frame is shown in that time: it lies after the video's end")
        container.mux(stream.encode())


def _shown(
    reader: MediaFile, start: int, end: int, first_pts: int
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield time and frame: the frame shown at `start`, then those that follow before `end`."""
    before: tuple[int, VideoFrame] | None = None
    for pts, image in reader.images_from(start, first_pts):
        if pts >= end:
            break
        if pts <= start:
            before = pts, image
            continue
        if before is not None:
            yield start, before[1]
            before = None
        yield pts, image
    else:
        # The video ends here, and its last frame is not shown at any later time.
        if before is not None and before[0] < start:
            return
    if before is not None:
        yield start, before[1]


def _upright(image: VideoFrame) -> np.ndarray:
    """Upright RGB; an odd last row or column is cut off, because H.264 cannot store it."""
    turns, is_mirrored = orientation(image)
    pixels = image.to_ndarray(format="rgb24")
    if is_mirrored:
        pixels = pixels[:, ::-1]
    pixels = np.rot90(pixels, -turns)
    height, width = (size - size % 2 for size in pixels.shape[:2])
    return np.ascontiguousarray(pixels[:height, :width])
