"""Commit the receipts of a running job every few seconds."""

import logging
import threading
import time

import pyarrow as pa

from caan import storage
from caan.outputs.layout import RECEIPTS_SCHEMA
from caan.outputs.log import LogWriter

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 10.0
"""Longest time that a finished row file waits for its commit."""


class Committer:
    """Takes receipts as they come; a thread commits them.

    A task that was repeated after a lost node writes its segments again, in another file. Such a
    file is refused as a whole: what only it holds is read once more.
    """

    def __init__(self, writer: LogWriter, seconds: float = COMMIT_SECONDS) -> None:
        self.writer = writer
        self.seconds = seconds
        self.num_refused = 0
        self._pending: list[pa.Table] = []
        self._seen: dict[str, set[int]] = {}
        self._lock = threading.RLock()
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="committer", daemon=True)

    def __enter__(self) -> "Committer":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is None or kind is None:
            self.flush()  # after an error too: finished work counts

    def add(self, receipts: pa.Table) -> None:
        """Take the receipts of row files; those of one file must come together.

        Raises:
            Exception: what a commit raised meanwhile, such as `LostOutput`.
        """
        if self._failure is not None:
            raise self._failure
        with self._lock:
            for file in receipts["file"].unique().to_pylist():
                part = receipts.filter(pa.compute.equal(receipts["file"], file))
                keys = list(
                    zip(part["video_id"].to_pylist(), part["first_index"].to_pylist(), strict=True)
                )
                if any(first in self._seen.get(video_id, ()) for video_id, first in keys):
                    self.num_refused += 1
                    storage.delete(storage.join(self.writer.output, file))
                    continue
                for video_id, first in keys:
                    self._seen.setdefault(video_id, set()).add(first)
                self._pending.append(part)

    def flush(self) -> None:
        """Commit what waits.

        Raises:
            LostOutput: another writer has taken the output over.
        """
        if self._failure is not None:
            raise self._failure
        with self._lock:
            if self._pending:
                receipts = pa.concat_tables([RECEIPTS_SCHEMA.empty_table(), *self._pending])
                self.writer.commit(receipts)
                self._pending = []

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(min(1.0, self.seconds)):
            try:
                if time.monotonic() - last >= self.seconds:
                    self.flush()
                    last = time.monotonic()
            except Exception as error:  # told to whoever adds or flushes next
                self._failure = error
                return
