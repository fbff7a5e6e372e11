"""Images cropped from sampled frames, as rows of IMAGES_SCHEMA.

Used by the decoding child, and by the stage of a detector that runs on a GPU.
"""

import os
import shutil
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa

from caan.extraction.config import SegmentConfig
from caan.faces.crops import crop_face, resize_context
from caan.faces.detection import Box, Face, select_faces
from caan.people.face_embedding import face_embeddings
from caan.schema import IMAGES_SCHEMA, table_of

IMAGE_SIZE = 224
"""Side of the images that the networks see, in pixels (paper 4.1)."""


def scratch_folder() -> str:
    """Folder for images from child to parent: /dev/shm if it has 1 GiB free, else on disk."""
    memory = "/dev/shm"
    if os.path.isdir(memory) and shutil.disk_usage(memory).free > 1 << 30:
        return memory
    return tempfile.gettempdir()


def segment_columns(request: dict[str, Any]) -> dict[str, Any]:
    """Columns that name a segment, from a row of the plan or of a later table."""
    names = ("segment_id", "video_id", "start_seconds", "end_seconds", "face_box")
    return {name: request[name] for name in names}


def status_row(request: dict[str, Any], status: str, error: str | None) -> pa.Table:
    """Row of a segment that has no frames."""
    row = segment_columns(request) | {"status": status, "error": error}
    return table_of([row | {"frames": [], "faces": []}], IMAGES_SCHEMA)


def frame_row(
    frame_index: int, pts_seconds: float, context: np.ndarray, image: np.ndarray | None = None
) -> dict[str, Any]:
    """Row of one sampled frame.

    `context` uint8 [224, 224, 3] is the whole frame, for the histogram. `image` uint8 [H, W, 3] is
    the frame for a detector that runs in a later stage; None where faces are detected here.
    """
    height, width = (IMAGE_SIZE, IMAGE_SIZE) if image is None else image.shape[:2]
    return {
        "frame_index": frame_index,
        "pts_seconds": pts_seconds,
        "height": height,
        "width": width,
        "histogram": colour_histogram(context),
        "picture": None if image is None else image.tobytes(),
    }


def crop_frame(
    row: dict[str, Any],
    image: np.ndarray,
    detected: list[Face],
    config: SegmentConfig,
    marked_box: Box | None,
    context: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Choose the faces of a frame, crop them, and put the context image into the frame's row.

    Args:
        row: the frame's row; it gets `picture`, `height` and `width` of what the context network
            sees, or no image where that network skips the frame.
        image: the frame, uint8 [H, W, 3] RGB.
        detected: its faces, in pixels of `image`.
        config: which faces are kept and how they are cropped.
        marked_box: the manifest's face box in pixels of the stored frame, for the policy `marked`.
        context: `image` at 224x224, where the caller has it.

    Returns:
        A row per kept face, its box in pixels of the stored frame.
    """
    scale = row.get("scale") or 1.0  # pixels of `image` per pixel of the stored frame
    marked: Box | None = None
    if marked_box is not None:
        x0, y0, x1, y1 = (value * scale for value in marked_box)
        marked = x0, y0, x1, y1
    kept = select_faces(detected, config.face_policy, marked, config.max_faces_per_frame)
    vectors = face_embeddings(config.face_embedding, config.fps, row["frame_index"], kept, image)
    is_seen = bool(kept) or config.no_face == "context_only"
    if is_seen and context is None:
        context = resize_context(image)
    row["picture"] = context.tobytes() if is_seen and context is not None else None
    row["height"] = row["width"] = IMAGE_SIZE
    return [
        {
            "frame_index": row["frame_index"],
            "box": [float(value / scale) for value in face.box],
            "score": float(face.score),
            "picture": crop_face(
                image, face.box, expand=config.crop_expand, size_pixels=IMAGE_SIZE
            ).tobytes(),
            "appearance_vector": vector,
        }
        for face, vector in zip(kept, vectors, strict=True)
    ]


def colour_histogram(image: np.ndarray) -> list[int]:
    """Shares of 4x4x4 RGB bins in 255ths, 64 values, to tell cuts from motion (our choice)."""
    bins = (image >> 6).astype(np.uint8)
    index = bins[..., 0] * 16 + bins[..., 1] * 4 + bins[..., 2]
    counts = np.bincount(index.ravel(), minlength=64)
    return np.rint(counts * (255.0 / index.size)).astype(int).tolist()
