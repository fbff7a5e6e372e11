"""Videos -> a backbone that knows their emotions: fine-tune one frame by frame with Ray Train.

python -m jobs.finetune --manifest manifest.parquet --output backbone/ --modality face
python -m jobs.finetune --wider-face WIDER/ --output detector/

The first fine-tunes the face or the context backbone on what jobs.extract would show it, with the
video's label, and only on the training split; jobs.extract takes the result as --face-weights
backbone/ or --context-weights backbone/. The second trains the paper's face detector, which
extract takes as --detector faster_rcnn --detector-weights detector/. The same command goes on
after an interruption.
"""

import dataclasses
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch

from caan import config, storage
from caan.backbones.build import load_backbone
from caan.backbones.config import RANDOM
from caan.backbones.weights import SEEN_VIDEOS, save_weights
from caan.datasets.splits import hold_out, shuffle_key
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.embed import identities
from caan.features.leakage import SeenVideos, seen_of
from caan.outputs import layout
from caan.outputs.plan import check_manifest
from caan.schema import label_set_of
from caan.training import finetune, losses
from caan.training.augmentation import change_pictures
from caan.training.config import FinetuneConfig
from caan.training.finetune import FinetuneResult, PictureClassifier, PictureKeeper
from jobs.runtime import cli
from jobs.runtime.finetune import PICTURES, begin, finish, train_network, work, worker_place
from jobs.runtime.finetune_detector import train_detector
from jobs.runtime.pipeline import Pipeline, Resources, Run

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "backbone.safetensors"
"""What a fine-tuning leaves; extraction finds it by the folder's name."""


