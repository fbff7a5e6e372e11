"""The decoding stage: segments of the plan -> images, read in a sandboxed child process."""

import dataclasses
import functools
import tempfile
from typing import Any

import pyarrow as pa

from caan import storage
from caan.errors import Crashed, OutOfMemory, TimedOut, VideoError, redact
from caan.extraction.attempts import AttemptLog
from caan.extraction.config import SandboxConfig, SegmentConfig
from caan.extraction.images import scratch_folder, status_row
from caan.extraction.segment import read_segment, warm_up
from caan.media.config import require_decoder
from caan.media.sandbox import Sandbox
from caan.storage.scratch import scratch_file, sweep


class SegmentDecoder:
    """Segments of the plan -> images; a video's error becomes the status of its row."""

    def __init__(self, config: SegmentConfig, limits: SandboxConfig, attempts_folder: str) -> None:
        require_decoder(config.decoder)
        self.config = config
        self.limits = limits
        self.attempts = AttemptLog(attempts_folder, limits.max_attempts)
        self.sandbox = Sandbox(
            initializer=functools.partial(warm_up, config),
            time_limit_seconds=limits.time_limit_seconds,
            memory_limit_bytes=limits.memory_limit_mb << 20,
        )
        self.counts: dict[str, float] = {}
        for folder in {scratch_folder(), tempfile.gettempdir()}:
            sweep(folder)

    def take_counts(self) -> dict[str, float]:
        """Segments, videos, bytes, failures and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """PLAN_SCHEMA -> IMAGES_SCHEMA, a row for a row."""
        return pa.concat_tables([self._decode(row) for row in table.to_pylist()])

    def _decode(self, request: dict[str, Any]) -> pa.Table:
        if request["known_status"]:
            result = status_row(request, request["known_status"], request["known_error"])
        else:
            result = self._try(request)
        status = result["status"][0].as_py()
        self._count("segments", 1)
        if self._is_first(request):
            self._count("videos", 1)
            self._count("bytes", request["size_bytes"] or 0)
        self._count("failed", status not in ("ok", "partial", "no_face"))
        self._count(f"status.{status}", 1)
        self._count("seconds_decode", result["seconds_decode"][0].as_py() or 0.0)
        self._count("seconds_detect", result["seconds_detect"][0].as_py() or 0.0)
        return result

    def _is_first(self, request: dict[str, Any]) -> bool:
        """Whether this is the video's first segment, with which the video is counted."""
        return request["start_seconds"] - request["video_start_seconds"] < 1 / self.config.fps

    def _count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value

    def _try(self, request: dict[str, Any]) -> pa.Table:
        try:
            self._check_unchanged(request)
            spool_bytes = self.limits.spool_mb << 20
            size_bytes = request["size_bytes"] or 0
            with storage.spooled(request["uri"], size_bytes, spool_bytes) as source:
                try:
                    return self._read(request | {"source": source}, self.config)
                except (Crashed, TimedOut):
                    # Once more in a fresh child, which no earlier video can have harmed, with PyAV.
                    by_pyav = dataclasses.replace(self.config, decoder="pyav")
                    return self._read(request | {"source": source}, by_pyav)
        except FileNotFoundError:
            return status_row(request, "missing", f"there is no file `{request['uri']}`")
        except VideoError as error:
            return status_row(request, error.status, redact(str(error))[:500])

    def _check_unchanged(self, request: dict[str, Any]) -> None:
        if request["etag"] is None:
            return
        found = storage.stat(request["uri"])
        if found.etag != request["etag"]:
            error = VideoError("the file changed after it was indexed: index and run again")
            error.status = "changed"
            raise error

    def _read(self, request: dict[str, Any], config: SegmentConfig) -> pa.Table:
        attempt = self.attempts.begin(request["segment_id"])
        try:
            # A try that ends is forgotten, with or without an error; a lost one stays noted.
            table = self._read_in_child(request, config)
        except (Crashed, TimedOut, OutOfMemory) as error:
            self.attempts.fail(attempt, error)
            raise
        except VideoError:
            self.attempts.end(attempt)
            raise
        self.attempts.end(attempt)
        return table

    def _read_in_child(self, request: dict[str, Any], config: SegmentConfig) -> pa.Table:
        with scratch_file(scratch_folder()) as path, storage.explained(path, "passing images by"):
            counts = self.sandbox.run(read_segment, request, config, path)
            for name, value in dataclasses.asdict(counts).items() if counts else ():
                self._count(name, value)
            with pa.memory_map(path) as file:  # holds the images until the table is dropped
                return pa.ipc.open_file(file).read_all()
