"""`jobs.extract --plan-only`: time a sample of the plan on this cluster and predict the run."""

import dataclasses
import logging
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caan import storage
from caan.errors import InputError
from caan.outputs import throughput
from caan.outputs.committer import Committer
from caan.outputs.log import LogWriter
from caan.outputs.plan import check_manifest
from caan.outputs.plan import plan as make_plan
from caan.outputs.throughput import Prediction
from caan.schema import GOOD_STATUSES
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
    plan = make_plan(manifest, fps=run.config.fps, segment_frames=run.config.segment_frames)
    is_good_V = pc.is_in(pc.fill_null(manifest["status"], "ok"), pa.array(GOOD_STATUSES)).to_numpy()
    places = np.flatnonzero(is_good_V[plan.video_N])
    if not len(places):
        raise InputError(f"manifest `{run.manifest}` has no readable video to time.")
    num_sampled = min(len(places), SAMPLED_SEGMENTS)
    sampled_N = np.zeros(plan.num_segments, bool)
    sampled_N[places[np.linspace(0, len(places) - 1, num_sampled).astype(int)]] = True
    storage.check_writable(run.output)
    cluster.start()
    cluster.configure_data()
    scratch = run.output.rstrip("/") + ".sample"
    try:
        with Committer(LogWriter(scratch, "a sample")) as committer:
            counts = pipeline.run(run.job_name, plan, committer, sampled_N)
        rows = storage.list_files(storage.join(scratch, pipeline.table))
        sizes = [file.size_bytes for file in rows]
    finally:
        if storage.exists(scratch):
            storage.delete(scratch)
    frames = round(run.config.fps * plan.seconds(is_good_V[plan.video_N]))
    try:
        costs = throughput.costs_of(counts["stages"], sum(sizes))
    except ValueError as error:
        raise InputError(
            f"the sample of {num_sampled} segments cannot be timed: {error}."
        ) from error
    found = throughput.predict(costs, workers_of(counts), frames, price)
    storage.write_json(storage.join(run.output, FORECAST), dataclasses.asdict(found))
    for line in lines(found, num_sampled, len(places)):
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
