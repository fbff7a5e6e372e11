"""Check the tables of jobs.label: labels, windows and frame scores."""

from collections import Counter
from typing import Any

from caan.outputs import layout
from caan.outputs.findings import PTS_TOLERANCE_SECONDS, Findings, has_schema, read_part
from caan.schema import FRAME_SCORES_SCHEMA, LABELS_SCHEMA, STATUSES, UNCERTAIN, WINDOWS_SCHEMA

SUM_TOLERANCE = 1e-3
"""Most that the sum of float32 probabilities or emotion scores may differ from one."""


def check_labels(
    output: str, record: dict[str, Any], videos: set[str], findings: Findings
) -> Counter[str]:
    """Check labels, windows and frame scores; return the main rows' number by status."""
    rows: Counter[tuple[str, str | None]] = Counter()
    mains: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    odd, foreign = [], []
    label_set = {*record["label_set"], UNCERTAIN}
    for uri in layout.table_files(output, "labels"):
        table = read_part(uri, findings)
        if table is None or not has_schema(table, LABELS_SCHEMA, uri, findings):
            continue
        for row in table.to_pylist():
            rows[row["video_id"], row["person_id"]] += 1
            mains[row["video_id"]] += bool(row["is_main"])
            statuses[row["status"]] += bool(row["is_main"])
            if _is_odd(row, label_set):
                odd.append(row["video_id"])
            if row["model_id"] not in (None, record.get("model_id")):
                foreign.append(row["video_id"])
    found = {video_id for video_id, _ in rows}
    findings.add("videos have no label row", videos - found)
    findings.add("label rows name videos that are not in the manifest", found - videos)
    findings.add("label rows stand twice", (v for (v, _), n in rows.items() if n > 1))
    findings.add("videos have not exactly one main row", (v for v in found if mains[v] != 1))
    findings.add("label rows have a foreign status or label, or probabilities not of sum 1", odd)
    findings.add("label rows are of another model than run.json's", foreign)
    _check_windows(output, record, set(rows), findings)
    _check_frame_scores(output, record, set(rows), findings)
    return +statuses


def _is_odd(row: dict[str, Any], label_set: set[str]) -> bool:
    """Whether a row of labels or windows has a foreign status or label, or wrong probabilities."""
    if row["status"] not in STATUSES:
        return True
    sums = sum(dict(row["probabilities"] or []).values())
    has_label = row["label"] is not None
    return has_label and (row["label"] not in label_set or abs(sums - 1) > SUM_TOLERANCE)


def _check_windows(
    output: str, record: dict[str, Any], people: set[tuple[str, str | None]], findings: Findings
) -> None:
    """Check the windows of a run: unique, of people in the labels, of the configured length."""
    wanted = record.get("pooling", {}).get("window_seconds", 0.0)
    files = layout.table_files(output, "windows")
    if wanted and not files:
        findings.add("run.json says that there are windows, and there is no table of them")
    label_set = {*record["label_set"], UNCERTAIN}
    seen: Counter[tuple[str, str | None, int]] = Counter()
    odd = []
    for uri in files:
        table = read_part(uri, findings)
        if table is None or not has_schema(table, WINDOWS_SCHEMA, uri, findings):
            continue
        for row in table.to_pylist():
            seen[row["video_id"], row["person_id"], row["window_index"]] += 1
            length = row["end_seconds"] - row["start_seconds"]
            if _is_odd(row, label_set) or abs(length - wanted) > PTS_TOLERANCE_SECONDS:
                odd.append(row["video_id"])
    findings.add(
        "windows are of nobody in the labels", (v for v, p, _ in seen if (v, p) not in people)
    )
    findings.add("windows stand twice", (v for (v, *_), n in seen.items() if n > 1))
    findings.add(
        "windows have a foreign status, label or length, or probabilities not of sum 1", odd
    )


def _check_frame_scores(
    output: str, record: dict[str, Any], people: set[tuple[str, str | None]], findings: Findings
) -> None:
    fps = record["fingerprint_of"]["fps"]
    sums: dict[tuple[str, str | None], float] = {}
    off_grid = []
    for uri in layout.table_files(output, "frame_scores"):
        table = read_part(uri, findings)
        if table is None or not has_schema(table, FRAME_SCORES_SCHEMA, uri, findings):
            continue
        names = ["video_id", "person_id", "frame_index", "pts_seconds", "emotion_score"]
        for row in table.select(names).to_pylist():
            person = row["video_id"], row["person_id"]
            sums[person] = sums.get(person, 0.0) + (row["emotion_score"] or 0.0)
            late = row["pts_seconds"] > row["frame_index"] / fps + PTS_TOLERANCE_SECONDS
            if late or row["pts_seconds"] < 0:
                off_grid.append(row["video_id"])
    findings.add("frame scores are of nobody in the labels", (v for v, p in set(sums) - people))
    findings.add("frame scores are not on the grid", off_grid)
    findings.add(
        "emotion scores of a person do not sum to 1",
        (v for (v, _), total in sums.items() if abs(total - 1) > SUM_TOLERANCE),
    )
