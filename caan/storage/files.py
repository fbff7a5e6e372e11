"""Files on local paths and on s3://, through pyarrow.fs (reading, writing) and s3fs (listing).

Files are never half written: a local file is written under a temporary name and renamed, and an
object appears only when its upload completes. The usual AWS variables configure S3
(AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ...). Transient errors are retried with back-off.
"""

import io
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from caan.errors import InputError, StorageError, redact
from caan.storage.failures import explained
from caan.storage.paths import (
    filesystem,
    is_s3,
    join,
    normalise,
    s3fs_filesystem,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One listed file."""

    uri: str
    """Absolute local path, or s3://bucket/key."""
    size_bytes: int
    """Size in bytes."""
    etag: str
    """Changes when the content does: S3's ETag, or modification time and size of a local file."""


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file, folder or prefix is there."""
    fs, inner = filesystem(path)
    with explained(path, "looking for"):
        return fs.get_file_info(inner).type != pyarrow.fs.FileType.NotFound


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder or a prefix with objects under it."""
    fs, inner = filesystem(path)
    with explained(path, "looking at"):
        return fs.get_file_info(inner).type == pyarrow.fs.FileType.Directory


def stat(path: str | os.PathLike[str]) -> StoredFile:
    """Size and etag of one file.

    Raises:
        FileNotFoundError: nothing is there.
    """
    uri = normalise(path)
    with explained(uri, "looking at"):
        if is_s3(uri):
            info = s3fs_filesystem().info(uri)
            return StoredFile(
                uri=uri,
                size_bytes=int(info["size"] or 0),
                etag=str(info.get("ETag", "")).strip('"'),
            )
        found = os.stat(uri)
        return StoredFile(
            uri=uri,
            size_bytes=found.st_size,
            etag=f"{found.st_mtime_ns:x}-{found.st_size:x}",
        )


def list_files(path: str | os.PathLike[str]) -> list[StoredFile]:
    """All files under a folder, prefix or glob pattern (`*`, `?`, `[`), or the file itself; sorted.

    Hidden files (a leading dot) are left out.

    Raises:
        InputError: nothing is there.
    """
    uri = normalise(path)
    with explained(uri, "listing"):
        files = _list_s3(uri) if is_s3(uri) else _list_local(uri)
    if not files and not exists(uri):
        raise InputError(f"nothing is at `{redact(uri)}`: check the path.")
    return sorted(
        (f for f in files if not f.uri.rpartition("/")[2].startswith(".")), key=lambda f: f.uri
    )


def list_names(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the files directly in a folder, without temporary ones; [] if it does not exist."""
    fs, inner = filesystem(folder)
    with explained(folder, "listing"):
        found = fs.get_file_info(pyarrow.fs.FileSelector(inner, allow_not_found=True))
    files = (item.base_name for item in found if item.type == pyarrow.fs.FileType.File)
    return sorted(name for name in files if not name.endswith(".tmp"))


def _list_s3(uri: str) -> list[StoredFile]:
    fs = s3fs_filesystem()
    try:
        found = (
            fs.glob(uri, detail=True)
            if any(mark in uri for mark in "*?[")
            else fs.find(uri, detail=True)
        )
    except FileNotFoundError as error:
        raise InputError(f"nothing is at `{redact(uri)}`: check bucket and prefix.") from error
    return [
        StoredFile(
            uri="s3://" + key,
            size_bytes=int(info["size"] or 0),
            etag=str(info.get("ETag", "")).strip('"'),
        )
        for key, info in found.items()
        if info["type"] == "file" and not key.endswith("/")
    ]


def _list_local(path: str) -> list[StoredFile]:
    import glob

    paths: list[str] = []
    roots = glob.glob(path, recursive=True) if not os.path.exists(path) else [path]
    for root in roots:
        if os.path.isdir(root):
            for folder, folders, names in os.walk(root):
                folders[:] = [name for name in folders if not name.startswith(".")]
                paths += [os.path.join(folder, name) for name in names]
        else:
            paths.append(root)
    return [_listed_file(name) for name in sorted(set(paths)) if os.path.isfile(name)]


def _listed_file(path: str) -> StoredFile:
    """A file as `stat` gives it; a name that is not UTF-8 is escaped, so that tables can hold it.

    No file has the escaped name, so such a file becomes a row `missing` instead of being skipped.
    """
    file = stat(path)
    shown = path.encode("utf-8", "backslashreplace").decode()
    if shown != path:
        logger.warning("`%s` has a name that is not UTF-8: rename it to have it read", shown)
        return StoredFile(uri=shown, size_bytes=file.size_bytes, etag=file.etag)
    return file


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole content of one file."""
    fs, inner = filesystem(path)
    with explained(path, "reading"), fs.open_input_stream(inner) as stream:
        return stream.read()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file in one step: readers see the old content or the new one, never a part."""
    fs, inner = filesystem(path)
    with explained(path, "writing"):
        if is_s3(os.fspath(path)):
            with fs.open_output_stream(inner) as stream:
                stream.write(content)
            return
        os.makedirs(os.path.dirname(inner) or ".", exist_ok=True)
        with _complete(inner, content) as temporary:
            os.replace(temporary, inner)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The parsed content of a JSON file.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise InputError(f"`{redact(os.fspath(path))}` is not valid JSON: {error}.") from error


def create_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that must not be there yet, in one step. Of several writers one succeeds.

    Raises:
        FileExistsError: it is there.
    """
    uri = normalise(path)
    with explained(uri, "writing"):
        if is_s3(uri):
            s3fs_filesystem().pipe_file(uri, content, mode="create")
            return
        try:
            os.makedirs(os.path.dirname(uri), exist_ok=True)
        except FileExistsError as error:  # the folder is a file
            raise NotADirectoryError(str(error)) from error
        with _complete(uri, content) as temporary:
            os.link(temporary, uri)


@contextmanager
def _complete(path: str, content: bytes) -> Iterator[str]:
    """A temporary file beside `path` with this content, on disk; gone at the end."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write plain values as indented JSON, without credentials."""
    write_bytes(path, (redact(json.dumps(value, indent=2, default=str)) + "\n").encode())


def read_table(
    path: str | os.PathLike[str],
    columns: list[str] | None = None,
    *,
    video_ids: Sequence[str] | None = None,
) -> pa.Table:
    """One Parquet file, or all Parquet files under a folder in order of their names.

    With `video_ids` the rows of these videos alone; row groups without them are not read.

    Raises:
        InputError: nothing is there, it is not Parquet, or its files do not fit together.
    """
    fs, _ = filesystem(path)
    names = [
        file.uri
        for file in list_files(path)
        if file.uri.endswith(".parquet") or not is_folder(path)
    ]
    if not names:
        raise InputError(f"no Parquet file is under `{redact(os.fspath(path))}`.")
    wanted = None
    if video_ids is not None:
        wanted = pc.field("video_id").isin(pa.array(video_ids, pa.string()))
    tables = []
    for name in names:
        try:
            with explained(name, "reading"):
                tables.append(
                    pq.read_table(
                        filesystem(name)[1], filesystem=fs, columns=columns, filters=wanted
                    )
                )
        except (pa.ArrowInvalid, StorageError) as error:
            if isinstance(error, StorageError) and not _is_no_parquet(str(error)):
                raise
            raise InputError(f"`{redact(name)}` is not a Parquet file.") from error
    try:
        return pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"the tables under `{redact(os.fspath(path))}` do not have the same columns: {error}"
        ) from error


def _is_no_parquet(text: str) -> bool:
    return any(mark in text for mark in ("Parquet magic bytes", "Parquet file size", "footer"))


def write_table(
    table: pa.Table, path: str | os.PathLike[str], rows_per_group: int | None = None
) -> None:
    """Write one Parquet file (zstd, with page checksums) as a whole."""
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, row_group_size=rows_per_group, compression="zstd", write_page_checksum=True
    )
    write_bytes(path, buffer.getvalue())


