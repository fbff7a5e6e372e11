"""`jobs.extract --plan-only`: time a sample of the plan on this cluster and predict the run."""

import dataclasses
import logging
import math

import numpy as np
import pyarrow.compute as pc

from caan import storage
from caan.errors import InputError
from caan.outputs import layout, throughput
from caan.outputs.plan import check_manifest, plan_segments, seconds_of
from caan.outputs.throughput import Prediction
from jobs.runtime import cluster
from jobs.runtime.pipeline import Pipeline
from jobs.runtime.run import FORECAST, Run, workers_of

logger = logging.getLogger(__name__)

SAMPLED_SEGMENTS = 12
"""Most segments that are timed; they are spread evenly over the plan."""


def forecast(run: Run, pipeline: Pipeline, price: float | None) -> int:
    """Time the stages on a sample, print what the whole plan will take, and give the exit code.

    The prediction is kept in the output folder; the sample's rows are deleted.

    Raises:
        InputError: a bad manifest, no readable video, or no frame in the sample.
    """
    manifest = check_manifest(storage.read_table(run.manifest), run.manifest)
    plan = plan_segments(manifest, fps=run.config.fps, segment_frames=run.config.segment_frames)
    plan = plan.filter(pc.is_null(plan["known_status"]))
    if not plan.num_rows:
        raise InputError(f"manifest `{run.manifest}` has no readable video to time.")
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
    found = throughput.predict(costs, workers_of(counts), frames, price)
    storage.write_json(storage.join(run.output, FORECAST), dataclasses.asdict(found))
    for line in lines(found, len(rows), plan.num_rows):
        print(line)
    return 0


def lines(found: Prediction, num_sampled: int, num_segments: int) -> list[str]:
    """The prediction in sentences."""
    rates = ", ".join(
        f"{name} {rate:.1f}"
        for name, rate in found.stage_frames_per_second.items()
        if math.isfinite(rate)
    )
    text = [
        f"timed {num_sampled} of {num_segments} segments on this cluster",
        f"frames/s of each stage alone: {rates}; `{found.limiting_stage}` limits",
        f"{found.frames} frames at {found.frames_per_second:.1f}/s: {found.hours:.2f} hours, "
        f"{found.output_bytes / 1e9:.3f} GB of output",
    ]
    if found.cores_per_gpu is not None:
        text.append(f"{found.cores_per_gpu:.1f} decoding cores keep one GPU busy")
    if found.cost is not None:
        text.append(f"cost at this price: {found.cost:.2f}")
    return text
