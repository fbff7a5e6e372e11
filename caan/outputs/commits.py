"""Reconcile a shard's checkpoint with its rows after a crash.

Ray Data commits a block of rows in three steps:

1. write `<id>.pending.parquet` with the ids of the block's segments,
2. write `<id>-<n>.parquet` with the rows,
3. rename the first file to `<id>.parquet`.

When it starts again, it deletes the rows of pending blocks. Two cases are not covered:

- A block can be pending and committed: a rename on S3 is a copy and a deletion, and a task whose
  node was lost writes a committed block again. Its segments count as done and its rows are deleted.
- A writer that lives a moment longer than its driver adds rows that are not committed.
"""

import logging
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from caan import storage
from caan.outputs.layout import Shard

logger = logging.getLogger(__name__)

_PENDING = ".pending.parquet"
READERS = 16
"""Number of files that are read at the same time."""


def undo_unfinished(shard: Shard) -> None:
    """Undo every pending commit, so that its segments are processed again."""
    checkpoint = _checkpoint_files(shard)
    pending = {name for name in checkpoint if name.endswith(_PENDING)}
    if not pending:
        return
    rows = _row_files(shard)
    for name in pending:
        commit = name.removesuffix(_PENDING)
        # The pending file goes last: after a kill in between, this is repeated.
        if committed := checkpoint.get(f"{commit}.parquet"):
            storage.delete(committed)
        for uri in rows.get(commit, ()):
            storage.delete(uri)
        storage.delete(checkpoint[name])


def to_do(shard: Shard) -> tuple[int, float]:
    """Number of segments of a shard that are not committed, and their seconds of video."""
    plan = storage.read_table(shard.plan, ["segment_id", "start_seconds", "end_seconds"])
    committed = pa.array([i for ids in _committed(shard).values() for i in ids], pa.string())
    left = plan.filter(pc.invert(pc.is_in(plan["segment_id"], committed)))
    seconds = pc.sum(pc.subtract(left["end_seconds"], left["start_seconds"])).as_py()
    return left.num_rows, seconds or 0.0


def settle(shard: Shard) -> int:
    """Make rows and commits agree; return the number of segments that are not committed.

    Deletes rows without a commit, commits without rows, and commits that repeat a segment.
    """
    undo_unfinished(shard)
    committed = _committed(shard)
    rows = _row_files(shard)
    seen: set[str] = set()
    for commit, ids in sorted(committed.items()):
        if commit not in rows or not seen.isdisjoint(ids):
            logger.warning("undoing commit %s of %s", commit, shard.folder)
            storage.delete(storage.join(_checkpoint_folder(shard), f"{commit}.parquet"))
            del committed[commit]
        else:
            seen.update(ids)
    for commit in rows.keys() - committed.keys():
        for uri in rows[commit]:
            storage.delete(uri)
    planned = storage.read_table(shard.plan, ["segment_id"])["segment_id"].to_pylist()
    return len(set(planned) - seen)


def _committed(shard: Shard) -> dict[str, list[str]]:
    """Segment ids of every commit that is not pending."""
    files = _checkpoint_files(shard)
    names = [name for name in files if not name.endswith(_PENDING)]

    def ids_of(name: str) -> list[str]:
        return storage.read_table(files[name], ["segment_id"])["segment_id"].to_pylist()

    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(ids_of, names)
        return {name.removesuffix(".parquet"): ids for name, ids in zip(names, found, strict=True)}


def _checkpoint_folder(shard: Shard) -> str:
    return storage.join(shard.state, "checkpoint")


def _checkpoint_files(shard: Shard) -> dict[str, str]:
    folder = _checkpoint_folder(shard)
    if not storage.exists(folder):
        return {}
    files = (file.uri for file in storage.list_files(folder))
    return {uri.rpartition("/")[2]: uri for uri in files if uri.endswith(".parquet")}


def _row_files(shard: Shard) -> dict[str, list[str]]:
    """Files of rows by the commit to which they belong."""
    found = defaultdict(list)
    if storage.exists(shard.folder):
        for file in storage.list_files(shard.folder):
            if match := re.search(r"([^/]+)-\d+\.parquet$", file.uri):
                found[match[1]].append(file.uri)
    return dict(found)
