"""Videos -> features: sample frames, find faces, and take the networks' vectors into Parquet.

python -m jobs.extract --manifest manifest.parquet --output features/

Run the same command again after an interruption: finished segments are not done twice.
"""

import dataclasses
import functools
import logging
import sys
from dataclasses import dataclass, field
from typing import Literal

from caan import config
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.embed import SegmentEmbedder, identities
from caan.features import leakage
from jobs.runtime import cli
from jobs.runtime.forecast import forecast
from jobs.runtime.pipeline import Pipeline, Resources, Run

logger = logging.getLogger(__name__)

TABLE = "features"


@dataclass(frozen=True, kw_only=True)
class Job(ExtractionConfig):
    """Options of jobs.extract."""

    manifest: str
    """Manifest written by jobs.index; local or s3://."""
    output: str
    """Folder of the features; local or s3://."""
    pool5: Literal["none", "face", "context", "both"] = "none"
    """Keep pool5 maps too, for model pool5_attention and the branches of Tables 2 and 3: 50 KB a
    face and a frame with VGG, six times its fc6."""
    retry_failed: bool = False
    """Do the videos again whose last try failed."""
    on_change: Literal["error", "recompute"] = "error"
    """When options, weights or a video differ from the output that is there."""
    min_ok: float = 0.0
    """Lowest accepted share of videos that are ok, partial or no_face; below it the exit is 1."""
    plan_only: bool = False
    """Time a sample on the actual nodes, say what the whole will take, and stop."""
    price_per_node_hour: float | None = None
    """For the cost that --plan-only says, in any currency."""
    limits: SandboxConfig = field(default_factory=SandboxConfig)
    """Limits on the decoding of one segment."""
    resources: Resources = field(default_factory=Resources)
    """How the cluster is used."""


def main(job: Job) -> int:
    """Extract; gives the exit code."""
    names = [field.name for field in dataclasses.fields(ExtractionConfig)]
    extraction = ExtractionConfig(**{name: getattr(job, name) for name in names})
    maps = {"none": (), "both": ("face", "context")}.get(job.pool5, (job.pool5,))
    run = Run(
        job_name="extract",
        manifest_uri=job.manifest,
        output=job.output,
        table=TABLE,
        config=extraction,
        identity=identities(extraction, maps=maps),
        whole_config=config.to_dict(job),
        retry_failed=job.retry_failed,
        on_change=job.on_change,
        min_ok=job.min_ok,
    )
    pipeline = Pipeline(
        config=extraction,
        limits=job.limits,
        resources=job.resources,
        build=functools.partial(SegmentEmbedder, maps=maps),
        arguments=(extraction, ("face", "context")),
    )
    if job.plan_only:
        return forecast(run, pipeline, job.price_per_node_hour)
    record = run.process(pipeline)
    record["finetuned"] = leakage.write_beside(job.output, extraction)
    return run.finish(record, run.statuses())


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
