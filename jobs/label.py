"""Videos -> labels: the emotion that each video shows, and the frames that show it.

python -m jobs.label --manifest manifest.parquet --output labels/

Without --model the starter model of the package is used. The output folder has labels/ (a row per
video and person), frame_scores/ (a row per face), windows/ with --window-seconds, the files that
--write names, and run.json. Features are not stored. Run the same command again after an
interruption: finished segments are not read twice. Options of people, windows and --write may
change from run to run: the videos are then not read again.
"""

import logging
import sys
from dataclasses import dataclass, field

from caan import config, storage
from caan.errors import redact
from caan.faces.detection import Policy
from caan.labelling.config import Kind, PoolConfig, ReadingOptions
from caan.media.config import require_decoder
from caan.people.config import TrackConfig, with_person_distance
from jobs.runtime import cli
from jobs.runtime.options import RunOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job(ReadingOptions, RunOptions):
    """Options of jobs.label. Options that are not given are those of the model."""

    model: str = ""
    """Model folder written by jobs.train, local or s3://; empty: the starter model."""
    face_policy: Policy | None = None
    """Who gets labels: the main person of a video, the one marked in the manifest, or all."""
    tracks: TrackConfig = field(default_factory=TrackConfig)
    """How faces are tracked and merged into people."""
    window_seconds: float = 0.0
    """Also label sliding windows of this length, in windows/; 0: none."""
    stride_seconds: float = 0.0
    """Time from one window's start to the next one's; 0: the windows' length."""
    write: tuple[Kind, ...] = ()
    """Further files: csv and jsonl tables, vtt and eaf timelines, preview videos, strips."""
    abstain_below: float = 0.0
    """Labels of lower confidence become `uncertain`; their probabilities stay. The videos are not
    read again when this changes."""


def main(job: Job) -> int:
    """Label; give the exit code."""
    import ray

    from caan.extraction.embed import describe_networks
    from caan.labelling import reading
    from caan.models.checkpoint import STARTER, load_model
    from jobs.runtime import cluster, label_videos
    from jobs.runtime.pipeline import Pipeline
    from jobs.runtime.run import Run

    require_decoder(job.decoder)
    if not job.model:
        logger.info("no --model given: using the starter model of the package")
    source = job.model or str(STARTER)
    with storage.local_folder(source) as folder:
        model = load_model(folder)
        model_files = label_videos.model_in_memory(folder)
    modalities = model.head.modalities
    options = config.part(ReadingOptions, job)
    extraction = reading.extraction_of(options, model.info, source)
    networks = describe_networks(extraction, modalities)
    reading.check_weights(networks, model.info)
    people = reading.people_of(options, extraction, modalities, networks)
    pooling = config.part(
        PoolConfig,
        job,
        face_policy=job.face_policy or model.info.face_policy,
        tracks=with_person_distance(job.tracks, people.name),
    )
    run = config.part(
        Run,
        job,
        job_name="label",
        config=extraction,
        networks=networks | {"model": model.model_id, "people": config.to_dict(people)},
        whole_config=config.to_dict(job),
        modalities=modalities,
        face_policy=pooling.face_policy,
    )
    cluster.start()
    model_ref = ray.put(model_files)
    pipeline = config.part(
        Pipeline,
        job,
        config=extraction,
        build=label_videos.build_scorer,
        arguments=(extraction, [model_ref], people.name),
        table=label_videos.TABLE,
        frame_bytes=label_videos.FRAME_BYTES,
        face_embedding=people,
    )
    label_set = model.info.label_set
    with run.opened() as output:
        record = output.process(pipeline)
        record |= {"label_set": list(label_set), "model_id": model.model_id}
        record |= {"model": redact(job.model) or "starter", "pooling": config.to_dict(pooling)}
        pooled = label_videos.pool(output, model_ref, pooling)
        record["num_people"] = pooled.num_people
        record["files_failed"] = label_videos.write_files(output, pooled, label_set, job.write)
        return output.finish(record, pooled.statuses)


if __name__ == "__main__":
    first = (
        "manifest", "output", "model", "fps", "face_policy", "write", "window_seconds",
        "abstain_below", "retry_failed", "min_ok",
    )  # fmt: skip
    sys.exit(cli.run_job(Job, main, first=first))
