"""Segment of a video -> uint8 pictures of faces and context, the part that runs in the sandbox.

This module is imported by the decoding child: nothing here needs torch or Ray (the networks
of RetinaFace and Faster R-CNN import it where one is the detector and runs on the CPU).
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from caan.errors import DecodeFailed, VideoError
from caan.extraction.config import CutConfig
from caan.extraction.keyframes import GAP_SECONDS, LOOK_SECONDS, CascadeCounts, ranges_of, wanted
from caan.extraction.pictures import (
    face_row,
    frame_row,
    segment_columns,
)
from caan.faces.build import load_detector
from caan.faces.crops import resize_context
from caan.faces.detection import DetectorConfig, Face, select_faces
from caan.media.sampling import Frame, KeyFrame, key_frames, sample_frames
from caan.people.face_embedding import dlib_embedder, face_embeddings
from caan.schema import PICTURES_SCHEMA, table_of
from caan.storage.files import explained, open_ranges
from caan.storage.paths import is_s3

CHUNK_PIXELS = 16_000_000
"""Decoded pixels held at once while waiting for the detector (48 MB)."""


@lru_cache(maxsize=2)
def _detector(config: DetectorConfig) -> Any:
    return load_detector(config, device="cpu")


def warm_up(config: CutConfig) -> None:
    """Load what every segment needs; the sandbox's initializer."""
    import cv2
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(1)
    threadpool_limits(1)  # there is a child per core
    for detector in {config.detector, config.look_detector} - {None}:
        _detector(detector)
    if config.detector and config.identity and config.identity.name == "dlib":
        dlib_embedder()


def cut_segment(
    request: dict[str, Any], config: CutConfig, decoder: str, path: str
) -> CascadeCounts | None:
    """Write one row of PICTURES_SCHEMA as an Arrow IPC file to `path`.

    `request` is a row of the plan, its `source` the local path or s3:// object to read. The row's
    status is `ok`, `no_face`, or `partial` where the file breaks off after some frames. With a
    look_detector the row has the frames of wanted stretches, and of the others the key frames that
    were looked at, each in the place of the grid frame next to it; what that spared is returned.

    Raises:
        VideoError: nothing could be decoded.
    """
    cut = SegmentCut(request, config)
    with ExitStack() as stack:
        source: Any = request["source"]
        if is_s3(source):
            stack.enter_context(explained(source, "reading"))
            source = stack.enter_context(open_ranges(source))
        ranges = [(request["first_index"], request["num_frames"])]
        looks = None
        if config.look_detector is not None:
            looks = SegmentLooks(request, config)
            ranges = looks.ranges(source)
        chunk: list[Frame] = []
        error: str | None = None
        start = time.perf_counter()
        try:
            for frame in _frames_of(ranges, source, config.fps, decoder):
                cut.seconds_decode += time.perf_counter() - start
                chunk.append(frame)
                if _is_full(chunk):
                    cut.add(chunk)
                    chunk = []
                start = time.perf_counter()
        except DecodeFailed as failure:
            if not chunk and not cut.frames:
                raise
            error = str(failure)
        cut.seconds_decode += time.perf_counter() - start
        cut.add(chunk)
    counts = looks.add_to(cut) if looks is not None else None
    table = cut.table(decoder, error)
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return counts


def _frames_of(
    ranges: Sequence[tuple[int, int]], source: Any, fps: float, decoder: str
) -> Iterator[Frame]:
    for first_index, num_frames in ranges:
        yield from sample_frames(
            source,
            fps=fps,
            first_index=first_index,
            num_frames=num_frames,
            decoder=decoder,  # type: ignore[arg-type]
        )


def _is_full(chunk: Sequence[Frame | KeyFrame]) -> bool:
    picture = chunk[-1].picture
    assert picture is not None
    return len(chunk) * picture.size // 3 >= CHUNK_PIXELS or len(chunk) >= 8


