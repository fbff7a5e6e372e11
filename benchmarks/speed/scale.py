"""How time and the driver's memory grow with the plan.

python -m benchmarks.speed.scale run     10, 100, 1,000 and 10,000 segments through the stages
python -m benchmarks.speed.scale resume  a plan of 1,000,000 segments, of which all but 100 are done

`run` takes videos whose status is known and a last stage that computes nothing, so that what is
left is the cost of the system itself. `resume` writes the log and the (empty) row files that a
killed run leaves, with as many commits after the last checkpoint as there can be, and times the
same command until its 100 segments count.
"""

import argparse
import logging
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measuring import RESULTS, write_record
from benchmarks.speed.sleeping import Passing
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.outputs import layout, log
from caan.outputs.committer import Committer
from caan.outputs.plan import Plan, plan
from caan.schema import MANIFEST_SCHEMA, table_of
from jobs.runtime import cluster
from jobs.runtime.options import Resources
from jobs.runtime.pipeline import Pipeline

LEFT = 100
"""Segments that `resume` leaves to do."""

FILE_SEGMENTS = 16
"""Segments of a row file that `resume` finds."""

COMMIT_FILES = 5
"""Row files of each commit after the last checkpoint."""


def manifest_of(num_videos: int, segments_each: int, num_bad: int = 0) -> pa.Table:
    """Videos of that many segments, and some that the index found bad, of one segment each."""
    rows = [
        {
            "video_id": f"{number:016x}", "uri": f"/archive/{number:07d}.mp4",
            "duration_seconds": 64.0 * segments_each,
            "status": "ok" if number < num_videos else "unreadable",
        }
        for number in range(num_videos + num_bad)
    ]  # fmt: skip
    return table_of(rows, MANIFEST_SCHEMA)


def planned(manifest: pa.Table) -> Plan:
    return plan(manifest, fps=2.0, segment_frames=128)


def peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def pipeline() -> Pipeline:
    return Pipeline(
        config=ExtractionConfig(detector="libfacedetection"),
        limits=SandboxConfig(),
        resources=Resources(embed_segments=16),
        build=Passing,
        arguments=(),
        table="features",
        frame_bytes=1000,
    )


def run(sizes: list[int]) -> list[dict[str, Any]]:
    found = []
    cluster.start()
    cluster.configure_data()
    for size in sizes:
        with tempfile.TemporaryDirectory() as output:
            start = time.perf_counter()
            with Committer(log.LogWriter(output, "benchmark")) as committer:
                pipeline().run("extract", planned(manifest_of(0, 0, size)), committer)
            seconds = time.perf_counter() - start
            rows = sum(t.num_rows for t in layout.read_rows(output, "features"))
        if rows != size:
            raise SystemExit(f"{rows} rows of {size} segments")
        found.append({"segments": size, "seconds": round(seconds, 1), "driver_peak_mb": peak_mb()})
        print(found[-1], flush=True)
    return found


def leave_log(output: str, num_segments: int) -> int:
    """The log of a run that was killed before its last segments, and its row files, empty.

    Gives the number of row files. A process of its own runs it: its memory is not the driver's.
    """
    of = planned(manifest_of((num_segments - LEFT) // 100, 100, LEFT))
    num_done = of.num_segments - LEFT
    ids = of.manifest["video_id"].combine_chunks().take(pa.array(of.video_N[:num_done]))
    number = np.arange(num_done) // FILE_SEGMENTS
    names = [f"features/{n:032x}.parquet" for n in range(int(number[-1]) + 1)]
    receipts = pa.table(
        [
            pa.array(names).take(pa.array(number)), ids, pa.array(of.first_N[:num_done]),
            pa.repeat("ok", num_done), pa.array(np.full(num_done, 128, np.int32)),
        ],
        schema=log.RECEIPTS_SCHEMA,
    )  # fmt: skip
    per_commit = COMMIT_FILES * FILE_SEGMENTS
    later = (log.CHECKPOINT_COMMITS - 2) * per_commit
    counted = receipts.slice(0, num_done - later).cast(log.STATE_SCHEMA)
    log.write_checkpoint(output, log.State(number=log.CHECKPOINT_COMMITS - 1, segments=counted))
    writer = log.LogWriter(output, "the killed run")
    for start in range(num_done - later, num_done, per_commit):
        writer.commit(receipts.slice(start, per_commit))
    folder = Path(output) / "features"
    folder.mkdir()
    for name in names:
        (Path(output) / name).touch()
    return len(names)


def resume(num_segments: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as output:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            num_files = other.submit(leave_log, output, num_segments).result()
        manifest = manifest_of((num_segments - LEFT) // 100, 100, LEFT)
        cluster.start()
        cluster.configure_data()
        start = time.perf_counter()
        again = planned(manifest)
        until_planned = time.perf_counter() - start
        writer = log.LogWriter(output, "benchmark")
        num_left = int(again.not_in(writer.state.segments).sum())
        until_known = time.perf_counter() - start
        with Committer(writer) as committer:
            pipeline().run("extract", again, committer)
        removed = layout.remove_garbage(output, "features", writer.state)
        seconds, peak = time.perf_counter() - start, peak_mb()
        found = log.read(output).segments
    if num_left != LEFT or removed or again.not_in(found).any() or len(found) != num_segments:
        raise SystemExit(f"{num_left} segments were left to do, and {len(found)} count")
    return {
        "segments": num_segments,
        "row_files": num_files,
        "planning_seconds": round(until_planned, 1),
        "log_seconds": round(until_known - until_planned, 1),
        "until_done_seconds": round(seconds, 1),
        "driver_peak_mb": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "resume"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, default=RESULTS / "scale.json")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    found = run(options.sizes) if options.what == "run" else resume(options.segments)
    write_record(options.output, {"found": found}, options.what)


if __name__ == "__main__":
    main()
