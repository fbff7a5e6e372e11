"""A list of time ranges in long videos -> clips and the manifest of them."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from caan import storage
from caan.annotation.clips import Clip, cut
from caan.datasets.folder import read_list
from caan.errors import InputError, VideoError, redact
from caan.extraction.probe import IndexProber
from caan.media.sandbox import Sandbox
from caan.schema import MANIFEST_SCHEMA, table_of

logger = logging.getLogger(__name__)

SOURCE = "source_uri"
"""Column that a manifest of clips has beside the manifest's own: the long video of each clip."""

CLIP_BYTES = 3 << 30
"""Memory limit of the child that cuts clips."""


def write_clips(list_uri: str, output: str, *, time_limit_seconds: float) -> int:
    """Cut the clips of a list into `output`/clips, probe them, and write `output`/manifest.parquet.

    A clip that is there already is not cut again. Returns the number of good clips.

    Raises:
        InputError: a bad list, or a row without a time range.
    """
    storage.check_writable(output)
    rows = cut_clips(list_uri, output, time_limit_seconds)
    sources = pa.array([row.pop(SOURCE) for row in rows], pa.string())
    prober = IndexProber()
    table = prober(table_of(rows, MANIFEST_SCHEMA)).append_column(SOURCE, sources)
    prober.sandbox.close()
    manifest = storage.join(output, "manifest.parquet")
    storage.write_table(table, manifest)
    good = table["status"].to_pylist().count("ok")
    logger.info("%s: %d clips, %d could not be cut", manifest, good, table.num_rows - good)
    return good


def cut_clips(list_uri: str, output: str, time_limit_seconds: float) -> list[dict[str, Any]]:
    """Cut the missing clips; return rows of the manifest with `source_uri`, not probed yet.

    Raises:
        InputError: a bad list, or a row without a time range.
    """
    rows = list(read_list(list_uri, "", 1))
    for number, row in enumerate(rows, start=1):
        if row.get("end_seconds") is None and row.get("status") is None:
            raise InputError(f"row {number} of the list `{list_uri}` has no end_seconds.")
    cut_rows = []
    with Sandbox(time_limit_seconds=time_limit_seconds, memory_limit_bytes=CLIP_BYTES) as sandbox:
        for number, row in enumerate(rows, start=1):
            done, how = _cut(row, output, sandbox)
            cut_rows.append(done)
            logger.info("%d/%d %s: %s", number, len(rows), done["video_id"], how)
    return cut_rows


def _cut(row: dict[str, Any], output: str, sandbox: Sandbox) -> tuple[dict[str, Any], str]:
    """Cut one clip; return its row of the manifest and what to log of it."""
    source, start = row["uri"], row.get("start_seconds", 0.0)
    target = storage.join(output, "clips", f"{row['video_id']}.mp4")
    keep = ("video_id", "label", "split", "gender", "age_range", "face_box")
    done = {name: row[name] for name in keep if name in row}
    done |= {"uri": storage.normalise(target), SOURCE: source}
    if "face_pts_seconds" in row:
        done["face_pts_seconds"] = max(0.0, row["face_pts_seconds"] - start)
    if row.get("status"):
        return done | {name: row[name] for name in ("status", "error")}, row["status"]
    how = "is there already"
    if not storage.exists(target):
        try:
            with tempfile.TemporaryDirectory(prefix="caan-clip-") as folder:
                path = str(Path(folder) / "clip.mp4")
                clip = Clip(
                    source=source, start_seconds=start, end_seconds=row["end_seconds"], target=path
                )
                how = sandbox.run(cut, clip)
                storage.write_bytes(target, Path(path).read_bytes())
        except VideoError as error:
            text = redact(str(error))[:500]
            return done | {"status": error.status, "error": text}, f"{error.status}: {text}"
    file = storage.stat(target)
    return done | {"size_bytes": file.size_bytes, "etag": file.etag}, how
