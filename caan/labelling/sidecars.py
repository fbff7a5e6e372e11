"""Write the sidecar files of a run: CSV, JSON Lines, timelines, previews, strips."""

import csv
import datetime
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from caan import storage
from caan.errors import StorageError, VideoError
from caan.labelling import timelines
from caan.labelling.config import SidecarConfig
from caan.labelling.previews import write_preview
from caan.media.sandbox import Sandbox
from caan.report.strips import StripMaker

Row = Mapping[str, Any]

PREVIEW_SECONDS_PER_SECOND = 10.0
"""Time limit of a preview, in seconds per second of video (measured: about 0.15 at 720p)."""


def write_sidecars(
    output: str,
    row: Row,
    *,
    people: Sequence[Row],
    windows: Sequence[Row],
    frame_scores: Sequence[Row],
    emotions: Sequence[str],
    written_at: datetime.datetime,
    config: SidecarConfig,
) -> dict[str, str]:
    """Write one video's sidecar files under `output`; return the failed kinds with their errors.

    `row` is the manifest row. `people`, `windows` and `frame_scores` are this video's rows of the
    three tables. Without windows, the timelines use the labels' whole spans.

    | kind | file | of a video without people |
    |---|---|---|
    | `vtt`, `eaf` | `timelines/<video_id>.vtt`, `.eaf` | empty timeline |
    | `preview` | `previews/<video_id>.mp4` | without boxes |
    | `strip` | `strips/<video_id>[-<person_id>].png` | none |
    """
    video_id = row["video_id"]
    spans = timelines.spans_of(windows or people)
    failed: dict[str, str] = {}
    if "vtt" in config.kinds:
        path = storage.join(output, "timelines", f"{video_id}.vtt")
        storage.write_bytes(path, timelines.webvtt(spans).encode())
    if "eaf" in config.kinds:
        name = row["uri"].rpartition("/")[2]
        document = timelines.elan(spans, media_name=name, emotions=emotions, written_at=written_at)
        path = storage.join(output, "timelines", f"{video_id}.eaf")
        storage.write_bytes(path, document.encode())
    if "preview" in config.kinds:
        try:
            content = _preview(row, frame_scores, spans, config)
            storage.write_bytes(storage.join(output, "previews", f"{video_id}.mp4"), content)
        except (VideoError, StorageError, FileNotFoundError) as error:
            failed["preview"] = str(error)
    if "strip" in config.kinds:
        with StripMaker(config.strips) as maker:
            for person in people:
                _write_strip(output, row, person, frame_scores, maker)
    return failed


def _preview(
    row: Row, frame_scores: Sequence[Row], spans: Sequence[timelines.Span], config: SidecarConfig
) -> bytes:
    limit = 60.0 + PREVIEW_SECONDS_PER_SECOND * (row["duration_seconds"] or 60.0)
    size_bytes, spool_bytes = row["size_bytes"] or 0, config.strips.spool_bytes
    with (
        storage.spooled(row["uri"], size_bytes, spool_bytes) as path,
        tempfile.TemporaryDirectory(prefix="caan-preview-") as folder,
        Sandbox(time_limit_seconds=limit) as sandbox,
    ):
        target = Path(folder) / "preview.mp4"
        rows = list(frame_scores)
        sandbox.run(write_preview, path, target, rows, list(spans), config.preview)
        return target.read_bytes()


def _write_strip(
    output: str, row: Row, person: Row, frame_scores: Sequence[Row], maker: StripMaker
) -> None:
    from caan.report import plots  # imports Matplotlib

    person_id = person["person_id"]
    scores = [score for score in frame_scores if score["person_id"] == person_id]
    frames = maker.frames(row, sorted(scores, key=lambda score: score["pts_seconds"]))
    if not frames:
        return
    name = row["video_id"] if person["is_main"] else f"{row['video_id']}-{person_id}"
    who = timelines.person_name(person_id)
    title = f"{row['uri'].rpartition('/')[2]} · {who} {person['label'] or ''}"
    if person["confidence"] is not None:
        title += f" {person['confidence']:.2f}"
    path = storage.join(output, "strips", f"{name}.png")
    storage.write_bytes(path, plots.strip_plot(frames, title))


def labels_as_csv(labels: pa.Table, emotions: Sequence[str]) -> str:
    """A labels or windows table as CSV, with the probabilities in columns `p_<emotion>`."""
    plain = [name for name in labels.column_names if name != "probabilities"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*plain, *(f"p_{name}" for name in emotions)])
    writer.writeheader()
    for row in labels.to_pylist():
        probabilities = dict(row.pop("probabilities") or ())
        writer.writerow(row | {f"p_{name}": probabilities.get(name) for name in emotions})
    return buffer.getvalue()


def labels_as_json_lines(labels: pa.Table) -> str:
    """A labels or windows table as JSON Lines, one row per line; probabilities are an object."""
    lines = []
    for row in labels.to_pylist():
        row["probabilities"] = dict(row["probabilities"] or ()) or None
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)
