"""How time and the driver's memory grow with the plan.

python -m benchmarks.speed.scale run     10, 100, 1,000 and 10,000 segments through the stages
python -m benchmarks.speed.scale resume  a plan of 1,000,000 segments, of which all but 100 are done

`run` takes videos whose status is known and a last stage that computes nothing, so that what is
left is the cost of the system itself. `resume` writes the plan as a run does, marks all shards but
the last as finished, gives the last one the files that a run leaves (one of rows and one of
names per written block), and times the same command until its 100 segments are written.
"""

import argparse
import logging
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import RESULTS, write_record
from caan import storage
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.outputs import layout
from caan.outputs.plan import plan_segments
from caan.schema import MANIFEST_SCHEMA, table_of
from jobs.runtime import cluster
from jobs.runtime.options import Resources
from jobs.runtime.pipeline import Pipeline

LEFT = 100
"""Segments that `resume` leaves to do."""


class NoNetwork:
    """The last stage without its networks: passes the rows on, counted."""

    def __init__(self, device: str, batch_size: int, num_threads: int) -> None:
        self.counts: dict[str, float] = {}

    def take_counts(self) -> dict[str, float]:
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        self.counts["segments"] = table.num_rows
        return table.select(["segment_id", "video_id", "attempt", "status"])


def manifest_of(num_videos: int, segments_each: int) -> pa.Table:
    """Videos of that many segments, unreadable, so that no file is opened."""
    rows = [
        {
            "video_id": f"{number:016x}", "uri": f"/archive/{number:07d}.mp4",
            "duration_seconds": 64.0 * segments_each, "status": "ok",
        }
        for number in range(num_videos)
    ]  # fmt: skip
    return table_of(rows, MANIFEST_SCHEMA)


def known(plan: pa.Table) -> pa.Table:
    """The plan with a known status in every row: nothing is to be decoded."""
    at = plan.schema.get_field_index("known_status")
    statuses = pa.array(["unreadable"] * plan.num_rows, plan.schema.field(at).type)
    return plan.set_column(at, plan.schema.field(at), statuses)


def peak_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def pipeline() -> Pipeline:
    return Pipeline(
        config=ExtractionConfig(detector="libfacedetection"),
        limits=SandboxConfig(),
        resources=Resources(embed_segments=16),
        build=NoNetwork,
        arguments=(),
    )


def run(sizes: list[int]) -> list[dict[str, Any]]:
    found = []
    cluster.start()
    cluster.configure_data()
    for size in sizes:
        with tempfile.TemporaryDirectory() as output:
            plan = known(plan_segments(manifest_of(size, 1), fps=2.0, segment_frames=128))
            shards = layout.extend_plan(output, "features", plan, retry_failed=False)
            start = time.perf_counter()
            pipeline().run("extract", shards)
            seconds = time.perf_counter() - start
            rows = sum(t.num_rows for t in layout.latest_segments(output, "features"))
        if rows != size:
            raise SystemExit(f"{rows} rows of {size} segments")
        found.append({"segments": size, "seconds": round(seconds, 1), "driver_peak_mb": peak_mb()})
        print(found[-1], flush=True)
    return found


def resume(num_segments: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as output:
        start = time.perf_counter()
        plan = plan_segments(manifest_of(num_segments // 100, 100), fps=2.0, segment_frames=128)
        planned = time.perf_counter() - start
        shards = layout.extend_plan(output, "features", known(plan), retry_failed=False)
        for shard in shards[:-1]:
            storage.write_bytes(storage.join(shard.folder, layout.SUCCESS), b"")
        ids = storage.read_table(shards[-1].plan, ["segment_id"])["segment_id"].to_pylist()
        folder = Path(shards[-1].state) / "checkpoint"
        folder.mkdir(parents=True)
        done = ids[:-LEFT]
        rows = Path(shards[-1].folder)
        rows.mkdir(parents=True)
        for first in range(0, len(done), 16):  # a file of rows and one of names per written block
            part = pa.table({"segment_id": done[first : first + 16]})
            pq.write_table(part, rows / f"done{first:06d}-000000.parquet")
            pq.write_table(part, folder / f"done{first:06d}.parquet")
        del plan, ids
        cluster.start()
        cluster.configure_data()
        start = time.perf_counter()
        again = plan_segments(manifest_of(num_segments // 100, 100), fps=2.0, segment_frames=128)
        shards = layout.extend_plan(output, "features", known(again), retry_failed=False)
        left = [shard for shard in shards if not shard.is_finished()]
        checked = time.perf_counter() - start
        pipeline().run("extract", shards)
        seconds = time.perf_counter() - start
        names = [pq.read_table(path, columns=["segment_id"]) for path in rows.glob("*.parquet")]
    written = pa.concat_tables(names)["segment_id"].to_pylist()
    if len(written) != len(done) + LEFT or len(set(written)) != len(written) or len(left) != 1:
        raise SystemExit(f"{len(written)} rows, {len(done)} were done and {LEFT} left to do")
    return {
        "segments": num_segments,
        "checkpoint_files_of_the_open_shard": (len(done) + 15) // 16,
        "planning_seconds": round(planned, 1),
        "check_seconds": round(checked, 1),
        "until_done_seconds": round(seconds, 1),
        "driver_peak_mb": peak_mb(),
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
