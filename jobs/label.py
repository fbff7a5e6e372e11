"""Videos -> labels: which emotion each shows, and which frames say so, without storing features.

python -m jobs.label --manifest manifest.parquet --output labels/

Without --model the starter model that comes with the package is used. The output folder has
labels/ (a row per video and person), frame_scores/ (a row per face), with --window-seconds
windows/, what --write asks for, and run.json. Run the same command again after an interruption:
what is finished is not done twice. Options of people, windows and --write may change from run to
run: they cost no new look at the videos.
"""

import logging
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray

from caan import config, storage
from caan.errors import InputError, redact
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.embed import identities
from caan.labelling.config import Kind, PoolConfig
from caan.labelling.frame_scores import SegmentScorer
from caan.models import checkpoint
from caan.models.checkpoint import ModelInfo
from caan.outputs import layout
from caan.people.config import (
    FaceEmbeddingConfig,
    TrackConfig,
    face_embedding_name,
    with_person_distance,
)
from caan.people.face_embedding import dlib_embedder
from jobs.runtime import cli, cluster
from jobs.runtime.label_videos import TABLE, model_in_memory, pool, unpack, write_files
from jobs.runtime.pipeline import Pipeline, Resources, Run

logger = logging.getLogger(__name__)

SEGMENT_PICTURES = 640
"""Most pictures of 224x224 in a row between the stages (96 MB)."""


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
    max_faces_per_frame: int = 4
    """Most faces of one frame that are looked at, the largest first."""
    identity: Literal["auto", "dlib", "vggface", "none"] = "auto"
    """Vector that tells people apart: auto is vggface's own where it is the backbone, else dlib."""
    identity_seconds: float = 1.0
    """dlib looks at the faces of one sampled frame in this time."""
    face_policy: Literal["main", "marked", "all"] | None = None
    """Who gets labels: the main person of a video, the one that the manifest marks, or all."""
    tracks: TrackConfig = field(default_factory=TrackConfig)
    """How faces are followed and joined to people."""
    window_seconds: float = 0.0
    """Labels over sliding windows of this length too, in windows/; 0: none."""
    stride_seconds: float = 0.0
    """Time from one window's start to the next one's; 0: the windows' length."""
    write: tuple[Kind, ...] = ()
    """Further files: csv and jsonl tables, vtt and eaf timelines, preview videos, strips."""
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
        "face_policy": "all",  # whose labels are given is the second phase's matter
        "no_face": info.no_face,
        "cascade": job.cascade,
    }
    changeable = (
        "fps", "detector_weights", "face_weights", "context_weights", "min_face_score",
        "max_faces_per_frame",
    )  # fmt: skip
    values |= {name: v for name in changeable if (v := getattr(job, name)) is not None}
    found = config.from_dict(ExtractionConfig, values)
    if found.fps <= 0:
        raise InputError(f"--fps {found.fps} must be above 0.")
    if found.max_faces_per_frame < 1 or job.identity_seconds <= 0:
        raise InputError(
            f"--max-faces-per-frame {found.max_faces_per_frame} must be at least 1, and "
            f"--identity-seconds {job.identity_seconds} above 0."
        )
    # Labels do not depend on the segments; a row of pictures must stay small.
    most = max(1, SEGMENT_PICTURES // (1 + found.max_faces_per_frame))
    return replace(found, segment_frames=min(found.segment_frames, most))


def pool_config_of(job: Job, info: ModelInfo, identity: str) -> PoolConfig:
    """The second phase, by the job's options and the vector that tells people apart.

    Raises:
        InputError: an option out of range.
    """
    try:
        tracks = with_person_distance(job.tracks, identity)
    except ValueError as error:
        raise InputError(f"--tracks: {error}") from error
    return PoolConfig(
        face_policy=job.face_policy or info.face_policy,  # type: ignore[arg-type]
        tracks=tracks,
        window_seconds=job.window_seconds,
        stride_seconds=job.stride_seconds,
        abstain_below=job.abstain_below,
    )


def with_own_weights(extraction: ExtractionConfig, job: Job, folder: str) -> ExtractionConfig:
    """With the fine-tuned backbones that lie in the model folder, unless the job names others."""
    values: dict[str, Any] = {}
    for kind in ("face", "context"):
        path = storage.join(folder, checkpoint.BACKBONE_FILE.format(kind))
        if getattr(job, f"{kind}_weights") is None and storage.exists(path):
            values[f"{kind}_weights"] = path
    return replace(extraction, **values)


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
        extraction = with_own_weights(extraction_of(job, model.info), job, folder)
        identity = identities(extraction, model.head.modalities)
        check_identities(identity, model.info)
        people = FaceEmbeddingConfig(
            name=face_embedding_name(
                job.identity,
                extraction.face_backbone if "face" in model.head.modalities else "",
                is_random=bool(identity.get("face_is_random")),
            ),  # type: ignore[arg-type]
            every_seconds=job.identity_seconds,
        )
        if people.name == "dlib":
            dlib_embedder()  # that it is installed must be known before the job starts
        pooling = pool_config_of(job, model.info, people.name)
        identity["model"] = model.model_id
        identity["people"] = config.to_dict(people)
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
            face_policy=pooling.face_policy,
        )
        cluster.start()
        model_ref = ray.put(model_in_memory(model_folder))
        pipeline = Pipeline(
            config=extraction,
            limits=job.limits,
            resources=job.resources,
            build=build_scorer,
            arguments=(extraction, [model_ref], people.name),
            identity=people,
        )
        record = run.process(pipeline)
        record["label_set"] = list(model.info.label_set)
        record["model_id"] = model.model_id
        record["model"] = redact(job.model) or "starter"
        record["pooling"] = config.to_dict(pooling)
        record["num_people"] = pool(job.output, model_ref, pooling)
        record["files_failed"] = write_files(job.output, model.info.label_set, job.write)
    return run.finish(record, label_statuses(job.output))


def build_scorer(
    extraction: ExtractionConfig,
    model_refs: list[Any],
    identity: str,
    device: str,
    batch_size: int,
    num_threads: int,
) -> SegmentScorer:
    """The last stage of the first phase, on whatever node it runs."""
    with tempfile.TemporaryDirectory(prefix="caan-model-") as folder:
        unpack(ray.get(model_refs[0]), folder)
        return SegmentScorer(extraction, folder, device, batch_size, num_threads, identity)


def label_statuses(output: str) -> Counter[str]:
    """How many videos have which status in the labels: one without a true face is no_face there."""
    counts: Counter[str] = Counter()
    for name in layout.part_files(output, "labels"):
        table = storage.read_table(name, ["is_main", "status"])
        counts.update(table.filter(table["is_main"])["status"].to_pylist())
    return counts


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
