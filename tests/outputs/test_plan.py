"""Manifest rows become segments that cover the grid once, in units that cover each segment once."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest

from caan.errors import InputError
from caan.outputs.plan import (
    MAX_UNIT_SEGMENTS,
    MIN_UNIT_BYTES,
    changed_videos,
    check_manifest,
    longest_first,
    plan,
    segments_of,
    unit_sizes,
)
from caan.schema import (
    MANIFEST_SCHEMA,
    UNITS_SCHEMA,
    segment_id_of,
    table_of,
    video_id_of,
)


def manifest_of(*rows):
    filled = [
        {"video_id": f"v{n}", "uri": f"/v{n}.mp4", "duration_seconds": 10.0, "status": "ok"} | row
        for n, row in enumerate(rows)
    ]
    return table_of(filled, MANIFEST_SCHEMA)


def plan_of(*rows, fps=2.0, segment_frames=8):
    return plan(manifest_of(*rows), fps=fps, segment_frames=segment_frames)


def all_of(planned):
    return np.ones(planned.num_segments, bool)


def requests_of(planned, unit_segments=1000, which_N=None):
    """The segments that decoders are asked for, unit by unit."""
    units = planned.units(all_of(planned) if which_N is None else which_N, unit_segments)
    assert units.schema == UNITS_SCHEMA
    return [
        request
        for unit in units.to_pylist()
        for request in segments_of(unit, planned.fps, planned.segment_frames)
    ]


def done_of(planned, which_N):
    """Some segments as the log gives them."""
    ids = planned.manifest["video_id"].to_numpy()[planned.video_N[which_N]]
    return pa.table(
        {"video_id": pa.array(ids, pa.string()), "first_index": planned.first_N[which_N]}
    )


def test_ids_never_change():
    # Golden: stored outputs are found by these.
    assert video_id_of("/clips/a.mp4", None, None) == "0e0adddaa5996c53"
    assert video_id_of("s3://bucket/a.mp4", 1.5, 3.0) == "4a89af01ffe2d8e1"
    assert segment_id_of("0123456789abcdef", 128) == "0123456789abcdef-00000128"


@pytest.mark.parametrize("segment_frames", [1, 7, 8, 1000])
@pytest.mark.parametrize("fps", [0.3, 1.0, 29.97])
@pytest.mark.parametrize(
    "row",
    [
        {"duration_seconds": 10.0},
        {"duration_seconds": 0.01},
        {"start_seconds": 3.3, "end_seconds": 7.7},
        {"start_seconds": 2.0},
        {"start_seconds": 1.0, "end_seconds": 1e12},
    ],
)
def test_segments_cover_the_grid_frames_of_a_video_once(row, fps, segment_frames):
    plan = requests_of(plan_of(row, fps=fps, segment_frames=segment_frames))
    start, end = row.get("start_seconds", 0.0), row.get("end_seconds", math.inf)
    expected = [k for k in range(400) if start <= k / fps < min(end, 10.0)]
    if row.get("duration_seconds") == 0.01:
        expected = [0]
    covered = [k for s in plan for k in range(s["first_index"], s["first_index"] + s["num_frames"])]
    assert covered[: len(expected)] == expected
    assert len(set(covered)) == len(covered)
    # Only the last segment of an open end reaches on, for files longer than their header says.
    reach = segment_frames if end > 10.0 else 0
    assert len(covered) == len(expected) + reach
    assert all(s["num_frames"] <= segment_frames for s in plan[:-1])
    assert [s["segment_id"] for s in plan] == [segment_id_of("v0", s["first_index"]) for s in plan]
    for before, after in itertools.pairwise(plan):
        assert before["end_seconds"] == after["start_seconds"]


def test_a_unit_keeps_what_names_the_file():
    box = [1.0, 2.0, 3.0, 4.0]
    row = {"etag": "e", "size_bytes": 5, "face_box": box, "face_pts_seconds": 2.5}
    (unit,) = plan_of(row | {"start_seconds": 1.0}).units(np.ones(3, bool), 9).to_pylist()
    assert {name: unit[name] for name in row} == row
    assert (unit["first_index"], unit["end_index"], unit["video_start_seconds"]) == (2, 20, 1.0)
    assert unit["share_of_file"] == pytest.approx(18 / 20)
    assert (unit["video_id"], unit["uri"]) == ("v0", "/v0.mp4")


def test_a_bad_video_keeps_one_segment_with_its_status():
    bad = {"status": "unreadable", "error": "no demuxer", "duration_seconds": None}
    found = requests_of(plan_of({}, bad, {}))
    of_bad = [row for row in found if row["video_id"] == "v1"]
    assert [(r["known_status"], r["known_error"]) for r in of_bad] == [("unreadable", "no demuxer")]
    assert {row["known_status"] for row in found if row["video_id"] != "v1"} == {None}


def random_manifest(rng):
    rows = []
    for _ in range(rng.integers(1, 12)):
        start = float(rng.choice([0.0, rng.uniform(0, 50)]))
        row = {"duration_seconds": float(start + rng.choice([0.01, 3.0, rng.uniform(0.1, 200)]))}
        if rng.random() < 0.6:
            row["start_seconds"] = start
        if rng.random() < 0.3:
            row["end_seconds"] = start + float(rng.uniform(0.1, 300))
        if rng.random() < 0.2:
            row |= {"status": "no_video", "error": "only sound", "duration_seconds": None}
        rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_units_cover_each_segment_that_is_left_exactly_once(seed):
    rng = np.random.default_rng(seed)
    fps = float(rng.choice([0.3, 1.0, 2.0, 29.97]))
    planned = plan_of(*random_manifest(rng), fps=fps, segment_frames=int(rng.integers(1, 40)))
    is_done = rng.random(planned.num_segments) < rng.choice([0.0, 0.3, 0.9, 1.0])
    done = done_of(planned, is_done)
    strangers = pa.table({"video_id": ["gone", "v0"], "first_index": [0, 10**9]})
    left = planned.not_in(pa.concat_tables([done, strangers]).take(rng.permutation(len(done) + 2)))
    assert (left == ~is_done).all()
    sizes = rng.integers(1, 9, planned.manifest.num_rows)
    expected = done_of(planned, left).to_pylist()
    by_id = {r["segment_id"]: r for r in requests_of(planned, 1)}
    for most in (1, 3, 1000, sizes):
        units = planned.units(left, most)
        found = requests_of(planned, most, left)
        assert [{k: r[k] for k in ("video_id", "first_index")} for r in found] == expected
        # A unit changes nothing of a segment but where it ends the unit, and what it is part of.
        other = ("is_last", "share_of_file", "end_index", "reach")
        for request in found:
            alone = by_id[request["segment_id"]]
            assert {k: v for k, v in request.items() if k not in other} == {
                k: v for k, v in alone.items() if k not in other
            }
        per_video = dict(zip(planned.manifest["video_id"].to_pylist(), sizes, strict=True))
        for unit in units.to_pylist():
            count = len(segments_of(unit, planned.fps, planned.segment_frames))
            assert 1 <= count <= (per_video[unit["video_id"]] if most is sizes else most)
        assert (
            longest_first(units)
            .sort_by([("video_id", "ascending"), ("first_index", "ascending")])
            .equals(units.sort_by([("video_id", "ascending"), ("first_index", "ascending")]))
        )
    counts = [r["end_index"] - r["first_index"] for r in planned.units(left, 1).to_pylist()]
    assert planned.seconds(left) == pytest.approx(sum(counts) / fps)


def test_units_are_small_for_many_workers_and_larger_for_thin_objects():
    hour = {"duration_seconds": 3600.0}
    planned = plan_of(
        hour | {"uri": "s3://b/thin.mp4", "size_bytes": 450 * MIN_UNIT_BYTES // 20},
        hour | {"uri": "s3://b/thick.mp4", "size_bytes": 4500 * MIN_UNIT_BYTES},
        hour | {"size_bytes": 1},
        segment_frames=16,
    )
    left = all_of(planned)
    assert unit_sizes(planned, left, 1).tolist() == [MAX_UNIT_SEGMENTS] * 3
    assert unit_sizes(planned, left, 1000).tolist() == [20, 1, 1]
    left[4:] = False
    assert unit_sizes(planned, left, 1).tolist() == [20, 1, 1]
    unknown = plan_of(hour | {"uri": "s3://b/x.mp4", "size_bytes": None})
    assert unit_sizes(unknown, all_of(unknown), 1000).tolist() == [MAX_UNIT_SEGMENTS]


@pytest.mark.parametrize("change", [{"etag": "2"}, {"size_bytes": 6}, {"size_bytes": None}])
def test_a_changed_file_is_found_by_name(change):
    before = manifest_of({"etag": "1", "size_bytes": 5}, {"etag": "1"})
    now = manifest_of({"etag": "1", "size_bytes": 5} | change, {"etag": "1"}, {"etag": "new"})
    now = now.take([2, 1, 0])
    assert changed_videos(before, now) == {"v0": list(change)}
    assert changed_videos(now, before) == {"v0": list(change)}
    assert changed_videos(before, before) == {}


def test_another_marked_face_is_a_change_where_faces_are_marked():
    before, now = (manifest_of({"face_box": [x, 0.0, 9.0, 9.0]}) for x in (0.0, 1.0))
    assert changed_videos(before, now) == {}
    assert changed_videos(before, now, ("etag", "face_box")) == {"v0": ["face_box"]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"uri": ["a"]}), "manifest `m` has no column `video_id`; it has uri"),
        (manifest_of({}, {"video_id": "v0"}), "names video_id `v0` twice"),
        (manifest_of(), "has no rows"),
        (manifest_of({"video_id": None}), "without a video_id"),
        (pa.table({"video_id": ["v"], "uri": ["u"], "fps": ["fast"]}), "column `fps` is string"),
    ],
)
def test_a_bad_manifest_is_refused_by_name(table, message):
    with pytest.raises(InputError, match=message):
        check_manifest(table, "m")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"uri": None}, "`v0` .*has no uri"),
        ({"duration_seconds": None}, "`v0` .*has no duration_seconds"),
        ({"start_seconds": -1.0}, r"`v0` .*from -1.0 to None s\) has a start_seconds that is not"),
        (
            {"start_seconds": 2.0, "end_seconds": 2.0},
            r"`v0` .*has an end_seconds that is not after",
        ),
        ({"end_seconds": math.nan}, "`v0` .*has an end_seconds that is not after"),
        ({"start_seconds": math.nan}, "`v0` .*has a start_seconds that is not"),
        ({"duration_seconds": math.nan}, "`v0` .*has no duration_seconds"),
        ({"start_seconds": math.inf}, "`v0` .*has a start_seconds that is not"),
        ({"end_seconds": math.inf}, "`v0` .*has an end_seconds that is not"),
    ],
)
def test_a_video_that_cannot_be_planned_is_named(row, message):
    with pytest.raises(InputError, match=message):
        plan_of(row)


def test_a_manifest_written_by_hand_gets_the_columns_it_lacks():
    table = pa.table({"video_id": ["v"], "uri": ["u"], "duration_seconds": [3]})
    checked = check_manifest(table, "m")
    assert checked.schema == MANIFEST_SCHEMA
    assert checked["duration_seconds"].to_pylist() == [3.0]
