"""Stages that sleep or pass rows on; imports little, since dozens of workers load it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from caan.outputs.plan import segments_of
from caan.schema import IMAGES_SCHEMA, table_of


class SleepingDecoder:
    """A decoder that sleeps for each segment, and writes down from when to when."""

    def __init__(self, config: Any, folder: str, seconds: float) -> None:
        self.config = config
        self.seconds = seconds
        self.path = Path(folder) / str(os.getpid())

    def take_counts(self) -> dict[str, float]:
        return {"segments": 1}

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        for unit in units.to_pylist():
            for request in segments_of(unit, self.config.fps, self.config.segment_frames):
                start = time.time()
                time.sleep(self.seconds)
                with self.path.open("a") as file:
                    file.write(f"{start} {time.time()}\n")
                names = ("segment_id", "video_id", "start_seconds", "end_seconds")
                row = {name: request[name] for name in names} | {"status": "no_face"}
                yield table_of([row | {"frames": [], "faces": []}], IMAGES_SCHEMA)


class Passing:
    """A last stage that computes nothing."""

    def __init__(self, device: str, batch_size: int, num_threads: int) -> None:
        self.counts: dict[str, float] = {}

    def take_counts(self) -> dict[str, float]:
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        self.counts = {"segments": table.num_rows}
        return table.select(["segment_id", "video_id", "status", "faces"])
