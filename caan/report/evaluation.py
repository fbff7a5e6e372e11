"""Join labels with the manifest, and compute the figures: statuses, accuracy, calibration."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from caan import metrics
from caan.errors import InputError
from caan.faces.detection import iou
from caan.schema import LABEL_SETS, STATUSES, UNCERTAIN, canonical_emotion, label_set_of

NO_LABEL = "no label"
"""The report's name for a video without a predicted emotion."""

NOT_LABELLED = "not_labelled"
"""Status in the report of a manifest row that has no row in the labels."""

STATUS_WORDS = STATUSES | {NOT_LABELLED: "the labels have no row for it"}
"""Meaning of every status in the report."""

UNTRAINED = "These networks were never trained: do not take the labels for what people feel."
"""Warning of a report about networks with random weights."""

LIMITS = tuple(round(0.05 * i, 2) for i in range(20))
"""Values of --abstain-below for which the report gives coverage and accuracy."""

SLICES = ("split", "gender", "age_range")
"""Manifest columns; accuracy is also reported for each of their values."""

_MANIFEST_COLUMNS = (
    *("video_id", "uri", "start_seconds", "end_seconds", "label", "split", "gender", "age_range"),
    *("face_box", "face_pts_seconds", "size_bytes", "width", "height", "duration_seconds"),
)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluatedVideo:
    """One manifest row with its labels."""

    row: Row
    """The manifest row."""
    truth: str | None
    """The true emotion; None if the manifest has none."""
    people: tuple[Row, ...]
    """The rows of the video in the labels table, one per person."""
    scored: Row | None
    """The label row of the marked person, else of the main person; None if there is no row."""
    predicted: str | None
    """The emotion of the scored row; None if it has none or is `uncertain`."""

    @property
    def status(self) -> str:
        """Status of the scored row."""
        return self.scored["status"] or "ok" if self.scored else NOT_LABELLED

    @property
    def is_uncertain(self) -> bool:
        """Whether the label was withheld because of low confidence."""
        return self.scored is not None and self.scored["label"] == UNCERTAIN

    @property
    def guess(self) -> str | None:
        """The predicted emotion; for an uncertain video the withheld one."""
        if self.scored is None or not self.is_uncertain:
            return self.predicted
        probabilities = self.scored["probabilities"]
        return max(probabilities, key=probabilities.__getitem__) if probabilities else None

    @property
    def right(self) -> bool:
        """Whether the prediction exists and is the true emotion."""
        return self.predicted is not None and self.predicted == self.truth


def label_set(labels: pa.Table, run: Mapping[str, Any], truths: Iterable[str]) -> tuple[str, ...]:
    """The emotions of the model: from its run.json, else the probabilities, else the labels.

    Raises:
        InputError: a true label is not one of them.
    """
    named = run.get("label_set")
    emotions: tuple[str, ...]
    if isinstance(named, str) and named in LABEL_SETS:
        emotions = LABEL_SETS[named]
    elif isinstance(named, list):
        emotions = tuple(named)
    else:
        found = {name for row in labels["probabilities"].to_pylist() for name, _ in row or ()}
        given = {canonical_emotion(name) for name in labels["label"].to_pylist() if name}
        emotions = label_set_of(sorted(found or (given - {UNCERTAIN}) | set(truths)))
    if unknown := sorted(set(truths) - set(emotions)):
        raise InputError(
            f"the manifest has the label `{unknown[0]}`, and the model that wrote these labels "
            f"knows only {', '.join(emotions)}: evaluate with a manifest of the same label set."
        )
    return emotions


def true_labels(manifest: pa.Table) -> set[str]:
    """The distinct true emotions of a manifest, by their canonical names."""
    return {canonical_emotion(name) for name in manifest["label"].unique().to_pylist() if name}


