"""Probe listed videos in the sandbox: read the headers that the manifest records."""

from collections import Counter
from typing import Any

import pyarrow as pa

from caan import storage
from caan.errors import VideoError, redact
from caan.media.sampling import probe
from caan.media.sandbox import Sandbox
from caan.schema import MANIFEST_SCHEMA, table_of
from caan.storage.objects import open_ranges
from caan.storage.paths import is_s3

PROBE_SECONDS = 60.0
"""Time limit on one file's probe."""

PROBE_BYTES = 2 << 30
"""Memory limit of the probing child."""


def probe_uri(uri: str) -> dict[str, Any]:
    """Probe one file for the manifest's columns; runs in the sandboxed child.

    Raises:
        VideoError: the file is no readable video.
    """
    if is_s3(uri):
        with storage.explained(uri, "reading"), open_ranges(uri) as file:
            found = probe(file)
    else:
        found = probe(uri)
    names = ("duration_seconds", "width", "height", "codec", "container", "fps", "rotation_degrees")
    return {name: getattr(found, name) for name in names}


class IndexProber:
    """Rows of the manifest -> the same rows with the probed columns and a status."""

    def __init__(self) -> None:
        self.sandbox = Sandbox(time_limit_seconds=PROBE_SECONDS, memory_limit_bytes=PROBE_BYTES)
        self.counts: dict[str, float] = {}

    def take_counts(self) -> dict[str, float]:
        """Videos, failures, bytes and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """MANIFEST_SCHEMA -> MANIFEST_SCHEMA, a row for a row."""
        rows = [self._probe(row) for row in table.to_pylist()]
        self.counts["videos"] = len(rows)
        self.counts["failed"] = sum(row["status"] != "ok" for row in rows)
        self.counts["bytes"] = sum(row["size_bytes"] or 0 for row in rows)
        self.counts["video_seconds"] = sum(row["duration_seconds"] or 0.0 for row in rows)
        for status, count in Counter(row["status"] for row in rows).items():
            self.counts[f"status.{status}"] = count
        return table_of(rows, MANIFEST_SCHEMA)

    def _probe(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["status"] not in (None, "ok"):
            return row
        try:
            found = self.sandbox.run(probe_uri, row["uri"])
        except VideoError as error:
            text = redact(str(error))[:500]
            return row | {"status": error.status, "error": text}
        except FileNotFoundError:
            return row | {"status": "missing", "error": f"there is no file `{row['uri']}`"}
        return row | found | {"status": "ok", "error": None}
