"""Features as jobs.extract leaves them, written from vectors: what jobs.train and others read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from caan import schema, storage
from caan.outputs import layout
from caan.outputs.log import LogWriter

CONFIG: dict[str, Any] = {
    "no_face": "drop",
    "face_backbone": "vggface",
    "context_backbone": "vgg16",
    "detector": "retinaface",
    "fps": 2.0,
    "face_policy": "main",
}


def segment_row(
    video_id: str,
    face_ND: np.ndarray,
    context_NE: np.ndarray,
    maps: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """One segment: the whole video, a face in every frame, pool5 maps [N, C, H, W] if given."""
    frames = [
        {"frame_index": i, "pts_seconds": i / 2, "context_vector": vector_E}
        for i, vector_E in enumerate(context_NE)
    ]
    faces = [
        {"frame_index": i, "box": [0, 0, 9, 9 + i], "score": 1, "face_vector": vector_D}
        for i, vector_D in enumerate(face_ND)
    ]
    row = {"segment_id": f"{video_id}-00000000", "video_id": video_id, "status": "ok"}
    stored = {f"{name}_pool5": [m.ravel() for m in maps_N] for name, maps_N in (maps or {}).items()}
    return {**row, "frames": frames, "faces": faces, **stored}


def write_features(
    folder: Path,
    videos: Sequence[Mapping[str, Any]],
    segments: Sequence[dict[str, Any]],
    *,
    face_dim: int,
    context_dim: int,
    map_shapes: Mapping[str, tuple[int, int, int]] | None = None,
) -> str:
    """Manifest, one table of segments and run.json in `folder`."""
    shapes = map_shapes or {}
    storage.write_table(
        schema.table_of([dict(row) for row in videos], schema.MANIFEST_SCHEMA),
        folder / "manifest.parquet",
    )
    sizes = {f"{name}_pool5": int(np.prod(shape)) for name, shape in shapes.items()}
    add_segments(
        str(folder),
        schema.table_of(segments, schema.features_schema(face_dim, context_dim, **sizes)),
    )
    identity: dict[str, Any] = {
        name: CONFIG[name] for name in ("face_backbone", "context_backbone", "detector")
    }
    identity |= {f"{name}_pool5_shape": list(shape) for name, shape in shapes.items()}
    record = {"format": layout.FORMAT, "job": "extract", "is_complete": True, "config": CONFIG}
    storage.write_json(folder / "run.json", record | {"fingerprint": "f", "identity": identity})
    return str(folder)


def add_segments(output: str, segments: pa.Table) -> None:
    """Write segments as one row file that counts."""
    LogWriter(output, "a test").commit(layout.write_rows(segments, output, "features"))
