"""Who writes to an output: one driver at a time.

The lease keeps a second driver from doing the work twice. It is no lock: what makes two writers
safe is the log (`caan.outputs.log`), in which the second one's commit fails.
"""

import datetime
import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import Any

import psutil

from caan import storage
from caan.errors import InputError, StorageError, redact

logger = logging.getLogger(__name__)

FILE = "lease.json"
RENEW_SECONDS = 20.0
"""Time between two renewals."""

EXPIRY_SECONDS = 120.0
"""A lease that was not renewed for so long may be taken over."""


class Lease:
    """This process's right to write to an output, given back at the end of `with`."""

    def __init__(self, output: str, job: str, *, take_over: bool = False) -> None:
        """Take the lease.

        A lease whose process is dead on this machine is taken at once. With `take_over` one that
        has expired is taken, after a wait for that if need be.

        Raises:
            InputError: another driver holds it; the sentence names host, job and time.
        """
        self.path = storage.join(output, FILE)
        self.output = output
        process = psutil.Process()
        self.said: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "process": process.pid,
            "process_started": process.create_time(),
            "job": job,
            "since": _now(),
            "renewed": _now(),
        }
        self.renewed_at = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        while not self._create():
            holder = self._holder()
            if holder is not None:  # else it ended meanwhile
                self._take_from(holder, take_over)
                break

    @property
    def writer(self) -> str:
        """Name of this writer among all others, for people to read."""
        said = self.said
        return f"jobs.{said['job']} on {said['host']} (process {said['process']}, {said['id'][:8]})"

    def _create(self) -> bool:
        try:
            storage.create_bytes(self.path, self._content())
        except FileExistsError:
            return False
        return True

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = storage.read_json(self.path)
        except FileNotFoundError:
            return None
        return holder

    def _take_from(self, holder: dict[str, Any], take_over: bool) -> None:
        if not _is_dead_here(holder):
            wait_seconds = EXPIRY_SECONDS - _age_seconds(holder)
            if not take_over:
                hint = (
                    "it was not renewed since, so that `--take-over` takes it"
                    if wait_seconds <= 0
                    else "wait for its end; if that machine is gone, use `--take-over`"
                )
                raise InputError(
                    f"jobs.{holder['job']} on {holder['host']} (process {holder['process']}) "
                    f"writes to `{redact(self.output)}` since {holder['since']}, last seen "
                    f"{holder['renewed']}: {hint} (an option of jobs.extract and jobs.label)."
                )
            if wait_seconds > 0:
                logger.info("waiting %.0f s for the lease of %s", wait_seconds, holder["host"])
                time.sleep(wait_seconds)
            now = self._holder()
            if now and (now["id"] != holder["id"] or _age_seconds(now) < EXPIRY_SECONDS):
                raise InputError(
                    f"jobs.{now['job']} on {now['host']} still writes to `{redact(self.output)}`: "
                    "stop it first."
                )
        self.said["since"] = self.said["renewed"] = _now()
        storage.write_bytes(self.path, self._content())

    def renew(self) -> None:
        """Say that this driver lives, if that is due; nothing where another holds the lease."""
        if time.monotonic() - self.renewed_at < RENEW_SECONDS:
            return
        self.renewed_at = time.monotonic()
        if self._is_ours():
            self.said["renewed"] = _now()
            storage.write_bytes(self.path, self._content())

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.release()

    def _keep(self) -> None:
        """Renew the lease until the end of `with`, whatever the driver does meanwhile."""
        while not self._over.wait(RENEW_SECONDS / 4):
            try:
                self.renew()
            except (StorageError, OSError) as error:  # it expires only after many of these
                logger.warning("the lease of %s is not renewed: %s", redact(self.output), error)

    def release(self) -> None:
        """Give the lease back."""
        if self._is_ours():
            storage.delete(self.path)

    def _is_ours(self) -> bool:
        holder = self._holder()
        return holder is not None and bool(holder["id"] == self.said["id"])

    def _content(self) -> bytes:
        return (json.dumps(self.said, indent=2) + "\n").encode()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _age_seconds(holder: dict[str, Any]) -> float:
    renewed = datetime.datetime.fromisoformat(holder["renewed"])
    return (datetime.datetime.now(datetime.UTC) - renewed).total_seconds()


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine and is no more."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(holder["process"])
        started = process.create_time()
        if process.status() == psutil.STATUS_ZOMBIE:  # killed, and its parent has not looked yet
            return True
    except psutil.NoSuchProcess:
        return True
    return abs(started - holder["process_started"]) > 1.0 or os.getpid() == holder["process"]
