"""Probe a video and sample its frames on a grid of presentation times.

`caan.media.container` opens every file. Frames are decoded forward only, with one thread, and come
upright.
"""

import logging
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame

from caan.errors import DecodeFailed
from caan.media.config import Decoder, require_decoder
from caan.media.container import MediaFile, Source, orientation
from caan.media.grid import Frame, Grid
from caan.media.rgb import RgbConverter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VideoProbe:
    """Header of a video, checked against its first and last images."""

    duration_seconds: float
    """From the first image's presentation time to the end of the last one, by the packets."""
    width: int
    """Width of the upright image, in pixels."""
    height: int
    """Height of the upright image, in pixels."""
    codec: str
    """FFmpeg's name, such as `h264`."""
    container: str
    """First of the demuxer's names: mov (all of MP4), matroska (and WebM), avi, gif, ..."""
    fps: float | None
    """Mean frames per second, from the header; None where it names none."""
    rotation_degrees: int
    """Clockwise rotation that makes the stored image upright: 0, 90, 180 or 270."""
    is_mirrored: bool
    """Whether the stored image is flipped left to right before that rotation."""
    num_frames: int | None
    """Number of frames, from the header; None where it names none."""
    pixel_format: str
    """FFmpeg's name, such as `yuv420p`."""
    start_pts: int
    """Presentation time of the first image, in units of `time_base`."""
    time_base: Fraction
    """Seconds per tick of the stream's clock."""


def probe(source: Source) -> VideoProbe:
    """Read a video's header, decode its first image and read its last packets.

    `source` is a local path or a seekable binary file. All packets are read only where the header
    has no duration, or one that contradicts the packets.

    Raises:
        VideoError: `Missing`, `Unreadable`, `NoVideoStream`, `TooLarge` or `DecodeFailed`.
    """
    with MediaFile(source) as reader:
        start_pts, first = reader.first_image()
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
    decoder: Decoder = "pyav",
    probe: VideoProbe | None = None,
) -> Generator[Frame]:
    """Frames on the grid of `fps` per second, from index `first_index`, at most `num_frames`.

    Frame k is the last image with presentation time at most k / fps, counted from the video's first
    image; the grid ends at the last image's time. Each k comes once, in order, and one image may
    serve several k. Larger images are scaled to `max_side_pixels` on their longer side.

    `decord` decodes the files named in `caan.media.decord_frames`. PyAV decodes the others, and
    continues where decord fails. Both give the same bytes.

    A damaged file gives its good frames first. Frames that FFmpeg marks as corrupt are left out.

    Raises:
        VideoError: as in `probe`; `DecodeFailed` also at the damage, after the good frames.
        InputError: decord is not installed.
    """
    require_decoder(decoder)
    with MediaFile(source) as reader:
        if probe is None:
            start_pts, first = reader.first_image()
            degrees, is_mirrored = orientation(first)
        else:
            start_pts, degrees, is_mirrored = (
                probe.start_pts, probe.rotation_degrees, probe.is_mirrored
            )  # fmt: skip
        grid = Grid.make(fps, start_pts, reader.time_base, first_index, num_frames)
        if decoder == "decord":
            from caan.media.decord_frames import decord_frames, why_not

            # decord rotates before scaling, PyAV after it: values would differ by up to 2 of 255.
            scales_turned = bool(degrees) and max_side_pixels is not None
            reason = why_not(reader, is_turned=is_mirrored or scales_turned)
            if not reason:
                next_index = first_index
                try:
                    for frame in decord_frames(reader, grid, RgbConverter(max_side_pixels)):
                        yield frame
                        next_index = frame.frame_index + 1
                    return
                except DecodeFailed as error:
                    reason = str(error)
                    grid = grid.starting_at(next_index)
            logger.info("PyAV decodes this file in place of decord: %s", reason)
        yield from _pyav_frames(reader, grid, RgbConverter(max_side_pixels))


