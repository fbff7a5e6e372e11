"""Second phase of labelling: segment_scores of whole videos -> labels, windows, frame_scores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from caan.arrow import numbers
from caan.labelling.config import PoolConfig
from caan.models.checkpoint import LoadedModel
from caan.models.evidence import label_of, probabilities_of, video_evidence
from caan.models.head import HeadOutput
from caan.people.config import Mark
from caan.people.people import VideoPeople, find_people
from caan.schema import FRAME_SCORES_SCHEMA, LABELS_SCHEMA, WINDOWS_SCHEMA, table_of

Row = dict[str, Any]

CONTEXT_PERSON = "0"
"""Person id in a video that shows no face and is labelled from its context alone."""

MAX_POOLED_FRAMES = 16384
"""Most frames of windows that the head pools in one batch."""


@dataclass(frozen=True, kw_only=True)
class PooledVideos:
    """The tables of the second phase."""

    labels: pa.Table
    """LABELS_SCHEMA."""
    windows: pa.Table
    """WINDOWS_SCHEMA; without rows unless windows were asked for."""
    frame_scores: pa.Table
    """FRAME_SCORES_SCHEMA."""


@torch.inference_mode()
def pool_videos(
    segment_scores: pa.Table,
    model: LoadedModel,
    config: PoolConfig | None = None,
    marks: Mapping[str, Mark] | None = None,
) -> PooledVideos:
    """Label all videos of these segments; the order of the rows does not matter.

    `marks` has the marked person by video_id, for face policy `marked`.
    """
    config, marks = config or PoolConfig(), marks or {}
    labels: list[Row] = []
    windows: list[Row] = []
    frame_scores = [table_of([], FRAME_SCORES_SCHEMA)]
    for video_id, segments in _by_video(segment_scores):
        people = find_people(
            segments,
            detector=model.info.detector,
            policy=config.face_policy,
            tracks=config.tracks,
            mark=marks.get(video_id),
        )
        pooled = _Pooler(video_id, segments, people, model, config)
        for number, person in enumerate(people.wanted or ([-1] if pooled.has_rows else [])):
            rows = people.rows_of(person)
            row, scores = pooled.label(person, rows, is_main=number == 0)
            labels.append(row)
            frame_scores.append(scores)
            windows += pooled.windows(row, rows)
        if not pooled.num_people:
            labels.append(pooled.nobody())
    return PooledVideos(
        labels=table_of(labels, LABELS_SCHEMA),
        windows=table_of(windows, WINDOWS_SCHEMA),
        frame_scores=pa.concat_tables(frame_scores).combine_chunks(),
    )


def _by_video(segment_scores: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield each video_id with its segments in time order; a table in order is not copied."""
    order = np.argsort(np.array(segment_scores["segment_id"].to_pylist(), dtype=np.str_))
    ids = np.array(segment_scores["video_id"].to_pylist(), dtype=object)[order]
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))[: len(ids)].tolist()
    if (order != np.arange(len(order))).any():
        segment_scores = segment_scores.take(pa.array(order))
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield ids[start], segment_scores.slice(start, end - start)


