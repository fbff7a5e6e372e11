"""S3 objects as files to decode from: copied to local disk, or read by ranges."""

import functools
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from caan.errors import Missing, redact
from caan.storage.failures import explained
from caan.storage.files import stat
from caan.storage.paths import filesystem, is_s3, normalise
from caan.storage.scratch import scratch_file, spool_folder

RANGE_BLOCK_BYTES = 1 << 20
"""Bytes of one range request on an object that is not copied to disk."""

RANGE_BLOCKS = 24
"""Blocks of an object that are kept: sound and pictures of a film may lie some megabytes apart."""


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
