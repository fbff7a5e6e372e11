"""Output folders: begun with one config, extended, retried, and read back."""

import pyarrow as pa
import pytest

from caan import schema, storage
from caan.errors import InputError
from caan.outputs import layout
from caan.outputs.plan import plan_segments
from caan.schema import MANIFEST_SCHEMA, table_of

CONFIG = {"fps": 2.0, "detector": "retinaface"}


def plan_of(*videos, duration_seconds=10.0, **shared):
    rows = [
        {"video_id": v, "uri": f"/{v}", "duration_seconds": duration_seconds, "etag": "1"} | shared
        for v in videos
    ]
    return plan_segments(table_of(rows, MANIFEST_SCHEMA), fps=1.0, segment_frames=4)


def finish(shard, statuses=None):
    """What the stages write of a shard; `statuses` by video, else ok."""
    plan = storage.read_table(shard.plan)
    table = plan.select(["segment_id", "video_id", "attempt"]).append_column(
        "status", pa.array([(statuses or {}).get(v, "ok") for v in plan["video_id"].to_pylist()])
    )
    half = max(1, table.num_rows // 2)
    storage.write_table(table.slice(half), storage.join(shard.folder, "part-1.parquet"))
    storage.write_table(table.slice(0, half), storage.join(shard.folder, "part-0.parquet"))
    storage.write_bytes(storage.join(shard.folder, layout.SUCCESS), b"")


def extend(output, plan, **options):
    return layout.extend_plan(output, "features", plan, **{"retry_failed": False} | options)


def rows_of(output):
    tables = layout.latest_segments(output, "features")
    return sorted(
        (row["video_id"], row["attempt"], row["status"]) for t in tables for row in t.to_pylist()
    )


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "out")


def test_an_output_is_opened_again_with_the_same_config_only(output):
    layout.open_output(output, CONFIG, "f1", "error")
    storage.write_bytes(storage.join(output, "features", "x"), b"kept")
    layout.open_output(output, CONFIG, "f1", "error")
    changed = CONFIG | {"fps": 4.0, "seed": 1}
    with pytest.raises(InputError) as failure:
        layout.open_output(output, changed, "f2", "error")
    assert "fps (2.0 -> 4.0), seed (None -> 1)" in str(failure.value)
    assert "detector" not in str(failure.value)
    assert storage.exists(storage.join(output, "features", "x"))
    layout.open_output(output, changed, "f2", "recompute")
    assert not storage.exists(storage.join(output, "features"))
    assert storage.read_json(storage.join(output, "run.json"))["fingerprint_of"] == changed


