"""jobs.finetune for a backbone: labelled videos -> weights of `--face-weights`/`--context-weights`.

Legend: V held-out videos, K emotions.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.train.torch
import torch

from caan import config, storage
from caan.backbones.build import load_backbone
from caan.backbones.config import BackboneConfig
from caan.backbones.weights import SEEN_VIDEOS, save_weights
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.embed import describe_networks
from caan.outputs import layout
from caan.training import finetune, finetune_data, losses
from caan.training.augmentation import change_pictures
from caan.training.config import FinetuneConfig
from caan.training.finetune import FinetuneResult, PictureClassifier
from caan.training.finetune_data import FinetuneVideos, Numbers, PictureKeeper
from jobs.runtime.finetune import (
    PICTURES,
    FinetuneRun,
    begin,
    finish,
    fit_and_report,
    shuffled_batches,
    train_network,
    validation_tables,
    worker_place,
)
from jobs.runtime.options import Resources
from jobs.runtime.pipeline import Pipeline
from jobs.runtime.run import Run

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "backbone.safetensors"
"""The fine-tuned weights; extraction finds them by the folder's name."""


@dataclass(frozen=True, kw_only=True)
class BackboneTraining:
    """Which backbone is fine-tuned on which videos, and how."""

    manifest: str
    """Manifest of labelled videos."""
    modality: Literal["face", "context"]
    """Which of the two backbones: on faces, or on whole frames."""
    split: str
    """Split to learn from; where the manifest names no splits, all labelled videos."""
    validation_fraction: float
    """Share of its videos held out to choose the epoch; a split `val` is used instead."""
    split_seed: int
    """Seed of that choice."""
    extraction: ExtractionConfig
    """What is read from each video."""
    limits: SandboxConfig
    """Limits on the decoding of one segment."""
    resources: Resources
    """How the cluster is used while it decodes."""
    min_ok: float
    """Lowest accepted share of videos that are ok, partial or no_face."""
    train: FinetuneConfig
    """The fine-tuning."""

    def backbone_config(self) -> BackboneConfig:
        """The backbone to start from, in float32."""
        own = self.extraction.backbone_config(self.modality)
        return dataclasses.replace(own, precision="fp32")


@dataclass(frozen=True, kw_only=True)
class BackboneTask:
    """What a worker needs to know besides its pictures."""

    backbone: BackboneConfig
    """The backbone to start from."""
    train: FinetuneConfig
    """The fine-tuning."""
    seed: int
    """Seed of the new layer, dropout, changes and the order of the pictures."""
    labels_V: np.ndarray
    """Label numbers of the held-out videos; empty where none has a picture."""
    weights_K: torch.Tensor
    """Weight of each emotion in the loss."""
    metadata: dict[str, str]
    """What the weight file says of itself."""


def finetune_backbone(run: FinetuneRun, options: BackboneTraining) -> int:
    """Fine-tune the backbone of `modality`; give the exit code.

    Raises:
        InputError: videos that cannot be learned from, a backbone that cannot be trained, or an
            output that holds something else.
    """
    videos = finetune_data.read_videos(
        options.manifest,
        split=options.split,
        validation_fraction=options.validation_fraction,
        seed=options.split_seed,
    )
    base = load_backbone(options.backbone_config())
    PictureClassifier(  # refuse what cannot be trained before anything is decoded
        base, len(videos.label_set), freeze_convolutions=options.train.freeze_convolutions
    )
    identity = {
        "modality": options.modality,
        "base": base.identity,
        "label_set": list(videos.label_set),
        "split": videos.seen.fingerprint,
        "train": config.to_dict(options.train),
        "extraction": config.to_dict(options.extraction),
    }
    if begin(run.output, identity):
        return 0
    logger.info(
        "fine-tuning %s on %s: %d training and %d held-out videos of %s",
        base.identity.partition(":")[0],
        "faces" if options.modality == "face" else "whole frames",
        len(videos.seen.trained),
        len(videos.seen.held_out),
        ", ".join(videos.label_set),
    )
    if code := decode_pictures(run, options, videos):
        return code
    train = videos.numbers(videos.seen.trained)
    held = videos.numbers(videos.seen.held_out)
    folder = storage.join(run.output, PICTURES)
    kept = layout.latest_segments(folder, PICTURES, ["video_id", "pictures"])
    counts_K, num_held = finetune_data.count_pictures(kept, train, held, len(videos.label_set))
    for label, count in zip(videos.label_set, counts_K, strict=True):
        if not count:
            raise InputError(
                f"no training picture shows `{label}`: no {options.modality} was found in its "
                "videos."
            )
    logger.info("%d training and %d held-out pictures", counts_K.sum(), num_held)
    task = BackboneTask(
        backbone=options.backbone_config(),
        train=options.train,
        seed=options.extraction.seed,
        labels_V=np.array([video.label for video in held.values()] if num_held else [], np.int64),
        weights_K=losses.class_weights(
            np.repeat(np.arange(len(counts_K)), counts_K),
            len(counts_K),
            options.train.class_weights,
        ),
        metadata={
            "backbone": base.name,
            "channel_order": "RGB",
            "base": base.identity,
            "modality": options.modality,
            "label_set": ", ".join(videos.label_set),
            "split": videos.seen.fingerprint,
            SEEN_VIDEOS: videos.seen.to_json(),
        },
    )
    datasets = {"train": read_kept(folder, train)}
    if num_held:
        datasets["validation"] = read_kept(folder, held)
    train_network(run, run_worker, task, datasets, f"finetune-{videos.seen.fingerprint}")
    facts = {
        "num_train_videos": len(videos.seen.trained),
        "num_held_out_videos": len(videos.seen.held_out),
        "num_train_pictures": int(counts_K.sum()),
        "num_held_out_pictures": num_held,
    }
    finish(run, identity, facts, f"--{options.modality}-weights {run.output}")
    return 0


