"""Features -> labels, in two phases: frames one by one, then each video as a whole.

`FrameScorer` gives what a head says of each face alone, a row per segment; `pool_videos` puts a
video's segments together, so that a label does not depend on how the video was cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from caan.checkpoint import LoadedModel, load_model
from caan.extraction import ExtractionConfig, SegmentEmbedder, flat_list, vector_array
from caan.faces import LONE_MIN_SCORES, LONE_SECONDS
from caan.models.frames import EncodedFrames, FrameBatch, HeadOutput
from caan.prediction import blinded, label_of, probabilities_of, video_evidence
from caan.runs import video_status
from caan.schema import (
    FRAME_SCORES_SCHEMA,
    LABELS_SCHEMA,
    segment_scores_schema,
    table_of,
)

MAIN_PERSON = "0"
"""Id of the one person of a video."""

MAX_HEAD_FRAMES = 1024
"""Frames that the head encodes at once."""

Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A head's g, s and logits of some frames."""


class FrameScorer:
    """Features -> segment_scores: the head's frame part on every face that was kept."""

    def __init__(self, model: LoadedModel, device: str) -> None:
        self.model = model
        self.device = device
        self.num_emotions = len(model.info.label_set)
        self.with_faceless = model.info.no_face == "context_only"
        self.explains_context = model.head.modalities == ("face", "context")

    @torch.inference_mode()
    def __call__(self, table: pa.Table) -> pa.Table:
        """`features_schema` -> `segment_scores_schema`, a row for a row."""
        frames, frame_offsets = flat_list(table["frames"])
        faces, face_offsets = flat_list(table["faces"])
        frame_rows = np.repeat(np.arange(table.num_rows), np.diff(frame_offsets.to_numpy()))
        face_rows = np.repeat(np.arange(table.num_rows), np.diff(face_offsets.to_numpy()))
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
            _vectors(faces.field("face_vector")),
            _vectors(frames.field("context_vector")),
            shown,
            face_of,
            self._maps(table),
        )
        return self._table(table, frames, frame_offsets, faces, frame_index[shown], face_of, rows,
                           encoded, blind)  # fmt: skip

    def _encode(
        self,
        face: np.ndarray,
        context: np.ndarray,
        shown: np.ndarray,
        face_of: np.ndarray,
        maps: Mapping[str, np.ndarray],
    ) -> tuple[Encoded, Encoded | None]:
        parts: list[Encoded] = []
        blind_parts: list[Encoded] = []
        has_face = face_of >= 0
        for start in range(0, max(1, len(shown)), MAX_HEAD_FRAMES):
            some = slice(start, start + MAX_HEAD_FRAMES)
            face_ND = np.zeros((len(shown[some]), face.shape[1]), np.float16)
            face_ND[has_face[some]] = face[face_of[some][has_face[some]]]
            batch = FrameBatch(
                torch.from_numpy(face_ND)[None].to(self.device).float(),
                torch.from_numpy(context[shown[some]])[None].to(self.device).float(),
                torch.ones(1, len(face_ND), dtype=torch.bool, device=self.device),
                torch.from_numpy(has_face[some])[None].to(self.device),
            )
            for name, of_all in maps.items():
                rows = face_of[some] if name == "face" else shown[some]
                taken = torch.from_numpy(of_all[rows] * (rows >= 0)[:, None, None, None])
                batch = batch._replace(**{f"{name}_pool5_BTCHW": taken[None].to(self.device)})
            parts.append(_on_cpu(self.model.head.encode(batch)))
            if self.explains_context:
                blind = blinded(self.model.head, batch, "context")
                blind_parts.append(_on_cpu(self.model.head.encode(blind)))
        return _end_to_end(parts), _end_to_end(blind_parts) if blind_parts else None

    def _maps(self, table: pa.Table) -> dict[str, np.ndarray]:
        """pool5 maps [n, C, H, W] of all faces or all frames, where the head reads them."""
        return {
            name: _vectors(flat_list(table[f"{name}_pool5"])[0]).reshape(-1, *shape)
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
    ) -> pa.Table:
        schema = segment_scores_schema(encoded[0].shape[1], self.num_emotions, 1)
        fields = list(schema.field("faces").type.value_type)
        is_bare = face_of < 0
        taken = pa.array(np.where(is_bare, 0, face_of), mask=is_bare)
        empty = pa.nulls(len(rows), fields[6].type)
        without = [pa.nulls(len(rows), field.type) for field in fields[7:]]
        face_rows = pa.StructArray.from_arrays(
            [
                pa.array(frame_index, pa.int64()),
                faces.field("box").take(taken),
                faces.field("score").take(taken),
                *_score_columns(encoded),
                empty,
                *(without if blind is None else _score_columns(blind)),
            ],
            fields=fields,
        )
        offsets = np.searchsorted(rows, np.arange(table.num_rows + 1)).astype(np.int32)
        frame_rows = pa.StructArray.from_arrays(
            [
                frames.field("frame_index"),
                frames.field("pts_seconds"),
                pa.nulls(len(frames), schema.field("frames").type.value_type.field(2).type),
            ],
            fields=list(schema.field("frames").type.value_type),
        )
        columns = {name: table[name] for name in schema.names if name in table.column_names}
        columns["frames"] = pa.ListArray.from_arrays(frame_offsets, frame_rows)
        columns["faces"] = pa.ListArray.from_arrays(pa.array(offsets), face_rows)
        return pa.table([columns[name] for name in schema.names], schema=schema)


