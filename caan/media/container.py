"""Open one media file and nothing else, and decode its video stream forward.

FFmpeg gets a Python file object without a name and may not open other files. Only demuxers of
self-contained files are allowed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from caan.errors import (
    DecodeFailed,
    Missing,
    NoVideoStream,
    OutOfMemory,
    TooLarge,
    Unreadable,
    VideoError,
)

Source = str | BinaryIO

ALLOWED_DEMUXERS = (
    # FFmpeg's names: MP4, MOV, 3GP; MKV, WebM; WMV; MPEG program and transport streams
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "asf"),
    *("mpeg", "mpegts", "ogg", "mxf", "ivf", "gif"),
)
"""Demuxers of self-contained files: no playlist, no image sequence, no device."""

MAX_PIXELS = 8192 * 8192
"""Most pixels of an image that is decoded; 200 MB as RGB."""

MAX_STILL_SECONDS = 3600
"""Longest time between two images; a longer one counts as a damaged timestamp."""

_READ_BYTES = 64 * 1024
KEY_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video", "mjpeg", "vp8", "vp9", "av1")
"""Codecs whose key frames can be decoded alone."""

_SKIPPING_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video")
_MIN_BYTES_PER_SECOND = 20


IsUnneeded = Callable[[int, int], bool]
"""Whether an image at the first pts is not needed because there is one at the second."""


class _OneFile:
    """A file without a name: FFmpeg recognises its format by the content only.

    FFmpeg treats a failed read as the end of the file. The failure is kept, so that unreachable
    storage is not reported as a damaged video.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._read, self.seek, self.tell = file.read, file.seek, file.tell
        self.failure: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._read(size)
        except OSError as error:
            self.failure = error
            raise


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise Unreadable(f"the file refers to another file, which is not opened: {url[:200]}")


