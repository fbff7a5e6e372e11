"""Local paths and s3:// addresses, and the pyarrow.fs and s3fs file systems for them."""

import functools
import os
from typing import Any

import pyarrow.fs

from caan.errors import InputError, redact

S3_ATTEMPTS = 8
"""Tries per request before an S3 fault counts as lasting (about a minute of back-off)."""

S3_REQUEST_SECONDS = 60.0
"""Seconds without an answer of S3 after which a request is repeated."""


def is_s3(path: str) -> bool:
    """Whether `path` names an S3 object or prefix."""
    return path.startswith("s3://")


def normalise(path: str | os.PathLike[str]) -> str:
    """`path` as an absolute local path, or s3:// without a last slash; ids are made of this form.

    Raises:
        InputError: it is empty, has no bucket, another scheme, credentials, or a zero byte.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise InputError(f"a path holds a zero byte: {text!r}.")
    if is_s3(text):
        bucket = text[5:].strip("/").partition("/")[0]
        if not bucket:
            raise InputError(f"`{text}` names no bucket: give s3://bucket/...")
        if "@" in bucket or ":" in bucket:
            raise InputError(
                f"`{redact(text)}` holds credentials or a port: give them by AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, and the path as s3://bucket/..."
            )
        return "s3://" + text[5:].strip("/")
    if not text:
        raise InputError("an empty path names no file or folder: give one.")
    if text.startswith("s3:") or ("://" in text and not text.startswith("file://")):
        raise InputError(
            f"cannot use `{redact(text)}`: only local paths and s3:// are read and written."
        )
    return os.path.abspath(text.removeprefix("file://"))


def join(folder: str | os.PathLike[str], *parts: str) -> str:
    """`folder/part/...`, local or s3://; never a path outside `folder`.

    Raises:
        InputError: a part leads up or is absolute, holds a zero byte, or is too long for a name.
    """
    for part in parts:
        names = part.split("/")
        if ".." in names or not part or part[0] == "/" or "\0" in part:
            raise InputError(f"`{part[:100]!r}` is no name for a file inside an output folder.")
        if max(len(os.fsencode(name)) for name in names) > 255:
            raise InputError(f"`{part[:100]}...` is too long for a file name.")
    return "/".join([os.fspath(folder).rstrip("/"), *parts])


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@functools.cache
def _s3(endpoint: str | None, region: str | None, process: int) -> pyarrow.fs.S3FileSystem:
    arguments: dict[str, Any] = {}
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        arguments |= {"scheme": scheme, "endpoint_override": host.rstrip("/")}
    if region:
        arguments["region"] = region
    return pyarrow.fs.S3FileSystem(
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        connect_timeout=10,
        request_timeout=S3_REQUEST_SECONDS,
        **arguments,
    )


def filesystem(path: str | os.PathLike[str]) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow file system of `path`, and `path` as that file system spells it."""
    text = normalise(path)
    if is_s3(text):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return _s3(_endpoint(), region, os.getpid()), text[5:]
    return pyarrow.fs.LocalFileSystem(), text


def s3fs_filesystem() -> Any:
    """The s3fs file system: for listing, and for ETags, which pyarrow does not give."""
    return _s3fs(_endpoint(), os.environ.get("AWS_ACCESS_KEY_ID"), os.getpid())


@functools.cache  # a new one looks up credentials again, which takes 0.2 s
def _s3fs(endpoint: str | None, key: str | None, process: int) -> Any:
    import s3fs

    return s3fs.S3FileSystem(
        client_kwargs={"endpoint_url": endpoint} if endpoint else {},
        config_kwargs={
            "retries": {"max_attempts": S3_ATTEMPTS, "mode": "standard"},
            "connect_timeout": 10,
            "read_timeout": S3_REQUEST_SECONDS,
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