def _on_cpu(encoded: EncodedFrames) -> Encoded:
    g, s, logits = (part[0].float().cpu().numpy() for part in encoded)
    return g, s, logits


def _end_to_end(parts: list[Encoded]) -> Encoded:
    g, s, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return g, s, logits


def _score_columns(encoded: Encoded) -> list[pa.Array]:
    g, s, logits = encoded
    return [
        pa.array(s.astype(np.float32)),
        vector_array(g.astype(np.float16)),
        vector_array(logits.astype(np.float32)),
    ]


def _vectors(column: pa.FixedSizeListArray) -> np.ndarray:
    """[N, D] of a list column; zeros where it is null."""
    dim = column.type.list_size
    flat = np.zeros((len(column), dim), np.float16)
    given = column.is_valid().to_numpy(zero_copy_only=False)
    flat[given] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return flat


class SegmentScorer:
    """Pictures -> segment_scores: both networks and the head's frame part in one place."""

    def __init__(
        self,
        config: ExtractionConfig,
        model_folder: str,
        device: str,
        batch_size: int,
        num_threads: int,
    ) -> None:
        model = load_model(Path(model_folder), device=device)
        modalities = model.head.modalities
        self.embedder = SegmentEmbedder(
            config, modalities, device, batch_size, num_threads, maps=tuple(model.head.map_shapes)
        )
        self.scorer = FrameScorer(model, device)

    def take_counts(self) -> dict[str, float]:
        """As SegmentEmbedder's."""
        return self.embedder.take_counts()

    def __call__(self, table: pa.Table) -> pa.Table:
        """PICTURES_SCHEMA -> `segment_scores_schema`, a row for a row."""
        return self.scorer(self.embedder(table))


@dataclass(frozen=True, kw_only=True)
class PooledVideos:
    """The second phase's tables."""

    labels: pa.Table
    """LABELS_SCHEMA."""
    frame_scores: pa.Table
    """FRAME_SCORES_SCHEMA."""


@torch.inference_mode()
def pool_videos(
    segment_scores: pa.Table, model: LoadedModel, *, abstain_below: float = 0.0
) -> PooledVideos:
    """Labels of all videos whose segments these are; the order of the rows does not matter.

    A label of lower confidence than `abstain_below` is `uncertain`.
    """
    order = np.argsort(np.array(segment_scores["segment_id"].to_pylist(), dtype=np.str_))
    table = segment_scores.take(pa.array(order))
    ids = table["video_id"].to_pylist()
    labels: list[dict[str, Any]] = []
    frame_scores: list[dict[str, Any]] = []
    start = 0
    for row in range(1, len(ids) + 1):
        if row == len(ids) or ids[row] != ids[start]:
            label, scores = _pool_one(table.slice(start, row - start), model, abstain_below)
            labels.append(label)
            frame_scores += scores
            start = row
    return PooledVideos(
        labels=table_of(labels, LABELS_SCHEMA),
        frame_scores=table_of(frame_scores, FRAME_SCORES_SCHEMA),
    )


