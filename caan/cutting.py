"""Segment of a video -> uint8 pictures of faces and context, the part that runs in the sandbox.

This module is imported by the decoding child: nothing here needs torch or Ray (the RetinaFace
network imports torch when it is the detector and runs on the CPU).
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from caan.errors import DecodeFailed
from caan.faces import (
    DetectorConfig,
    Face,
    crop_face,
    load_detector,
    resize_context,
    select_faces,
)
from caan.schema import PICTURES_SCHEMA, table_of
from caan.storage import is_s3, open_ranges
from caan.video import sample_frames

PICTURE_SIZE = 224
"""Side of the pictures that the networks see, in pixels (paper 4.1)."""

CHUNK_PIXELS = 16_000_000
"""Decoded pixels held at once while waiting for the detector (48 MB)."""


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """What is cut from a segment."""

    fps: float
    """Sampled frames per second."""
    detector: DetectorConfig | None
    """Face detector of the child; None where a detector on a GPU comes in a later stage."""
    detect_size_pixels: int
    """Longest side of frames that are handed on whole."""
    face_policy: Literal["main", "marked", "all"]
    """Which faces of a frame are kept."""
    max_faces_per_frame: int
    """Most faces kept of one frame."""
    no_face: Literal["drop", "context_only"]
    """Whether a frame without a face is shown to the context network."""
    crop_expand: float
    """Side of the face crop over the longer side of the box."""


@lru_cache(maxsize=2)
def _detector(config: DetectorConfig) -> Any:
    return load_detector(config, device="cpu")


def warm_up(config: CutConfig) -> None:
    """Load what every segment needs; the sandbox's initializer."""
    import cv2

    cv2.setNumThreads(1)
    if config.detector is not None:
        _detector(config.detector)


def scratch_folder() -> str:
    """Where pictures pass from child to parent: memory if there is room, else a disk."""
    memory = "/dev/shm"
    if os.path.isdir(memory) and shutil.disk_usage(memory).free > 1 << 30:
        return memory
    return tempfile.gettempdir()


def cut_segment(request: dict[str, Any], config: CutConfig, decoder: str, path: str) -> None:
    """Write one row of PICTURES_SCHEMA as an Arrow IPC file to `path`.

    `request` is a row of the plan, its `source` the local path or s3:// object to read. The row's
    status is `ok`, `no_face`, or `partial` where the file breaks off after some frames.

    Raises:
        VideoError: nothing could be decoded.
    """
    cut = SegmentCut(request, config)
    with ExitStack() as stack:
        source: Any = request["source"]
        if is_s3(source):
            source = stack.enter_context(open_ranges(source))
        chunk: list[Any] = []
        frames = sample_frames(
            source,
            fps=config.fps,
            first_index=request["first_index"],
            num_frames=request["num_frames"],
            decoder=decoder,  # type: ignore[arg-type]
        )
        error: str | None = None
        start = time.perf_counter()
        try:
            for frame in frames:
                cut.seconds_decode += time.perf_counter() - start
                chunk.append(frame)
                if len(chunk) * frame.picture.size // 3 >= CHUNK_PIXELS or len(chunk) >= 8:
                    cut.add(chunk)
                    chunk = []
                start = time.perf_counter()
        except DecodeFailed as failure:
            if not chunk and not cut.frames:
                raise
            error = str(failure)
        cut.seconds_decode += time.perf_counter() - start
        cut.add(chunk)
    table = cut.table(decoder, error)
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


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
        row = _frame_row(frame.frame_index, frame.pts_seconds, context, small)
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
        row = _frame_row(
            frame.frame_index, frame.pts_seconds, context, context if is_seen else None
        )
        self.frames.append(row)
        self.faces += [
            face_row(frame.frame_index, face, frame.picture, self.config.crop_expand)
            for face in kept
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


def segment_columns(request: dict[str, Any]) -> dict[str, Any]:
    """The columns that name a segment, from a row of the plan or of a later table."""
    names = ("segment_id", "video_id", "start_seconds", "end_seconds", "attempt", "face_box")
    return {name: request[name] for name in names}


def status_row(request: dict[str, Any], status: str, error: str | None) -> pa.Table:
    """The row of a segment of which there is nothing to see."""
    row = segment_columns(request) | {"status": status, "error": error}
    return table_of([row | {"frames": [], "faces": []}], PICTURES_SCHEMA)


def face_row(frame_index: int, face: Face, picture: np.ndarray, expand: float) -> dict[str, Any]:
    """One face with its 224x224 crop, as PICTURES_SCHEMA has it."""
    crop = crop_face(picture, face.box, expand=expand, size_pixels=PICTURE_SIZE)
    return {
        "frame_index": frame_index,
        "box": [float(value) for value in face.box],
        "score": float(face.score),
        "picture": crop.tobytes(),
    }


def _frame_row(
    frame_index: int, pts_seconds: float, context: np.ndarray, picture: np.ndarray | None
) -> dict[str, Any]:
    height, width = (PICTURE_SIZE, PICTURE_SIZE) if picture is None else picture.shape[:2]
    return {
        "frame_index": frame_index,
        "pts_seconds": pts_seconds,
        "height": height,
        "width": width,
        "histogram": colour_histogram(context),
        "picture": None if picture is None else picture.tobytes(),
    }


def colour_histogram(picture: np.ndarray) -> list[int]:
    """Shares of 4x4x4 RGB bins in 255ths, 64 values; tells cuts from motion (our choice)."""
    bins = (picture >> 6).astype(np.uint8)
    index = bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]
    counts = np.bincount(index.ravel(), minlength=64)
    return np.rint(counts * (255.0 / index.size)).astype(int).tolist()
