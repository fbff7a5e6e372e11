"""Manifest -> segments: what is to be done, in shards that are done and resumed on their own."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caan.errors import InputError
from caan.schema import MANIFEST_SCHEMA, PLAN_SCHEMA, check_table, segment_id_of, table_of
from caan.storage.paths import normalise

SHARD_SEGMENTS = 50_000
"""Most segments of one shard; a shard is one run of Ray Data with a checkpoint of its own."""


def check_manifest(table: pa.Table, name: str) -> pa.Table:
    """The manifest with all columns of the contract, in its types.

    Raises:
        InputError: a column is missing or of another type, an id is unfit for file names or stands
            twice, a uri is neither local nor on S3, or it is empty.
    """
    manifest = check_table(table, MANIFEST_SCHEMA, f"manifest `{name}`")
    if manifest.num_rows == 0:
        raise InputError(f"manifest `{name}` has no rows: index some videos first.")
    ids = manifest["video_id"]
    if ids.null_count:
        raise InputError(
            f"manifest `{name}` has rows without a video_id: write it with jobs.index."
        )
    for uri in pc.drop_null(pc.unique(manifest["uri"])).to_pylist():
        normalise(uri)
    if len(pc.unique(ids)) != len(ids):
        counts = ids.value_counts().to_pylist()
        twice = next(item["values"] for item in counts if item["counts"] > 1)
        raise InputError(f"manifest `{name}` names video_id `{twice}` twice: keep one of the rows.")
    return manifest


def plan_segments(manifest: pa.Table, *, fps: float, segment_frames: int) -> pa.Table:
    """Segments of all videos: grid ranges of at most `segment_frames` frames, PLAN_SCHEMA.

    The grid counts from the file's start, so a time range of a file takes the grid frames inside
    it. The last segment of a video without an end, or with one after its duration, may run over by
    one segment's length, for files that last longer than their header says. A video that the index
    found bad keeps one row, with its status.

    Raises:
        InputError: a good video without an address or a duration, or with an impossible time range.
    """
    rows: list[dict[str, Any]] = []
    tables = []
    columns = [
        "video_id", "uri", "start_seconds", "end_seconds", "duration_seconds", "size_bytes",
        "etag", "face_box", "face_pts_seconds", "status", "error",
    ]  # fmt: skip
    for video in manifest.select(columns).to_pylist():
        bad = video["status"] not in (None, "ok", "partial", "no_face")
        _check_range(video, needs_duration=not bad)
        first = math.ceil((video["start_seconds"] or 0.0) * fps - 1e-9)
        duration, end_seconds = video["duration_seconds"], video["end_seconds"]
        limit = math.inf if end_seconds is None else math.ceil(end_seconds * fps - 1e-9)
        header_end = limit if duration is None else math.ceil(duration * fps - 1e-9)
        end = max(first + 1, min(header_end, limit))
        shared = {
            name: video[name]
            for name in ("video_id", "uri", "size_bytes", "etag", "face_box", "face_pts_seconds")
        }
        starts = [first] if bad else range(first, int(end), segment_frames)
        for index in starts:
            count = min(segment_frames, end - index)
            reach = min(segment_frames, max(0, limit - end)) if index + count >= end else 0
            rows.append(
                shared
                | {
                    "segment_id": segment_id_of(video["video_id"], index),
                    "start_seconds": index / fps,
                    "end_seconds": (index + count) / fps,
                    "first_index": index,
                    "num_frames": count + int(reach),
                    "video_start_seconds": video["start_seconds"] or 0.0,
                    "known_status": video["status"] if bad else None,
                    "known_error": video["error"] if bad else None,
                    "attempt": 0,
                }
            )
        if len(rows) >= SHARD_SEGMENTS:  # rows as Python objects take a kilobyte each
            tables.append(table_of(rows, PLAN_SCHEMA))
            rows = []
    return pa.concat_tables([*tables, table_of(rows, PLAN_SCHEMA)])


def _check_range(video: dict[str, Any], *, needs_duration: bool) -> None:
    name = f"the manifest's video `{video['video_id']}`"
    start, end = video["start_seconds"], video["end_seconds"]
    if not video["uri"]:
        raise InputError(f"{name} has no uri: give its file, or leave the row out.")
    if needs_duration and video["duration_seconds"] is None and end is None:
        raise InputError(
            f"{name} (`{video['uri']}`) has no duration_seconds: write the manifest with "
            "jobs.index."
        )
    if start is not None and not 0 <= start < math.inf:
        raise InputError(f"{name} has start_seconds {start}: it must be 0 or more.")
    if end is not None and not (start or 0.0) < end < math.inf:
        raise InputError(
            f"{name} has end_seconds {end}: it must lie after start_seconds {start or 0.0}."
        )


WATCHED = ("etag", "size_bytes")
"""Columns of a plan that say whether a video is still the one that was read."""


def new_segments(
    plan: pa.Table, done: pa.Table | None, watched: Sequence[str] = WATCHED
) -> pa.Table:
    """The segments of `plan` that an earlier plan does not name.

    Raises:
        InputError: a video of the earlier plan has changed since, in one of the columns `watched`.
    """
    if done is None:
        return plan
    keys = ["video_id", *watched]
    old = {row["video_id"]: row for row in row_per_video(done.select(keys)).to_pylist()}
    for row in row_per_video(plan.select([*keys, "uri"])).to_pylist():
        before = old.get(row["video_id"])
        if before and (changed := [name for name in watched if before[name] != row[name]]):
            raise InputError(
                f"`{row['uri']}` changed ({', '.join(changed)}) since this output was made: use "
                "another --output, or `--on-change recompute`."
            )
    known = pc.is_in(plan["video_id"], value_set=pc.unique(done["video_id"].combine_chunks()))
    return plan.filter(pc.invert(known))


def row_per_video(table: pa.Table) -> pa.Table:
    """The last row of each video."""
    codes = table["video_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, places = np.unique(codes[::-1], return_index=True)
    return table.take(len(codes) - 1 - places)


def shards_of(plan: pa.Table, shard_segments: int = SHARD_SEGMENTS) -> list[pa.Table]:
    """`plan` in consecutive parts of about `shard_segments`; a video never lies in two."""
    shards: list[pa.Table] = []
    start = 0
    ids = plan["video_id"].to_pylist()
    for row in range(1, len(ids) + 1):
        is_end = row == len(ids)
        if is_end or (row - start >= shard_segments and ids[row] != ids[row - 1]):
            shards.append(plan.slice(start, row - start))
            start = row
    return [shard for shard in shards if shard.num_rows]
