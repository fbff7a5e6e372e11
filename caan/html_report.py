"""One HTML page of a report that opens by itself: no server, no address outside the file."""

import base64
import io
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from caan import html_page, storage
from caan.colours import EMOTION_COLOURS
from caan.evaluation import NO_LABEL, EvaluatedVideo, Row, context_told
from caan.plots import StripFrame
from caan.schema import UNCERTAIN

MAX_VIDEOS = 20_000
"""Videos that a page holds; about 400 bytes each, and a browser filters that many at once."""

MAX_POINTS = 400
"""Frames in one person's timeline; of more, the highest score of each stretch is kept."""


def build_page(
    videos: Sequence[EvaluatedVideo],
    figures: Mapping[str, Any],
    *,
    frame_scores: pa.Table,
    windows: pa.Table,
    strips: Mapping[str, Sequence[Mapping[str, Any]]],
    previews: Mapping[str, str],
) -> str:
    """The page as text.

    `frame_scores` and `windows` give timelines to the videos that they hold; `strips` has
    `strip_data` by video_id, shown for the scored person; `previews` addresses by video_id,
    relative to the page.
    """
    emotions = figures["label_set"]
    index = {emotion: i for i, emotion in enumerate(emotions)}
    scores = _by_person(frame_scores.sort_by("pts_seconds"))
    spans = _by_person(windows.sort_by("start_seconds"))
    shown = videos[:MAX_VIDEOS]
    data = {
        "title": "Emotions in video",
        "subtitle": _subtitle(videos, figures),
        "warning": _warning(figures),
        "emotions": emotions,
        "other_labels": [UNCERTAIN, NO_LABEL],
        "statuses": list(figures["statuses"]),
        "colours": EMOTION_COLOURS,
        "tiles": _tiles(figures),
        "videos": [
            {
                "id": video.row["video_id"],
                "uri": storage.redact(video.row["uri"]),
                "name": storage.redact(video.row["uri"]).rpartition("/")[2],
                "link": _local_link(video.row["uri"]),
                "preview": previews.get(video.row["video_id"]),
                "split": video.row["split"],
                "truth": video.truth,
                "duration": video.row["duration_seconds"],
                "people": [
                    _person(video, person, scores, spans, strips, index)
                    for person in video.people or ({"status": video.status},)
                ],
            }
            for video in shown
        ],
    }
    # `<` would let a file name close the script element
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = html_page.PAGE.replace("@STYLE@", html_page.STYLE)
    return page.replace("@SCRIPT@", html_page.SCRIPT).replace("@DATA@", text)


def strip_data(frames: Sequence[StripFrame]) -> list[dict[str, Any]]:
    """A strip's frames as plain values, pictures as JPEG `data:` addresses."""
    return [
        {
            "picture": None if frame.picture is None else _jpeg_address(frame.picture),
            "time": round(frame.pts_seconds, 3),
            "score": frame.emotion_score,
            "label": frame.label,
            "box": frame.box,
        }
        for frame in frames
    ]


def _person(
    video: EvaluatedVideo,
    person: Row,
    scores: Mapping[tuple[str, str | None], list[Row]],
    spans: Mapping[tuple[str, str | None], list[Row]],
    strips: Mapping[str, Sequence[Mapping[str, Any]]],
    index: Mapping[str, int],
) -> dict[str, Any]:
    key = (video.row["video_id"], person.get("person_id"))
    is_scored = person is video.scored
    probabilities = person.get("probabilities") or {}
    frames = _thinned(scores.get(key, []))
    return {
        "id": person.get("person_id"),
        "label": video.predicted if is_scored and video.predicted else person.get("label"),
        "confidence": _rounded(person.get("confidence")),
        "right": video.right if is_scored and video.truth is not None else None,
        "status": person.get("status") or "ok",
        "error": person.get("error"),
        "start": person.get("start_seconds"),
        "end": person.get("end_seconds"),
        "frames": person.get("num_frames"),
        "faces": person.get("num_faces"),
        "probabilities": [_rounded(probabilities.get(name, 0.0)) for name in index]
        if probabilities
        else [],
        "times": [round(row["pts_seconds"], 3) for row in frames],
        "scores": [round(row["emotion_score"] or 0.0, 5) for row in frames],
        "labels": [_most_probable(row, index) for row in frames],
        "windows": [
            [
                row["start_seconds"],
                row["end_seconds"],
                row["label"],
                _rounded(row["confidence"] or 0.0),
            ]
            for row in spans.get(key, [])
            if row["label"] is not None
        ],
        "strip": strips.get(video.row["video_id"], []) if is_scored else [],
        "context": context_told(person),
    }


def _most_probable(row: Row, index: Mapping[str, int]) -> int:
    probabilities = dict(row["probabilities"] or ())
    if not probabilities:
        return -1
    return index.get(max(probabilities, key=lambda name: probabilities[name]), -1)


def _thinned(rows: list[Row]) -> list[Row]:
    if len(rows) <= MAX_POINTS:
        return rows
    edges = np.linspace(0, len(rows), MAX_POINTS + 1).astype(int)
    parts = [rows[a:b] for a, b in itertools.pairwise(edges)]
    return [max(part, key=lambda row: row["emotion_score"] or 0.0) for part in parts]


def _by_person(table: pa.Table) -> dict[tuple[str, str | None], list[Row]]:
    rows: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in table.to_pylist():
        rows[row["video_id"], row["person_id"]].append(row)
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _local_link(uri: str) -> str | None:
    return None if storage.is_s3(uri) or not os.path.isabs(uri) else Path(uri).as_uri()


def _jpeg_address(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _subtitle(videos: Sequence[EvaluatedVideo], figures: Mapping[str, Any]) -> str:
    models = sorted(
        {v.scored["model_id"] for v in videos if v.scored is not None and v.scored["model_id"]}
    )
    parts = [f"{len(videos)} videos"]
    parts += [f"split {figures['split']}"] if figures.get("split") else []
    parts += [f"model {', '.join(models)}"] if models else []
    if len(videos) > MAX_VIDEOS:
        parts.append(f"the first {MAX_VIDEOS} are on this page, all are in labels.csv")
    return " · ".join(parts)


def _warning(figures: Mapping[str, Any]) -> str:
    unfinished = "" if figures.get("is_complete", True) else "The label run is unfinished. "
    if not figures.get("random_weights"):
        return unfinished
    return (
        unfinished
        + f"Random weights: {', '.join(figures['random_weights'])}. These networks were never "
        "trained: do not take the labels for what people feel."
    )


def _tiles(figures: Mapping[str, Any]) -> list[list[str]]:
    labelled = figures["num_videos"] - figures["labels"][NO_LABEL]
    tiles = [[str(figures["num_videos"]), "videos"], [str(labelled), "with a label"]]
    if "all_videos" in figures:
        summary = figures["all_videos"]
        low, high = summary["accuracy_interval_95"]
        tiles.append(
            [f"{100 * summary['accuracy']:.1f}%", f"accuracy ({100 * low:.1f} to {100 * high:.1f})"]
        )
        tiles.append([f"{100 * summary['uar']:.1f}%", "unweighted average recall"])
    if figures.get("expected_calibration_error") is not None:
        tiles.append([f"{figures['expected_calibration_error']:.3f}", "calibration error"])
    if figures["confidence"]:
        tiles.append([f"{figures['confidence']['median']:.2f}", "median confidence"])
    return tiles
