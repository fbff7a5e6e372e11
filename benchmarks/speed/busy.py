"""How busy many workers are kept: decoders that sleep, on one machine.

python -m benchmarks.speed.busy [--workers 64] [--segment-seconds 4] [--run-seconds 180]

The decoders need no processor, so that two cores stand for a cluster; what is measured is whether
work is always at hand. `busy_share` is the share of their time that the workers slept in segments,
from 30 s after the last worker began until 30 s before the first ended for good; `longest_gap` is
the longest time that a worker waited in between.
"""

import argparse
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.measuring import RESULTS, write_record
from benchmarks.speed.scale import manifest_of
from benchmarks.speed.sleeping import Passing, SleepingDecoder
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.outputs.committer import Committer
from caan.outputs.log import LogWriter
from caan.outputs.plan import plan
from jobs.runtime import cluster, pipeline
from jobs.runtime.options import Resources

MARGIN_SECONDS = 30.0
SEGMENTS_PER_VIDEO = 28


def busy(workers: int, segment_seconds: float, run_seconds: float) -> dict[str, Any]:
    embedders = 2
    ray.init(
        num_cpus=workers + embedders + 6, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    cluster.configure_data()
    num_segments = int(workers * run_seconds / segment_seconds)
    with tempfile.TemporaryDirectory() as output, tempfile.TemporaryDirectory() as times:
        pipeline.SegmentDecoder = partial(  # type: ignore[misc, assignment]
            _sleeping, folder=times, seconds=segment_seconds
        )
        stages = pipeline.Pipeline(
            config=ExtractionConfig(detector="libfacedetection"),
            limits=SandboxConfig(),
            resources=Resources(decoders=workers, embedders=embedders, embed_segments=1),
            build=Passing,
            arguments=(),
            table="features",
            frame_bytes=1000,
        )
        manifest = manifest_of(-(-num_segments // SEGMENTS_PER_VIDEO), SEGMENTS_PER_VIDEO)
        planned = plan(manifest, fps=2.0, segment_frames=128)
        with Committer(LogWriter(output, "busy")) as committer:
            counts = stages.run("extract", planned, committer)
        done = committer.writer.state.segments.num_rows
        intervals = [np.loadtxt(path, ndmin=2) for path in Path(times).iterdir()]
    start = max(i[0, 0] for i in intervals) + MARGIN_SECONDS
    end = min(i[-1, 1] for i in intervals) - MARGIN_SECONDS
    inside = [np.clip(i, start, end) for i in intervals]
    slept = sum(float((i[:, 1] - i[:, 0]).sum()) for i in inside)
    waits = [i[1:, 0] - i[:-1, 1] for i in inside]
    gaps = [float(wait.max(initial=0.0)) for wait in waits]
    return {
        "workers": len(intervals),
        "segments": done,
        "segments_planned": planned.num_segments,
        "seconds": round(counts["seconds"], 1),
        "measured_seconds": round(end - start, 1),
        "busy_share": round(slept / (len(intervals) * (end - start)), 4),
        "longest_gap_seconds": round(max(gaps), 2),
    }


def _sleeping(
    config: Any, limits: Any, deaths: Any, *, folder: str, seconds: float
) -> SleepingDecoder:
    return SleepingDecoder(config, folder, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--segment-seconds", type=float, default=4.0)
    parser.add_argument("--run-seconds", type=float, default=180.0)
    parser.add_argument("--output", type=Path, default=RESULTS / "busy.json")
    options = parser.parse_args()
    found = busy(options.workers, options.segment_seconds, options.run_seconds)
    print(found)
    write_record(options.output, {"found": found})


if __name__ == "__main__":
    main()
