"""First phase of labelling: run the head's frame part on each face; one row per segment.

The second phase, `caan.labelling.video_labels`, joins the segments of a video. So a label does not
depend on how the video was split into segments.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from caan.arrow import flat_list, numbers, rows_of_items, vector_array
from caan.extraction.config import ExtractionConfig
from caan.extraction.embed import SegmentEmbedder
from caan.models.checkpoint import LoadedModel, load_model
from caan.models.evidence import blinded
from caan.models.head import EncodedFrames, FrameBatch
from caan.people.config import DLIB_DIM, VGGFACE_DIM
from caan.people.face_embedding import shorten_fc6
from caan.schema import segment_scores_schema

MAX_HEAD_FRAMES = 1024
"""Most frames that the head encodes in one batch."""

APPEARANCE_DIMS = {"dlib": DLIB_DIM, "vggface": VGGFACE_DIM, "none": 1}
"""Length of the appearance vector of each face embedding."""

Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The head's features g, raw scores s and logits of some frames."""


class FrameScorer:
    """Features -> segment_scores: run the head's frame part on every face."""

    def __init__(self, model: LoadedModel, device: str, face_embedding: str = "none") -> None:
        """`face_embedding` names the vector that tells people apart (`caan.people.config`)."""
        self.model = model
        self.device = device
        self.face_embedding = face_embedding
        self.num_emotions = len(model.info.label_set)
        self.with_faceless = model.info.no_face == "context_only"
        self.explains_context = model.head.modalities == ("face", "context")

    @torch.inference_mode()
    def __call__(self, table: pa.Table, images: pa.Table | None = None) -> pa.Table:
        """`features_schema` -> `segment_scores_schema`, one row per segment.

        `images` is the table that the features were made from. Its histograms and dlib vectors
        are copied to the result; without it those columns are null.
        """
        frames, frame_offsets = flat_list(table["frames"])
        faces, face_offsets = flat_list(table["faces"])
        frame_rows, face_rows = rows_of_items(frame_offsets), rows_of_items(face_offsets)
        frame_index = frames.field("frame_index").to_numpy(zero_copy_only=False)
        face_index = faces.field("frame_index").to_numpy(zero_copy_only=False)
        place = {key: n for n, key in enumerate(zip(frame_rows, frame_index, strict=True))}
        of_face = np.array(
            [place[key] for key in zip(face_rows, face_index, strict=True)], np.int64
        )
        shown, face_of, rows = of_face, np.arange(len(faces)), face_rows
        if self.with_faceless:
            bare = np.setdiff1d(np.arange(len(frames)), of_face)
            shown = np.concatenate([of_face, bare])
            face_of = np.concatenate([face_of, np.full(len(bare), -1)])
            rows = np.concatenate([rows, frame_rows[bare]])
            order = np.lexsort((frame_index[shown], rows))
            shown, face_of, rows = shown[order], face_of[order], rows[order]
        encoded, blind = self._encode(
            numbers(faces.field("face_vector")),
            numbers(frames.field("context_vector")),
            shown,
            face_of,
            rows,
            self._maps(table),
        )
        known = None if images is None else flat_list(images["frames"])[0].field("histogram")
        return self._table(table, frames, frame_offsets, faces, frame_index[shown], face_of, rows,
                           encoded, blind, self._appearance(faces, images), known)  # fmt: skip

    def _appearance(self, faces: pa.StructArray, images: pa.Table | None) -> pa.Array:
        """The appearance vector of each face, or null."""
        if self.face_embedding == "vggface":
            return vector_array(shorten_fc6(numbers(faces.field("face_vector"))))
        if self.face_embedding == "dlib" and images is not None:
            return flat_list(images["faces"])[0].field("appearance_vector")
        return pa.nulls(len(faces), pa.list_(pa.float16(), APPEARANCE_DIMS[self.face_embedding]))

    def _encode(
        self,
        face: np.ndarray,
        context: np.ndarray,
        shown: np.ndarray,
        face_of: np.ndarray,
        rows: np.ndarray,
        maps: Mapping[str, np.ndarray],
    ) -> tuple[Encoded, Encoded | None]:
        parts: list[Encoded] = []
        blind_parts: list[Encoded] = []
        has_face = face_of >= 0
        for some in _pieces(rows):
            face_ND = np.zeros((len(shown[some]), face.shape[1]), np.float16)
            face_ND[has_face[some]] = face[face_of[some][has_face[some]]]
            batch = FrameBatch(
                torch.from_numpy(face_ND)[None].to(self.device).float(),
                torch.from_numpy(context[shown[some]])[None].to(self.device).float(),
                torch.ones(1, len(face_ND), dtype=torch.bool, device=self.device),
                torch.from_numpy(has_face[some])[None].to(self.device),
            )
            for name, of_all in maps.items():
                which = face_of[some] if name == "face" else shown[some]
                taken = torch.from_numpy(of_all[which] * (which >= 0)[:, None, None, None])
                batch = batch._replace(**{f"{name}_pool5_BTCHW": taken[None].to(self.device)})
            parts.append(_on_cpu(self.model.head.encode(batch)))
            if self.explains_context:
                blind = blinded(self.model.head, batch, "context")
                blind_parts.append(_on_cpu(self.model.head.encode(blind)))
        return _concatenated(parts), _concatenated(blind_parts) if blind_parts else None

    def _maps(self, table: pa.Table) -> dict[str, np.ndarray]:
        """pool5 maps [N, C, H, W] of all faces or all frames, if the head reads them."""
        return {
            name: numbers(flat_list(table[f"{name}_pool5"])[0]).reshape(-1, *shape)
            for name, shape in self.model.head.map_shapes.items()
        }

    def _table(
        self,
        table: pa.Table,
        frames: pa.StructArray,
        frame_offsets: pa.Array,
        faces: pa.StructArray,
        frame_index: np.ndarray,
        face_of: np.ndarray,
        rows: np.ndarray,
        encoded: Encoded,
        blind: Encoded | None,
        appearance: pa.Array,
        histograms: pa.Array | None,
    ) -> pa.Table:
        schema = segment_scores_schema(
            encoded[0].shape[1], self.num_emotions, APPEARANCE_DIMS[self.face_embedding]
        )
        fields = list(schema.field("faces").type.value_type)
        is_bare = face_of < 0
        taken = pa.array(np.where(is_bare, 0, face_of), mask=is_bare)
        without = [pa.nulls(len(rows), field.type) for field in fields[7:]]
        face_rows = pa.StructArray.from_arrays(
            [
                pa.array(frame_index, pa.int64()),
                faces.field("box").take(taken),
                faces.field("score").take(taken),
                *_score_columns(encoded),
                appearance.take(taken),
                *(without if blind is None else _score_columns(blind)),
            ],
            fields=fields,
        )
        offsets = np.searchsorted(rows, np.arange(table.num_rows + 1)).astype(np.int32)
        if histograms is None:
            histograms = pa.nulls(len(frames), pa.list_(pa.uint8(), 64))
        frame_rows = pa.StructArray.from_arrays(
            [frames.field("frame_index"), frames.field("pts_seconds"), histograms],
            fields=list(schema.field("frames").type.value_type),
        )
        columns = {name: table[name] for name in schema.names if name in table.column_names}
        columns["frames"] = pa.ListArray.from_arrays(frame_offsets, frame_rows)
        columns["faces"] = pa.ListArray.from_arrays(pa.array(offsets), face_rows)
        return pa.table([columns[name] for name in schema.names], schema=schema)


