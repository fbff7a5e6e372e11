"""Output folders: begun with one config, cleared, rid of videos, and read back."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caan import schema, storage
from caan.errors import InputError
from caan.outputs import layout, log
from caan.outputs.lease import FILE, Lease
from caan.outputs.log import LogWriter
from tests.support.row_files import add, counted, row_files, rows_of, stored, write

CONFIG = {"fps": 2.0, "detector": "retinaface"}
CHANGED = CONFIG | {"fps": 4.0, "seed": 1}


def names(output):
    return [file.uri.removeprefix(output + "/") for file in storage.list_files(output)]


def test_an_output_is_opened_again_with_the_same_config_only(output):
    assert not layout.open_output(output, CONFIG, "f1", "error")
    with Lease(output, "extract") as lease:  # a lease alone makes no folder foreign
        add(LogWriter(output, lease.writer), ("a", 0, "ok"))
        assert not layout.open_output(output, CONFIG, "f1", "error")
    with pytest.raises(InputError) as failure:
        layout.open_output(output, CHANGED, "f2", "error")
    assert "fps (2.0 -> 4.0), seed (None -> 1)" in str(failure.value)
    assert "detector" not in str(failure.value)
    assert layout.open_output(output, CHANGED, "f2", "recompute")
    assert stored(output) == [("a", 0, "ok")], "opening alone removes nothing"


def test_a_folder_that_holds_something_else_is_refused_and_stays(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for on_change in ("error", "recompute"):
        with pytest.raises(InputError, match="has files but no run"):
            layout.open_output(str(tmp_path), CONFIG, "f", on_change)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_forecast_or_a_lease_makes_no_folder_foreign(tmp_path):
    storage.write_json(tmp_path / ".forecast.json", {})
    storage.write_json(tmp_path / FILE, {})
    assert not layout.open_output(str(tmp_path), CONFIG, "f", "error")


@pytest.mark.parametrize("on_change", ["error", "recompute"])
def test_an_output_of_an_earlier_engine_is_refused_and_stays(output, on_change):
    record = {"job": "extract", "is_complete": True, "fingerprint": "f1", "fingerprint_of": CONFIG}
    storage.write_json(output + "/run.json", record)
    storage.write_bytes(output + "/features/attempt=0/shard-00000/_SUCCESS", b"")
    before = names(output)
    with pytest.raises(InputError, match="written by an earlier engine"):
        layout.open_output(output, CONFIG, "f1", on_change)
    assert names(output) == before


def test_an_output_is_cleared_but_for_its_log(output):
    layout.open_output(output, CONFIG, "f1", "error")
    with Lease(output, "extract") as lease:
        writer = LogWriter(output, lease.writer)
        add(writer, ("a", 0, "ok"), ("b", 0, "crashed"))
        write(output, ("c", 0, "ok"))
        for name in ("labels/part-00000.parquet", "zebra/x", "manifest.parquet"):
            storage.write_bytes(storage.join(output, name), b"old")
        layout.clear(writer)
        assert names(output) == [FILE, *(f"log/{n:08d}.json" for n in range(3)), "run.json"]
    assert counted(log.read(output)) == []
    add(writer, ("a", 0, "ok"))
    assert stored(output) == [("a", 0, "ok")]


def test_clearing_that_was_killed_goes_on(output, monkeypatch):
    layout.open_output(output, CONFIG, "f1", "error")
    writer = LogWriter(output, "w")
    add(writer, ("a", 0, "ok"))
    storage.write_bytes(storage.join(output, "zebra/x"), b"old")
    delete, calls = storage.delete, []

    def die_at_the_second(path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        delete(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            layout.clear(writer)
    assert counted(log.read(output)) == [], "rows of another config count no more"
    assert layout.open_output(output, CHANGED, "f2", "recompute")
    layout.clear(LogWriter(output, "w2"))
    assert [name for name in names(output) if not name.startswith("log/")] == ["run.json"]


def test_dropped_videos_leave_the_rows_of_the_others(output):
    writer = LogWriter(output, "w")
    a, b, c = ("a", 0, "ok"), ("b", 0, "ok"), ("c", 0, "crashed")
    add(writer, a, ("a", 4, "crashed"), b, c)
    (alone,) = add(writer, ("a", 8, "ok"))
    (kept,) = add(writer, ("d", 0, "ok"))
    before = {row["segment_id"]: row for t in layout.read_rows(output, "features")
              for row in t.to_pylist()}  # fmt: skip
    assert layout.drop_videos(writer, ["a", "x"]) == 3
    assert stored(output) == counted(log.read(output)) == [b, c, ("d", 0, "ok")]
    for table in layout.read_rows(output, "features"):
        for row in table.to_pylist():
            assert row == before[row["segment_id"]]
    files = log.read(output).files("features")
    assert row_files(output) == files, "the old files are gone"
    assert kept in files
    assert alone not in files
    assert [name.count("/failed-") for name in files].count(1) == 1
    number = writer.number
    assert layout.drop_videos(writer, ["a"]) == 0
    assert (writer.number, row_files(output)) == (number, files)


def test_dropping_that_was_killed_before_its_commit_changes_nothing(output, monkeypatch):
    writer = LogWriter(output, "w")
    add(writer, ("a", 0, "ok"), ("b", 0, "ok"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "create_bytes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        layout.drop_videos(writer, ["a"])
    assert stored(output) == [("a", 0, "ok"), ("b", 0, "ok")]
    later = LogWriter(output, "later")
    assert layout.remove_garbage(output, "features", later.state) == 1
    assert layout.drop_videos(later, ["a"]) == 1
    assert stored(output) == [("b", 0, "ok")]


def test_failed_segments_are_let_go_alone(output):
    writer = LogWriter(output, "w")
    good = [("a", 0, "ok"), ("b", 0, "partial"), ("b", 4, "no_face")]
    add(writer, *good[:2], ("a", 4, "timed_out"), ("c", 0, "missing"))
    add(writer, good[2], ("b", 8, "out_of_memory"))
    assert len(writer.state.failed_files()) == 2
    writer.commit(layout.RECEIPTS_SCHEMA.empty_table(), writer.state.failed_files())
    assert stored(output) == counted(log.read(output)) == good


def test_row_files_are_sorted_in_small_row_groups(tmp_path, monkeypatch):
    rows = rows_of([("b", n * 4, "ok") for n in range(40)] + [("a", 0, "ok")])
    monkeypatch.setattr(layout, "ROW_GROUP_BYTES", rows.nbytes // 10)
    receipts = layout.write_rows(rows, str(tmp_path), "features")
    (name,) = set(receipts["file"].to_pylist())
    file = pq.ParquetFile(tmp_path / name)
    assert 9 <= file.num_row_groups <= 12
    ids = file.read()["segment_id"].to_pylist()
    assert ids == sorted(rows["segment_id"].to_pylist())
    of_a = storage.read_table(tmp_path / name, ["segment_id"], video_ids=["a", "x"])
    assert of_a.to_pydict() == {"segment_id": ["a-00000000"]}
    assert storage.read_table(tmp_path / name, video_ids=[]).num_rows == 0


def test_a_table_that_is_replaced_as_a_whole_is_the_files_of_its_folder(output):
    for name in ("labels/part-00001.parquet", "labels/part-00000.parquet", "labels/x.tmp"):
        storage.write_table(pa.table({"n": [1]}), storage.join(output, name))
    found = layout.table_files(output, "labels")
    assert found == [f"{output}/labels/part-0000{n}.parquet" for n in range(2)]
    assert layout.table_files(output, "windows") == []


def test_reading_what_was_never_written_says_so(output):
    write(output, ("a", 0, "ok"))
    with pytest.raises(InputError, match="has no finished `features`"):
        list(layout.read_rows(output, "features"))


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
