"""Segment of a video -> images of its faces and frames; runs in the sandboxed decoding child.

Imports neither torch nor Ray. RetinaFace and Faster R-CNN import torch where one of them is the
detector and runs on the CPU.
"""

import itertools
import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from caan.errors import DecodeFailed, Missing, VideoError, redact
from caan.extraction.config import SegmentConfig
from caan.extraction.images import crop_frame, frame_row, segment_columns
from caan.extraction.keyframes import GAP_SECONDS, LOOK_SECONDS, CascadeCounts, ranges_of, wanted
from caan.faces.build import load_detector
from caan.faces.crops import resize_context
from caan.faces.detection import DetectorConfig, Face
from caan.media.grid import Frame
from caan.media.sampling import KeyFrame, Source, key_frames, sample_frames
from caan.people.face_embedding import dlib_embedder
from caan.schema import IMAGES_SCHEMA, table_of
from caan.storage.failures import explained
from caan.storage.objects import open_ranges
from caan.storage.paths import is_s3

CHUNK_PIXELS = 16_000_000
"""Decoded pixels that are held at once for the detector (48 MB)."""

CHUNK_FRAMES = 8
"""Frames that are held at once for the detector."""


@lru_cache(maxsize=2)
def _detector(config: DetectorConfig) -> Any:
    return load_detector(config, device="cpu")


def warm_up(config: SegmentConfig) -> None:
    """Load what every segment needs; the sandbox's initializer."""
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(1)
    threadpool_limits(1)  # there is one child per core
    for detector in {config.detector, config.look_detector} - {None}:
        _detector(detector)
    if config.detector and config.face_embedding and config.face_embedding.name == "dlib":
        dlib_embedder()


def read_segment(request: dict[str, Any], config: SegmentConfig, path: str) -> CascadeCounts | None:
    """Decode a segment and write its row of IMAGES_SCHEMA as an Arrow IPC file to `path`.

    `request` is one of `segments_of` a unit, whose `source` is the local path or
    s3:// object to read. The
    row's status is `ok`, `no_face`, or `partial` where the file breaks off after some frames.

    With a `look_detector` the row holds the frames of the wanted stretches, and the searched key
    frames of the others, each in place of the next grid frame. The cascade's counts are returned.

    Raises:
        VideoError: no frame could be decoded.
    """
    name = request["source"]
    with explained(name, "reading") if is_s3(name) else nullcontext():
        if config.look_detector is None:
            images, error = _read_on(request, config)
            counts = None
        else:
            images, error, counts = _read_cascade(request, config)
    table = images.table(error)
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return counts


@contextmanager
def opened(source: str) -> Iterator[Source]:
    """What the decoders read: a local path, or a file over an S3 object that reads ranges.

    Raises:
        Missing: there is no such object.
    """
    if not is_s3(source):
        yield source
        return
    try:
        file = open_ranges(source)
    except FileNotFoundError as error:
        raise Missing(f"there is no object `{redact(source)}`") from error
    with file:
        yield file


class OpenVideo:
    """The file that the child has open, and its place on the grid.

    The segments of a unit follow one another, so that the next one is decoded from where the last
    one ended.
    """

    def __init__(self, source: str, first_index: int, config: SegmentConfig) -> None:
        self.source = source
        self.config = config
        self.next_index = first_index
        self._stack = ExitStack()
        file = self._stack.enter_context(opened(source))
        self._frames: Generator[Frame] = sample_frames(
            file, fps=config.fps, first_index=first_index, decoder=config.decoder
        )
        self._stack.callback(self._frames.close)

    def is_at(self, request: dict[str, Any], config: SegmentConfig) -> bool:
        """Whether the request begins where this video was left."""
        return (self.source, self.next_index, self.config) == (
            request["source"], request["first_index"], config
        )  # fmt: skip

    def take(self, num_frames: int) -> Iterator[Frame]:
        """The next frames, at most so many."""
        for frame in itertools.islice(self._frames, num_frames):
            self.next_index = frame.frame_index + 1
            yield frame

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


_open: OpenVideo | None = None


