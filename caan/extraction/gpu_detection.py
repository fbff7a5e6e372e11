"""Whole frames -> crops, where the detector runs on a GPU beside the networks."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from caan.extraction.config import ExtractionConfig
from caan.extraction.pictures import PICTURE_SIZE, face_row
from caan.faces.build import load_detector
from caan.faces.crops import resize_context
from caan.faces.detection import Box, select_faces
from caan.people.config import FaceEmbeddingConfig
from caan.people.face_embedding import face_embeddings
from caan.schema import PICTURES_SCHEMA, table_of


class FaceCutter:
    """Whole frames -> crops of faces and context, for a detector on a GPU."""

    def __init__(
        self, config: ExtractionConfig, device: str, identity: FaceEmbeddingConfig | None = None
    ) -> None:
        self.config = config
        self.identity = identity
        self.detector = load_detector(config.detector_config(), device=device)
        self.counts: dict[str, float] = {}

    def take_counts(self) -> dict[str, float]:
        """Frames and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """PICTURES_SCHEMA with whole frames -> PICTURES_SCHEMA with crops."""
        start = time.perf_counter()
        rows = [self._cut(row) for row in table.to_pylist()]
        self.counts["seconds_detect"] = time.perf_counter() - start
        return table_of(rows, PICTURES_SCHEMA)

    def _cut(self, row: dict[str, Any]) -> dict[str, Any]:
        # a key frame of the cascade without a face comes without a picture, and stays so
        frames = [frame for frame in row["frames"] if frame["picture"] is not None]
        pictures = [
            np.frombuffer(f["picture"], np.uint8).reshape(f["height"], f["width"], 3)
            for f in frames
        ]
        found = self.detector.detect(pictures) if pictures else []
        faces: list[dict[str, Any]] = []
        for frame, picture, detected in zip(frames, pictures, found, strict=True):
            marked: Box | None = None
            if row["face_box"] is not None:
                x0, y0, x1, y1 = (value * frame["scale"] for value in row["face_box"])
                marked = x0, y0, x1, y1
            kept = select_faces(
                detected, self.config.face_policy, marked, self.config.max_faces_per_frame
            )
            index, config = frame["frame_index"], self.config
            vectors = face_embeddings(self.identity, config.fps, index, kept, picture)
            for face, vector in zip(kept, vectors, strict=True):
                full = tuple(value / frame["scale"] for value in face.box)
                cut = face_row(index, face, picture, config.crop_expand, vector)
                faces.append(cut | {"box": list(full)})
            is_seen = bool(kept) or self.config.no_face == "context_only"
            frame["picture"] = resize_context(picture).tobytes() if is_seen else None
            frame["height"] = frame["width"] = PICTURE_SIZE
        if row["status"] == "ok" and not faces:
            row["status"] = "no_face"
        return row | {"faces": faces}
