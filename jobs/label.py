"""Videos -> labels: which emotion each shows, and which frames say so, without storing features.

python -m jobs.label --manifest manifest.parquet --output labels/

Without --model the starter model that comes with the package is used. The output folder has
labels/ (a row per video and person), frame_scores/ (a row per face) and run.json. Run the same
command again after an interruption: what is finished is not done twice.
"""

import logging
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from caan import checkpoint, config, labelling, on_ray, runs, storage
from caan.checkpoint import ModelInfo
from caan.errors import InputError
from caan.extraction import ExtractionConfig, SandboxConfig, identities
from caan.labelling import SegmentScorer
from jobs.pipeline import Pipeline, Resources, Run

logger = logging.getLogger(__name__)

TABLE = "segment_scores"


POOL_SEGMENTS = 500
"""Segments of one task of the second phase (about 130 MB of frame vectors)."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.label. What is empty is the model's own."""

    manifest: str
    """Manifest written by jobs.index; local or s3://."""
    output: str
    """Folder of the labels; local or s3://."""
    model: str = ""
    """Model folder written by jobs.train, local or s3://; empty: the starter model."""
    fps: float | None = None
    """Sampled frames per second."""
    detector: str | None = None
    """Face detector; another than the model's is an error."""
    face_backbone: str | None = None
    """Face backbone; another than the model's is an error."""
    context_backbone: str | None = None
    """Context backbone; another than the model's is an error."""
    detector_weights: str | None = None
    """Where the detector's weights lie here; they must be the model's."""
    face_weights: str | None = None
    """Where the face backbone's weights lie here; they must be the model's."""
    context_weights: str | None = None
    """Where the context backbone's weights lie here; they must be the model's."""
    min_face_score: float | None = None
    """Lowest score of a face, 0 to 1."""
    face_policy: Literal["main", "marked"] | None = None
    """Whose emotion: the main face of each frame, or the person that the manifest marks."""
    cascade: bool = False
    """Look at key frames first and sample only where one shows a face, or where they are rare: for
    archives that mostly show nobody. A face between two key frames without one is missed."""
    abstain_below: float = 0.0
    """Labels of lower confidence are `uncertain`; their probabilities stay. Another value costs no
    new look at the videos."""
    retry_failed: bool = False
    """Do the videos again whose last try failed."""
    on_change: Literal["error", "recompute"] = "error"
    """When options, model or a video differ from the output that is there."""
    min_ok: float = 0.0
    """Lowest accepted share of videos that are ok, partial or no_face; below it the exit is 1."""
    limits: SandboxConfig = field(default_factory=SandboxConfig)
    """Limits on the decoding of one segment."""
    resources: Resources = field(default_factory=Resources)
    """How the cluster is used."""


def extraction_of(job: Job, info: ModelInfo) -> ExtractionConfig:
    """How the model's training features were read, with what the job may change.

    Raises:
        InputError: the job names another detector or backbone than the model's.
    """
    for name in ("detector", "face_backbone", "context_backbone"):
        given, own = getattr(job, name), getattr(info, name)
        if given is not None and given != own:
            raise InputError(
                f"--{name.replace('_', '-')} {given}: the model was trained with {own}; leave it "
                "out, or train a model with it."
            )
    values: dict[str, Any] = dict(info.extraction)
    values |= {
        "detector": info.detector,
        "face_backbone": info.face_backbone,
        "context_backbone": info.context_backbone,
        "fps": info.fps,
        "face_policy": info.face_policy,
        "no_face": info.no_face,
        "cascade": job.cascade,
    }
    changeable = (
        "fps", "detector_weights", "face_weights", "context_weights", "min_face_score",
        "face_policy",
    )  # fmt: skip
    values |= {name: v for name in changeable if (v := getattr(job, name)) is not None}
    found = config.from_dict(ExtractionConfig, values)
    if found.fps <= 0:
        raise InputError(f"--fps {found.fps} must be above 0.")
    return found


def check_identities(identity: dict[str, Any], info: ModelInfo) -> None:
    """Refuse weights other than the model's.

    Raises:
        InputError: a backbone or the detector has other weights.
    """
    for name, own in (
        ("face_backbone", info.face_backbone_identity),
        ("context_backbone", info.context_backbone_identity),
        ("detector", info.detector_identity),
    ):
        if own and name in identity and identity[name] != own:
            raise InputError(
                f"the model was trained with {name} `{own}`, and here it is `{identity[name]}`: "
                f"give its weights with --{name.replace('_backbone', '')}-weights."
            )