def delete(path: str | os.PathLike[str]) -> None:
    """Remove a file, or a folder with its content; does nothing if it does not exist."""
    fs, inner = filesystem(path)
    with explained(path, "deleting"):
        kind = fs.get_file_info(inner).type
        if kind == pyarrow.fs.FileType.Directory:
            fs.delete_dir(inner)
        elif kind != pyarrow.fs.FileType.NotFound:
            fs.delete_file(inner)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Check that files can be written under `folder`, before any work is done.

    Raises:
        InputError: writing fails; the sentence says why.
    """
    probe = join(folder, f".write-test-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except (StorageError, OSError) as error:
        raise InputError(
            f"cannot write to `{redact(os.fspath(folder))}`: {error} Choose another --output."
        ) from error


def copy_folder(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy all files under `source` to `target`, local or s3:// on either side."""
    root = normalise(source)
    for file in list_files(root):
        write_bytes(join(target, file.uri[len(root) :].lstrip("/")), read_bytes(file.uri))


@contextmanager
def local_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a local folder, or of a temporary local copy of an s3:// folder.

    Raises:
        InputError: there is no such folder.
    """
    if not exists(path):
        raise InputError(f"there is no folder `{redact(os.fspath(path))}`.")
    if not is_s3(os.fspath(path)):
        yield Path(normalise(path))
        return
    with tempfile.TemporaryDirectory(prefix="caan-") as folder:
        copy_folder(path, folder)
        yield Path(folder)
