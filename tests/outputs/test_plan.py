"""Manifest rows become segments that cover the grid once, in shards that keep videos whole."""

import itertools
import math

import pyarrow as pa
import pytest

from caan.errors import InputError
from caan.outputs.plan import check_manifest, new_segments, plan_segments, shards_of
from caan.schema import MANIFEST_SCHEMA, PLAN_SCHEMA, segment_id_of, table_of, video_id_of


def manifest_of(*rows):
    filled = [
        {"video_id": f"v{n}", "uri": f"/v{n}.mp4", "duration_seconds": 10.0, "status": "ok"} | row
        for n, row in enumerate(rows)
    ]
    return table_of(filled, MANIFEST_SCHEMA)


def plan_of(*rows, fps=2.0, segment_frames=8):
    return plan_segments(manifest_of(*rows), fps=fps, segment_frames=segment_frames)


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
    plan = plan_of(row, fps=fps, segment_frames=segment_frames).to_pylist()
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


def test_a_plan_has_its_schema_and_keeps_what_names_the_file():
    box = [1.0, 2.0, 3.0, 4.0]
    plan = plan_of({"etag": "e", "size_bytes": 5, "face_box": box, "start_seconds": 1.0})
    assert plan.schema == PLAN_SCHEMA
    row = plan.to_pylist()[0]
    assert (row["etag"], row["size_bytes"], row["face_box"]) == ("e", 5, box)
    assert (row["first_index"], row["video_start_seconds"], row["attempt"]) == (2, 1.0, 0)


def test_a_bad_video_keeps_one_row_with_its_status():
    bad = {"status": "unreadable", "error": "no demuxer", "duration_seconds": None}
    plan = plan_of({}, bad, {}).to_pylist()
    of_bad = [row for row in plan if row["video_id"] == "v1"]
    assert [(r["known_status"], r["known_error"]) for r in of_bad] == [("unreadable", "no demuxer")]
    assert {row["known_status"] for row in plan if row["video_id"] != "v1"} == {None}


@pytest.mark.parametrize("shard_segments", [1, 4, 100])
def test_shards_hold_all_segments_and_never_split_a_video(shard_segments):
    plan = plan_of({}, {"duration_seconds": 40.0}, {}, {"duration_seconds": 1.0})
    shards = shards_of(plan, shard_segments)
    assert pa.concat_tables(shards).equals(plan)
    ids = [video for shard in shards for video in set(shard["video_id"].to_pylist())]
    assert sorted(ids) == ["v0", "v1", "v2", "v3"]
    assert all(shard.num_rows >= shard_segments for shard in shards[:-1])
    assert shards_of(plan.slice(0, 0)) == []


def test_only_segments_of_new_videos_are_new():
    first, both = plan_of({"etag": "1"}), plan_of({"etag": "1"}, {"etag": "2"})
    assert new_segments(first, None) is first
    assert set(new_segments(both, first)["video_id"].to_pylist()) == {"v1"}
    assert new_segments(first, both).num_rows == 0


@pytest.mark.parametrize("change", [{"etag": "2"}, {"size_bytes": 6}])
def test_a_changed_file_is_refused_by_name(change):
    before = plan_of({"etag": "1", "size_bytes": 5})
    after = plan_of({"etag": "1", "size_bytes": 5} | change)
    said = rf"`/v0.mp4` changed \({next(iter(change))}\) since .*--on-change recompute"
    with pytest.raises(InputError, match=said):
        new_segments(after, before)


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
        ({"uri": None}, "`v0` has no uri"),
        ({"duration_seconds": None}, "`v0` .*has no duration_seconds"),
        ({"start_seconds": -1.0}, "`v0` has start_seconds -1.0"),
        ({"start_seconds": 2.0, "end_seconds": 2.0}, "`v0` has end_seconds 2.0"),
        ({"end_seconds": math.nan}, "`v0` has end_seconds nan"),
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