def _pieces(rows: np.ndarray) -> list[slice]:
    """Split rows, sorted by segment, into pieces of at most MAX_HEAD_FRAMES frames of one segment.

    No piece holds two segments. The last bits of a matrix product depend on its number of rows, and
    a resumed run puts other segments together. So a label does not depend on where a run stopped.
    """
    bounds = [0, *(np.flatnonzero(np.diff(rows)) + 1), len(rows)]
    return [
        slice(start, min(start + MAX_HEAD_FRAMES, end))
        for begin, end in itertools.pairwise(bounds)
        for start in range(begin, max(end, 1), MAX_HEAD_FRAMES)
    ]


def _on_cpu(encoded: EncodedFrames) -> Encoded:
    g, s, logits = (part[0].float().cpu().numpy() for part in encoded)
    return g, s, logits


def _concatenated(parts: list[Encoded]) -> Encoded:
    g, s, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return g, s, logits


def _score_columns(encoded: Encoded) -> list[pa.Array]:
    g, s, logits = encoded
    return [
        pa.array(s.astype(np.float32)),
        vector_array(g.astype(np.float16)),
        vector_array(logits.astype(np.float32)),
    ]


class SegmentScorer:
    """Images -> segment_scores: both backbones and the head's frame part in one worker."""

    def __init__(
        self,
        config: ExtractionConfig,
        model_folder: str,
        device: str,
        batch_size: int,
        num_threads: int,
        face_embedding: str = "none",
    ) -> None:
        model = load_model(Path(model_folder), device=device)
        modalities = model.head.modalities
        self.embedder = SegmentEmbedder(
            config, modalities, device, batch_size, num_threads, maps=tuple(model.head.map_shapes)
        )
        self.scorer = FrameScorer(model, device, face_embedding)

    def take_counts(self) -> dict[str, float]:
        """The counts of SegmentEmbedder since the last call."""
        return self.embedder.take_counts()

    def __call__(self, table: pa.Table) -> pa.Table:
        """IMAGES_SCHEMA -> `segment_scores_schema`, one row per segment."""
        return self.scorer(self.embedder(table), table)