def _read_on(request: dict[str, Any], config: SegmentConfig) -> tuple["SegmentImages", str | None]:
    """The images of a segment, read on from the one before if that is possible.

    What a segment holds must not depend on how work was cut. A segment with damage, or after one
    that ended early, is therefore read from its own start.
    """
    global _open
    video, _open = _open, None
    reads_on = video is not None and video.is_at(request, config)
    if video is not None and not reads_on:
        video.close()
    if video is None or not reads_on:
        video = OpenVideo(request["source"], request["first_index"], config)
    images = SegmentImages(request, config)
    error = None
    try:
        error = images.fill(video.take(request["num_frames"]))
    except DecodeFailed:
        if not reads_on:
            raise
        error = "read again"
    finally:
        is_whole = error is None and len(images.frames) == request["num_frames"]
        if is_whole and not request["is_last"]:
            _open = video
        else:
            video.close()
    return _read_on(request, config) if error and reads_on else (images, error)


def _read_cascade(
    request: dict[str, Any], config: SegmentConfig
) -> tuple["SegmentImages", str | None, CascadeCounts]:
    """The images of a segment's wanted stretches."""
    images, looks = SegmentImages(request, config), SegmentLooks(request, config)
    with ExitStack() as stack:
        source = stack.enter_context(opened(request["source"]))
        frames = (
            sample_frames(
                source, fps=config.fps, first_index=first, num_frames=count, decoder=config.decoder
            )
            for first, count in looks.ranges(source)
        )
        error = images.fill(itertools.chain.from_iterable(frames))
    return images, error, looks.add_to(images)


def _is_full(chunk: Sequence[Frame | KeyFrame]) -> bool:
    image = chunk[-1].image
    assert image is not None
    return len(chunk) * image.size // 3 >= CHUNK_PIXELS or len(chunk) >= CHUNK_FRAMES


class SegmentImages:
    """Frames and faces of one segment, as they are decoded."""

    def __init__(self, request: dict[str, Any], config: SegmentConfig) -> None:
        self.request = request
        self.config = config
        self.frames: list[dict[str, Any]] = []
        self.faces: list[dict[str, Any]] = []
        self.decoder = "pyav"
        self.seconds_decode = 0.0
        self.seconds_detect = 0.0

    def fill(self, frames: Iterator[Frame]) -> str | None:
        """Add all frames, some at a time; return the damage at which they ended, if any.

        Raises:
            DecodeFailed: the damage came before the first frame.
        """
        chunk: list[Frame] = []
        error: str | None = None
        start = time.perf_counter()
        try:
            for frame in frames:
                self.seconds_decode += time.perf_counter() - start
                chunk.append(frame)
                if _is_full(chunk):
                    self.add(chunk)
                    chunk = []
                start = time.perf_counter()
        except DecodeFailed as failure:
            if not chunk and not self.frames:
                raise
            error = str(failure)
        self.seconds_decode += time.perf_counter() - start
        self.add(chunk)
        return error

    def add(self, chunk: Sequence[Frame]) -> None:
        """Detect faces in these frames and keep the images that the networks need."""
        if not chunk:
            return
        start = time.perf_counter()
        self.decoder = chunk[-1].decoder
        if self.config.detector is None:
            for frame in chunk:
                self._add_whole(frame)
        else:
            found = _detector(self.config.detector).detect([frame.image for frame in chunk])
            for frame, faces in zip(chunk, found, strict=True):
                self._add_crops(frame, faces)
        self.seconds_detect += time.perf_counter() - start

    def _add_whole(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        scale = min(1.0, self.config.detect_size_pixels / max(height, width))
        small = frame.image
        if scale < 1.0:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            small = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA)
        context = resize_context(frame.image)
        row = frame_row(frame.frame_index, frame.pts_seconds, context, small)
        self.frames.append(row | {"scale": small.shape[0] / height})

    def _add_crops(self, frame: Frame, faces: list[Face]) -> None:
        context = resize_context(frame.image)
        row = frame_row(frame.frame_index, frame.pts_seconds, context)
        marked_box = self.request["face_box"]
        self.faces += crop_frame(row, frame.image, faces, self.config, marked_box, context)
        self.frames.append(row)

    def table(self, error: str | None) -> pa.Table:
        """The segment's one row."""
        status = "ok" if self.faces or self.config.detector is None else "no_face"
        if error is not None:
            status = "partial"
        return table_of(
            [
                segment_columns(self.request)
                | {
                    "status": status,
                    "error": error,
                    "decoder": self.decoder,
                    "seconds_decode": self.seconds_decode,
                    "seconds_detect": self.seconds_detect,
                    "frames": self.frames,
                    "faces": self.faces,
                }
            ],
            IMAGES_SCHEMA,
        )


