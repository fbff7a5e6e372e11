"""Commits that a kill left half-way, as files: what is taken back, and what is left to do."""

import pyarrow as pa
import pytest

from caan import storage
from caan.outputs import commits
from caan.outputs.layout import Shard

IDS = [f"v-{n:08d}" for n in range(6)]


@pytest.fixture(params=["local", "s3"])
def shard(request, tmp_path):
    """Six segments, of which commits `a` and `b` hold two each."""
    output = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_bucket")
    shard = Shard(output=output, name="features", attempt=0, number=0)
    times = {"start_seconds": [0.0, 8.0] * 3, "end_seconds": [8.0, 10.0] * 3}
    storage.write_table(pa.table({"segment_id": IDS} | times), shard.plan)
    commit(shard, "w_a", IDS[:2])
    commit(shard, "w_b", IDS[2:4])
    return shard


def commit(shard, name, ids, *, pending=False, rows=True):
    suffix = ".pending.parquet" if pending else ".parquet"
    table = pa.table({"segment_id": ids})
    storage.write_table(table, storage.join(shard.state, "checkpoint", name + suffix))
    if rows:
        storage.write_table(table, storage.join(shard.folder, f"{name}-0.parquet"))


def names(shard):
    """Part files and checkpoint files."""
    folders = (shard.folder, storage.join(shard.state, "checkpoint"))
    return tuple(storage.list_names(folder) for folder in folders)


WHOLE = (["w_a-0.parquet", "w_b-0.parquet"], ["w_a.parquet", "w_b.parquet"])


def test_whole_commits_stay(shard):
    commits.undo_unfinished(shard)
    assert commits.settle(shard) == 2
    assert names(shard) == WHOLE


def test_progress_counts_from_what_is_committed(shard):
    commit(shard, "w_c", IDS[4:5], pending=True)
    assert commits.to_do(shard) == (2, 10.0)


@pytest.mark.parametrize("rows", [True, False])
def test_a_pending_commit_is_taken_back_with_its_rows(shard, rows):
    commit(shard, "w_c", IDS[4:], pending=True, rows=rows)
    commits.undo_unfinished(shard)
    assert names(shard) == WHOLE


def test_a_commit_both_pending_and_committed_is_done_again(shard):
    """A rename on S3 cut in its middle; or a committed block being written anew, its rows half."""
    commit(shard, "w_b", IDS[2:4], pending=True)
    storage.write_bytes(storage.join(shard.folder, "w_b-0.parquet"), b"PAR1 half")
    commits.undo_unfinished(shard)
    assert names(shard) == (["w_a-0.parquet"], ["w_a.parquet"])
    assert commits.settle(shard) == 4


def test_rows_that_nobody_committed_go(shard):
    storage.write_bytes(storage.join(shard.folder, "w_z-0.parquet"), b"of a writer left behind")
    assert commits.settle(shard) == 2
    assert names(shard) == WHOLE


def test_a_commit_without_rows_and_one_with_rows_twice_are_done_again(shard):
    commit(shard, "w_c", IDS[4:5], rows=False)
    commit(shard, "w_d", [IDS[0], IDS[5]])
    assert commits.settle(shard) == 2
    assert names(shard) == WHOLE
    commit(shard, "w_e", IDS[4:])
    assert commits.settle(shard) == 0


def test_a_shard_not_begun_has_all_to_do(tmp_path):
    shard = Shard(output=str(tmp_path), name="features", attempt=0, number=0)
    storage.write_table(pa.table({"segment_id": IDS}), shard.plan)
    commits.undo_unfinished(shard)
    assert commits.settle(shard) == 6
