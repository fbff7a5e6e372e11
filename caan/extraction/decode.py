"""The decoding stage: units of the plan -> images, read in a sandboxed child process."""

import dataclasses
import functools
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from caan import storage
from caan.errors import Crashed, Missing, OutOfMemory, TimedOut, VideoError, redact
from caan.extraction.config import SandboxConfig, SegmentConfig
from caan.extraction.deaths import DeathLog, OwnDeathLog
from caan.extraction.images import scratch_folder, status_row
from caan.extraction.segment import read_segment, warm_up
from caan.media.config import require_decoder
from caan.media.sandbox import Sandbox
from caan.outputs.plan import segments_of
from caan.storage.scratch import scratch_file, spool_folder, sweep

MIN_SPOOL_SHARE = 0.9
"""Least share of a file that a unit covers for the file to be copied to disk. Of less, the ranges
that it needs are read: another unit fetches the rest."""


class SegmentDecoder:
    """Units of the plan -> images; a video's error becomes the status of its rows."""

    def __init__(
        self, config: SegmentConfig, limits: SandboxConfig, deaths: DeathLog | None = None
    ) -> None:
        require_decoder(config.decoder)
        self.config = config
        self.limits = limits
        self.deaths = deaths or OwnDeathLog()
        self.sandbox = Sandbox(
            initializer=functools.partial(warm_up, config),
            time_limit_seconds=limits.time_limit_seconds,
            memory_limit_bytes=limits.memory_limit_mb << 20,
        )
        self.counts: dict[str, float] = {}
        self.spool_folder = limits.spool_dir or spool_folder()
        for folder in {scratch_folder(), tempfile.gettempdir(), self.spool_folder}:
            sweep(folder)

    def take_counts(self) -> dict[str, float]:
        """Segments, videos, bytes, failures and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """UNITS_SCHEMA -> IMAGES_SCHEMA, one table of one row per segment, in order."""
        for unit in units.to_pylist():
            for result in self._decode(unit):
                status = result["status"][0].as_py()
                self._count("segments", 1)
                self._count("failed", status not in ("ok", "partial", "no_face"))
                self._count(f"status.{status}", 1)
                self._count("seconds_decode", result["seconds_decode"][0].as_py() or 0.0)
                self._count("seconds_detect", result["seconds_detect"][0].as_py() or 0.0)
                yield result

    def _decode(self, unit: dict[str, Any]) -> Iterator[pa.Table]:
        """The segments of a unit. The child keeps the file open from one to the next."""
        if unit["first_index"] - unit["video_start_seconds"] * self.config.fps < 1:
            self._count("videos", 1)  # with its first segment
            self._count("bytes", unit["size_bytes"] or 0)
        left = segments_of(unit, self.config.fps, self.config.segment_frames)
        if unit["known_status"]:
            yield from self._failed(left, unit["known_status"], unit["known_error"])
            return
        try:
            self._check_unchanged(unit)
            size_bytes = unit["size_bytes"] or 0
            is_spooled = unit["share_of_file"] >= MIN_SPOOL_SHARE
            spool_bytes = self.limits.spool_mb << 20 if is_spooled else 0
            with storage.spooled(unit["uri"], size_bytes, spool_bytes, self.spool_folder) as source:
                while left:
                    yield self._segment(left[0] | {"source": source})
                    left = left[1:]
        except VideoError as error:
            yield from self._failed(left, error.status, str(error))

    def _failed(
        self, requests: list[dict[str, Any]], status: str, error: str | None
    ) -> Iterator[pa.Table]:
        text = None if error is None else redact(error)[:500]
        for request in requests:
            yield status_row(request, status, text)

    def _count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value

    def _check_unchanged(self, unit: dict[str, Any]) -> None:
        if unit["etag"] is None:
            return
        try:
            found = storage.stat(unit["uri"])
        except FileNotFoundError as absent:
            raise Missing(f"there is no file `{unit['uri']}`") from absent
        if found.etag != unit["etag"]:
            error = VideoError("the file changed after it was indexed: index and run again")
            error.status = "changed"
            raise error

    def _segment(self, request: dict[str, Any]) -> pa.Table:
        try:
            try:
                return self._read(request, self.config)
            except (Crashed, TimedOut):
                # Once more in a fresh child, which no earlier video can have harmed, with PyAV.
                return self._read(request, dataclasses.replace(self.config, decoder="pyav"))
        except VideoError as error:
            return status_row(request, error.status, redact(str(error))[:500])

    def _read(self, request: dict[str, Any], config: SegmentConfig) -> pa.Table:
        video_id = request["video_id"]
        deaths = self.deaths.of(video_id)
        if deaths.times >= self.limits.max_attempts:
            error = VideoError(deaths.error)
            error.status = deaths.status
            raise error
        try:
            return self._read_in_child(request, config)
        except (Crashed, TimedOut, OutOfMemory) as died:
            self.deaths.add(video_id, died.status, str(died))
            raise

    def _read_in_child(self, request: dict[str, Any], config: SegmentConfig) -> pa.Table:
        with scratch_file(scratch_folder()) as path, storage.explained(path, "passing images by"):
            counts = self.sandbox.run(read_segment, request, config, path)
            for name, value in dataclasses.asdict(counts).items() if counts else ():
                self._count(name, value)
            with pa.memory_map(path) as file:  # holds the images until the table is dropped
                return pa.ipc.open_file(file).read_all()