@dataclass(frozen=True, eq=False, kw_only=True)
class KeyFrame:
    """One key frame, decoded without its neighbours."""

    frame_index: int
    """The first grid index whose time is at or after it."""
    pts_seconds: float
    """Its presentation time since the video's first image."""
    image: np.ndarray | None
    """uint8 [H, W, 3], RGB, upright. None in the last item, which is no key frame: its time is the
    video's end, or infinity if that is after the requested range."""


def key_frames(
    source: Source, *, fps: float, start_seconds: float, end_seconds: float, cell_seconds: float
) -> Iterator[KeyFrame]:
    """The first key frame of each cell of `cell_seconds`, from `start_seconds` on.

    The last item has no image. Its time is that of the first key frame after `end_seconds`, or the
    video's end, or infinity if neither is known. Cells count from the video's start, so the chosen
    key frames do not depend on `start_seconds`.

    Raises:
        VideoError: as in `probe`; `DecodeFailed` also where the codec or the container has no key
            frames that can be decoded alone.
    """
    converter = RgbConverter(None)
    with MediaFile(source) as reader:
        start_pts, _ = reader.first_image()
        grid = Grid.make(fps, start_pts, reader.time_base, 0, None)
        cell_ticks = max(1, round(Fraction(cell_seconds) / reader.time_base))
        first_cell = max(0, int(start_seconds / cell_seconds))
        last_pts, last_cell = start_pts, first_cell - 1
        limit_pts = start_pts + int(end_seconds / reader.time_base)

        def is_wanted(pts: int) -> bool:
            return pts >= start_pts and (pts - start_pts) // cell_ticks > last_cell

        begin_pts = start_pts + first_cell * cell_ticks
        for pts, image in reader.key_images(begin_pts, start_pts, is_wanted):
            last_pts = max(last_pts, pts)
            if image is not None:
                last_cell = (pts - start_pts) // cell_ticks
                yield KeyFrame(
                    frame_index=grid.index_at(pts),
                    pts_seconds=grid.seconds_of(pts),
                    image=converter.convert(image),
                )
            if pts > limit_pts:
                end = math.inf if image is None else grid.seconds_of(pts)
                yield KeyFrame(frame_index=grid.index_at(pts), pts_seconds=end, image=None)
                return
        end = grid.seconds_of(last_pts)
        yield KeyFrame(frame_index=grid.index_at(last_pts), pts_seconds=end, image=None)


def decode_at(
    source: Source, times_seconds: Sequence[float], *, max_side_pixels: int | None = None
) -> list[np.ndarray]:
    """Upright RGB images uint8 [H, W, 3] shown at each of the given times, in the given order.

    Times count from the video's first image. A time before it gives the first image, one after the
    end the last.

    Raises:
        VideoError: as in `probe`.
    """
    images: dict[float, np.ndarray] = {}
    converter = RgbConverter(max_side_pixels)
    with MediaFile(source) as reader:
        start_pts, first = reader.first_image()
        for seconds in sorted(set(times_seconds)):
            # Half a tick more: an image's own time may have been rounded to a float.
            ticks = int(Fraction(max(seconds, 0.0)) / reader.time_base + Fraction(1, 2))
            shown = first
            for pts, image in reader.images_from(start_pts + ticks, start_pts):
                if pts > start_pts + ticks:
                    break
                shown = image
            images[seconds] = converter.convert(shown)
    return [images[seconds] for seconds in times_seconds]


def _pyav_frames(reader: MediaFile, grid: Grid, converter: RgbConverter) -> Iterator[Frame]:
    decoded = reader.images_from(grid.first_pts(), grid.start_pts, grid.is_superseded)
    last: tuple[VideoFrame, np.ndarray] | None = None
    for index, pts, frame in grid.select(decoded):
        if last is None or last[0] is not frame:
            last = frame, converter.convert(frame)
        yield Frame(frame_index=index, pts_seconds=grid.seconds_of(pts), image=last[1])
