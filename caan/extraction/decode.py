"""Segments of the plan -> their pictures, by a sandboxed child."""

import dataclasses
import functools
import tempfile
from typing import Any

import pyarrow as pa

from caan import storage
from caan.errors import Crashed, OutOfMemory, TimedOut, VideoError, redact
from caan.extraction.attempts import AttemptLog
from caan.extraction.config import CutConfig, SandboxConfig
from caan.extraction.pictures import scratch_folder, status_row
from caan.extraction.segment import cut_segment, warm_up
from caan.media.sandbox import Sandbox
from caan.storage.scratch import scratch_file, sweep


class SegmentDecoder:
    """Segments of the plan -> their pictures; every video error becomes the row's status."""

    def __init__(self, cut: CutConfig, limits: SandboxConfig, attempts_folder: str) -> None:
        self.cut = cut
        self.limits = limits
        self.attempts = AttemptLog(attempts_folder, limits.max_attempts)
        self.sandbox = Sandbox(
            initializer=functools.partial(warm_up, cut),
            time_limit_seconds=limits.time_limit_seconds,
            memory_limit_bytes=limits.memory_limit_mb << 20,
        )
        self.counts: dict[str, float] = {}
        for folder in {scratch_folder(), tempfile.gettempdir()}:
            sweep(folder)

    def take_counts(self) -> dict[str, float]:
        """Segments, videos and their bytes, failures and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """PLAN_SCHEMA -> PICTURES_SCHEMA, a row for a row."""
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
        """Whether a video begins with this segment: it stands for the video in the counts."""
        return request["start_seconds"] - request["video_start_seconds"] < 1 / self.cut.fps

    def _count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value

    def _try(self, request: dict[str, Any]) -> pa.Table:
        try:
            self._check_unchanged(request)
            spool_bytes = self.limits.spool_mb << 20
            size_bytes = request["size_bytes"] or 0
            with storage.spooled(request["uri"], size_bytes, spool_bytes) as source:
                try:
                    # PyAV, not `auto`: on 720p H.264 with B-frames decord gave the same pictures
                    # for 1.4 (all of them) to 2.0 times (1 per second) the CPU time
                    # (docs/results.md), and it is the one that hangs (dmlc/decord 373, 375).
                    return self._cut(request | {"source": source}, "pyav")
                except (Crashed, TimedOut):
                    # In a fresh child, as what came before may have harmed the first.
                    return self._cut(request | {"source": source}, "pyav")
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

    def _cut(self, request: dict[str, Any], decoder: str) -> pa.Table:
        attempt = self.attempts.begin(request["segment_id"])
        try:
            # Tries that came to their end are forgotten, whatever the end; lost ones stay.
            table = self._cut_in_child(request, decoder)
        except (Crashed, TimedOut, OutOfMemory) as error:
            self.attempts.fail(attempt, error)
            raise
        except VideoError:
            self.attempts.end(attempt)
            raise
        self.attempts.end(attempt)
        return table

    def _cut_in_child(self, request: dict[str, Any], decoder: str) -> pa.Table:
        with scratch_file(scratch_folder()) as path, storage.explained(path, "passing pictures by"):
            counts = self.sandbox.run(cut_segment, request, self.cut, decoder, path)
            for name, value in dataclasses.asdict(counts).items() if counts else ():
                self._count(name, value)
            with pa.memory_map(path) as file:  # keeps the pictures until the table is dropped
                return pa.ipc.open_file(file).read_all()
