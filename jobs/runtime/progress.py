"""The progress line of a running dataset."""

import logging
import threading
import time
from typing import Any

import ray

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""Time between two progress lines."""


class Progress:
    """Logs one line every few seconds while a dataset runs, from the monitor's totals."""

    def __init__(self, monitor: Any, num_segments: int, video_seconds: float) -> None:
        self.monitor = monitor
        self.num_segments = num_segments
        self.video_seconds = video_seconds
        self.start_seconds = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def totals(self) -> tuple[dict[str, dict[str, float]], dict[str, list[str]]]:
        """What the stages have reported so far."""
        return ray.get(self.monitor.read.remote())

    def line(self) -> str:
        """Segments done, failed and left, frames per second, times real time and time left."""
        totals, _ = self.totals()
        embed = totals.get("embed", {})
        decode = totals.get("decode", {})
        done = int(embed.get("segments", 0))
        passed = time.perf_counter() - self.start_seconds
        left = self.num_segments - done
        video_seconds = embed.get("video_seconds", 0.0) + decode.get("skipped_seconds", 0.0)
        rate = video_seconds / passed if passed else 0.0
        # Files that hold less than their headers say leave a rest when nothing is left to do.
        remaining = max(0.0, self.video_seconds - video_seconds) if left > 0 else 0.0
        eta = f"{remaining / rate:.0f} s" if rate else "?"
        if not remaining:
            eta = "0 s"
        return (
            f"{done}/{self.num_segments} segments done, {int(decode.get('failed', 0))} failed, "
            f"{left} left; {embed.get('frames', 0) / passed if passed else 0:.1f} frames/s, "
            f"{rate:.1f} x real time; about {eta} left"
        )

    def _watch(self) -> None:
        while not self._stop.wait(PROGRESS_SECONDS):
            logger.info("%s", self.line())
