"""Download a file over http(s) once per node, with resuming and a hash."""

import fcntl
import hashlib
import http.client
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caan.errors import InputError, redact

logger = logging.getLogger(__name__)

DOWNLOAD_ATTEMPTS = 4
"""Tries per download; each goes on where the one before broke off."""


def download(url: str, target: Path, *, sha256_prefix: str = "") -> None:
    """Download an http(s) URL to `target`; a download that broke off is resumed.

    `target` appears only when it is complete. If several processes ask for the same file, one
    downloads it and the others wait.

    Raises:
        InputError: the downloaded file has another hash.
        OSError: the URL is out of reach, or every attempt broke off.
    """
    part = target.with_name(target.name + ".part")
    with locked(target):
        if target.exists():
            return
        logger.info("downloading %s to %s", redact(url), target)
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            try:
                _download_rest(url, part)
                break
            except (OSError, http.client.HTTPException) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code in (403, 404)
                if attempt == DOWNLOAD_ATTEMPTS or refused:
                    raise OSError(str(error)) from error
                logger.info("download broke off (%s), attempt %d", error, attempt)
                time.sleep(min(2.0**attempt, 20) / 10)
        digest = sha256_of(part)
        if not digest.startswith(sha256_prefix):
            part.unlink()
            source = redact(url)
            raise InputError(f"{source} gave a file with sha256 {digest}, not {sha256_prefix}...")
        logger.info("%s has sha256 %s", target.name, digest)
        part.replace(target)


def _download_rest(url: str, part: Path) -> None:
    tag_file = part.with_name(part.name + ".tag")
    headers = {"User-Agent": "caan"}
    if part.exists() and tag_file.exists():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag_file.read_text()}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is longer than the file
            part.unlink()
        raise
    with response:
        tag = response.headers["ETag"] or response.headers["Last-Modified"] or ""
        if tag:
            tag_file.write_text(tag)
        else:
            tag_file.unlink(missing_ok=True)
        with open(part, "ab" if response.status == 206 else "wb") as file:
            start = file.tell()
            shutil.copyfileobj(response, file, 1 << 20)
            received = file.tell() - start
    announced = response.headers["Content-Length"]
    if announced is not None and received != int(announced):
        raise ConnectionError(f"got {received} of {announced} bytes")
    tag_file.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file beside `path`: one process of this node at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """The sha256 of a whole file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