def join_labels(
    manifest: pa.Table, labels: pa.Table, frame_scores: pa.Table, emotions: Sequence[str]
) -> list[EvaluatedVideo]:
    """Join the tables: one EvaluatedVideo per manifest row, in the manifest's order.

    `frame_scores` is used only for videos with several people and a marked face.

    Raises:
        InputError: a video or person occurs twice, no labelled video is in the manifest, or a
            predicted label is not one of `emotions`.
    """
    ids = Counter(manifest["video_id"].to_pylist())
    _refuse_double(ids, "the manifest")
    people: dict[str, list[Row]] = defaultdict(list)
    for row in labels.to_pylist():
        row["probabilities"] = dict(row["probabilities"] or ())
        people[row["video_id"]].append(row)
    _refuse_double(
        Counter(f"{r['video_id']} {r['person_id']}" for rows in people.values() for r in rows),
        "the labels table",
    )
    if people and not people.keys() & ids.keys():
        raise InputError(
            f"none of the {len(people)} labelled videos is in the manifest (the first is "
            f"`{next(iter(people))}`): give the manifest from which they were labelled."
        )
    scores: dict[str, list[Row]] = defaultdict(list)
    columns = ["video_id", "person_id", "pts_seconds", "box"]
    for row in frame_scores.select(columns).to_pylist() if people else ():
        scores[row["video_id"]].append(row)
    videos = []
    for row in manifest.select(_MANIFEST_COLUMNS).to_pylist():
        rows = people.get(row["video_id"], [])
        scored = _scored_person(row, rows, scores.get(row["video_id"], []))
        videos.append(
            EvaluatedVideo(
                row=row,
                truth=canonical_emotion(row["label"]) if row["label"] else None,
                people=tuple(rows),
                scored=scored,
                predicted=_predicted(scored, emotions),
            )
        )
    return videos


def _refuse_double(counts: Counter[str], what: str) -> None:
    name, count = counts.most_common(1)[0] if counts else ("", 0)
    if count > 1:
        raise InputError(f"{what} has {count} rows for `{name}`: keep one of them.")


def _scored_person(row: Row, people: list[Row], scores: list[Row]) -> Row | None:
    if len(people) < 2:
        return people[0] if people else None
    if row["face_box"] is not None and (person_id := marked_person(row, scores)) is not None:
        return next(p for p in people if p["person_id"] == person_id)
    mains = [person for person in people if person["is_main"]]
    return (mains or people)[0]


def marked_person(row: Row, scores: Sequence[Row]) -> str | None:
    """The person whose face overlaps the manifest's `face_box`; None if nobody's does.

    The face nearest in time to `face_pts_seconds` decides, among equally near ones the one with the
    highest IoU. Without `face_pts_seconds` the highest IoU decides.
    """
    at = row["face_pts_seconds"]
    best: tuple[float, float] = (0.0, 0.0)
    found = None
    for score in scores:
        if score["box"] is None:
            continue
        overlap = float(iou(np.array([row["face_box"]]), np.array([score["box"]]))[0, 0])
        nearness = 0.0 if at is None else -abs(score["pts_seconds"] - at)
        if overlap > 0 and (found is None or (nearness, overlap) > best):
            best, found = (nearness, overlap), score["person_id"]
    return found


def _predicted(scored: Row | None, emotions: Sequence[str]) -> str | None:
    if scored is None or scored["label"] is None or scored["label"] == UNCERTAIN:
        return None
    label = canonical_emotion(scored["label"])
    if label not in emotions:
        raise InputError(
            f"the labels table has `{scored['label']}` for `{scored['video_id']}`, which is not "
            f"one of {', '.join(emotions)}: correct the label."
        )
    return label


