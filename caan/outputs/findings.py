"""What a check of an output found, and how its part files are read for it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from caan import storage
from caan.errors import redact

PTS_TOLERANCE_SECONDS = 1e-6
"""Most that a frame's time may be after its grid time."""


@dataclass
class Findings:
    """What was checked, and the problems."""

    problems: list[str] = field(default_factory=list)
    """One sentence each."""
    num_files: int = 0
    """Part files that were read completely."""
    num_videos: int = 0
    """Videos of the manifest."""
    num_segments: int = 0
    """Segments that the log names."""
    num_garbage: int = 0
    """Row files that no commit names: remains of killed runs."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Number of videos by status."""

    def add(self, sentence: str, names: Iterable[object] | None = None) -> None:
        """Note a problem. If `names` is given: only if it has any, with the first three."""
        if names is None:
            self.problems.append(sentence)
        elif found := sorted({str(name) for name in names}):
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            self.problems.append(f"{sentence}: {', '.join(found[:3])}{more}")


def read_part(uri: str, findings: Findings) -> pa.Table | None:
    """Read a whole Parquet file; None, with a problem noted, if it cannot be read completely."""
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        findings.add(f"`{redact(uri)}` is missing")
        return None
    try:
        if not content.startswith(b"PAR1"):  # pyarrow checks the end only
            raise pa.ArrowInvalid("it does not begin as a Parquet file")
        source = pa.BufferReader(content)
        table = pq.ParquetFile(source, page_checksum_verification=True).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        findings.add(f"`{redact(uri)}` cannot be read: {reason}")
        return None
    findings.num_files += 1
    return table


def has_schema(table: pa.Table, schema: pa.Schema, uri: str, findings: Findings) -> bool:
    """Whether the table has this schema; if not, a problem is noted."""
    if table.schema.equals(schema):
        return True
    changed = [
        field.name
        for field in schema
        if field.name not in table.column_names or table.schema.field(field.name) != field
    ]
    foreign = [name for name in table.column_names if name not in schema.names]
    names = changed + foreign or ["order of the columns"]
    findings.add(f"`{redact(uri)}` departs from the schema", names)
    return False