class _Pooler:
    """Makes the rows of one video for the tables."""

    def __init__(
        self,
        video_id: str,
        segments: pa.Table,
        people: VideoPeople,
        model: LoadedModel,
        config: PoolConfig,
    ) -> None:
        self.people = people
        self.model = model
        self.config = config
        self.has_rows = bool(people.is_bare.any())
        self.num_people = 0
        errors = [error for error in segments["error"].to_pylist() if error]
        self._shared: Row = {
            "video_id": video_id,
            "num_frames": len(people.frame_index),
            "num_faces": 0,
            "status": people.status,
            "error": errors[0] if errors else None,
            "model_id": model.model_id,
        }

    def nobody(self) -> Row:
        """The label row of a video without a person, or without the marked person."""
        status = self.people.status
        row = self._shared | {"status": "no_face" if status == "ok" else status}
        return row | {"is_main": True} | _span(self.people.pts_seconds)

    def label(self, person: int, rows: np.ndarray, *, is_main: bool) -> tuple[Row, pa.Table]:
        """A person's label row and rows of frame_scores."""
        self.num_people += 1
        people, emotions = self.people, self.model.info.label_set
        faces = people.faces.take(pa.array(rows))
        first, last = np.array([0]), np.array([len(rows)])
        (answer,), weights = self._classify(faces, first, last)
        num_faces = int((people.person_ids[rows] >= 0).sum())
        person_id = str(person) if person >= 0 else CONTEXT_PERSON
        status = people.status
        row = self._shared | {
            "person_id": person_id,
            "is_main": is_main,
            "num_faces": num_faces,
            "status": "ok" if status == "no_face" else status,
            **_span(people.face_pts_seconds[rows]),
            **answer,
        }
        track_ids = people.track_ids[rows]
        logits = torch.tensor(numbers(faces.field("logits")))
        table = pa.table(
            {
                "video_id": pa.repeat(row["video_id"], len(rows)),
                "person_id": pa.repeat(person_id, len(rows)),
                "track_id": pa.array(track_ids, mask=track_ids < 0).cast(pa.string()),
                "frame_index": faces.field("frame_index"),
                "pts_seconds": people.face_pts_seconds[rows],
                "box": faces.field("box"),
                "emotion_score": weights[0].astype(np.float32),
                "probabilities": _maps(emotions, torch.softmax(logits, dim=1).numpy()),
            },
            schema=FRAME_SCORES_SCHEMA,
        )
        return row, table

    def windows(self, label: Row, rows: np.ndarray) -> list[Row]:
        """Rows of the windows that show a person; empty if no windows are wanted.

        Window 0 starts at the whole second of the first frame. A window includes its start time but
        not its end time.
        """
        if not self.config.window_seconds:
            return []
        length = self.config.window_seconds
        stride = self.config.stride_seconds or length
        all_pts, times = self.people.pts_seconds, self.people.face_pts_seconds[rows]
        origin = float(np.floor(all_pts[0]))
        count = int((all_pts[-1] - origin) // stride) + 1
        starts = origin + stride * np.arange(count)
        first, last = (np.searchsorted(times, t - 1e-9) for t in (starts, starts + length))
        shown = np.flatnonzero(last > first)
        is_face = self.people.person_ids[rows] >= 0
        faces_until = np.concatenate([[0], np.cumsum(is_face)])
        frames_until = [np.searchsorted(all_pts, t - 1e-9) for t in (starts, starts + length)]
        faces = self.people.faces.take(pa.array(rows))
        found: list[Row] = []
        at_once = max(1, MAX_POOLED_FRAMES // max(1, int((last - first).max(initial=1))))
        for some in np.array_split(shown, max(1, -(-len(shown) // at_once))):
            if not len(some):
                continue
            answers, _ = self._classify(faces, first[some], last[some])
            for n, answer in zip(some.tolist(), answers, strict=True):
                found.append(
                    label
                    | {
                        "window_index": n,
                        "num_frames": int(frames_until[1][n] - frames_until[0][n]),
                        "num_faces": int(faces_until[last[n]] - faces_until[first[n]]),
                        "start_seconds": float(starts[n]),
                        "end_seconds": float(starts[n] + length),
                        **answer,
                    }
                )
        return found

    def _classify(
        self, faces: pa.StructArray, first: np.ndarray, last: np.ndarray
    ) -> tuple[list[Row], np.ndarray]:
        """Label, confidence and probabilities of B groups of rows, and emotion scores [B, T].

        Group i has the rows first[i] to last[i] - 1. For heads of face and context, also the label
        without the context: the context is then replaced by its training mean.
        """
        emotions = self.model.info.label_set
        probabilities, weights = self._pool(faces, first, last)
        rows: list[Row] = [
            {
                "label": label_of(emotions, own, self.config.abstain_below),
                "confidence": float(own.max()),
                "probabilities": [(e, float(v)) for e, v in zip(emotions, own, strict=True)],
            }
            for own in probabilities
        ]
        if not faces.field("blind_raw_score").null_count:
            blind, _ = self._pool(faces, first, last, "blind_")
            for row, own, without in zip(rows, probabilities, blind, strict=True):
                best = int(own.argmax())
                row["label_without_context"] = emotions[int(without.argmax())]
                row["context_effect"] = float(own[best] - without[best])
        return rows, weights

    def _pool(
        self, faces: pa.StructArray, first: np.ndarray, last: np.ndarray, prefix: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [B, K] and emotion scores [B, T] of B groups of rows first to last - 1."""
        counts = last - first
        places = np.arange(int(counts.max()))
        mask = places < counts[:, None]
        taken = np.where(mask, first[:, None] + places, 0)
        used, place_of = np.unique(taken, return_inverse=True)
        some = faces.take(pa.array(used))
        g = torch.from_numpy(numbers(some.field(f"{prefix}feature_vector")).astype(np.float32))
        s = torch.tensor(some.field(f"{prefix}raw_score").to_numpy(zero_copy_only=False))
        logits = torch.tensor(numbers(some.field(f"{prefix}logits")))
        at = torch.from_numpy(place_of.reshape(taken.shape))
        mask_BT = torch.from_numpy(mask)
        head = self.model.head
        embedding, weights = head.pool(g[at], s[at], mask_BT)
        output = HeadOutput(
            head.classify(embedding), logits[at], weights, s[at].masked_fill(~mask_BT, 0), embedding
        )
        evidence = video_evidence(output, self.model.info.rule, self.model.centroids_KR)
        return probabilities_of(evidence, self.model.info.temperature).numpy(), weights.numpy()


def _span(pts_seconds: np.ndarray) -> Row:
    if not len(pts_seconds):
        return {"start_seconds": None, "end_seconds": None}
    return {"start_seconds": float(pts_seconds[0]), "end_seconds": float(pts_seconds[-1])}


def _maps(emotions: tuple[str, ...], values: np.ndarray) -> pa.MapArray:
    """One map of emotion to number per row of `values` [N, K]."""
    ends = pa.array(np.arange(len(values) + 1, dtype=np.int32) * len(emotions))
    keys = pa.array(list(emotions) * len(values), pa.string())
    return pa.MapArray.from_arrays(ends, keys, pa.array(values.reshape(-1).astype(np.float32)))
