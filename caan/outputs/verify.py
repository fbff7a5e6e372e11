"""Proves that an output of extract or label, or a manifest, is whole; says what is not.

Everything is read: every page of every part file is decompressed and its checksum compared where it
has one, one part file in memory at a time.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from caan import config as configs
from caan import storage
from caan.errors import InputError, redact
from caan.outputs import layout
from caan.outputs.layout import Shard
from caan.schema import (
    FRAME_SCORES_SCHEMA,
    GOOD_STATUSES,
    LABELS_SCHEMA,
    MANIFEST_SCHEMA,
    PLAN_SCHEMA,
    STATUSES,
    UNCERTAIN,
    WINDOWS_SCHEMA,
    features_schema,
    segment_scores_schema,
    video_status,
)

TABLES = {"extract": "features", "label": "segment_scores"}
"""The table with a row per segment, by the job that writes it."""

SUM_TOLERANCE = 1e-3
"""Most that probabilities and emotion scores of float32 may differ from a sum of one."""

PTS_TOLERANCE_SECONDS = 1e-6


@dataclass
class Findings:
    """What was looked at and what is wrong with it."""

    problems: list[str] = field(default_factory=list)
    """One sentence each."""
    num_files: int = 0
    """Part files that were read to their end."""
    num_videos: int = 0
    """Videos of the manifest."""
    num_segments: int = 0
    """Segments of the latest attempts that were found."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Videos by status."""

    def add(self, sentence: str, names: Iterable[object] | None = None) -> None:
        """Note a problem; with `names` only if there are any, and the first few of them."""
        if names is None:
            self.problems.append(sentence)
        elif found := sorted({str(name) for name in names}):
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            self.problems.append(f"{sentence}: {', '.join(found[:3])}{more}")


def verify(path: str) -> Findings:
    """What is wrong with the output folder of extract or label, or with a manifest, at `path`.

    Raises:
        InputError: nothing is there, or it is something else.
        StorageError: storage is out of reach or denies access.
    """
    findings = Findings()
    if path.endswith(".parquet"):
        if not storage.exists(path):
            raise InputError(f"nothing is at `{redact(path)}`: check --output.")
        _check_manifest(path, findings)
        return findings
    if not storage.exists(storage.join(path, "run.json")):
        raise InputError(
            f"`{redact(path)}` has no run.json: --output takes the folder that jobs.extract"
            " or jobs.label wrote, or a manifest (.parquet)."
        )
    record = storage.read_json(storage.join(path, "run.json"))
    if not record.get("is_complete"):
        findings.add("run.json says that the run is not finished: run the same command again")
        return findings
    if record.get("job") not in TABLES:
        raise InputError(
            f"`{redact(path)}` was written by jobs.{record.get('job')}: only outputs of "
            f"{', '.join(TABLES)} and manifests can be verified."
        )
    videos = _check_manifest(storage.join(path, "manifest.parquet"), findings)
    of_videos = _check_segments(path, record, videos, findings)
    if record["job"] == "label":
        findings.statuses = _check_labels(path, record, videos, findings)
    else:
        findings.statuses = Counter(video_status(found) for found in of_videos.values())
    _check_record(record, findings)
    return findings


def _read(uri: str, findings: Findings) -> pa.Table | None:
    """A whole Parquet file; None, and a problem noted, where it cannot be read to its end."""
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        findings.add(f"`{redact(uri)}` is missing")
        return None
    try:
        if not content.startswith(b"PAR1"):  # pyarrow looks at the file's end only
            raise pa.ArrowInvalid("it does not begin as a Parquet file")
        source = pa.BufferReader(content)
        table = pq.ParquetFile(source, page_checksum_verification=True).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        findings.add(f"`{redact(uri)}` cannot be read: {reason}")
        return None
    findings.num_files += 1
    return table


def _has_schema(table: pa.Table, schema: pa.Schema, uri: str, findings: Findings) -> bool:
    if table.schema.equals(schema):
        return True
    changed = [
        field.name
        for field in schema
        if field.name not in table.column_names or table.schema.field(field.name) != field
    ]
    foreign = [name for name in table.column_names if name not in schema.names]
    names = changed + foreign or ["order of the columns"]
    findings.add(f"`{redact(uri)}` departs from the schema", names)
    return False


