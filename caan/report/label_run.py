"""Read the input of a report: the output folder of jobs.label, and the manifest."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caan import storage
from caan.errors import InputError, redact
from caan.schema import (
    FRAME_SCORES_SCHEMA,
    LABELS_SCHEMA,
    MANIFEST_SCHEMA,
    WINDOWS_SCHEMA,
    check_table,
    table_of,
)


@dataclass(frozen=True, kw_only=True)
class LabelRun:
    """The output of one run of jobs.label."""

    labels: pa.Table
    """LABELS_SCHEMA."""
    run: dict[str, Any]
    """Its run.json; empty for a table written by hand."""
    folder: str
    """The folder of `frame_scores/`, `windows/` and `previews/`, as far as they exist."""

    def frame_scores(self, video_ids: Sequence[str]) -> pa.Table:
        """FRAME_SCORES_SCHEMA, only the rows of these videos; empty if the run wrote none."""
        return self._rows_of("frame_scores", FRAME_SCORES_SCHEMA, video_ids)

    def windows(self, video_ids: Sequence[str]) -> pa.Table:
        """WINDOWS_SCHEMA, only the rows of these videos; empty if the run wrote none."""
        return self._rows_of("windows", WINDOWS_SCHEMA, video_ids)

    def previews(self, output: str) -> dict[str, str]:
        """Links to `previews/<video_id>.mp4`, relative to the folder `output`, by video_id."""
        folder = storage.join(self.folder, "previews")
        if not storage.exists(folder):
            return {}
        found = {}
        for file in storage.list_files(folder):
            address = relative_address(file.uri, output)
            if address is not None and file.uri.endswith(".mp4"):
                found[file.uri.rpartition("/")[2].removesuffix(".mp4")] = address
        return found

    def _rows_of(self, name: str, schema: pa.Schema, video_ids: Sequence[str]) -> pa.Table:
        folder = storage.join(self.folder, name)
        tables = [table_of([], schema)]
        if not video_ids or not storage.exists(folder):
            return tables[0]
        wanted = pc.field("video_id").isin(list(video_ids))
        for file in storage.list_files(folder):
            if file.uri.endswith(".parquet"):
                fs, inner = storage.filesystem(file.uri)
                with storage.explained(file.uri, "reading"):
                    table = pq.read_table(inner, filesystem=fs, filters=wanted)
                tables.append(check_table(table, schema, folder))
        return pa.concat_tables(tables)


def read_label_run(path: str) -> LabelRun:
    """Read the output folder of jobs.label, its `labels/` folder, or one Parquet table of labels.

    Raises:
        InputError: nothing lies at `path`, or the table has no `video_id`.
    """
    if not storage.exists(path):
        raise InputError(
            f"nothing is at `{redact(path)}`: give --labels the folder that jobs.label "
            "wrote, or a Parquet file of labels."
        )
    inner = storage.join(path, "labels")
    if storage.exists(inner):
        tables, folder = inner, path
    else:
        tables, folder = path, storage.normalise(path).rpartition("/")[0]
    run_path = storage.join(folder, "run.json")
    run = storage.read_json(run_path) if storage.exists(run_path) else {}
    table = check_table(storage.read_table(tables), LABELS_SCHEMA, f"the labels at `{tables}`")
    return LabelRun(labels=table, run=run, folder=folder)


def read_manifest(path: str, split: str = "") -> pa.Table:
    """Read a manifest, MANIFEST_SCHEMA; only the rows of `split` if that is given.

    Raises:
        InputError: nothing lies at `path`, it is not a manifest, or no row is in the split.
    """
    if not storage.exists(path):
        raise InputError(
            f"no manifest is at `{redact(path)}`: give --manifest the file that jobs.index wrote."
        )
    manifest = check_table(storage.read_table(path), MANIFEST_SCHEMA, f"the manifest at `{path}`")
    if not split:
        return manifest
    chosen = manifest.filter(pc.field("split") == split)
    if not chosen.num_rows:
        splits = sorted(name for name in manifest["split"].unique().to_pylist() if name)
        raise InputError(
            f"no manifest row has the split `{split}`; there are {', '.join(splits) or 'none'}."
        )
    return chosen


def relative_address(target: str, folder: str) -> str | None:
    """Link to `target` from a page in `folder`; None if they are in different storage."""
    target, folder = storage.normalise(target), storage.normalise(folder)
    if storage.is_s3(target) != storage.is_s3(folder):
        return None
    if storage.is_s3(target) and target.split("/")[2] != folder.split("/")[2]:
        return None
    return Path(os.path.relpath(target, folder)).as_posix()