def without_false_faces(
    segments: pa.Table, detector: str
) -> tuple[pa.StructArray, pa.StructArray, str]:
    """Frames and faces of one video, and its status; lone faces of low score are left out.

    A face counts from the detector's own lowest score on if another is seen within
    `LONE_SECONDS` of it, else from `LONE_MIN_SCORES` on (Source: our choice, after the two
    thresholds of hysteresis in edge detection). Frames stay as they are; a video without any face
    left is `no_face`.
    """
    frames, _ = flat_list(segments["frames"])
    faces, _ = flat_list(segments["faces"])
    status = video_status(segments["status"].to_pylist())
    wanted = LONE_MIN_SCORES.get(detector, 0.0)
    index = faces.field("frame_index").to_numpy(zero_copy_only=False)
    seen = faces.field("box").is_valid().to_numpy(zero_copy_only=False)
    times = dict(
        zip(frames.field("frame_index").to_pylist(), frames.field("pts_seconds"), strict=True)
    )
    pts = np.array([times[i].as_py() for i in index.tolist()], np.float64)
    scores = np.nan_to_num(faces.field("score").to_numpy(zero_copy_only=False))
    near = np.abs(pts[seen][:, None] - pts[seen][None]) <= LONE_SECONDS
    is_lone = np.zeros(len(faces), bool)
    is_lone[seen] = near.sum(1) == 1
    kept = ~(is_lone & (scores < wanted))
    if not kept.all():
        faces = faces.filter(pa.array(kept))
        if not (seen & kept).any() and status == "ok":
            status = "no_face"
    return frames, faces, status


def _pool_one(
    segments: pa.Table, model: LoadedModel, abstain_below: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    video_id = segments["video_id"][0].as_py()
    errors = [error for error in segments["error"].to_pylist() if error]
    frames, faces, status = without_false_faces(segments, model.info.detector)
    num_faces = len(faces) - faces.field("box").null_count
    pts = frames.field("pts_seconds").to_numpy(zero_copy_only=False)
    label: dict[str, Any] = {
        "video_id": video_id,
        "is_main": True,
        "num_frames": len(frames),
        "num_faces": num_faces,
        "status": status,
        "error": errors[0] if errors else None,
        "model_id": model.model_id,
        "start_seconds": float(pts.min()) if len(pts) else None,
        "end_seconds": float(pts.max()) if len(pts) else None,
    }
    if not len(faces):
        return label, []
    if not num_faces:
        label["status"] = "ok" if status == "no_face" else status
    emotions = model.info.label_set
    probabilities, weights, logits = judged(faces, model)
    label |= {
        "person_id": MAIN_PERSON,
        "label": label_of(emotions, probabilities, abstain_below),
        "confidence": float(probabilities.max()),
        "probabilities": _named(emotions, probabilities),
        **context_effect(faces, model, probabilities),
    }
    frame_probabilities = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    time_of = dict(zip(frames.field("frame_index").to_pylist(), pts.tolist(), strict=True))
    rows = [
        {
            "video_id": video_id,
            "person_id": MAIN_PERSON,
            "frame_index": index,
            "pts_seconds": time_of[index],
            "box": box,
            "emotion_score": float(score),
            "probabilities": _named(emotions, share),
        }
        for index, box, score, share in zip(
            faces.field("frame_index").to_pylist(),
            faces.field("box").to_pylist(),
            weights,
            frame_probabilities,
            strict=True,
        )
    ]
    return label, rows


def judged(
    faces: pa.StructArray, model: LoadedModel, prefix: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pool one person's faces of segment_scores: probabilities [K], emotion scores [T], logits.

    With the prefix `blind_`: as they would be without the context.
    """
    g = torch.from_numpy(_array(faces.field(f"{prefix}feature_vector"), np.float32))[None]
    s = faces.field(f"{prefix}raw_score").to_numpy(zero_copy_only=False).astype(np.float32)
    s_BT = torch.from_numpy(s)[None]
    logits = _array(faces.field(f"{prefix}logits"), np.float32)
    embedding, weights = model.head.pool(g, s_BT, torch.ones_like(s_BT, dtype=torch.bool))
    output = HeadOutput(
        model.head.classify(embedding), torch.from_numpy(logits)[None], weights, s_BT, embedding
    )
    evidence = video_evidence(output, model.info.rule, model.centroids_KR)
    probabilities = probabilities_of(evidence, model.info.temperature)[0].numpy()
    return probabilities, weights[0].numpy(), logits


def context_effect(
    faces: pa.StructArray, model: LoadedModel, probabilities: np.ndarray
) -> dict[str, Any]:
    """The label with the context replaced by its training mean, and what the context gave.

    `context_effect` is the label's probability minus the one it has without the context. Empty for
    a head that looks at one modality.
    """
    if faces.field("blind_raw_score").null_count:
        return {}
    blind, _, _ = judged(faces, model, "blind_")
    best = int(probabilities.argmax())
    return {
        "label_without_context": model.info.label_set[int(blind.argmax())],
        "context_effect": float(probabilities[best] - blind[best]),
    }


def _array(column: pa.FixedSizeListArray, kind: type) -> np.ndarray:
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1).astype(kind)


def _named(emotions: tuple[str, ...], values: np.ndarray) -> list[tuple[str, float]]:
    return [(emotion, float(value)) for emotion, value in zip(emotions, values, strict=True)]