def _check_manifest(uri: str, findings: Findings) -> set[str]:
    table = _read(uri, findings)
    if table is None or not _has_schema(table, MANIFEST_SCHEMA, uri, findings):
        return set()
    counts = Counter(table["video_id"].to_pylist())
    findings.add("the manifest names videos twice", (v for v, n in counts.items() if n > 1))
    if None in counts:
        findings.add(f"the manifest has {counts.pop(None)} rows without a video_id")
    statuses = Counter(status or "ok" for status in table["status"].to_pylist())
    findings.add("the manifest has unknown statuses", set(statuses) - set(STATUSES))
    findings.num_videos = table.num_rows
    findings.statuses = statuses
    return set(counts)


def _check_segments(
    output: str, record: dict[str, Any], videos: set[str], findings: Findings
) -> dict[str, list[str]]:
    """Plan against rows, shard by shard; gives the statuses of each video's segments."""
    name = TABLES[record["job"]]
    shards = layout.existing_shards(output, name)
    plans: list[tuple[Shard, pa.Table]] = []
    latest: dict[str, int] = {}
    for shard in shards:
        plan = _read(shard.plan, findings)
        if plan is None or not _has_schema(plan, PLAN_SCHEMA, shard.plan, findings):
            continue
        plans.append((shard, plan))
        for video_id in set(plan["video_id"].to_pylist()):
            latest[video_id] = max(latest.get(video_id, 0), shard.attempt)
    findings.add("videos of the manifest were never planned", videos - set(latest))
    findings.add("videos of the output are not in the manifest", set(latest) - videos)
    files = layout.part_files(output, name)
    folders = {re.sub(r"/[^/]*$", "", file) for file in files}
    known = {storage.normalise(shard.folder) for shard in shards}
    findings.add("folders of rows have no plan", folders - known)
    of_videos: dict[str, list[str]] = {}
    for shard, plan in plans:
        if not shard.is_finished():
            findings.add(f"`{shard.folder}` is not finished: run the same command again")
        folder = storage.normalise(shard.folder)
        rows = _rows_of_shard([f for f in files if f.startswith(folder + "/")], record, findings)
        by_id = {row["segment_id"]: row for row in plan.to_pylist()}
        if len(by_id) != plan.num_rows:
            findings.add(f"`{shard.plan}` names segments twice")
        seen: Counter[str] = Counter()
        off_plan, off_grid = [], []
        for row in rows:
            segment_id = row["segment_id"]
            seen[segment_id] += 1
            request = by_id.get(segment_id)
            if request is None:
                continue
            keys = ("video_id", "start_seconds", "end_seconds", "attempt")
            if any(row[key] != request[key] for key in keys):
                off_plan.append(segment_id)
            if not _is_on_grid(row, request, record["fingerprint_of"]):
                off_grid.append(segment_id)
            if latest[request["video_id"]] == shard.attempt and seen[segment_id] == 1:
                of_videos.setdefault(request["video_id"], []).append(row["status"])
                findings.num_segments += 1
        findings.add("segments are lost", set(by_id) - set(seen))
        findings.add("segments stand twice", (s for s, n in seen.items() if n > 1))
        findings.add("segments were never planned", set(seen) - set(by_id))
        findings.add("segments differ from the plan (video, time or attempt)", off_plan)
        findings.add("frames are not on the grid", off_grid)
    return of_videos


def _rows_of_shard(
    files: list[str], record: dict[str, Any], findings: Findings
) -> Iterator[dict[str, Any]]:
    """The rows without their vectors, which are looked at here; frames and faces as arrays."""
    for uri in files:
        table = _read(uri, findings)
        schema = None if table is None else _segment_schema(table, record)
        if table is None or schema is None:
            if table is not None:
                findings.add(f"`{redact(uri)}` has no vectors: another table")
            continue
        if not _has_schema(table, schema, uri, findings):
            continue
        frame_ends, frames = _items(table["frames"])
        face_ends, faces = _items(table["faces"])
        for items in (frames, faces):
            for part in items.type:
                if pa.types.is_fixed_size_list(part.type) and not _is_finite(items, part.name):
                    findings.add(f"`{redact(uri)}`: {part.name} has values not finite")
        index = frames.field("frame_index").to_numpy(zero_copy_only=False)
        pts = frames.field("pts_seconds").to_numpy(zero_copy_only=False)
        face_index = faces.field("frame_index").to_numpy(zero_copy_only=False)
        _check_boxes(faces, uri, findings)
        plain = table.drop_columns(["frames", "faces"]).to_pylist()
        bad = []
        for n, row in enumerate(plain):
            at = slice(frame_ends[n], frame_ends[n + 1])
            of_faces = face_index[face_ends[n] : face_ends[n + 1]]
            failed = row["status"] not in GOOD_STATUSES
            if row["status"] not in STATUSES or (
                failed and (at.stop > at.start or not row["error"])
            ):
                bad.append(row["segment_id"])
            yield row | {"frame_index": index[at], "pts": pts[at], "face_index": of_faces}
        findings.add(
            "segments have an unknown status, or failed with frames or without an error", bad
        )