def test_a_folder_that_holds_something_else_is_refused_and_stays(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for on_change in ("error", "recompute"):
        with pytest.raises(InputError, match="has files but no run"):
            layout.open_output(str(tmp_path), CONFIG, "f", on_change)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_output_on_s3_is_opened_like_a_local_one(s3_bucket):
    output = s3_bucket + "/out"
    layout.open_output(output, CONFIG, "f1", "error")
    layout.open_output(output, CONFIG, "f1", "error")
    with pytest.raises(InputError, match="fps"):
        layout.open_output(output, {"fps": 1.0}, "f2", "error")
    shards = extend(output, plan_of("a"))
    finish(shards[0])
    assert extend(output, plan_of("a"))[0].is_finished()
    layout.open_output(output, {"fps": 1.0}, "f2", "recompute")
    assert [f.uri for f in storage.list_files(output)] == [output + "/run.json"]


def test_a_longer_manifest_adds_shards_for_its_new_videos_only(output, monkeypatch):
    monkeypatch.setattr(layout, "SHARD_SEGMENTS", 3)
    first = extend(output, plan_of("a", "b"))
    assert [(s.attempt, s.number) for s in first] == [(0, 0), (0, 1)]
    assert extend(output, plan_of("a", "b")) == first
    assert extend(output, plan_of("b")) == first
    more = extend(output, plan_of("c", "a", "b"))
    assert more[:2] == first
    assert storage.read_table(more[2].plan).equals(plan_of("c"))
    assert not any(shard.is_finished() for shard in more)
    finish(more[2])
    assert [shard.is_finished() for shard in more] == [False, False, True]


def test_a_first_run_may_ask_for_retries(output):
    assert len(extend(output, plan_of("a"), retry_failed=True)) == 1


def test_a_retry_plans_all_segments_of_failed_videos_once_all_is_done(output):
    shards = extend(output, plan_of("a", "b", "c"))
    assert extend(output, plan_of("a", "b", "c"), retry_failed=True) == shards
    finish(shards[0], {"b": "timed_out", "c": "no_face"})
    assert layout.failed_videos(output, "features") == {"b"}
    assert extend(output, plan_of("a", "b", "c")) == shards
    retried = extend(output, plan_of("a", "b", "c"), retry_failed=True)
    assert [(s.attempt, s.number) for s in retried] == [(0, 0), (1, 0)]
    plan = storage.read_table(retried[1].plan)
    assert set(plan["video_id"].to_pylist()) == {"b"}
    assert set(plan["attempt"].to_pylist()) == {1}
    # A retry that was interrupted goes on; it is not retried again.
    assert extend(output, plan_of("a", "b", "c"), retry_failed=True) == retried
    finish(retried[1])
    assert rows_of(output) == sorted(
        [("a", 0, "ok")] * 3 + [("b", 1, "ok")] * 3 + [("c", 0, "no_face")] * 3
    )
    assert extend(output, plan_of("a", "b", "c"), retry_failed=True) == retried


def test_columns_without_the_attempt_still_give_each_segment_once(output):
    shards = extend(output, plan_of("a", "b"))
    finish(shards[0], {"b": "crashed"})
    finish(extend(output, plan_of("a", "b"), retry_failed=True)[1])
    tables = list(layout.latest_segments(output, "features", ["segment_id", "status"]))
    assert all(table.column_names == ["segment_id", "status"] for table in tables)
    ids = [i for table in tables for i in table["segment_id"].to_pylist()]
    assert sorted(ids) == sorted(plan_of("a", "b")["segment_id"].to_pylist())


def test_a_changed_file_is_done_anew_only_when_asked(output):
    finish(extend(output, plan_of("a", "b"))[0])
    changed = pa.concat_tables([plan_of("a"), plan_of("b", etag="2", duration_seconds=3.0)])
    with pytest.raises(InputError, match="`/b` changed"):
        extend(output, changed)
    shards = extend(output, changed, recompute_changed=True)
    assert [(s.attempt, s.number) for s in shards] == [(0, 0), (1, 0)]
    assert extend(output, changed, recompute_changed=True) == shards
    assert extend(output, changed) == shards
    finish(shards[1])
    # The shorter file leaves none of the old one's segments.
    assert rows_of(output) == [("a", 0, "ok")] * 3 + [("b", 1, "ok")]


def test_another_marked_face_is_a_change_where_faces_are_marked(output):
    watched = ("etag", "size_bytes", "face_box")
    finish(extend(output, plan_of("a", "b", face_box=[0, 0, 9, 9]))[0])
    moved = pa.concat_tables(
        [plan_of("a", face_box=[0, 0, 9, 9]), plan_of("b", face_box=[1, 0, 9, 9])]
    )
    assert len(extend(output, moved)) == 1
    with pytest.raises(InputError, match=r"`/b` changed \(face_box\)"):
        extend(output, moved, watched=watched)
    shards = extend(output, moved, watched=watched, recompute_changed=True)
    assert [(s.attempt, s.number) for s in shards] == [(0, 0), (1, 0)]
    assert set(storage.read_table(shards[1].plan)["video_id"].to_pylist()) == {"b"}


def test_making_anew_that_was_killed_goes_on(output, monkeypatch):
    layout.open_output(output, CONFIG, "f1", "error")
    for name in ("features/x", "zebra/x"):
        storage.write_bytes(storage.join(output, name), b"old")
    delete, calls = storage.delete, []

    def die_at_the_second(path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        delete(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", die_at_the_second)
        patch.setattr(storage, "check_writable", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            layout.open_output(output, {"fps": 1.0}, "f2", "recompute")
    layout.open_output(output, {"fps": 1.0}, "f2", "recompute")
    assert [f.uri for f in storage.list_files(output)] == [storage.join(output, "run.json")]


def test_reading_what_was_never_written_says_so(output):
    extend(output, plan_of("a"))
    with pytest.raises(InputError, match="has no finished `features`"):
        list(layout.latest_segments(output, "features"))


@pytest.mark.parametrize(
    ("segments", "video"),
    [
        (["ok", "ok"], "ok"),
        (["no_face", "ok"], "ok"),
        (["no_face", "no_face"], "no_face"),
        (["ok", "timed_out"], "partial"),
        (["no_face", "crashed"], "partial"),
        (["partial", "no_face"], "partial"),
        (["missing"], "missing"),
        (["timed_out", "crashed"], "timed_out"),
    ],
)
def test_the_status_of_a_video_follows_from_its_segments(segments, video):
    assert schema.video_status(segments) == video
