"""Temporary files that are removed even if their process is killed.

Each file is locked while it is in use. A file without a lock belongs to a dead process; `sweep`
removes it.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PREFIX = "caan-scratch-"
MIN_AGE_SECONDS = 60.0
"""Younger files are kept: their process may be about to lock them."""


@contextmanager
def scratch_file(folder: str, suffix: str = "") -> Iterator[str]:
    """The path of a new empty file in `folder`, gone at the end."""
    handle, path = tempfile.mkstemp(prefix=PREFIX, suffix=suffix, dir=folder)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield path
    finally:
        os.unlink(path)
        os.close(handle)


def spool_folder() -> str:
    """The temporary folder or a mounted NVMe disk, whichever has the most free space.

    Instances of clouds mount their own disks under /mnt, /local or /nvme.
    """
    disks = [
        part.mountpoint
        for part in psutil.disk_partitions()
        if "nvme" in part.device and part.mountpoint not in ("/", "/boot")
    ]
    folders = [tempfile.gettempdir(), *(disk for disk in disks if os.access(disk, os.W_OK))]
    return max(folders, key=lambda folder: shutil.disk_usage(folder).free)


def sweep(folder: str) -> int:
    """Remove the scratch files of killed processes; returns how many."""
    removed = 0
    for path in Path(folder).glob(f"{PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime < MIN_AGE_SECONDS:
                continue
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue  # in use, already removed, or another user's
    return removed