class MediaFile:
    """One open file and its first video stream, decoded forward with one thread."""

    stream: VideoStream
    time_base: Fraction
    """Seconds per tick of the stream's clock."""

    def __init__(self, source: Source) -> None:
        self.path = Path(source).absolute() if isinstance(source, str) else None
        try:
            self._file = open(source, "rb") if isinstance(source, str) else source  # noqa: SIM115
        except FileNotFoundError as error:
            raise Missing(f"no such file: {source}") from error
        except (IsADirectoryError, PermissionError) as error:
            raise Unreadable(f"cannot be read: {source} ({error.strerror})") from error
        self._container: InputContainer | None = None
        self._reads = _OneFile(self._file)
        try:
            self._open()
        except BaseException:
            self.close()
            self._raise_failure()
            raise

    def __enter__(self) -> "MediaFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._raise_failure()

    def _raise_failure(self) -> None:
        """Raise the failed read, whatever error FFmpeg made of it."""
        failure = self._reads.failure
        if failure is not None and self.path:
            raise Unreadable(f"cannot be read: {self.path} ({failure.strerror})") from failure
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close what this object opened; a file object that was passed in stays open."""
        if self._container is not None:
            self._container.close()
        if self.path:
            self._file.close()

    def _open(self) -> None:
        self._file.seek(0)
        limits = {"max_pixels": str(MAX_PIXELS)}
        try:
            self._container = av.open(
                self._reads,
                "r",
                options=limits,
                container_options={
                    "format_whitelist": ",".join(ALLOWED_DEMUXERS),
                    "protocol_whitelist": "none",
                },
                buffer_size=_READ_BYTES,
                io_open=_refuse,
                metadata_errors="replace",
            )
        except FFmpegError as error:
            raise as_video_error(error, Unreadable, "no allowed demuxer opens it") from error
        streams = [
            stream
            for stream in self.container.streams.video
            if not stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
        ]
        if not streams:
            raise NoVideoStream("the file has no video stream")
        self.stream = streams[0]
        self.time_base = Fraction(self.stream.time_base or 0)
        context = self.stream.codec_context
        if context is None or not self.time_base:
            raise DecodeFailed("FFmpeg has no decoder for the video stream")
        if context.width * context.height > MAX_PIXELS:
            raise TooLarge(f"images of {context.width}x{context.height} are not decoded")
        for stream in self.container.streams:
            if stream is not self.stream:
                stream.discard = Discard.all
        context.thread_count = 1
        context.options = limits
        self._reorder_depth = context.reorder_depth
        self._needs_key = False
        self._is_at_start = True

    @property
    def container(self) -> InputContainer:
        """PyAV's container, for fields of the header."""
        assert self._container is not None
        return self._container

    def rewind(self) -> None:
        """Go back to the start by opening the file again, which works for every demuxer."""
        if not self._is_at_start:
            self.container.close()
            self._open()

    def seek(self, pts: int) -> bool:
        """Seek to a key frame near `pts`, before it if the demuxer can; False if it cannot seek."""
        self._is_at_start = False
        try:
            self.container.seek(pts, stream=self.stream)
        except FFmpegError:
            return False
        # Flushing resets the depth of reordering; without it hierarchical B-frames are lost.
        self.stream.codec_context.reorder_depth = self._reorder_depth
        self._needs_key = True
        return True

    def images(self, is_unneeded: IsUnneeded | None = None) -> Iterator[tuple[int, VideoFrame]]:
        """(pts, image) from here on, with rising pts; images that are not needed may be left out.

        Packets before the first good one may be damaged: a recording may begin anywhere. Damage
        after it ends the video.

        Raises:
            DecodeFailed: at the damage, after all images shown before it.
        """
        last_pts: int | None = None
        step = round(1 / (self.stream.average_rate or 25) / self.time_base)
        limit = MAX_STILL_SECONDS / self.time_base
        for frame in self._decode(is_unneeded):
            shown_at = next((pts for pts in (frame.pts, frame.dts) if pts is not None), None)
            if shown_at is None:
                shown_at = 0 if last_pts is None else last_pts + step
            if frame.is_corrupt or (last_pts is not None and shown_at < last_pts):
                continue
            if last_pts is not None and shown_at - last_pts > limit:
                raise DecodeFailed(f"timestamps jump from {last_pts} to {shown_at}")
            last_pts = shown_at
            yield shown_at, frame

    def _decode(self, is_unneeded: IsUnneeded | None) -> Iterator[VideoFrame]:
        context = self.stream.codec_context
        if context.name not in _SKIPPING_CODECS:
            is_unneeded = None
        sent_pts: deque[int] = deque(maxlen=32)
        has_begun = False
        pts = None
        try:
            for packet in self.packets():
                if self._needs_key and packet.size and not packet.is_keyframe:
                    continue
                self._needs_key = False
                pts = packet.pts
                if is_unneeded is not None and pts is not None:
                    # Images that no other image refers to need not be decoded.
                    unneeded = any(is_unneeded(pts, later) for later in sent_pts)
                    context.skip_frame = "NONREF" if unneeded else "DEFAULT"
                    if not packet.is_discard:
                        sent_pts.append(pts)
                try:
                    frames = packet.decode()
                except FFmpegError as error:
                    if has_begun or isinstance(error, MemoryError):
                        raise as_video_error(error, DecodeFailed, f"damaged at {pts}") from error
                    continue
                has_begun = True
                yield from frames
        except DecodeFailed as error:
            if isinstance(error.__cause__, FFmpegError):
                yield from self._images_held_back(pts)
            raise

    def _images_held_back(self, damaged_pts: int | None) -> list[VideoFrame]:
        """Images before the damage that the decoder still holds."""
        try:
            held = self.stream.codec_context.decode(None)
        except FFmpegError:
            return []
        return [
            frame
            for frame in held
            if damaged_pts is None or (frame.pts is not None and frame.pts <= damaged_pts)
        ]

    def images_from(
        self, pts: int, start_pts: int, is_unneeded: IsUnneeded | None = None
    ) -> Iterator[tuple[int, VideoFrame]]:
        """As `images`, from an image at or before `pts` on, else from the video's first."""
        second = round(1 / self.time_base)
        # In a program stream few packets have a time; the first after a seek are guessed.
        back = 10 * second if self.container.format.name == "mpeg" else 0
        while pts - back > start_pts and self.seek(pts - back):
            images = self.images(is_unneeded)
            first = next(images, None)
            if first is not None and first[0] <= pts:
                yield first
                yield from images
                return
            # The demuxer went too far, or leading images of an open GOP were lost.
            back = max(2 * back, second)
        self.rewind()
        yield from self.images(is_unneeded)

    def key_images(
        self, pts: int, start_pts: int, is_wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, VideoFrame | None]]:
        """(pts, image) of key frames, from one at or before `pts` on if there is one.

        Nothing else is decoded: other packets, and key frames that are not wanted, come with None.

        Raises:
            DecodeFailed: the codec or the container has no key frames that can be decoded alone.
        """
        if self.stream.codec.canonical_name not in KEY_CODECS:
            name = self.stream.codec.canonical_name
            raise DecodeFailed(f"key frames of {name} cannot be decoded alone")
        if pts <= start_pts or not self.seek(pts) or not self._is_key_at_or_before(pts):
            self.rewind()
        elif not self.seek(pts):
            raise DecodeFailed("the demuxer does not seek twice")
        for packet in self.packets():
            if not packet.size or packet.is_discard:
                continue
            if not packet.is_keyframe:
                if packet.pts is not None:
                    yield packet.pts, None
                continue
            if packet.pts is None:
                raise DecodeFailed("key frames without a time")
            yield packet.pts, self._key_image(packet) if is_wanted(packet.pts) else None

    def _is_key_at_or_before(self, pts: int) -> bool:
        for packet in self.packets():
            if packet.size and packet.is_keyframe:
                return packet.pts is not None and packet.pts <= pts
        return False

    def _key_image(self, packet: "Packet[VideoStream]") -> VideoFrame:
        context = self.stream.codec_context
        try:
            frames = [*packet.decode(), *context.decode(None)]
        except FFmpegError as error:
            raise as_video_error(error, DecodeFailed, f"damaged at {packet.pts}") from error
        finally:
            context.flush_buffers()
        for frame in frames:
            if frame.pts == packet.pts and not frame.is_corrupt:
                return frame
        raise DecodeFailed(f"the key frame at {packet.pts} gives no image")

    def first_image(self) -> tuple[int, VideoFrame]:
        """(pts, image) of the video's first image; the file must have just been opened."""
        for pts, image in self.images():
            if image.width * image.height > MAX_PIXELS:
                raise TooLarge(f"images of {image.width}x{image.height} are not decoded")
            return pts, image
        # Some decoders refuse a large image without naming the reason.
        raise DecodeFailed(f"no image can be decoded: damaged, or larger than {MAX_PIXELS} px")

    def last_pts(self, start_pts: int) -> int:
        """Presentation time of the last packet: from the file's end, else from all packets."""
        length = self.stream.duration
        if length is None and self.container.duration:
            length = round(Fraction(self.container.duration, av.time_base) / self.time_base)
        if length and self.container.size > _MIN_BYTES_PER_SECOND * length * self.time_base:
            tail = self._end_of_packets(None) if self.seek(start_pts + length) else None
            if tail is not None and 0 <= tail - start_pts <= 1.1 * length + 10 / self.time_base:
                return tail
        self.rewind()
        return max(start_pts, self._end_of_packets(start_pts) or start_pts)

    def _end_of_packets(self, end: int | None) -> int | None:
        limit = MAX_STILL_SECONDS / self.time_base
        try:
            for packet in self.packets():
                if packet.pts is None or packet.is_discard:
                    continue
                if end is None or end < packet.pts <= end + limit:
                    end = packet.pts
        except DecodeFailed:
            pass  # the last readable packet is the end
        return end

    def packets(self) -> "Iterator[Packet[VideoStream]]":
        """Packets of the video stream from here on, in decoding order."""
        self._is_at_start = False
        try:
            yield from self.container.demux(self.stream)
        except FFmpegError as error:
            raise as_video_error(error, DecodeFailed, "damaged container") from error


def as_video_error(error: FFmpegError, kind: type[VideoError], what: str) -> VideoError:
    """An error of this kind, or `OutOfMemory` if FFmpeg could not allocate."""
    if isinstance(error, MemoryError):
        return OutOfMemory(f"FFmpeg could not allocate memory ({what})")
    return kind(f"{what}: {error.strerror}")


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """Clockwise quarter turns that make the image upright, and whether to mirror it before."""
    matrix = cast(SideDataContainer, frame.side_data).get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(np.int64)
    turns = (1 if c < 0 else 3) if abs(c) > abs(d) else (2 if d < 0 else 0)
    return turns, bool(a * d - b * c < 0)
