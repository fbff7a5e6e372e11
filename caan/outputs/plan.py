"""Manifest -> segments, and the units of work that are left of them.

A segment is the unit of resume: it counts or does not. A unit is a stretch of consecutive segments
of one video: one worker reads it with its file open all the time. Results do not depend on units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caan.errors import InputError
from caan.schema import (
    GOOD_STATUSES,
    MANIFEST_SCHEMA,
    UNITS_SCHEMA,
    check_table,
    segment_id_of,
)
from caan.storage.paths import normalise


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The segments of a manifest's videos, as arrays: no object per segment.

    Legend: V videos, N segments. A segment is a range of at most `segment_frames` grid frames. The
    grid starts at the file's start; a video that is a time range of its file gets the grid frames
    in that range. A video that the index found bad has one segment, which carries its status.
    """

    manifest: pa.Table
    """MANIFEST_SCHEMA, V rows."""
    fps: float
    """Grid frames per second."""
    segment_frames: int
    """Most grid frames of a segment."""
    first_V: np.ndarray
    """First grid frame of each video, int64."""
    end_V: np.ndarray
    """Grid frame after the last one that the header promises, int64."""
    reach_V: np.ndarray
    """Frames that the last segment may be longer: some files last longer than their header says."""
    video_N: np.ndarray
    """Row of each segment's video in the manifest, int32."""
    first_N: np.ndarray
    """First grid frame of each segment, int64."""

    @property
    def num_segments(self) -> int:
        """N."""
        return len(self.video_N)

    def seconds(self, which_N: np.ndarray | None = None) -> float:
        """Seconds of video in these segments, or in all."""
        counts = np.minimum(self.segment_frames, self.end_V[self.video_N] - self.first_N)
        return float((counts if which_N is None else counts[which_N]).sum() / self.fps)

    def not_in(self, segments: pa.Table) -> np.ndarray:
        """Whether each segment is absent from `segments` (video_id, first_index), bool [N]."""
        video = pc.index_in(segments["video_id"], self.manifest["video_id"].combine_chunks())
        known = video.is_valid().to_numpy()
        video, first = (c.to_numpy()[known] for c in (video, segments["first_index"]))
        video = video.astype(np.int64)
        num_V = np.bincount(self.video_N, minlength=len(self.first_V))
        number, rest = np.divmod(first - self.first_V[video], self.segment_frames)
        is_planned = (rest == 0) & (number >= 0) & (number < num_V[video])
        left_N = np.ones(self.num_segments, bool)
        left_N[(np.cumsum(num_V) - num_V)[video[is_planned]] + number[is_planned]] = False
        return left_N

    def units(self, which_N: np.ndarray, unit_segments: np.ndarray | int) -> pa.Table:
        """Consecutive segments of one video, at most `unit_segments` each: UNITS_SCHEMA.

        Args:
            which_N: the segments that are wanted, bool [N].
            unit_segments: most segments of a unit: one number, or one per video.
        """
        video, first = self.video_N[which_N], self.first_N[which_N]
        most = np.broadcast_to(unit_segments, self.first_V.shape)[video]
        goes_on = np.zeros(len(video), bool)
        goes_on[1:] = (video[1:] == video[:-1]) & (first[1:] - first[:-1] == self.segment_frames)
        place = np.arange(len(video))
        run_start = np.maximum.accumulate(np.where(goes_on, 0, place))
        starts = np.flatnonzero((place - run_start) % np.maximum(1, most) == 0)
        num = np.diff(starts, append=len(video))
        of, first = video[starts], first[starts]
        end = np.minimum(self.end_V[of], first + num * self.segment_frames)
        is_last = end >= self.end_V[of]
        share = (end - first) / np.maximum(1, self.end_V[of])
        found = self.manifest.take(pa.array(of))
        start_seconds = pc.fill_null(found["start_seconds"], 0.0)
        bad = pc.invert(pc.is_in(pc.fill_null(found["status"], "ok"), pa.array(GOOD_STATUSES)))
        nothing = pa.nulls(len(of), pa.string())
        columns = {name: found[name] for name in UNITS_SCHEMA.names if name in found.column_names}
        columns |= {
            "first_index": pa.array(first),
            "end_index": pa.array(end),
            "reach": pa.array(np.where(is_last, self.reach_V[of], 0)),
            "share_of_file": pa.array(share),
            "video_start_seconds": start_seconds,
            "known_status": pc.if_else(bad, found["status"], nothing),
            "known_error": pc.if_else(bad, found["error"], nothing),
        }
        return pa.table([columns[name] for name in UNITS_SCHEMA.names], schema=UNITS_SCHEMA)


def plan(manifest: pa.Table, *, fps: float, segment_frames: int) -> Plan:
    """The segments of all videos.

    Raises:
        InputError: a good video has no uri, no duration, or an impossible time range.
    """
    status = pc.fill_null(manifest["status"], "ok")
    is_bad = pc.invert(pc.is_in(status, pa.array(GOOD_STATUSES))).to_numpy()
    start, end, duration = (
        pc.fill_null(manifest[name], float("nan")).to_numpy()
        for name in ("start_seconds", "end_seconds", "duration_seconds")
    )
    _check_ranges(manifest, start, end, needs_duration=~is_bad & np.isnan(duration))
    first = np.ceil(np.nan_to_num(start) * fps - 1e-9)
    limit = np.where(np.isnan(end), np.inf, np.ceil(end * fps - 1e-9))
    header_end = np.where(np.isnan(duration), limit, np.ceil(duration * fps - 1e-9))
    header_end = np.where(is_bad, first + 1, header_end)
    last = np.maximum(first + 1, np.minimum(header_end, limit))
    num_V = np.where(is_bad, 1, np.ceil((last - first) / segment_frames)).astype(np.int64)
    video_N = np.repeat(np.arange(len(num_V), dtype=np.int32), num_V)
    number_N = np.arange(len(video_N)) - np.repeat(np.cumsum(num_V) - num_V, num_V)
    return Plan(
        manifest=manifest,
        fps=fps,
        segment_frames=segment_frames,
        first_V=first.astype(np.int64),
        end_V=last.astype(np.int64),
        reach_V=np.minimum(segment_frames, np.maximum(0, limit - last)).astype(np.int64),
        video_N=video_N,
        first_N=first.astype(np.int64)[video_N] + number_N * segment_frames,
    )


