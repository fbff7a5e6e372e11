"""The errors of the project: bad input, storage that fails, and one video that fails."""

import os
import re

_USER_INFO = re.compile(r"(?<=://)[^\s/@`]*@")
_QUERY = re.compile(r"(https?://[^\s?`'\"]*)\?[^\s`'\"]*")


def redact(text: str) -> str:
    """`text` without credentials: user info and query of URLs, and the AWS secrets in use."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if len(secret := os.environ.get(name, "")) >= 8:
            text = text.replace(secret, f"<{name}>")
    return _QUERY.sub(r"\1", _USER_INFO.sub("", text))


class InputError(ValueError):
    """Bad input of the user: one sentence that says what, where and what to do (exit code 2)."""


class StorageError(Exception):
    """Storage is out of reach after all retries, or denies access; stops the job (exit code 1)."""


class VideoError(Exception):
    """One video fails: it becomes a row with `status` and never stops a job."""

    status = "failed"


class Missing(VideoError):
    """The manifest names a file that is not there."""

    status = "missing"


class Unreadable(VideoError):
    """No allowed demuxer can open the file."""

    status = "unreadable"


class NoVideoStream(VideoError):
    """The file opens, but has no video stream (or only a cover picture)."""

    status = "no_video"


class TooLarge(VideoError):
    """The image size or the file is beyond the stated limit."""

    status = "too_large"


class DecodeFailed(VideoError):
    """The file opens, but its frames cannot be decoded."""

    status = "decode_failed"


class TimedOut(VideoError):
    """Decoding ran over its wall-clock limit and was killed."""

    status = "timed_out"


class OutOfMemory(VideoError):
    """Decoding ran over its memory limit and was killed."""

    status = "out_of_memory"


class Crashed(VideoError):
    """The decoding child died (signal or exit), or was tried too often."""

    status = "crashed"
