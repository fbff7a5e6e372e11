"""Opens one video safely and gives its pictures on a fixed grid of presentation times.

`caan.media.container` opens every file first. Pictures are decoded forward only, with one thread,
and upright; decord and PyAV give the same ones (see `sample_frames`).
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypeVar

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from caan.errors import DecodeFailed
from caan.media.container import (
    MAX_PIXELS,
    MAX_STILL_SECONDS,
    MediaFile,
    Source,
    as_video_error,
    orientation,
)

try:
    import decord
except ImportError:  # it has wheels for Linux and Windows on x86-64 only
    decord = None

logger = logging.getLogger(__name__)

Decoder = Literal["auto", "pyav", "decord"]
Item = TypeVar("Item")

DECORD_CONTAINERS = ("mov", "matroska", "avi")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")
DECORD_PIXEL_FORMATS = ("yuv420p", "yuvj420p")
DECORD_MAX_BYTES = 256 * 2**20
"""Largest file that `auto` gives to decord, which reads all packets of a file to open it."""


@dataclass(frozen=True, kw_only=True)
class VideoProbe:
    """What a file says of its video, checked against its first and last pictures."""

    duration_seconds: float
    """From the first picture's presentation time to the end of the last one, by its packets."""
    width: int
    """Of the upright picture, in pixels."""
    height: int
    """Of the upright picture, in pixels."""
    codec: str
    """FFmpeg's name, such as `h264`."""
    container: str
    """First of the demuxer's names: mov (all of MP4), matroska (and WebM), avi, gif, ..."""
    fps: float | None
    """Mean frames per second as the header says."""
    rotation_degrees: int
    """Clockwise rotation that makes the stored picture upright: 0, 90, 180 or 270."""
    is_mirrored: bool
    """Whether the stored picture is flipped left to right before that rotation."""
    num_frames: int | None
    """As the header says; None where it does not."""
    pixel_format: str
    """FFmpeg's name, such as `yuv420p`."""
    start_pts: int
    """Presentation time of the first picture, in units of `time_base`."""
    time_base: Fraction
    """Seconds per tick of the stream's clock."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Frame:
    """One sampled picture."""

    frame_index: int
    """k of the grid: the picture shown at k / fps seconds."""
    pts_seconds: float
    """The picture's own presentation time since the video's first picture: at most k / fps."""
    picture: np.ndarray
    """uint8 [H, W, 3], RGB, upright."""


def probe(source: Source) -> VideoProbe:
    """What the video is: decodes its first picture and reads the packets of its end.

    `source` is a local path or a seekable binary file. All packets are read only where the header's
    duration is absent or at odds with the packets.

    Raises:
        VideoError: its kinds `Missing`, `Unreadable`, `NoVideoStream`, `TooLarge`, `DecodeFailed`.
    """
    with MediaFile(source) as reader:
        start_pts, first = reader.first_picture()
        stream, time_base = reader.stream, reader.time_base
        width, height, turns, is_mirrored = *(first.width, first.height), *orientation(first)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate and 0 < rate <= 1000 else None
        end_pts = reader.last_pts(start_pts)
        duration = (end_pts - start_pts) * time_base + (1 / Fraction(fps) if fps else 0)
        return VideoProbe(
            duration_seconds=float(duration),
            width=height if turns % 2 else width,
            height=width if turns % 2 else height,
            codec=stream.codec.canonical_name,
            container=reader.container.format.name.split(",")[0],
            fps=fps,
            rotation_degrees=90 * turns,
            is_mirrored=is_mirrored,
            num_frames=stream.frames or None,
            pixel_format=first.format.name,
            start_pts=start_pts,
            time_base=time_base,
        )


def sample_frames(
    source: Source,
    *,
    fps: float,
    first_index: int = 0,
    num_frames: int | None = None,
    max_side_pixels: int | None = None,
    decoder: Decoder = "auto",
    probe: VideoProbe | None = None,
) -> Iterator[Frame]:
    """Pictures on the grid of `fps` per second, from index `first_index`, at most `num_frames`.

    Frame k is the last picture with presentation time at most k / fps, counted from the video's
    first picture; k ends at the last picture's time. Each k comes once, in order, and one picture
    may serve several. Larger pictures are scaled to `max_side_pixels` on their longer side.

    `auto` lets decord decode what it is known to handle (local file, from its start, clock equal to
    PyAV's) and continues with PyAV if decord fails; `pyav` and `decord` force one. At full size
    both give equal bytes; scaled and rotated ones differ by at most 2 of 255.

    A damaged file gives its good frames, then `DecodeFailed` where the damage is: the caller has a
    part. Pictures that FFmpeg marks as corrupt are passed over.

    Raises:
        VideoError: as in `probe`; ValueError where `decoder="decord"` cannot be had.
    """
    if decoder not in ("auto", "pyav", "decord"):
        raise ValueError(f"decoder must be auto, pyav or decord, not {decoder!r}")
    with MediaFile(source) as reader:
        if probe is None:
            start_pts, first = reader.first_picture()
            is_mirrored = orientation(first)[1]
        else:
            start_pts, is_mirrored = probe.start_pts, probe.is_mirrored
        grid = _Grid.make(fps, start_pts, reader.time_base, first_index, num_frames)
        if decoder == "decord" or (decoder == "auto" and first_index == 0):
            # To open a file decord reads all its packets: too dear for each segment of many.
            refusal = _why_not_decord(reader, is_mirrored, limit_bytes=decoder == "auto")
            if decoder == "decord" and refusal:
                raise ValueError(f"decord cannot decode this video: {refusal}")
            if not refusal:
                next_index = first_index
                try:
                    for frame in _decord_frames(reader, grid, _Painter(max_side_pixels)):
                        yield frame
                        next_index = frame.frame_index + 1
                    return
                except DecodeFailed as error:
                    if decoder == "decord":
                        raise
                    logger.info("decord failed (%s); PyAV continues", error)
                    grid = grid.starting_at(next_index)
        yield from _pyav_frames(reader, grid, _Painter(max_side_pixels))


@dataclass(frozen=True, eq=False, kw_only=True)
class KeyFrame:
    """One key frame: decoded by itself, whatever lies around it."""

    frame_index: int
    """The first grid index whose time is at or after it."""
    pts_seconds: float
    """Its presentation time since the video's first picture."""
    picture: np.ndarray | None
    """uint8 [H, W, 3], RGB, upright; None in the last item, which is no key frame but says where
    the video ends, or that its end lies beyond what was asked for (infinity)."""


def key_frames(
    source: Source, *, fps: float, start_seconds: float, end_seconds: float, cell_seconds: float
) -> Iterator[KeyFrame]:
    """The first key frame of each cell of `cell_seconds` of time, from `start_seconds` on.

    Ends with the first one after `end_seconds`, or where there is none, at the video's end or
    `end_seconds`. Cells count from the video's start, so it does not matter where one begins.

    Raises:
        VideoError: also where the codec or the container does not let key frames stand alone.
    """
    painter = _Painter(None)
    with MediaFile(source) as reader:
        start_pts, _ = reader.first_picture()
        grid = _Grid.make(fps, start_pts, reader.time_base, 0, None)
        cell_ticks = max(1, round(Fraction(cell_seconds) / reader.time_base))
        first_cell = max(0, int(start_seconds / cell_seconds))
        last_pts, last_cell = start_pts, first_cell - 1
        limit_pts = start_pts + int(end_seconds / reader.time_base)

        def is_wanted(pts: int) -> bool:
            return pts >= start_pts and (pts - start_pts) // cell_ticks > last_cell

        begin_pts = start_pts + first_cell * cell_ticks
        for pts, picture in reader.key_pictures(begin_pts, start_pts, is_wanted):
            last_pts = max(last_pts, pts)
            if picture is not None:
                last_cell = (pts - start_pts) // cell_ticks
                yield KeyFrame(
                    frame_index=grid.index_at(pts),
                    pts_seconds=float((pts - start_pts) * reader.time_base),
                    picture=painter.paint(picture),
                )
            if pts > limit_pts:
                end = math.inf if picture is None else float((pts - start_pts) * reader.time_base)
                yield KeyFrame(frame_index=grid.index_at(pts), pts_seconds=end, picture=None)
                return
        end = float((last_pts - start_pts) * reader.time_base)
        yield KeyFrame(frame_index=grid.index_at(last_pts), pts_seconds=end, picture=None)


def decode_at(
    source: Source, times_seconds: Sequence[float], *, max_side_pixels: int | None = None
) -> list[np.ndarray]:
    """Upright RGB pictures uint8 [H, W, 3] shown at each of the given times, in the given order.

    Times count from the video's first picture; a time before it gives the first picture, one after
    the end gives the last.

    Raises:
        VideoError: as in `probe`.
    """
    pictures: dict[float, np.ndarray] = {}
    painter = _Painter(max_side_pixels)
    with MediaFile(source) as reader:
        start_pts, first = reader.first_picture()
        for seconds in sorted(set(times_seconds)):
            # Half a tick more, for a picture's own time that went through a float.
            ticks = int(Fraction(max(seconds, 0.0)) / reader.time_base + Fraction(1, 2))
            shown = first
            for pts, picture in reader.pictures_from(start_pts + ticks, start_pts):
                if pts > start_pts + ticks:
                    break
                shown = picture
            pictures[seconds] = painter.paint(shown)
    return [pictures[seconds] for seconds in times_seconds]


@dataclass(frozen=True)
class _Grid:
    """The sampling grid in whole numbers: k / fps <= pts - start  is  k * den <= ticks * num."""

    num: int
    den: int
    start_pts: int
    first_index: int
    end_index: int | None
    seconds_per_tick: Fraction

    @classmethod
    def make(
        cls, fps: float, start_pts: int, time_base: Fraction, first_index: int, count: int | None
    ) -> "_Grid":
        if not 0 < fps <= 1000 or first_index < 0:
            raise ValueError(f"fps must be in (0, 1000] and first_index >= 0: {fps}, {first_index}")
        ratio = Fraction(fps).limit_denominator(1_000_000) * time_base
        end_index = None if count is None else first_index + count
        return cls(ratio.numerator, ratio.denominator, start_pts, first_index, end_index, time_base)

    def starting_at(self, index: int) -> "_Grid":
        return replace(self, first_index=index)

    def index_at(self, pts: int) -> int:
        """The first index whose time is at or after `pts`."""
        return -(-(pts - self.start_pts) * self.num // self.den)

    def first_pts(self) -> int:
        """The last tick at or before the first index's time."""
        return self.start_pts + self.first_index * self.den // self.num

    def is_superseded(self, pts: int, later_pts: int) -> bool:
        """Whether every grid time from `pts` on shows the picture of `later_pts` or a later one."""
        index = max(self.index_at(pts), self.first_index)
        return pts < later_pts and (later_pts - self.start_pts) * self.num <= index * self.den

    def select(self, timed: Iterator[tuple[int, Item]]) -> Iterator[tuple[int, int, Item]]:
        """(index, pts, item) for every grid index, from (pts, item) in order of time.

        Where `timed` raises `DecodeFailed`, what was shown until then comes before the error.
        """
        index, shown, failure = self.first_index, None, None
        try:
            for pts, item in timed:
                if shown is not None:
                    while index < self.index_at(pts) and index != self.end_index:
                        yield index, *shown
                        index += 1
                if index == self.end_index:
                    return
                shown = pts, item
        except DecodeFailed as error:
            failure = error
        if shown is not None:
            last_index = (shown[0] - self.start_pts) * self.num // self.den
            while index <= last_index and index != self.end_index:
                yield index, *shown
                index += 1
        if failure is not None and index != self.end_index:
            raise failure


class _Painter:
    """Turns decoded pictures into upright RGB arrays of one size."""

    def __init__(self, max_side_pixels: int | None) -> None:
        self._max_side_pixels = max_side_pixels
        self._size: tuple[int, int] | None = None
        self._to_rgb, self._to_size = VideoReformatter(), VideoReformatter()

    def paint(self, frame: VideoFrame) -> np.ndarray:
        """Upright uint8 [H, W, 3], of the size of the first picture painted."""
        turns, is_mirrored = orientation(frame)
        picture = self._scale(frame)
        if is_mirrored:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(np.rot90(picture, -turns))

    def paint_array(self, picture: np.ndarray) -> np.ndarray:
        """The same for an upright RGB array."""
        return self._scale(VideoFrame.from_ndarray(picture, format="rgb24"))

    def _scale(self, frame: VideoFrame) -> np.ndarray:
        if self._size is None:
            scale = Fraction(self._max_side_pixels or MAX_PIXELS, max(frame.width, frame.height))
            scale = min(scale, Fraction(1))
            self._size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        try:
            # Bicubic is what decord's filter has; without scaling the two are equal.
            rgb = self._to_rgb.reformat(frame, format="rgb24", interpolation="BICUBIC", threads=1)
            if (rgb.width, rgb.height) != self._size:
                rgb = self._to_size.reformat(rgb, *self._size, interpolation="AREA", threads=1)
        except FFmpegError as error:
            raise as_video_error(error, DecodeFailed, "no conversion to RGB") from error
        return rgb.to_ndarray()


def _pyav_frames(reader: MediaFile, grid: _Grid, painter: _Painter) -> Iterator[Frame]:
    pictures = reader.pictures_from(grid.first_pts(), grid.start_pts, grid.is_superseded)
    painted: tuple[VideoFrame, np.ndarray] | None = None
    for index, pts, frame in grid.select(pictures):
        if painted is None or painted[0] is not frame:
            painted = frame, painter.paint(frame)
        seconds = float((pts - grid.start_pts) * grid.seconds_per_tick)
        yield Frame(frame_index=index, pts_seconds=seconds, picture=painted[1])


def _decord_frames(reader: MediaFile, grid: _Grid, painter: _Painter) -> Iterator[Frame]:
    """The same from decord, whose pictures must be one for each packet that PyAV reads."""
    reader.rewind()
    key_pts, all_pts = 0, []
    for packet in reader.packets():
        if not packet.size:
            continue
        if packet.pts is None or packet.is_discard:
            raise DecodeFailed("packets without a time, or cut away by an edit list")
        key_pts = packet.pts if packet.is_keyframe else key_pts
        if packet.pts < key_pts:
            # Skipping seeks to key frames and then counts pictures, but leading ones are lost.
            raise DecodeFailed("groups of pictures are open, where decord miscounts")
        all_pts.append(packet.pts)
    all_pts.sort()
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # fault_tol: it repeats pictures in silence where it cannot decode, unless told not to.
        video = decord.VideoReader(str(reader.path), num_threads=1, fault_tol=1e-6)
        clock = video.get_frame_timestamp(range(len(video)))[:, 0]
    except (decord.DECORDError, RuntimeError, AssertionError) as error:
        raise DecodeFailed("decord cannot open it") from error
    seconds = np.array([float(pts * grid.seconds_per_tick) for pts in all_pts])
    if clock.shape != seconds.shape or not np.allclose(clock, seconds, rtol=1e-6, atol=1e-3):
        raise DecodeFailed("decord's clock differs from PyAV's")
    if not all_pts or all_pts[0] != grid.start_pts:
        raise DecodeFailed("the first packets give no picture")
    if max(np.diff(seconds), default=0) > MAX_STILL_SECONDS:
        raise DecodeFailed("timestamps jump")
    position, picture = -1, np.empty(0)
    for index, pts, wanted in grid.select((pts, i) for i, pts in enumerate(all_pts)):
        try:
            if wanted > position + 1:
                video.skip_frames(wanted - position - 1)
            if wanted > position:
                picture, position = painter.paint_array(video.next().asnumpy()), wanted
        except (decord.DECORDError, StopIteration) as error:
            raise DecodeFailed(f"decord cannot decode picture {wanted}") from error
        yield Frame(
            frame_index=index,
            pts_seconds=float((pts - grid.start_pts) * grid.seconds_per_tick),
            picture=picture,
        )


def _why_not_decord(reader: MediaFile, is_mirrored: bool, *, limit_bytes: bool) -> str:
    """Why decord cannot stand in for PyAV here; empty if it can."""
    context = reader.stream.codec_context
    if decord is None:
        return "decord is not installed (it has wheels for x86-64 only)"
    if reader.path is None:
        return "it needs a local path"
    if reader.container.format.name.split(",")[0] not in DECORD_CONTAINERS:
        return f"container {reader.container.format.name}"
    if reader.stream.codec.canonical_name not in DECORD_CODECS:
        return f"codec {reader.stream.codec.canonical_name}"
    if context.pix_fmt not in DECORD_PIXEL_FORMATS:
        return f"pixel format {context.pix_fmt}"
    if limit_bytes and reader.container.size > DECORD_MAX_BYTES:
        return f"larger than {DECORD_MAX_BYTES} bytes"
    if is_mirrored:
        return "mirrored pictures"
    return ""