def segments_of(unit: dict[str, Any], fps: float, segment_frames: int) -> list[dict[str, Any]]:
    """The segments of a unit in order: what a decoder is asked for.

    Each is the unit's row with `segment_id`, `start_seconds`, `end_seconds`, `first_index`,
    `num_frames` and `is_last`, which says that the unit ends with it.
    """
    requests = []
    for index in range(unit["first_index"], unit["end_index"], segment_frames):
        count = min(segment_frames, unit["end_index"] - index)
        is_last = index + count >= unit["end_index"]
        requests.append(
            unit
            | {
                "segment_id": segment_id_of(unit["video_id"], index),
                "start_seconds": index / fps,
                "end_seconds": (index + count) / fps,
                "first_index": index,
                "num_frames": count + (unit["reach"] if is_last else 0),
                "is_last": is_last,
            }
        )
    return requests


def _check_ranges(
    manifest: pa.Table, start_V: np.ndarray, end_V: np.ndarray, *, needs_duration: np.ndarray
) -> None:
    has_uri = pc.not_equal(pc.fill_null(manifest["uri"], ""), "").to_numpy()
    begin_V = np.where(np.isnan(start_V), 0.0, start_V)
    nan_of = {
        name: pc.fill_null(pc.is_nan(manifest[name]), False).to_numpy()
        for name in ("start_seconds", "end_seconds")
    }
    faults = {
        "has no uri: give its file, or leave the row out": ~has_uri,
        "has no duration_seconds: write the manifest with jobs.index": needs_duration
        & np.isnan(end_V),
        "has a start_seconds that is not 0 or more": nan_of["start_seconds"]
        | ~((begin_V >= 0) & (begin_V < np.inf)),
        "has an end_seconds that is not after its start_seconds": nan_of["end_seconds"]
        | (~np.isnan(end_V) & ~((end_V > begin_V) & (end_V < np.inf))),
    }
    for fault, is_bad in faults.items():
        if is_bad.any():
            row = manifest.slice(int(np.flatnonzero(is_bad)[0]), 1).to_pylist()[0]
            raise InputError(
                f"the manifest's video `{row['video_id']}` (`{row['uri'] or ''}`, from "
                f"{row['start_seconds']} to {row['end_seconds']} s) {fault}."
            )


WATCHED = ("etag", "size_bytes")
"""Columns of a manifest in which a changed file differs."""


def changed_videos(
    before: pa.Table, now: pa.Table, watched: Sequence[str] = WATCHED
) -> dict[str, list[str]]:
    """Videos of both manifests that differ in a watched column: id -> names of these columns."""
    at = pc.index_in(now["video_id"], before["video_id"].combine_chunks())
    both = at.is_valid()
    old, new = before.take(at.drop_null()), now.filter(both)
    found: dict[str, list[str]] = {}
    for name in watched:
        same = [a == b for a, b in zip(old[name].to_pylist(), new[name].to_pylist(), strict=True)]
        for video_id in new["video_id"].filter(pa.array([not s for s in same])).to_pylist():
            found.setdefault(video_id, []).append(name)
    return found


MAX_UNIT_SEGMENTS = 64
"""Most segments of a unit: what a lost worker may have to read again."""

UNITS_PER_WORKER = 4
"""Units that each worker gets at least, where there are so many segments: the last ones then end
at about the same time."""

MIN_UNIT_BYTES = 48 << 20
"""Least bytes of an S3 object that a unit covers. Each unit reads the header and the index of its
file again (a few MB)."""


def unit_sizes(plan: Plan, which_N: np.ndarray, num_workers: int) -> np.ndarray:
    """Most segments of a unit for each video, int64 [V].

    As many as give every worker a few units; more where an object on S3 has few bytes per segment.
    """
    wanted = int(which_N.sum()) / (UNITS_PER_WORKER * max(1, num_workers))
    size = min(MAX_UNIT_SEGMENTS, max(1, math.ceil(wanted)))
    num_V = np.bincount(plan.video_N, minlength=len(plan.first_V))
    size_bytes_V = pc.fill_null(plan.manifest["size_bytes"], 0).to_numpy()
    is_s3_V = pc.starts_with(plan.manifest["uri"], "s3://").to_numpy()
    least = np.ceil(MIN_UNIT_BYTES * num_V / np.maximum(1, size_bytes_V))
    return np.where(is_s3_V, np.clip(least, size, MAX_UNIT_SEGMENTS), size).astype(np.int64)


def longest_first(units: pa.Table) -> pa.Table:
    """The units by falling number of frames; those of one length keep their order.

    A segment of 128 frames takes a VGG on one core more than a minute: if it comes last, the other
    cores are idle meanwhile. On a GPU it takes a second, and the order of the plan gives rounds of
    segments that are more alike.
    """
    frames = pc.subtract(units["end_index"], units["first_index"])
    return units.take(pc.sort_indices(pc.negate(frames)))
