"""Turn errors of the file systems into one-sentence errors without credentials."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from caan.errors import StorageError, redact
from caan.storage.paths import s3fs_filesystem


@contextmanager
def explained(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn errors of the file systems into one-sentence errors that name the path.

    Raises:
        FileNotFoundError: nothing is there.
        FileExistsError: a file that was to be created is there.
        StorageError: access denied, disk full, or storage out of reach after all retries.
    """
    name = redact(os.fspath(path))
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except PermissionError as error:
        raise StorageError(
            f"access denied while {doing} `{name}`: check the permissions or the AWS credentials."
        ) from error
    except _storage_errors() as error:
        text = redact(" ".join(str(error).split()))
        if _is_denied(text) or ("flush response stream" in text and _may_not_read(name)):
            raise StorageError(
                f"access denied while {doing} `{name}`: check the permissions or the AWS "
                "credentials."
            ) from error
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text:
            raise StorageError(f"no space left while {doing} `{name}`: free some disk.") from error
        if _is_absent(text) or getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.ELOOP):
            raise FileNotFoundError(name) from error
        raise StorageError(f"storage failed while {doing} `{name}`: {text[:300]}") from error


def fault_of(error: OSError) -> StorageError | None:
    """The storage error behind an `OSError` that was raised outside `explained`, else None.

    pyarrow's text names the key.
    """
    text = redact(" ".join(str(error).split()))[:400]
    if _is_denied(text) or isinstance(error, PermissionError):
        return StorageError(f"access denied: {text} Check the permissions or the AWS credentials.")
    if error.errno == errno.ENOSPC or "No space left" in text:
        return StorageError(f"no space left: {text} Free some disk.")
    if "AWS Error" in text:
        return StorageError(f"storage failed: {text}")
    return None


def _may_not_read(uri: str) -> bool:
    """Whether reading is denied: pyarrow cannot tell where the refusal is longer than the range."""
    try:
        s3fs_filesystem().cat_file(uri, start=0, end=1)
    except PermissionError:
        return True
    except _storage_errors():
        return False
    return False


def _storage_errors() -> tuple[type[Exception], ...]:
    """What the file systems raise; botocore's own error only once s3fs has imported botocore.

    That import takes 0.3 s, and only s3:// paths need it.
    """
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, pa.ArrowInvalid, *([botocore.BotoCoreError] if botocore else []))


def _is_denied(text: str) -> bool:
    marks = (
        *("ACCESS_DENIED", "AccessDenied", "HTTP code 403", "HTTP status 403", "Forbidden"),
        *("INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId", "SIGNATURE_DOES_NOT_MATCH"),
        *("SignatureDoesNotMatch", "Unable to locate credentials"),
    )
    return any(mark in text for mark in marks)


def _is_absent(text: str) -> bool:
    marks = ("NO_SUCH", "NoSuchKey", "NoSuchBucket", "HTTP code 404", "Path does not exist")
    return any(mark in text for mark in marks)
