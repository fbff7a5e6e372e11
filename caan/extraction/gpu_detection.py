"""The stage of a detector that runs on a GPU: whole frames -> crops of faces and context."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from caan.extraction.config import ExtractionConfig
from caan.extraction.images import crop_frame
from caan.faces.build import load_detector
from caan.people.config import FaceEmbeddingConfig
from caan.schema import IMAGES_SCHEMA, table_of


class FaceCropper:
    """Whole frames -> crops of faces and context."""

    def __init__(
        self,
        config: ExtractionConfig,
        device: str,
        face_embedding: FaceEmbeddingConfig | None = None,
    ) -> None:
        self.config = config.segment_config(detect_here=False, face_embedding=face_embedding)
        self.detector = load_detector(config.detector_config(), device=device)
        self.counts: dict[str, float] = {}

    def take_counts(self) -> dict[str, float]:
        """Seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """IMAGES_SCHEMA with whole frames -> IMAGES_SCHEMA with crops."""
        start = time.perf_counter()
        rows = [self._crop(row) for row in table.to_pylist()]
        self.counts["seconds_detect"] = time.perf_counter() - start
        return table_of(rows, IMAGES_SCHEMA)

    def _crop(self, row: dict[str, Any]) -> dict[str, Any]:
        # Key frames of the cascade without a face come without an image and stay so.
        frames = [frame for frame in row["frames"] if frame["picture"] is not None]
        images = [
            np.frombuffer(f["picture"], np.uint8).reshape(f["height"], f["width"], 3)
            for f in frames
        ]
        found = self.detector.detect(images) if images else []
        faces: list[dict[str, Any]] = []
        for frame, image, detected in zip(frames, images, found, strict=True):
            faces += crop_frame(frame, image, detected, self.config, row["face_box"])
        if row["status"] == "ok" and not faces:
            row["status"] = "no_face"
        return row | {"faces": faces}
