"""Children that died while they decoded a video: what a video is given up for, and nothing else.

Lost nodes, killed workers, stopped jobs and storage out of reach are no fault of a video.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

DEADLY = ("crashed", "timed_out", "out_of_memory")
"""Statuses of segments on which the child died."""


class Deaths(NamedTuple):
    """How often the decoding child died on a video, and how the last time."""

    times: int = 0
    status: str = ""
    error: str = ""


class DeathLog(Protocol):
    """Counts the children that died on each video, for all workers of a run."""

    def of(self, video_id: str) -> Deaths:
        """The deaths on this video so far."""

    def add(self, video_id: str, status: str, error: str) -> None:
        """Count one more."""


class OwnDeathLog:
    """The deaths that one process counts."""

    def __init__(self, of_before: Mapping[str, Deaths] | None = None) -> None:
        """`of_before` has the deaths of earlier runs, by video id."""
        self.deaths: dict[str, Deaths] = dict(of_before or {})

    def of(self, video_id: str) -> Deaths:
        """The deaths on this video so far."""
        return self.deaths.get(video_id, Deaths())

    def add(self, video_id: str, status: str, error: str) -> None:
        """Count one more."""
        self.deaths[video_id] = Deaths(self.of(video_id).times + 1, status, error)


def deaths_of(segments: pa.Table) -> dict[str, Deaths]:
    """Deaths of earlier runs by video id, from the log's segments (video_id, status)."""
    status = segments["status"].cast(pa.string())
    is_deadly = pc.is_in(status, pa.array(DEADLY))
    ids = segments["video_id"].filter(is_deadly).to_pylist()
    last = dict(zip(ids, status.filter(is_deadly).to_pylist(), strict=True))
    return {
        video_id: Deaths(count, last[video_id], f"given up: {count} segments failed before")
        for video_id, count in Counter(ids).items()
    }