@dataclass(frozen=True, kw_only=True)
class Job(ExtractionConfig):
    """Options of jobs.finetune."""

    output: str
    """Folder of the weights; local (shared by all nodes) or s3://."""
    manifest: str = ""
    """Manifest of labelled videos: fine-tunes the backbone of `modality`."""
    wider_face: str = ""
    """Folder of WIDER FACE as published: trains the detector faster_rcnn."""
    modality: Literal["face", "context"] = "face"
    """Which of the two backbones is fine-tuned: on faces, or on whole frames."""
    split: str = "train"
    """Split to learn from; where the manifest names no splits, all labelled videos."""
    validation_fraction: float = 0.15
    """Share of its videos held out to choose the epoch; a split `val` is used instead."""
    split_seed: int = 0
    """Seed of that choice: give both backbones the same."""
    num_workers: int = 1
    """Worker processes."""
    max_failures: int = 3
    """Lost workers that a run survives; -1: any number."""
    detector_network: Literal["resnet50", "mobilenet"] = "resnet50"
    """Network of the detector: the paper's, or one of a sixth of its work."""
    detector_base: str = ""
    """File of torchvision's ImageNet weights for it; empty: mobilenet's own, resnet50's none."""
    keep_pictures: bool = False
    """Keep the decoded pictures after the end."""
    min_ok: float = 0.0
    """Lowest accepted share of videos that are ok, partial or no_face; below it the exit is 1."""
    train: FinetuneConfig = field(default_factory=FinetuneConfig)
    """The fine-tuning."""
    limits: SandboxConfig = field(default_factory=SandboxConfig)
    """Limits on the decoding of one segment."""
    resources: Resources = field(default_factory=Resources)
    """How the cluster is used while it decodes."""

    def extraction(self) -> ExtractionConfig:
        """What is read from each video."""
        names = [item.name for item in dataclasses.fields(ExtractionConfig)]
        return ExtractionConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Videos:
    """What a backbone is fine-tuned on."""

    rows: pa.Table
    """Manifest rows of training and held-out videos, in an order that mixes the labels."""
    label_set: tuple[str, ...]
    """Their emotions."""
    seen: SeenVideos
    """Which of them train, and which are held out."""

    def numbers(self, ids: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Number within `ids` and label number of each of these videos."""
        labels = dict(
            zip(self.rows["video_id"].to_pylist(), self.rows["label"].to_pylist(), strict=True)
        )
        return {v: (number, self.label_set.index(labels[v])) for number, v in enumerate(ids)}


def read_videos(job: Job) -> Videos:
    """The labelled videos of the training split, divided.

    Raises:
        InputError: no labels, no such split, or fewer than two emotions.
    """
    table = storage.read_table(job.manifest)
    manifest = check_manifest(table, job.manifest)
    rows = [row for row in manifest.to_pylist() if row["label"]]
    if not rows:
        raise InputError(
            f"manifest `{job.manifest}` has no labels: put videos into folders named after their "
            "emotions, or give a list with a column `label`."
        )
    splits = {row["split"] for row in rows if row["split"]}
    if splits and job.split not in splits:
        raise InputError(
            f"no labelled video has the split `{job.split}`; the manifest has "
            f"{', '.join(sorted(splits))}."
        )
    train = [row for row in rows if not splits or row["split"] == job.split]
    if "val" in splits and job.split != "val":
        held = [row for row in rows if row["split"] == "val"]
    else:
        train, held = hold_out(train, fraction=job.validation_fraction, seed=job.split_seed)
    label_set = label_set_of([row["label"] for row in train])
    if len(label_set) < 2:
        raise InputError(f"all training videos are `{label_set[0]}`: give two emotions or more.")
    held = [row for row in held if row["label"] in label_set]
    chosen = sorted(train + held, key=lambda row: shuffle_key(row["video_id"], job.split_seed))
    return Videos(
        rows=pa.Table.from_pylist(chosen, schema=manifest.schema).replace_schema_metadata(
            table.schema.metadata
        ),
        label_set=label_set,
        seen=seen_of(train, held),
    )


def decode(job: Job, videos: Videos) -> int:
    """Write the pictures of all videos under OUTPUT/pictures; gives 1 below `min_ok`, else 0."""
    folder = storage.join(job.output, PICTURES)
    listed = storage.join(job.output, "videos.parquet")
    storage.write_table(videos.rows, listed)
    extraction = job.extraction()
    run = Run(
        job_name="finetune",
        manifest_uri=listed,
        output=folder,
        table=PICTURES,
        config=extraction,
        identity=identities(extraction, (job.modality,)),
        whole_config=config.to_dict(job),
        retry_failed=False,
        on_change="error",
        min_ok=job.min_ok,
        modalities=(job.modality,),
    )
    pipeline = Pipeline(
        config=extraction,
        limits=job.limits,
        resources=job.resources,
        build=PictureKeeper,
        arguments=(job.modality, job.fps),
    )
    return run.finish(run.process(pipeline), run.statuses())


def pictures_of(folder: str, numbers: dict[str, tuple[int, int]]) -> ray.data.Dataset:
    """A row per decoded picture of these videos, read anew in every epoch."""
    files = [pa.table({"file": [file]}) for file in layout.part_files(folder, PICTURES)]
    return ray.data.from_arrow(files).map_batches(
        partial(finetune.read_pictures, numbers=numbers),
        batch_size=1,
        batch_format="pyarrow",
    )


def backbone_worker(options: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs to fine-tune a backbone."""
    job: Job = options["job"]
    label_set: tuple[str, ...] = options["label_set"]
    torch.manual_seed(job.seed)
    backbone_config = dataclasses.replace(
        job.extraction().backbone_config(job.modality), precision="fp32"
    )
    model = PictureClassifier(
        load_backbone(backbone_config),
        len(label_set),
        dropout=job.train.dropout,
        label_smoothing=job.train.label_smoothing,
        freeze_convolutions=job.train.freeze_convolutions,
        weights_K=options["weights_K"],
    )
    rank, world_size = worker_place()
    size = max(1, job.train.batch_pictures // world_size)
    device = ray.train.torch.get_device()

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        shard = ray.train.get_dataset_shard("train")
        for table in shard.iter_batches(
            batch_size=size,
            batch_format="pyarrow",
            local_shuffle_buffer_size=max(job.train.shuffle_pictures, size),
            local_shuffle_seed=job.seed * 1009 + epoch,
        ):
            pictures, label_B, _ = finetune.picture_batch(table)
            yield change_pictures(pictures.to(device), job.train.changes), label_B.to(device)

    def validate() -> dict[str, float]:
        if not len(options["labels_V"]):
            return {}
        shard = ray.train.get_dataset_shard("validation")
        tables = shard.iter_batches(batch_size=64, batch_format="pyarrow")
        return finetune.video_metrics(
            model,
            finetune.of_worker(tables, rank, world_size),
            options["labels_V"],
            len(label_set),
            device=device,
            world_size=world_size,
        )

    def save(folder: Path, result: FinetuneResult) -> None:
        state = {
            name: tensor.detach().float().cpu()
            for name, tensor in model.backbone.network.state_dict().items()
        }
        save_weights(state, folder / WEIGHTS_FILE, options["metadata"])

    groups = finetune.parameter_groups(model.last, model, job.train)
    work(model, groups, batches, validate, job.train, job.seed, save, resume_file=WEIGHTS_FILE)


def finetune_backbone(job: Job) -> int:
    """Fine-tune the backbone of `modality`; gives the exit code."""
    videos = read_videos(job)
    base = load_backbone(
        dataclasses.replace(job.extraction().backbone_config(job.modality), precision="fp32")
    )
    PictureClassifier(  # refuses what cannot be trained before anything is decoded
        base, len(videos.label_set), freeze_convolutions=job.train.freeze_convolutions
    )
    identity = {
        "modality": job.modality,
        "base": base.identity,
        "label_set": list(videos.label_set),
        "split": videos.seen.fingerprint,
        "train": config.to_dict(job.train),
        "extraction": config.to_dict(job.extraction()),
    }
    if begin(job, identity):
        return 0
    logger.info(
        "fine-tuning %s on %s: %d training and %d held-out videos of %s",
        base.identity.partition(":")[0],
        "faces" if job.modality == "face" else "whole frames",
        len(videos.seen.trained),
        len(videos.seen.held_out),
        ", ".join(videos.label_set),
    )
    if code := decode(job, videos):
        return code
    numbers = videos.numbers(videos.seen.trained)
    held = videos.numbers(videos.seen.held_out)
    folder = storage.join(job.output, PICTURES)
    counts_K, num_held = count_pictures(folder, numbers, held, len(videos.label_set))
    empty = [label for label, count in zip(videos.label_set, counts_K, strict=True) if not count]
    if empty:
        raise InputError(
            f"no training picture shows `{empty[0]}`: no {job.modality} was found in its videos."
        )
    logger.info("%d training and %d held-out pictures", counts_K.sum(), num_held)
    labels_V = np.array([label for _, label in held.values()] if num_held else [], np.int64)
    weights_K = losses.class_weights(
        np.repeat(np.arange(len(counts_K)), counts_K), len(counts_K), job.train.class_weights
    )
    metadata = {
        "backbone": base.name,
        "channel_order": "RGB",
        "base": base.identity,
        "modality": job.modality,
        "label_set": ", ".join(videos.label_set),
        "split": videos.seen.fingerprint,
        SEEN_VIDEOS: videos.seen.to_json(),
    }
    datasets = {"train": pictures_of(folder, numbers)}
    if num_held:
        datasets["validation"] = pictures_of(folder, held)
    options = {
        "job": job,
        "label_set": videos.label_set,
        "labels_V": labels_V,
        "weights_K": weights_K,
        "metadata": metadata,
    }
    train_network(job, backbone_worker, options, datasets, f"finetune-{videos.seen.fingerprint}")
    facts = {
        "num_train_videos": len(videos.seen.trained),
        "num_held_out_videos": len(videos.seen.held_out),
        "num_train_pictures": int(counts_K.sum()),
        "num_held_out_pictures": num_held,
    }
    finish(job, identity, facts, f"--{job.modality}-weights {job.output}")
    return 0


def count_pictures(
    folder: str,
    train: dict[str, tuple[int, int]],
    held: dict[str, tuple[int, int]],
    num_emotions: int,
) -> tuple[np.ndarray, int]:
    """Training pictures per emotion [K], and held-out pictures in all."""
    counts_K = np.zeros(num_emotions, np.int64)
    num_held = 0
    for table in layout.latest_segments(folder, PICTURES, ["video_id", "pictures"]):
        for video_id, count in zip(
            table["video_id"].to_pylist(),
            pa.compute.list_value_length(table["pictures"]).to_pylist(),
            strict=True,
        ):
            if video_id in train:
                counts_K[train[video_id][1]] += count
            elif video_id in held:
                num_held += count
    return counts_K, num_held


def main(job: Job) -> int:
    """Fine-tune; gives the exit code."""
    if job.num_workers < 1:
        raise InputError(f"--num-workers {job.num_workers}: at least 1.")
    if bool(job.manifest) == bool(job.wider_face):
        raise InputError(
            "give either --manifest (fine-tunes a backbone) or --wider-face (trains a detector)."
        )
    storage.check_writable(job.output)
    # Ray Train's workers run in another folder, where relative paths would miss.
    names = ("face_weights", "context_weights", "detector_base", "wider_face")
    absolute: dict[str, Any] = {name: _absolute(getattr(job, name)) for name in names}
    job = dataclasses.replace(job, **absolute)
    return train_detector(job) if job.wider_face else finetune_backbone(job)


def _absolute(path: str) -> str:
    is_local = path and path != RANDOM and "://" not in path
    return storage.normalise(path) if is_local else path


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
