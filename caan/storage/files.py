"""Files on local paths and on s3://, through pyarrow.fs (reading, writing) and s3fs (listing).

Files are never half written: a local file is written under a temporary name and renamed, and an
object appears only when its upload completes. The usual AWS variables configure S3
(AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ...). Transient errors are retried with back-off.
"""

import functools
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from caan.errors import InputError, Missing, StorageError, redact
from caan.storage.failures import explained
from caan.storage.paths import (
    filesystem,
    is_s3,
    join,
    normalise,
    s3fs_filesystem,
)
from caan.storage.scratch import scratch_file, spool_folder

logger = logging.getLogger(__name__)

RANGE_BLOCK_BYTES = 1 << 20
"""Bytes of one range request on an object that is not copied to disk."""

RANGE_BLOCKS = 24
"""Blocks of an object that are kept: sound and pictures of a film may lie some megabytes apart."""


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
        temporary = f"{inner}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, inner)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)


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
        temporary = f"{uri}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, uri)
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


def fetch(uri: str, cache_dir: str | os.PathLike[str]) -> Path:
    """The path of a local file with the content of `uri`: itself, or a copy in `cache_dir`.

    The copy is named after uri and etag, so a changed object is fetched again. Several processes
    may call this at once.

    Raises:
        FileNotFoundError: nothing is there.
        StorageError: S3 stays out of reach or denies access.
    """
    uri = normalise(uri)
    if not is_s3(uri):
        if not os.path.exists(uri):
            raise FileNotFoundError(uri)
        return Path(uri)
    file = stat(uri)
    key = hashlib.sha256(f"{uri}|{file.etag}".encode()).hexdigest()[:16]
    target = Path(cache_dir) / f"{key}-{uri.rpartition('/')[2]}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            _download(uri, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


def _download(uri: str, target: Path) -> None:
    fs, inner = filesystem(uri)
    with (
        explained(uri, "reading"),
        fs.open_input_stream(inner) as stream,
        open(target, "wb") as file,
    ):
        shutil.copyfileobj(stream, file, 4 << 20)


@contextmanager
def spooled(uri: str, size_bytes: int, spool_bytes: int, folder: str = "") -> Iterator[str]:
    """A path to decode from: a copy in `folder` of an S3 object of at most `spool_bytes`.

    Without `folder` it is that of `spool_folder`.

    Local files, larger objects, and objects for which the disk has no room are given by their own
    address; `open_ranges` reads the latter two.

    Raises:
        Missing: the object is not there any more.
        StorageError: S3 stays out of reach or denies access.
    """
    if not is_s3(uri):
        if not os.path.exists(uri):
            raise Missing(f"there is no file `{uri}`")
        yield uri
        return
    folder = folder or spool_folder()
    if size_bytes > min(spool_bytes, shutil.disk_usage(folder).free // 2):
        yield uri
        return
    with scratch_file(folder, "-" + Path(uri).suffix) as name:
        try:
            _download(uri, Path(name))
        except FileNotFoundError as error:
            raise Missing(f"there is no object `{redact(uri)}`") from error
        yield name


class RangeFile(io.RawIOBase):
    """A seekable file over an S3 object, read in blocks of which the last ones are kept."""

    def __init__(self, uri: str) -> None:
        """Open the object.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: S3 stays out of reach or denies access.
        """
        self.uri = uri
        self._at = 0
        fs, inner = filesystem(uri)
        with explained(uri, "opening"):
            self._file = fs.open_input_file(inner)
            self.size = self._file.size()
        self._block = functools.lru_cache(RANGE_BLOCKS)(self._fetch)

    def _fetch(self, number: int) -> bytes:
        start = number * RANGE_BLOCK_BYTES
        return self._file.read_at(min(RANGE_BLOCK_BYTES, self.size - start), start)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, which may lie past the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size`; fewer at the end."""
        end = self.size if size < 0 else min(self.size, self._at + size)
        parts = []
        while self._at < end:
            number, start = divmod(self._at, RANGE_BLOCK_BYTES)
            parts.append(self._block(number)[start : start + end - self._at])
            self._at += len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Close the object."""
        if not self.closed:
            self._file.close()
        super().close()


def open_ranges(uri: str) -> BinaryIO:
    """A seekable file over an S3 object that reads ranges of RANGE_BLOCK_BYTES."""
    return cast(BinaryIO, RangeFile(uri))