def score(videos: Sequence[EvaluatedVideo], emotions: Sequence[str]) -> dict[str, Any]:
    """All figures of a report as plain JSON values.

    | figure | videos |
    |---|---|
    | `all_videos` | labelled in the manifest; without a prediction counts as wrong |
    | `predicted_videos` | labelled in the manifest, with a prediction |
    | `confidence` | with a prediction |
    | `reliability`, `abstaining` | labelled, with a prediction or a withheld emotion |

    All but `confidence` are absent if the manifest has no labels.
    """
    predictions = [video for video in videos if video.predicted is not None]
    counts = Counter(
        video.predicted or (UNCERTAIN if video.is_uncertain else NO_LABEL) for video in videos
    )
    figures: dict[str, Any] = {
        "label_set": list(emotions),
        "num_videos": len(videos),
        "num_people": sum(len(video.people) for video in videos if video.predicted is not None),
        "statuses": dict(Counter(video.status for video in videos).most_common()),
        "labels": {name: counts.get(name, 0) for name in (*emotions, UNCERTAIN, NO_LABEL)},
        "confidence": _spread(confidences(predictions)),
    }
    labelled = [video for video in videos if video.truth is not None]
    if not labelled:
        return figures
    matrix = matrix_of(labelled, emotions)
    decided = sum(video.predicted is not None for video in labelled)
    figures["coverage"] = decided / len(labelled)
    figures["all_videos"] = metrics.summarise(matrix, emotions)
    figures["predicted_videos"] = metrics.summarise(matrix[:, : len(emotions)], emotions)
    guessed = [video for video in labelled if video.guess is not None]
    sure, right = confidences(guessed), [video.guess == video.truth for video in guessed]
    figures["expected_calibration_error"] = metrics.plain(
        metrics.expected_calibration_error(sure, right)
    )
    figures["reliability"] = [
        {name: metrics.plain(value) for name, value in dataclasses.asdict(part).items()}
        for part in metrics.reliability(sure, right)
    ]
    figures["abstaining"] = [
        {
            "abstain_below": limit,
            "coverage": num / len(labelled),
            "accuracy": metrics.plain(accuracy),
        }
        for limit in LIMITS
        for num, accuracy in [metrics.decided_accuracy(sure, right, limit)]
    ]
    figures["slices"] = {}
    for column in SLICES:
        values = sorted({video.row[column] for video in labelled if video.row[column]})
        if len(values) > 1:
            figures["slices"][column] = {
                value: _brief([v for v in labelled if v.row[column] == value], emotions)
                for value in values
            }
    return figures


def matrix_of(videos: Sequence[EvaluatedVideo], emotions: Sequence[str]) -> np.ndarray:
    """Confusion matrix, int64 [K, K + 1]; every video must have a true emotion."""
    index = {emotion: i for i, emotion in enumerate(emotions)}
    return metrics.confusion_matrix(
        [index[video.truth] for video in videos if video.truth is not None],
        [index.get(video.predicted or "", metrics.NO_PREDICTION) for video in videos],
        len(emotions),
    )


def confidences(videos: Sequence[EvaluatedVideo]) -> list[float]:
    """Confidence of the scored rows, 0..1; 1 for a label without one (written by hand)."""
    rows = [video.scored for video in videos if video.scored is not None]
    return [1.0 if row["confidence"] is None else float(row["confidence"]) for row in rows]


def context_told(person: Mapping[str, Any]) -> str:
    """Sentence about a person's label without the context; empty if the model gives none.

    The points are the change of the label's probability, in percentage points, without the context.
    """
    other, effect = person.get("label_without_context"), person.get("context_effect")
    if other is None or effect is None:
        return ""
    return f"without context: {other} ({person['label']} {-100 * effect:+.0f} points)"


def _brief(videos: Sequence[EvaluatedVideo], emotions: Sequence[str]) -> dict[str, Any]:
    summary = metrics.summarise(matrix_of(videos, emotions), emotions)
    return {
        name: summary[name]
        for name in ("num_videos", "num_right", "accuracy", "accuracy_interval_95", "uar")
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {
        "mean": float(np.mean(values)),
        "p10": float(low),
        "median": float(middle),
        "p90": float(high),
    }
