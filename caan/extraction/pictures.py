"""The rows of pictures that pass from decoding to the networks."""

import os
import shutil
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa

from caan.faces.crops import crop_face
from caan.faces.detection import Face
from caan.schema import PICTURES_SCHEMA, table_of

PICTURE_SIZE = 224
"""Side of the pictures that the networks see, in pixels (paper 4.1)."""


def scratch_folder() -> str:
    """Where pictures pass from child to parent: memory if there is room, else a disk."""
    memory = "/dev/shm"
    if os.path.isdir(memory) and shutil.disk_usage(memory).free > 1 << 30:
        return memory
    return tempfile.gettempdir()


def segment_columns(request: dict[str, Any]) -> dict[str, Any]:
    """The columns that name a segment, from a row of the plan or of a later table."""
    names = ("segment_id", "video_id", "start_seconds", "end_seconds", "attempt", "face_box")
    return {name: request[name] for name in names}


def status_row(request: dict[str, Any], status: str, error: str | None) -> pa.Table:
    """The row of a segment of which there is nothing to see."""
    row = segment_columns(request) | {"status": status, "error": error}
    return table_of([row | {"frames": [], "faces": []}], PICTURES_SCHEMA)


def face_row(
    frame_index: int,
    face: Face,
    picture: np.ndarray,
    expand: float,
    vector: np.ndarray | None = None,
) -> dict[str, Any]:
    """One face with its 224x224 crop, as PICTURES_SCHEMA has it."""
    crop = crop_face(picture, face.box, expand=expand, size_pixels=PICTURE_SIZE)
    return {
        "frame_index": frame_index,
        "box": [float(value) for value in face.box],
        "score": float(face.score),
        "picture": crop.tobytes(),
        "appearance_vector": vector,
    }


def frame_row(
    frame_index: int, pts_seconds: float, context: np.ndarray, picture: np.ndarray | None
) -> dict[str, Any]:
    """One sampled frame as PICTURES_SCHEMA has it; `picture` is there for a detector on a GPU."""
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