def decode_pictures(run: FinetuneRun, options: BackboneTraining, videos: FinetuneVideos) -> int:
    """Write the pictures of all videos under OUTPUT/pictures; give 1 below `min_ok`, else 0."""
    listed = storage.join(run.output, "videos.parquet")
    storage.write_table(videos.rows, listed)
    decoding = Run(
        job_name="finetune",
        manifest=listed,
        output=storage.join(run.output, PICTURES),
        table=PICTURES,
        config=options.extraction,
        networks=describe_networks(options.extraction, (options.modality,)),
        whole_config=run.options,
        retry_failed=False,
        on_change="error",
        min_ok=options.min_ok,
        modalities=(options.modality,),
    )
    pipeline = Pipeline(
        config=options.extraction,
        limits=options.limits,
        resources=options.resources,
        build=PictureKeeper,
        arguments=(options.modality, options.extraction.fps),
    )
    return decoding.finish(decoding.process(pipeline), decoding.statuses())


def read_kept(folder: str, numbers: Mapping[str, Numbers]) -> ray.data.Dataset:
    """A row per decoded picture of these videos, read again in every epoch."""
    files = [pa.table({"file": [file]}) for file in layout.part_files(folder, PICTURES)]
    return ray.data.from_arrow(files).map_batches(
        partial(finetune_data.read_pictures, numbers=numbers),
        batch_size=1,
        batch_format="pyarrow",
    )


def run_worker(task: BackboneTask) -> None:
    """Fine-tune the backbone on one of Ray Train's workers."""
    torch.manual_seed(task.seed)
    num_emotions = len(task.weights_K)
    model = PictureClassifier(
        load_backbone(task.backbone),
        num_emotions,
        dropout=task.train.dropout,
        label_smoothing=task.train.label_smoothing,
        freeze_convolutions=task.train.freeze_convolutions,
        weights_K=task.weights_K,
    )
    rank, world_size = worker_place()
    size = max(1, task.train.batch_pictures // world_size)
    device = ray.train.torch.get_device()

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        for table in shuffled_batches(size, task.train.shuffle_pictures, task.seed, epoch):
            pictures, label_B, _ = finetune_data.picture_batch(table)
            yield change_pictures(pictures.to(device), task.train.changes), label_B.to(device)

    def validate() -> dict[str, float]:
        if not len(task.labels_V):
            return {}
        return finetune.video_metrics(
            model,
            finetune_data.rows_of_worker(validation_tables(64), "video", rank, world_size),
            task.labels_V,
            num_emotions,
            device=device,
            world_size=world_size,
        )

    def save(folder: Path, result: FinetuneResult) -> None:
        state = {
            name: tensor.detach().float().cpu()
            for name, tensor in model.backbone.network.state_dict().items()
        }
        save_weights(state, folder / WEIGHTS_FILE, task.metadata)

    fit_and_report(
        model,
        finetune.parameter_groups(model.last, model, task.train),
        batches,
        validate,
        task.train,
        task.seed,
        save,
        weights_file=WEIGHTS_FILE,
    )
