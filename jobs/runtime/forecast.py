"""What jobs.extract --plan-only does: a sample of the plan on the actual nodes, a prediction."""

import dataclasses
import logging
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caan import storage
from caan.errors import InputError
from caan.outputs import layout, throughput
from caan.outputs.plan import check_manifest, plan_segments
from caan.outputs.throughput import Prediction
from jobs.runtime import cluster
from jobs.runtime.pipeline import FORECAST, Pipeline, Run, pools_of

logger = logging.getLogger(__name__)

SAMPLED_SEGMENTS = 12
"""Segments that are timed, spread evenly over the plan."""


def forecast(run: Run, pipeline: Pipeline, price: float | None) -> int:
    """Time the stages on a sample and say what the whole plan will take; gives the exit code.

    Nothing of the sample stays but the prediction.

    Raises:
        InputError: a bad manifest, no readable video, or no frame in the sample.
    """
    manifest = check_manifest(storage.read_table(run.manifest_uri), run.manifest_uri)
    plan = plan_segments(manifest, fps=run.config.fps, segment_frames=run.config.segment_frames)
    plan = plan.filter(pc.is_null(plan["known_status"]))
    if not plan.num_rows:
        raise InputError(f"manifest `{run.manifest_uri}` has no readable video to time.")
    rows = np.linspace(0, plan.num_rows - 1, min(plan.num_rows, SAMPLED_SEGMENTS)).astype(int)
    storage.check_writable(run.output)
    cluster.start()
    cluster.configure_data()
    scratch = run.output.rstrip("/") + ".sample"
    try:
        shards = layout.extend_plan(scratch, run.table, plan.take(rows), retry_failed=False)
        counts = pipeline.run(run.job_name, shards)
        sizes = [file.size_bytes for file in storage.list_files(storage.join(scratch, run.table))]
    finally:
        if storage.exists(scratch):
            storage.delete(scratch)
    frames = round(run.config.fps * seconds_of(plan))
    try:
        costs = throughput.costs_of(counts["stages"], sum(sizes))
    except ValueError as error:
        raise InputError(f"the sample of {len(rows)} segments cannot be timed: {error}.") from error
    found = throughput.predict(costs, pools_of(counts), frames, price)
    storage.write_json(storage.join(run.output, FORECAST), dataclasses.asdict(found))
    for line in lines(found, len(rows), plan.num_rows):
        print(line)
    return 0


def seconds_of(plan: pa.Table) -> float:
    """Seconds of video in a plan."""
    lengths = pc.subtract(plan["end_seconds"], plan["start_seconds"])
    return float(pc.sum(lengths).as_py() or 0.0)


def lines(found: Prediction, num_sampled: int, num_segments: int) -> list[str]:
    """The prediction for people."""
    rates = ", ".join(
        f"{name} {rate:.1f}"
        for name, rate in found.stage_frames_per_second.items()
        if math.isfinite(rate)
    )
    told = [
        f"timed {num_sampled} of {num_segments} segments on this cluster",
        f"frames/s each stage could do: {rates}; `{found.limiting_stage}` limits",
        f"{found.frames} frames at {found.frames_per_second:.1f}/s: {found.hours:.2f} hours, "
        f"{found.output_bytes / 1e9:.3f} GB of output",
    ]
    if found.cores_per_gpu is not None:
        told.append(f"{found.cores_per_gpu:.1f} decoding cores keep one GPU busy")
    if found.cost is not None:
        told.append(f"cost at this price: {found.cost:.2f}")
    return told
