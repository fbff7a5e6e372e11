"""Build the HTML page of a report: one file that needs no server and no network.

HTML, style and script lie in `caan/report/page/`. The data is in two JSON blocks: the rows of all
videos, and the details (timelines, strips) that the page parses when a video is opened.
"""

import base64
import io
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from PIL import Image

from caan.errors import redact
from caan.report.colours import EMOTION_COLOURS, OTHER_COLOUR
from caan.report.evaluation import (
    NO_LABEL,
    STATUS_WORDS,
    UNTRAINED,
    EvaluatedVideo,
    Row,
    context_told,
)
from caan.report.strips import StripFrame
from caan.schema import UNCERTAIN, canonical_emotion

MAX_VIDEOS = 20_000
"""Most videos on a page, about 120 bytes each. A browser filters this many without delay."""

MAX_POINTS = 400
"""Most frames in one person's timeline. From more, the highest score of each stretch is kept."""

ALL_POINTS = 200_000
"""Most frames in all timelines together (2 MB), shared evenly among the people with one."""

_PAGE = Path(__file__).parent / "page"
_STATUS_COLOURS = {"ok": "#2c7a4b", "partial": "#c08a1e", "no_face": "#9aa1ab"}

Scores = Mapping[tuple[str, str | None], list[Row]]