class SegmentCut:
    """Collects the pictures of one segment."""

    def __init__(self, request: dict[str, Any], config: CutConfig) -> None:
        self.request = request
        self.config = config
        self.frames: list[dict[str, Any]] = []
        self.faces: list[dict[str, Any]] = []
        self.seconds_decode = 0.0
        self.seconds_detect = 0.0

    def add(self, chunk: Sequence[Any]) -> None:
        """Detect in these frames and keep the pictures that the networks need."""
        if not chunk:
            return
        start = time.perf_counter()
        pictures = [frame.picture for frame in chunk]
        if self.config.detector is None:
            for frame in chunk:
                self._add_whole(frame)
        else:
            found = _detector(self.config.detector).detect(pictures)
            for frame, faces in zip(chunk, found, strict=True):
                self._add_cut(frame, faces)
        self.seconds_detect += time.perf_counter() - start

    def _add_whole(self, frame: Any) -> None:
        height, width = frame.picture.shape[:2]
        scale = min(1.0, self.config.detect_size_pixels / max(height, width))
        small = frame.picture
        if scale < 1.0:
            import cv2

            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            small = cv2.resize(frame.picture, size, interpolation=cv2.INTER_AREA)
        context = resize_context(frame.picture)
        row = frame_row(frame.frame_index, frame.pts_seconds, context, small)
        self.frames.append(row | {"scale": small.shape[0] / height})

    def _add_cut(self, frame: Any, faces: list[Face]) -> None:
        kept = select_faces(
            faces,
            self.config.face_policy,
            self.request["face_box"],
            self.config.max_faces_per_frame,
        )
        context = resize_context(frame.picture)
        is_seen = bool(kept) or self.config.no_face == "context_only"
        row = frame_row(frame.frame_index, frame.pts_seconds, context, context if is_seen else None)
        self.frames.append(row)
        vectors = face_embeddings(
            self.config.identity, self.config.fps, frame.frame_index, kept, frame.picture
        )
        self.faces += [
            face_row(frame.frame_index, face, frame.picture, self.config.crop_expand, vector)
            for face, vector in zip(kept, vectors, strict=True)
        ]

    def table(self, decoder: str, error: str | None) -> pa.Table:
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
                    "decoder": decoder,
                    "seconds_decode": self.seconds_decode,
                    "seconds_detect": self.seconds_detect,
                    "frames": self.frames,
                    "faces": self.faces,
                }
            ],
            PICTURES_SCHEMA,
        )


class SegmentLooks:
    """The key frames of one segment and around it, looked at before anything else is decoded."""

    def __init__(self, request: dict[str, Any], config: CutConfig) -> None:
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
        """Ranges of the grid to sample; the whole segment where key frames cannot be had."""
        try:
            end_seconds = self._look(source)
        except VideoError:  # sampling will say what is wrong, or find nothing wrong
            end_seconds, self.looks = math.inf, []
        times, faces = np.array(self.looks or np.zeros((0, 2))).T
        seconds = self.index / self.config.fps
        self.is_wanted = wanted(times, faces.astype(bool), end_seconds, seconds)
        return ranges_of(self.is_wanted, self.request["first_index"])

    def _look(self, source: Any) -> float:
        """Fill `looks` and `rows`; gives where the stretch after the last look ends."""
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
            if frame.picture is None:
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
        pictures = [frame.picture for frame in chunk if frame.picture is not None]
        found = _detector(self.config.look_detector).detect(pictures)
        for frame, picture, faces in zip(chunk, pictures, found, strict=True):
            self.looks.append((frame.pts_seconds, bool(faces)))
            if not faces and self.index[0] <= frame.frame_index <= self.index[-1]:
                context = resize_context(picture)
                self.rows.append(frame_row(frame.frame_index, frame.pts_seconds, context, None))
        self.seconds_detect += time.perf_counter() - start

    def add_to(self, cut: SegmentCut) -> CascadeCounts:
        """Add the looks at stretches that were not sampled; gives the segment's counts."""
        num_sampled = len(cut.frames)
        taken = set(self.index[self.is_wanted].tolist())
        for row in self.rows:
            if row["frame_index"] not in taken:
                taken.add(row["frame_index"])
                cut.frames.append(row)
        cut.frames.sort(key=lambda row: row["frame_index"])
        cut.seconds_decode += self.seconds_decode
        cut.seconds_detect += self.seconds_detect
        in_video = self.index < self.end_index
        num_skipped = int((in_video & ~self.is_wanted).sum())
        num_unseen = num_skipped - (len(cut.frames) - num_sampled)
        return CascadeCounts(
            frames_looked=len(self.looks),
            frames_sampled=num_sampled,
            frames_skipped=num_skipped,
            skipped_seconds=num_unseen / self.config.fps,
            seconds_look_decode=self.seconds_decode,
            seconds_look_detect=self.seconds_detect,
        )
