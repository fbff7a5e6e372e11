"""The log: what counts, who may write, and what is left of a half-done commit."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from caan import storage
from caan.errors import StorageError
from caan.outputs import layout, log
from caan.outputs.layout import RECEIPTS_SCHEMA
from caan.outputs.log import LogWriter, LostOutput
from caan.schema import STATUSES, video_status
from tests.support.row_files import add, counted, row_files, stored, write

A, B, C = ("a", 0, "ok"), ("a", 4, "no_face"), ("b", 0, "timed_out")


def same(one: log.State, other: log.State) -> bool:
    """Equal numbers and segments, whatever their order and encoding."""
    tables = [
        state.segments.cast(RECEIPTS_SCHEMA).sort_by(
            [("video_id", "ascending"), ("first_index", "ascending"), ("file", "ascending")]
        )
        for state in (one, other)
    ]
    return one.number == other.number and tables[0].equals(tables[1])


def test_what_commits_add_counts_and_what_they_remove_does_not(output: str) -> None:
    assert counted(log.read(output)) == []
    writer = LogWriter(output, "w")
    first = add(writer, A, B, C)
    add(writer, ("c", 0, "ok"))
    assert counted(log.read(output)) == stored(output) == sorted([A, B, C, ("c", 0, "ok")])
    assert same(writer.state, log.read(output))
    assert log.read(output).failed_files() == [name for name in first if "failed-" in name]
    writer.commit(write(output, ("c", 4, "ok")), first)
    assert counted(writer.state) == stored(output) == [("c", 0, "ok"), ("c", 4, "ok")]
    assert same(LogWriter(output, "later").state, dataclasses.replace(writer.state, number=4))


def test_receipts_say_what_the_rows_hold(output: str) -> None:
    rows = pa.table(
        {
            "segment_id": ["v-x-00000008", "v-x-00000000", "v-x-00000016"],
            "video_id": ["v-x"] * 3,
            "status": ["ok", "ok", "crashed"],
            "faces": [[{"score": 1.0}, {"score": 2.0}], [{"score": 1.0}], []],
        }
    )
    receipts = layout.write_rows(rows, output, "segment_scores")
    said = [(r["first_index"], r["num_faces"], r["status"]) for r in receipts.to_pylist()]
    assert said == [(0, 1, "ok"), (8, 2, "ok"), (16, 0, "crashed")]
    assert [name.count("/failed-") for name in receipts["file"].to_pylist()] == [0, 0, 1]
    assert layout.write_rows(rows.slice(0, 0), output, "segment_scores").equals(
        RECEIPTS_SCHEMA.empty_table()
    )


def test_a_file_that_no_commit_names_is_not_read(output: str) -> None:
    writer = LogWriter(output, "w")
    (name,) = add(writer, A)
    write(output, B)
    assert stored(output) == [A]
    assert len(row_files(output)) == 2
    assert layout.remove_garbage(output, "features", writer.state) == 1
    assert row_files(output) == [name]
    assert stored(output) == [A]


def test_a_second_writer_stops_the_first_at_its_next_commit(output: str) -> None:
    first = LogWriter(output, "jobs.extract on here")
    add(first, A)
    second = LogWriter(output, "jobs.extract on there")
    assert counted(second.state) == [A]
    with pytest.raises(LostOutput, match=r"taken over by jobs.extract on there: this run stops"):
        add(first, B)
    assert counted(log.read(output)) == stored(output) == [A]
    add(second, C)
    with pytest.raises(LostOutput):
        first.commit(RECEIPTS_SCHEMA.empty_table(), second.state.files("features"))
    assert stored(output) == sorted([A, C])


def test_a_writer_that_begins_while_another_commits_takes_the_next_number(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = LogWriter(output, "first")
    create = storage.create_bytes

    def be_late(path: str, content: bytes) -> None:
        monkeypatch.setattr(storage, "create_bytes", create)
        add(first, A)
        create(path, content)

    monkeypatch.setattr(storage, "create_bytes", be_late)
    second = LogWriter(output, "second")
    assert (second.number, counted(second.state)) == (2, [A])
    with pytest.raises(LostOutput):
        add(first, B)


def test_a_lost_answer_is_no_lost_output(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = storage.create_bytes

    def lose_the_answer(path: str, content: bytes) -> None:
        create(path, content)
        raise FileExistsError(path)  # what the client's second try finds

    monkeypatch.setattr(storage, "create_bytes", lose_the_answer)
    writer = LogWriter(output, "w")
    add(writer, A)
    add(writer, B)
    assert counted(log.read(output)) == counted(writer.state) == sorted([A, B])


def test_a_checkpoint_gives_what_all_commits_give(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "CHECKPOINT_COMMITS", 4)
    writer = LogWriter(output, "w")
    for n in range(9):
        files = add(writer, (f"v{n}", 0, "ok"), (f"v{n}", 4, "crashed"))
        if n % 3 == 2:
            writer.commit(RECEIPTS_SCHEMA.empty_table(), files[:1])
    folder = storage.join(output, log.FOLDER)
    points = [name for name in storage.list_names(folder) if "checkpoint" in name]
    assert points == [f"checkpoint-{n:08d}.parquet" for n in (3, 7, 11)]
    state = log.read(output)
    asked: list[int] = []
    read = log._read_commit
    monkeypatch.setattr(log, "_read_commit", lambda output, n: asked.append(n) or read(output, n))
    assert same(log.read(output), state)
    assert asked == [12]
    for name in points:
        storage.delete(storage.join(folder, name))
    assert same(log.read(output), state)
    assert len(asked) == 1 + 13


def test_starts_alone_make_checkpoints_too(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "CHECKPOINT_COMMITS", 2)
    add(LogWriter(output, "first"), A)
    for n in range(4):
        LogWriter(output, f"killed {n}")
    names = storage.list_names(storage.join(output, log.FOLDER))
    assert [name for name in names if "checkpoint" in name][-1] == "checkpoint-00000005.parquet"
    assert counted(log.read(output)) == [A]


@pytest.mark.parametrize("lost", [0, 2])
def test_a_gap_in_the_log_is_one_sentence(output: str, lost: int) -> None:
    writer = LogWriter(output, "w")
    for n in range(4):
        add(writer, (f"v{n}", 0, "ok"))
    storage.delete(log.path_of(output, lost))
    with pytest.raises(StorageError, match=rf"has a gap at commit {lost}: restore `log/`") as said:
        log.read(output)
    assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize("seed", range(8))
def test_statuses_of_videos_are_those_of_their_segments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = rng.permutation(list(STATUSES))[: rng.integers(1, len(STATUSES) + 1)]
    num_videos = int(rng.integers(0, 40))
    segments = [
        (f"v{video}", int(number) * 4, str(rng.choice(words)))
        for video in range(num_videos)
        for number in range(rng.integers(1, 6))
    ]
    expected: dict[str, int] = {}
    for video in range(num_videos):
        status = video_status([s for v, _, s in segments if v == f"v{video}"])
        expected[status] = expected.get(status, 0) + 1
    rng.shuffle(segments)
    rows = [
        {"file": f"features/{rng.integers(5)}", "video_id": v, "first_index": f, "status": s}
        for v, f, s in segments
    ]
    table = pa.Table.from_pylist(rows, RECEIPTS_SCHEMA).cast(log.STATE_SCHEMA)
    assert log.State(segments=table).statuses() == expected
    half = len(rows) // 2
    parts = [pa.Table.from_pylist(r, RECEIPTS_SCHEMA) for r in (rows[:half], rows[half:])]
    tables = pa.concat_tables(part.cast(log.STATE_SCHEMA) for part in parts)
    assert log.State(segments=tables.unify_dictionaries()).statuses() == expected
