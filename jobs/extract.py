"""Videos -> features: sample frames, detect faces, and write the networks' vectors to Parquet.

python -m jobs.extract --manifest manifest.parquet --output features/

Run the same command again after an interruption: finished segments are not read twice.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Literal

from caan import config
from caan.extraction.config import ExtractionConfig
from caan.media.config import require_decoder
from jobs.runtime import cli
from jobs.runtime.options import RunOptions

TABLE = "features"

MAPS: dict[str, tuple[str, ...]] = {
    "none": (),
    "face": ("face",),
    "context": ("context",),
    "both": ("face", "context"),
}
"""Networks whose pool5 maps are kept, by `--pool5`."""


@dataclass(frozen=True, kw_only=True)
class Job(ExtractionConfig, RunOptions):
    """Options of jobs.extract."""

    pool5: Literal["none", "face", "context", "both"] = "none"
    """Also keep pool5 maps, for the model pool5_attention and the branches of Tables 2 and 3. With
    VGG they take 50 KB per face and per frame, six times the size of fc6."""
    plan_only: bool = False
    """Time a sample on this cluster, print what the whole run will take, and stop."""
    price_per_node_hour: float | None = None
    """Price for the cost that --plan-only prints, in any currency."""


def main(job: Job) -> int:
    """Extract; give the exit code."""
    from caan.extraction.embed import SegmentEmbedder, bytes_per_frame, describe_networks
    from caan.features import leakage
    from jobs.runtime.forecast import forecast
    from jobs.runtime.pipeline import Pipeline
    from jobs.runtime.run import Run

    require_decoder(job.decoder)
    extraction = config.part(ExtractionConfig, job)
    maps = MAPS[job.pool5]
    networks = describe_networks(extraction, maps=maps)
    run = config.part(
        Run,
        job,
        job_name="extract",
        config=extraction,
        networks=networks,
        whole_config=config.to_dict(job),
    )
    pipeline = config.part(
        Pipeline,
        job,
        config=extraction,
        build=partial(SegmentEmbedder, maps=maps),
        arguments=(extraction, ("face", "context")),
        table=TABLE,
        frame_bytes=bytes_per_frame(networks),
    )
    if job.plan_only:
        return forecast(run, pipeline, job.price_per_node_hour)
    with run.opened() as output:
        record = output.process(pipeline)
        record["finetuned"] = leakage.write_beside(job.output, extraction)
        return output.finish(record, output.writer.state.statuses())


if __name__ == "__main__":
    first = (
        "manifest", "output", "fps", "detector", "face_backbone", "context_backbone", "face_policy",
        "no_face", "retry_failed", "plan_only",
    )  # fmt: skip
    sys.exit(cli.run_job(Job, main, first=first))