def main(job: Job) -> int:
    """Label; gives the exit code."""
    if not 0.0 <= job.abstain_below <= 1.0:
        raise InputError(f"--abstain-below {job.abstain_below} is no confidence from 0 to 1.")
    folder = job.model or str(checkpoint.STARTER)
    if not job.model:
        logger.info("no --model given: using the starter model that comes with the package")
    with storage.local_folder(folder) as model_folder:
        model = checkpoint.load_model(model_folder)
        extraction = extraction_of(job, model.info)
        identity = identities(extraction, model.head.modalities)
        check_identities(identity, model.info)
        identity["model"] = model.model_id
        run = Run(
            job_name="label",
            manifest_uri=job.manifest,
            output=job.output,
            table=TABLE,
            config=extraction,
            identity=identity,
            whole_config=config.to_dict(job),
            retry_failed=job.retry_failed,
            on_change=job.on_change,
            min_ok=job.min_ok,
            modalities=model.head.modalities,
        )
        on_ray.start()
        files = {
            path.name: path.read_bytes() for path in Path(model_folder).iterdir() if path.is_file()
        }
        model_ref = ray.put(files)
        pipeline = Pipeline(
            config=extraction,
            limits=job.limits,
            resources=job.resources,
            build=build_scorer,
            arguments=(extraction, [model_ref]),
        )
        record = run.process(pipeline)
        record["label_set"] = list(model.info.label_set)
        record["model_id"] = model.model_id
        record["model"] = storage.redact(job.model) or "starter"
        pool(job.output, model_ref, job.abstain_below)
    return run.finish(record, label_statuses(job.output))


def build_scorer(
    extraction: ExtractionConfig,
    model_refs: list[Any],
    device: str,
    batch_size: int,
    num_threads: int,
) -> SegmentScorer:
    """The last stage of the first phase, on whatever node it runs."""
    with tempfile.TemporaryDirectory(prefix="caan-model-") as folder:
        _unpack(ray.get(model_refs[0]), folder)
        return SegmentScorer(extraction, folder, device, batch_size, num_threads)


def _unpack(files: dict[str, bytes], folder: str) -> None:
    for name, content in files.items():
        (Path(folder) / name).write_bytes(content)


@ray.remote(num_cpus=1)
def pool_part(
    output: str, number: int, video_files: dict[str, list[str]], files: Any, abstain_below: float
) -> int:
    """Second phase of some videos: read their segments, write their labels; gives the videos."""
    wanted = pa.array(sorted(video_files), pa.string())
    names = sorted({name for of_video in video_files.values() for name in of_video})
    tables = []
    for table in runs.latest_segments(output, TABLE, only=names):
        tables.append(table.filter(pa.compute.is_in(table["video_id"], wanted)))
    with tempfile.TemporaryDirectory(prefix="caan-model-") as folder:
        _unpack(files, folder)
        model = checkpoint.load_model(folder)
    pooled = labelling.pool_videos(pa.concat_tables(tables), model, abstain_below=abstain_below)
    part = f"part-{number:05d}.parquet"
    storage.write_table(pooled.frame_scores, storage.join(output, "frame_scores", part))
    storage.write_table(pooled.labels, storage.join(output, "labels", part))
    return pooled.labels.num_rows


def pool(output: str, model_ref: Any, abstain_below: float) -> None:
    """Second phase: labels and frame scores of every video, in parts of whole videos.

    Each part is a pure function of the first phase's rows and replaces its files as a whole, so a
    run that was interrupted here does this phase again and ends with the same tables.
    """
    video_files: dict[str, list[str]] = {}
    num_segments: dict[str, int] = {}
    for name in runs.part_files(output, TABLE):
        for video_id in storage.read_table(name, ["video_id"])["video_id"].to_pylist():
            of_video = video_files.setdefault(video_id, [])
            if not of_video or of_video[-1] != name:
                of_video.append(name)
            num_segments[video_id] = num_segments.get(video_id, 0) + 1
    parts: list[dict[str, list[str]]] = []
    size = np.inf
    for video_id in sorted(video_files, key=lambda v: (video_files[v][0], v)):
        if size + num_segments[video_id] > POOL_SEGMENTS:
            parts.append({})
            size = 0
        parts[-1][video_id] = video_files[video_id]
        size += num_segments[video_id]
    tasks = [
        pool_part.remote(output, n, part, model_ref, abstain_below) for n, part in enumerate(parts)
    ]
    num_videos = sum(ray.get(tasks))
    for table in ("labels", "frame_scores"):
        for name in runs.part_files(output, table)[len(parts) :]:
            storage.delete(name)
    logger.info("%d videos labelled", num_videos)


def label_statuses(output: str) -> Counter[str]:
    """How many videos have which status in the labels: one without a true face is no_face there."""
    counts: Counter[str] = Counter()
    for name in runs.part_files(output, "labels"):
        table = storage.read_table(name, ["is_main", "status"])
        counts.update(table.filter(table["is_main"])["status"].to_pylist())
    return counts


if __name__ == "__main__":
    sys.exit(on_ray.run_job(Job, main))
