"""The committer: receipts become commits, and a repeated task's rows do not count twice."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from caan import storage
from caan.errors import StorageError
from caan.outputs import log
from caan.outputs.committer import Committer
from caan.outputs.log import LogWriter, LostOutput
from tests.support.row_files import counted, row_files, stored, write

A, B, C = ("a", 0, "ok"), ("a", 4, "ok"), ("b", 0, "crashed")
NEVER = 1e6


def test_the_same_segments_twice_count_once_and_the_second_file_goes(output: str) -> None:
    with Committer(LogWriter(output, "w"), seconds=NEVER) as committer:
        first = write(output, A, B, C)
        committer.add(first)
        committer.add(write(output, A, B))  # the task is repeated while the first waits
        committer.flush()
        committer.add(write(output, B, C))  # and after the commit, in two files
    assert committer.num_refused == 3
    assert stored(output) == [A, B, C]
    assert row_files(output) == sorted(set(first["file"].to_pylist()))


def test_a_file_with_some_segments_twice_is_refused_whole(output: str) -> None:
    with Committer(LogWriter(output, "w"), seconds=NEVER) as committer:
        committer.add(write(output, A))
        committer.add(write(output, A, B))
        committer.flush()
        assert stored(output) == [A]
        committer.add(write(output, B))  # read once more
    assert committer.num_refused == 1
    assert stored(output) == [A, B]


def test_receipts_are_committed_while_the_run_goes_on(output: str) -> None:
    with Committer(LogWriter(output, "w"), seconds=0.1) as committer:
        committer.add(pa.concat_tables([write(output, A), write(output, C)]))
        end = time.monotonic() + 30
        while counted(log.read(output)) != [A, C] and time.monotonic() < end:
            time.sleep(0.02)
        assert counted(log.read(output)) == [A, C]


def test_work_that_was_done_before_an_error_counts(output: str) -> None:
    with pytest.raises(ZeroDivisionError), Committer(LogWriter(output, "w"), seconds=NEVER) as c:
        c.add(write(output, A))
        raise ZeroDivisionError
    assert stored(output) == [A]


def test_a_driver_that_lost_its_output_is_told(output: str) -> None:
    with pytest.raises(LostOutput), Committer(LogWriter(output, "w"), seconds=0.05) as committer:
        second = LogWriter(output, "second")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            committer.add(write(output, ("a", int(time.monotonic() * 1e3), "ok")))
            time.sleep(0.02)
    assert counted(second.state) == counted(log.read(output)) == []


def test_what_a_commit_raised_after_the_last_receipts_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committer = Committer(LogWriter(str(tmp_path), "w"), seconds=0.02)

    def fail(*_: object) -> None:
        raise StorageError("no space left")

    with pytest.raises(StorageError, match="no space left"), committer:
        monkeypatch.setattr(storage, "create_bytes", fail)
        committer.add(write(str(tmp_path), A))
        committer._thread.join(timeout=30)


def test_a_commit_that_failed_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path)
    with Committer(LogWriter(output, "w"), seconds=NEVER) as committer:
        committer.add(write(output, A))
        with monkeypatch.context() as patch, pytest.raises(StorageError):
            patch.setattr(storage, "create_bytes", lambda *_: (_ for _ in ()).throw(StorageError()))
            committer.flush()
    assert stored(output) == [A]