class SegmentLooks:
    """Key frames in and around one segment, searched for faces before the segment is decoded."""

    def __init__(self, request: dict[str, Any], config: SegmentConfig) -> None:
        self.request = request
        self.config = config
        self.index = request["first_index"] + np.arange(request["num_frames"])
        self.is_wanted = np.ones(len(self.index), bool)
        self.rows: list[dict[str, Any]] = []
        self.looks: list[tuple[float, bool]] = []
        self.seconds_decode = 0.0
        self.seconds_detect = 0.0
        self.end_index = int(self.index[-1]) + 1

    def ranges(self, source: Any) -> list[tuple[int, int]]:
        """Ranges of the grid to sample; the whole segment if key frames cannot be decoded alone."""
        try:
            end_seconds = self._look(source)
        except VideoError:  # sampling then finds the same fault, or none
            end_seconds, self.looks = math.inf, []
        times, faces = np.array(self.looks or np.zeros((0, 2))).T
        seconds = self.index / self.config.fps
        self.is_wanted = wanted(times, faces.astype(bool), end_seconds, seconds)
        return ranges_of(self.is_wanted, self.request["first_index"])

    def _look(self, source: Any) -> float:
        """Fill `looks` and `rows`; return the end (seconds) of the stretch after the last look."""
        fps = self.config.fps
        chunk: list[KeyFrame] = []
        end_seconds = math.inf
        start = time.perf_counter()
        for frame in key_frames(
            source,
            fps=fps,
            start_seconds=self.index[0] / fps - GAP_SECONDS,
            end_seconds=self.index[-1] / fps + GAP_SECONDS,
            cell_seconds=LOOK_SECONDS,
        ):
            self.seconds_decode += time.perf_counter() - start
            if frame.image is None:
                end_seconds = frame.pts_seconds
                if end_seconds < math.inf:
                    self.end_index = min(self.end_index, int(end_seconds * fps + 1e-6) + 1)
            else:
                chunk.append(frame)
                if _is_full(chunk):
                    self._detect(chunk)
                    chunk = []
            start = time.perf_counter()
        self.seconds_decode += time.perf_counter() - start
        self._detect(chunk)
        return end_seconds

    def _detect(self, chunk: Sequence[KeyFrame]) -> None:
        if not chunk:
            return
        start = time.perf_counter()
        assert self.config.look_detector is not None
        images = [frame.image for frame in chunk if frame.image is not None]
        found = _detector(self.config.look_detector).detect(images)
        for frame, image, faces in zip(chunk, images, found, strict=True):
            self.looks.append((frame.pts_seconds, bool(faces)))
            if not faces and self.index[0] <= frame.frame_index <= self.index[-1]:
                context = resize_context(image)
                self.rows.append(frame_row(frame.frame_index, frame.pts_seconds, context))
        self.seconds_detect += time.perf_counter() - start

    def add_to(self, images: SegmentImages) -> CascadeCounts:
        """Add the searched key frames of unsampled stretches; return the segment's counts."""
        num_sampled = len(images.frames)
        taken = set(self.index[self.is_wanted].tolist())
        for row in self.rows:
            if row["frame_index"] not in taken:
                taken.add(row["frame_index"])
                images.frames.append(row)
        images.frames.sort(key=lambda row: row["frame_index"])
        images.seconds_decode += self.seconds_decode
        images.seconds_detect += self.seconds_detect
        in_video = self.index < self.end_index
        num_skipped = int((in_video & ~self.is_wanted).sum())
        num_unseen = num_skipped - (len(images.frames) - num_sampled)
        return CascadeCounts(
            frames_looked=len(self.looks),
            frames_sampled=num_sampled,
            frames_skipped=num_skipped,
            skipped_seconds=num_unseen / self.config.fps,
            seconds_look_decode=self.seconds_decode,
            seconds_look_detect=self.seconds_detect,
        )
