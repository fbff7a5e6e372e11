"""Makes sure of what a shard's checkpoint says, whatever was killed in the middle of a commit.

For each block of rows Ray Data writes `<id>.pending.parquet` with the names of its segments, then
`<id>-<n>.parquet` with the rows, and renames the first to `<id>.parquet`: committed. When it starts
again it deletes the rows of what is pending. It does not see that a commit can be both: a rename
on S3 is a copy and a deletion, and a task whose node was lost writes a committed block anew. A kill
then leaves rows that are deleted, or half of them, and that count as done. And a writer that
outlives its driver for a moment adds rows that nobody committed.
"""

import logging
import re
from collections import defaultdict

from caan import storage
from caan.runs import Shard

logger = logging.getLogger(__name__)

_PENDING = ".pending.parquet"


def undo_unfinished(shard: Shard) -> None:
    """Take back every commit that is pending, so that its segments are done again."""
    checkpoint = _checkpoint_files(shard)
    pending = {name for name in checkpoint if name.endswith(_PENDING)}
    if not pending:
        return
    rows = _row_files(shard)
    for name in pending:
        commit = name.removesuffix(_PENDING)
        # In this order: after a kill in between, the pending file is there to do it again.
        if committed := checkpoint.get(f"{commit}.parquet"):
            storage.delete(committed)
        for uri in rows.get(commit, ()):
            storage.delete(uri)
        storage.delete(checkpoint[name])


def settle(shard: Shard) -> int:
    """Make rows and commits agree, each segment once; gives how many segments are still to do.

    Rows without a commit are deleted, and so are commits without rows, and whatever holds a segment
    a second time.
    """
    undo_unfinished(shard)
    committed = {
        name.removesuffix(".parquet"): uri for name, uri in _checkpoint_files(shard).items()
    }
    rows = _row_files(shard)
    seen: set[str] = set()
    for commit in sorted(committed):
        ids = storage.read_table(committed[commit], ["segment_id"])["segment_id"].to_pylist()
        if commit not in rows or not seen.isdisjoint(ids):
            logger.warning("taking back commit %s of %s", commit, shard.folder)
            storage.delete(committed.pop(commit))
        else:
            seen.update(ids)
    for commit in rows.keys() - committed.keys():
        for uri in rows[commit]:
            storage.delete(uri)
    planned = storage.read_table(shard.plan, ["segment_id"])["segment_id"].to_pylist()
    return len(set(planned) - seen)


def _checkpoint_files(shard: Shard) -> dict[str, str]:
    folder = storage.join(shard.state, "checkpoint")
    if not storage.exists(folder):
        return {}
    files = (file.uri for file in storage.list_files(folder))
    return {uri.rpartition("/")[2]: uri for uri in files if uri.endswith(".parquet")}


def _row_files(shard: Shard) -> dict[str, list[str]]:
    """The files of rows by the commit that they belong to."""
    found = defaultdict(list)
    if storage.exists(shard.folder):
        for file in storage.list_files(shard.folder):
            if match := re.search(r"([^/]+)-\d+\.parquet$", file.uri):
                found[match[1]].append(file.uri)
    return dict(found)
