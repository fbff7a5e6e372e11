"""Row files and logs of outputs, written from a few words."""

from collections.abc import Iterable

import pyarrow as pa

from caan import storage
from caan.outputs import layout, log
from caan.outputs.log import LogWriter
from caan.schema import GOOD_STATUSES, segment_id_of

SCHEMA = pa.schema([(name, pa.string()) for name in ("segment_id", "video_id", "status", "error")])

Segment = tuple[str, int, str]
"""Video id, first grid frame, status."""


def rows_of(segments: Iterable[Segment]) -> pa.Table:
    """Rows of these segments with a number that only they have."""
    rows = [
        {
            "segment_id": segment_id_of(video_id, first),
            "video_id": video_id,
            "status": status,
            "error": None if status in GOOD_STATUSES else f"of {video_id} at {first}",
        }
        for video_id, first, status in segments
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def write(output: str, *segments: Segment) -> pa.Table:
    """Row files that no commit names yet; their receipts."""
    return layout.write_rows(rows_of(segments), output, "features")


def add(writer: LogWriter, *segments: Segment) -> list[str]:
    """Row files that count; their names."""
    receipts = write(writer.output, *segments)
    writer.commit(receipts)
    return sorted(set(receipts["file"].to_pylist()))


def counted(state: log.State) -> list[Segment]:
    """The segments of a state, sorted."""
    table = state.segments
    columns = (table["video_id"], table["first_index"], table["status"])
    return sorted(zip(*(column.to_pylist() for column in columns), strict=True))


def stored(output: str) -> list[Segment]:
    """The segments that readers of the rows get, sorted."""
    tables = layout.read_rows(output, "features", ["segment_id", "video_id", "status"])
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted((r["video_id"], int(r["segment_id"][-8:]), r["status"]) for r in rows)


def row_files(output: str) -> list[str]:
    """Names of all row files, whether they count or not."""
    folder = storage.join(output, "features")
    return [f"features/{name}" for name in storage.list_names(folder)]