def build_page(
    videos: Sequence[EvaluatedVideo],
    figures: Mapping[str, Any],
    *,
    frame_scores: pa.Table,
    windows: pa.Table,
    strips: Mapping[str, Sequence[Mapping[str, Any]]],
    previews: Mapping[str, str],
) -> str:
    """The HTML page as text.

    | argument | content |
    |---|---|
    | `frame_scores`, `windows` | the timelines of the videos that they hold |
    | `strips` | `strip_data` by video_id, shown for the scored person |
    | `previews` | links by video_id, relative to the page, all to one folder |
    """
    shown = videos[:MAX_VIDEOS]
    labels = [*figures["label_set"], UNCERTAIN, NO_LABEL]
    statuses = sorted(
        {_status(video, person) for video in shown for person in _people(video)},
        key=[*STATUS_WORDS].index,
    )
    rows = _Rows(labels, statuses)
    scores, spans = _by_person(frame_scores, "pts_seconds"), _by_person(windows, "start_seconds")
    num_points = max(50, min(MAX_POINTS, ALL_POINTS // max(1, len(scores))))
    for video in shown:
        rows.add_video(video, video.row["video_id"] in previews)
        for person in _people(video):
            key = (video.row["video_id"], person.get("person_id"))
            strip = strips.get(key[0]) if person is video.scored else None
            rows.add_person(video, person, spans.get(key, []))
            if key in scores or strip:
                rows.add_details(_thinned(scores.get(key, []), num_points), strip)
    data = {
        "subtitle": _subtitle(videos, figures),
        "warning": _warning(figures),
        "emotions": figures["label_set"],
        "labels": labels,
        "optional": [UNCERTAIN, NO_LABEL],
        "statuses": statuses,
        "status_words": {name: STATUS_WORDS[name] for name in statuses},
        "status_colours": _STATUS_COLOURS,
        "colours": EMOTION_COLOURS
        | {UNCERTAIN: "#a9aeb5", NO_LABEL: "#c9ced5", "other": OTHER_COLOUR},
        "tiles": _tiles(figures),
        "previews": _folder_of(previews),
        "reliability": _reliability(figures),
        "calibration_error": figures.get("expected_calibration_error"),
        **rows.tables(),
    }
    page = (_PAGE / "page.html").read_text()
    for name, text in (
        ("STYLE", (_PAGE / "style.css").read_text()),
        ("SCRIPT", (_PAGE / "script.js").read_text()),
        ("DETAILS", _json(rows.details)),
        ("DATA", _json(data)),
    ):
        page = page.replace(f"@{name}@", text)
    return page


def _json(data: Any) -> str:
    # With a plain `<`, a file name could close the script element.
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


class _Rows:
    """The tables of the page, row by row; repeated texts are stored once, with an index in rows."""

    def __init__(self, labels: Sequence[str], statuses: Sequence[str]) -> None:
        self.label_index = {name: i for i, name in enumerate(labels)}
        self.emotions = labels[:-2]
        self.status_index = {name: i for i, name in enumerate(statuses)}
        self.folders: dict[str, int] = {}
        self.splits: dict[str, int] = {}
        self.videos: list[list[Any]] = []
        self.people: list[list[Any]] = []
        self.windows: dict[int, list[list[Any]]] = {}
        self.errors: dict[int, str] = {}
        self.contexts: dict[int, str] = {}
        self.details: dict[int, dict[str, Any]] = {}

    def add_video(self, video: EvaluatedVideo, has_preview: bool) -> None:
        """Add a row to `videos`."""
        uri = redact(video.row["uri"])
        folder, slash, name = uri.rpartition("/")
        self.videos.append(
            [
                video.row["video_id"],
                self.folders.setdefault(folder + slash, len(self.folders)),
                name,
                self.splits.setdefault(video.row["split"] or "", len(self.splits)),
                -1 if video.truth is None else self.label_index[video.truth],
                _rounded(video.row["duration_seconds"], 2),
                int(has_preview),
                int(os.path.isabs(video.row["uri"])),
            ]
        )

    def add_person(self, video: EvaluatedVideo, person: Row, spans: Sequence[Row]) -> None:
        """Add a row to `people`, for the video that was added last."""
        is_scored = person is video.scored
        probabilities = person.get("probabilities") or {}
        row = len(self.people)
        self.people.append(
            [
                len(self.videos) - 1,
                person.get("person_id"),
                self._label(person),
                _thousandths(person.get("confidence")),
                int(video.right) if is_scored and video.truth and video.predicted else None,
                self.status_index[_status(video, person)],
                person.get("num_frames"),
                person.get("num_faces"),
                _rounded(person.get("start_seconds"), 2),
                _rounded(person.get("end_seconds"), 2),
                [_thousandths(probabilities.get(name, 0.0)) for name in self.emotions]
                if probabilities
                else None,
            ]
        )
        if told := context_told(person):
            self.contexts[row] = told
        if person.get("error"):
            self.errors[row] = redact(person["error"])
        if spans:
            self.windows[row] = [
                [
                    _rounded(span["start_seconds"], 2),
                    _rounded(span["end_seconds"], 2),
                    self._label(span),
                    _thousandths(span["confidence"] or 0.0),
                ]
                for span in spans
                if span["label"] is not None
            ]

    def add_details(self, frames: Sequence[Row], strip: Sequence[Mapping[str, Any]] | None) -> None:
        """Add timeline and strip of the person that was added last."""
        found: dict[str, Any] = {}
        if frames:
            highest = max(max(row["emotion_score"] or 0.0 for row in frames), 1e-9)
            times = [row["pts_seconds"] for row in frames]
            found = {
                "times": [round(100 * seconds) for seconds in times],
                "scores": [
                    round(1000 * max(0.0, row["emotion_score"] or 0.0) / highest) for row in frames
                ],
                "labels": "".join(self._letter(row) for row in frames),
                "gap": round(float(np.median(np.diff(times))), 3) if len(times) > 1 else 1.0,
                "highest": round(highest, 5),
            }
        if strip:
            found["strip"] = strip
        self.details[len(self.people) - 1] = found

    def tables(self) -> dict[str, Any]:
        """All tables but the details, as JSON values."""
        return {
            "folders": list(self.folders),
            "links": [
                Path(folder).as_uri().rstrip("/") + "/" if os.path.isabs(folder) else None
                for folder in self.folders
            ],
            "splits": list(self.splits),
            "videos": self.videos,
            "people": self.people,
            "windows": self.windows,
            "errors": self.errors,
            "contexts": self.contexts,
        }

    def _label(self, row: Row) -> int:
        name = row.get("label")
        known = self.label_index.get(canonical_emotion(name)) if name else None
        return self.label_index[NO_LABEL] if known is None else known

    def _letter(self, row: Row) -> str:
        """The frame's most probable emotion as a digit of base 36; z if there is none."""
        probabilities = dict(row["probabilities"] or ())
        if not probabilities:
            return "z"
        best = max(probabilities, key=lambda name: probabilities[name])
        index = self.label_index.get(best, 35)
        return "0123456789abcdefghijklmnopqrstuvwxyz"[min(index, 35)]


def _people(video: EvaluatedVideo) -> Sequence[Row]:
    return video.people or ({"status": video.status},)


def _status(video: EvaluatedVideo, person: Row) -> str:
    return (person.get("status") or "ok") if video.people else video.status


def _folder_of(previews: Mapping[str, str]) -> str:
    for video_id, address in previews.items():
        return quote(address.removesuffix(f"{video_id}.mp4"))
    return ""


def _reliability(figures: Mapping[str, Any]) -> list[list[float]] | None:
    if figures.get("expected_calibration_error") is None:
        return None
    names = ("lower", "num_videos", "mean_confidence", "accuracy")
    return [[round(part[name] or 0.0, 4) for name in names] for part in figures["reliability"]]


def strip_data(frames: Sequence[StripFrame]) -> list[dict[str, Any]]:
    """A strip's frames as JSON values, with the images as JPEG `data:` URLs."""
    return [
        {
            "picture": None if frame.image is None else _jpeg_address(frame.image),
            "time": round(frame.pts_seconds, 3),
            "score": frame.emotion_score,
            "label": frame.label,
            "box": frame.box,
        }
        for frame in frames
    ]


def _thinned(rows: list[Row], num_points: int = MAX_POINTS) -> list[Row]:
    if len(rows) <= num_points:
        return rows
    edges = np.linspace(0, len(rows), num_points + 1).astype(int)
    parts = [rows[a:b] for a, b in itertools.pairwise(edges)]
    return [max(part, key=lambda row: row["emotion_score"] or 0.0) for part in parts]


def _by_person(table: pa.Table, order: str) -> Scores:
    rows: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in table.sort_by(order).to_pylist():
        rows[row["video_id"], row["person_id"]].append(row)
    return rows


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)


def _thousandths(value: float | None) -> int | None:
    return None if value is None else round(1000 * float(value))


def _jpeg_address(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _subtitle(videos: Sequence[EvaluatedVideo], figures: Mapping[str, Any]) -> str:
    models = sorted(
        {v.scored["model_id"] for v in videos if v.scored is not None and v.scored["model_id"]}
    )
    parts = [f"{len(videos):,} videos"]
    parts += [f"split {figures['split']}"] if figures.get("split") else []
    parts += [f"model {', '.join(models)}"] if models else []
    if len(videos) > MAX_VIDEOS:
        parts.append(f"this page shows the first {MAX_VIDEOS:,}; labels.csv has all")
    return " · ".join(parts)


def _warning(figures: Mapping[str, Any]) -> str:
    unfinished = "" if figures.get("is_complete", True) else "The label run is unfinished. "
    if not figures.get("random_weights"):
        return unfinished
    return unfinished + f"Random weights: {', '.join(figures['random_weights'])}. {UNTRAINED}"


def _tiles(figures: Mapping[str, Any]) -> list[list[str]]:
    counts = figures["labels"]
    labelled = figures["num_videos"] - counts[NO_LABEL] - counts[UNCERTAIN]
    tiles = [[f"{figures['num_videos']:,}", "videos"], [f"{labelled:,}", "with a label"]]
    if counts[UNCERTAIN]:
        tiles.append([f"{counts[UNCERTAIN]:,}", "uncertain: label withheld"])
    if figures["num_people"] > labelled:
        tiles.append([f"{figures['num_people']:,}", "people in them"])
    if "all_videos" in figures:
        summary = figures["all_videos"]
        low, high = summary["accuracy_interval_95"]
        tiles.append(
            [f"{100 * summary['accuracy']:.1f}%", f"accuracy ({100 * low:.1f} to {100 * high:.1f})"]
        )
        decided = figures["predicted_videos"]["accuracy"]
        if figures["coverage"] < 1 and decided is not None:
            tiles.append([f"{100 * decided:.1f}%", "accuracy among those with a label"])
        tiles.append([f"{100 * summary['uar']:.1f}%", "unweighted average recall"])
    if figures.get("expected_calibration_error") is not None:
        tiles.append([f"{figures['expected_calibration_error']:.3f}", "calibration error"])
    if figures["confidence"]:
        tiles.append([f"{figures['confidence']['median']:.2f}", "median confidence"])
    return tiles
