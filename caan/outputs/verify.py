"""Check that an output of extract or label, or a manifest, is complete and consistent.

Everything is read, one part file in memory at a time: every page of every part file is
decompressed, and its checksum is compared if it has one.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from caan import config as configs
from caan import storage
from caan.errors import InputError, redact
from caan.outputs import layout, log
from caan.outputs.findings import PTS_TOLERANCE_SECONDS, Findings, has_schema, read_part
from caan.outputs.lease import Lease
from caan.outputs.plan import Plan, check_manifest, plan
from caan.outputs.verify_labels import check_labels
from caan.schema import (
    GOOD_STATUSES,
    MANIFEST_SCHEMA,
    STATUSES,
    features_schema,
    segment_id_of,
    segment_scores_schema,
)

TABLES = {"extract": "features", "label": "segment_scores"}
"""The table with a row per segment, by the job that writes it."""


def verify(path: str) -> Findings:
    """Check the output folder of extract or label, or the manifest, at `path`.

    Raises:
        InputError: there is nothing at `path`, or it is something else.
        StorageError: storage is not reachable or denies access.
    """
    findings = Findings()
    if path.endswith(".parquet"):
        if not storage.exists(path):
            raise InputError(f"there is no file `{redact(path)}`: check --output.")
        _check_manifest(path, findings)
        return findings
    if not storage.exists(storage.join(path, "run.json")):
        raise InputError(
            f"`{redact(path)}` has no run.json: --output takes the folder that jobs.extract"
            " or jobs.label wrote, or a manifest (.parquet)."
        )
    record = storage.read_json(storage.join(path, "run.json"))
    if record.get("job") in TABLES:
        layout.check_format(path, record)
    if not record.get("is_complete"):
        findings.add("run.json says that the run is not finished: run the same command again")
        return findings
    if record.get("job") not in TABLES:
        raise InputError(
            f"`{redact(path)}` was written by jobs.{record.get('job')}: only outputs of "
            f"{', '.join(TABLES)} and manifests can be verified."
        )
    videos = _check_manifest(storage.join(path, "manifest.parquet"), findings)
    state = _check_segments(path, record, findings)
    if record["job"] == "label":
        findings.statuses = check_labels(path, record, videos, findings)
    else:
        findings.statuses = Counter(state.statuses())
    _check_record(record, findings)
    return findings


def clean(output: str) -> int:
    """Delete the row files of an output that no commit names; return their number.

    Raises:
        InputError: it is no output of extract or label, or a driver writes to it.
    """
    run_file = storage.join(output, "run.json")
    record = storage.read_json(run_file) if storage.exists(run_file) else {}
    layout.check_format(output, record)
    with Lease(output, "verify"):
        state = log.read(output)
        return sum(layout.remove_garbage(output, table, state) for table in TABLES.values())


def _check_manifest(uri: str, findings: Findings) -> set[str]:
    table = read_part(uri, findings)
    if table is None or not has_schema(table, MANIFEST_SCHEMA, uri, findings):
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


def _check_segments(output: str, record: dict[str, Any], findings: Findings) -> log.State:
    """Compare plan, log and row files, one file at a time."""
    table = TABLES[record["job"]]
    state = log.read(output)
    findings.num_segments = state.segments.num_rows
    options = record["fingerprint_of"]
    manifest_file = storage.join(output, "manifest.parquet")
    manifest = check_manifest(storage.read_table(manifest_file), manifest_file)
    planned = plan(manifest, fps=options["fps"], segment_frames=options["segment_frames"])
    ids = manifest["video_id"].to_numpy()
    lost_N = planned.not_in(state.segments)
    findings.add(
        "segments are lost",
        map(segment_id_of, ids[planned.video_N[lost_N]][:4], planned.first_N[lost_N][:4].tolist()),
    )
    videos = {video_id: row for row, video_id in enumerate(ids)}
    seen: set[str] = set()
    twice, foreign, off_grid, off_log = [], [], [], []
    for name, in_file in state.by_file():
        if not name.startswith(f"{table}/"):
            continue
        said = {
            segment_id_of(s["video_id"], s["first_index"]): (s["status"], s["num_faces"])
            for s in in_file.to_pylist()
        }
        found: Counter[str] = Counter()
        for row in _rows_of_file(storage.join(output, name), record, findings):
            segment_id = row["segment_id"]
            found[segment_id] += 1
            if segment_id in seen:
                twice.append(segment_id)
            seen.add(segment_id)
            if said.get(segment_id) != (row["status"], len(row["face_index"])):
                off_log.append(segment_id)
            request = _request(planned, videos, segment_id)
            if request is None:
                foreign.append(segment_id)
            elif not _is_on_grid(row, request, options):
                off_grid.append(segment_id)
        off_log += [segment_id for segment_id in said if segment_id not in found]
    findings.add("segments stand twice", twice)
    findings.add("segments were never planned", foreign)
    findings.add("row files hold other segments than the log says", off_log)
    findings.add("frames are not on the grid", off_grid)
    named = {storage.normalise(storage.join(output, name)) for name in state.files(table)}
    folder = storage.join(output, table)
    stored = storage.list_files(folder) if storage.exists(folder) else []
    findings.num_garbage = sum(file.uri not in named for file in stored)
    return state


def _request(planned: Plan, videos: dict[str, int], segment_id: str) -> dict[str, int] | None:
    """First grid frame and most frames of a segment; None: the plan does not have it."""
    video_id, _, number = segment_id.rpartition("-")
    row = videos.get(video_id)
    if row is None or not number.isdigit():
        return None
    first, end = int(number), int(planned.end_V[row])
    past = first - int(planned.first_V[row])
    if past < 0 or past % planned.segment_frames or (first >= end and past):
        return None
    count = min(planned.segment_frames, end - first)
    reach = int(planned.reach_V[row]) if first + count >= end else 0
    return {"first_index": first, "num_frames": count + reach}


def _rows_of_file(uri: str, record: dict[str, Any], findings: Findings) -> Iterator[dict[str, Any]]:
    """Check vectors and boxes; give the rows without them, frames and faces as arrays."""
    table = read_part(uri, findings)
    schema = None if table is None else _segment_schema(table, record)
    if table is None or schema is None:
        if table is not None:
            findings.add(f"`{redact(uri)}` has no vectors: another table")
        return
    if not has_schema(table, schema, uri, findings):
        return
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
    lists = [name for name in table.column_names if pa.types.is_list(table[name].type)]
    plain = table.drop_columns(lists).to_pylist()
    bad = []
    for n, row in enumerate(plain):
        at = slice(frame_ends[n], frame_ends[n + 1])
        of_faces = face_index[face_ends[n] : face_ends[n + 1]]
        failed = row["status"] not in GOOD_STATUSES
        if row["status"] not in STATUSES or (failed and (at.stop > at.start or not row["error"])):
            bad.append(row["segment_id"])
        yield row | {"frame_index": index[at], "pts": pts[at], "face_index": of_faces}
    findings.add("segments have an unknown status, or failed with frames or without an error", bad)


def _segment_schema(table: pa.Table, record: dict[str, Any]) -> pa.Schema | None:
    """Schema with the dimensions of run.json, else the table's; None: the table has no vectors."""
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
            **{
                f"{kind}_pool5": math.prod(identity[f"{kind}_pool5_shape"])
                for kind in ("face", "context")
                if f"{kind}_pool5_shape" in identity
            },
        )
    if not {"feature_vector", "appearance_vector"} <= set(dims):
        return None
    return segment_scores_schema(
        dims["feature_vector"], len(record["label_set"]), dims["appearance_vector"]
    )


def _items(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.StructArray]:
    """Offsets of each row's items, from 0, and all items end to end."""
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
    """Whether a segment's frames are grid frames of its range, none later than k/fps.

    They must be consecutive, unless the cascade skipped some.
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


def _check_record(record: dict[str, Any], findings: Findings) -> None:
    """Compare run.json with what was found."""
    found = {
        "num_videos": findings.num_videos,
        "num_segments": findings.num_segments,
        "statuses": dict(sorted(findings.statuses.items())),
        "fingerprint": configs.fingerprint(record["fingerprint_of"]),
    }
    for name, value in found.items():
        if record.get(name) != value:
            findings.add(f"run.json says {name} {record.get(name)}, but {value} was found")
    if (total := sum(findings.statuses.values())) != findings.num_videos:
        findings.add(f"{findings.num_videos} videos have {total} statuses")
