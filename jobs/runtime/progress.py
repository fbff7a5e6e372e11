"""The progress line of a running dataset."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""Time between two progress lines."""


class Ticker:
    """Log a line every few seconds while work runs: `with Ticker(line): ...`."""

    def __init__(self, line: Callable[[], str]) -> None:
        self._line = line
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Ticker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._stop.wait(PROGRESS_SECONDS):
            logger.info("%s", self._line())


class Progress(Ticker):
    """Log one line every few seconds while a dataset runs, from the monitor's totals."""

    def __init__(
        self, monitor: Any, num_segments: int, video_seconds: float, workers: int = 0
    ) -> None:
        self.monitor = monitor
        self.num_segments = num_segments
        self.video_seconds = video_seconds
        self.workers = workers
        self.start_seconds = time.perf_counter()
        super().__init__(self.line)

    def __enter__(self) -> "Progress":
        super().__enter__()
        return self

    def totals(self) -> tuple[dict[str, dict[str, float]], dict[str, list[str]]]:
        """Totals and node ids that the stages have reported so far, each by stage."""
        return ray.get(self.monitor.read.remote())

    def num_workers(self) -> int:
        """Workers that have started."""
        return ray.get(self.monitor.num_workers.remote())

    def line(self) -> str:
        """Segments done, failed and left; speed and time left, or what the run waits for."""
        totals, _ = self.totals()
        embed = totals.get("embed", {})
        decode = totals.get("decode", {})
        done = int(embed.get("segments", 0))
        left = self.num_segments - done
        counts = (
            f"{done}/{self.num_segments} segments done, {int(decode.get('failed', 0))} failed, "
            f"{left} left"
        )
        passed = time.perf_counter() - self.start_seconds
        video_seconds = embed.get("video_seconds", 0.0) + decode.get("skipped_seconds", 0.0)
        if left and not (done and video_seconds):
            return f"{counts}; {self._waits_for(decode)}"
        rate = video_seconds / passed
        # Files shorter than their headers say leave a rest of seconds when no segment is left.
        remaining = max(0.0, self.video_seconds - video_seconds) if left > 0 else 0.0
        return (
            f"{counts}; {embed.get('frames', 0) / passed:.1f} frames/s, {rate:.1f} x real time; "
            f"about {remaining / rate if remaining else 0:.0f} s left"
        )

    def _waits_for(self, decode: dict[str, float]) -> str:
        """What happens before the first frame is through the networks."""
        if starting := max(0, self.workers - self.num_workers()):
            return f"starting {starting} worker{'s' if starting > 1 else ''}"
        if decode.get("frames"):
            return "the first frames are in the networks"
        return "decoding the first frames"