def _segment_schema(table: pa.Table, record: dict[str, Any]) -> pa.Schema | None:
    """The contract with the dimensions that run.json states, else those of the table."""
    dims = {}
    for column in ("frames", "faces"):
        if column in table.column_names and pa.types.is_list(table[column].type):
            for part in table[column].type.value_type:
                if pa.types.is_fixed_size_list(part.type):
                    dims[part.name] = part.type.list_size
    identity = record.get("identity", {})
    if record["job"] == "extract":
        if not {"face_vector", "context_vector"} <= set(dims):
            return None
        return features_schema(
            identity.get("face_dim", dims["face_vector"]),
            identity.get("context_dim", dims["context_vector"]),
        )
    if not {"feature_vector", "appearance_vector"} <= set(dims):
        return None
    return segment_scores_schema(
        dims["feature_vector"], len(record["label_set"]), dims["appearance_vector"]
    )


def _items(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.StructArray]:
    """Where each row's items end (from 0), and all items end to end."""
    array = column.combine_chunks()
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), array.flatten()


def _is_finite(items: pa.StructArray, name: str) -> bool:
    values = items.field(name).flatten()
    if not pa.types.is_floating(values.type):
        return True
    return bool(np.isfinite(values.drop_null().to_numpy(zero_copy_only=False)).all())


def _check_boxes(faces: pa.StructArray, uri: str, findings: Findings) -> None:
    boxes = faces.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    if not (boxes[:, :2] < boxes[:, 2:]).all():
        findings.add(f"`{redact(uri)}` has empty or turned face boxes")


def _is_on_grid(row: dict[str, Any], request: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether a segment's frames are grid frames of its range, each not after k/fps.

    They are consecutive, unless the cascade left some out.
    """
    index, pts, fps = row["frame_index"], row["pts"], options["fps"]
    if not len(index):
        return not len(row["face_index"]) and row["status"] != "ok"
    steps = np.diff(index, prepend=request["first_index"] - 1)
    if options.get("cascade"):
        is_in_order = (steps >= 1).all() and index[-1] < request["first_index"] + request[
            "num_frames"
        ]
    else:
        is_in_order = (steps == 1).all() and len(index) <= request["num_frames"]
    return bool(
        is_in_order
        and (pts >= 0).all()
        and (np.diff(pts) >= 0).all()
        and (pts <= index / fps + PTS_TOLERANCE_SECONDS).all()
        and np.isin(row["face_index"], index).all()
    )


def _check_labels(
    output: str, record: dict[str, Any], videos: set[str], findings: Findings
) -> Counter[str]:
    """Labels and frame scores; gives the statuses of the main rows."""
    rows: Counter[tuple[str, str | None]] = Counter()
    mains: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    odd, foreign = [], []
    label_set = {*record["label_set"], UNCERTAIN}
    for uri in layout.part_files(output, "labels"):
        table = _read(uri, findings)
        if table is None or not _has_schema(table, LABELS_SCHEMA, uri, findings):
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
    """Windows, where the run has any: each of a person in the labels, once, of the run's length."""
    wanted = record.get("pooling", {}).get("window_seconds", 0.0)
    files = layout.part_files(output, "windows")
    if wanted and not files:
        findings.add("run.json says that there are windows, and there is no table of them")
    label_set = {*record["label_set"], UNCERTAIN}
    seen: Counter[tuple[str, str | None, int]] = Counter()
    odd = []
    for uri in files:
        table = _read(uri, findings)
        if table is None or not _has_schema(table, WINDOWS_SCHEMA, uri, findings):
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
    for uri in layout.part_files(output, "frame_scores"):
        table = _read(uri, findings)
        if table is None or not _has_schema(table, FRAME_SCORES_SCHEMA, uri, findings):
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


def _check_record(record: dict[str, Any], findings: Findings) -> None:
    """run.json against what was found."""
    found = {
        "num_videos": findings.num_videos,
        "num_segments": findings.num_segments,
        "statuses": dict(sorted(findings.statuses.items())),
        "fingerprint": configs.fingerprint(record["fingerprint_of"]),
    }
    for name, value in found.items():
        if record.get(name) != value:
            findings.add(f"run.json says {name} {record.get(name)}, and found is {value}")
    if (total := sum(findings.statuses.values())) != findings.num_videos:
        findings.add(f"{findings.num_videos} videos have {total} statuses")
