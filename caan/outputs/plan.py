"""Manifest -> segments, in shards that are processed and resumed one by one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caan.errors import InputError
from caan.schema import MANIFEST_SCHEMA, PLAN_SCHEMA, check_table, segment_id_of, table_of
from caan.storage import read_table
from caan.storage.paths import normalise

SHARD_SEGMENTS = 50_000
"""Most segments of one shard. A shard is one run of Ray Data with its own checkpoint."""


def check_manifest(table: pa.Table, name: str) -> pa.Table:
    """Check a manifest and give it all columns of MANIFEST_SCHEMA, in their types.

    Raises:
        InputError: it has no rows, a column is missing or of another type, an id is unfit for file
            names or not unique, or a uri is neither local nor on S3.
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

    The grid starts at the file's start; a video that is a time range of its file gets the grid
    frames in that range. If a video has no end, or an end after its duration, its last segment may
    be longer by one segment's length: some files last longer than their header says. A video that
    the index found bad gets one row, with its status.

    Raises:
        InputError: a good video has no uri, no duration, or an impossible time range.
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
"""Columns of a plan in which a changed file differs."""


def new_segments(
    plan: pa.Table, done: pa.Table | None, watched: Sequence[str] = WATCHED
) -> pa.Table:
    """The segments of `plan` whose videos are not in the earlier plan `done`.

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
    """`plan` in consecutive parts of about `shard_segments`; a video is never in two of them."""
    shards: list[pa.Table] = []
    start = 0
    ids = plan["video_id"].to_pylist()
    for row in range(1, len(ids) + 1):
        is_end = row == len(ids)
        if is_end or (row - start >= shard_segments and ids[row] != ids[row - 1]):
            shards.append(plan.slice(start, row - start))
            start = row
    return [shard for shard in shards if shard.num_rows]


def seconds_of(plan: pa.Table) -> float:
    """Seconds of video in a plan."""
    lengths = pc.subtract(plan["end_seconds"], plan["start_seconds"])
    return float(pc.sum(lengths).as_py() or 0.0)


def mean_frames(plan_file: str, fps: float) -> float:
    """Mean number of sampled frames per segment of a plan."""
    plan = read_table(plan_file, ["start_seconds", "end_seconds"])
    return fps * seconds_of(plan) / max(1, plan.num_rows)


def longest_first(segments: pa.Table) -> pa.Table:
    """The segments by falling length; those of one length keep their order.

    A segment of 128 frames takes a VGG on one core more than a minute: if it comes last, the other
    cores are idle meanwhile. On a GPU it takes a second, and the order of the plan gives rounds of
    segments that are more alike.
    """
    seconds = pc.subtract(segments["end_seconds"], segments["start_seconds"])
    return segments.take(pc.sort_indices(pc.negate(seconds)))
