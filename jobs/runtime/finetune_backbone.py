"""jobs.finetune for a backbone: labelled videos -> weights of `--face-weights`/`--context-weights`.

Legend: V held-out videos, K emotions.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
from caan.extraction.config import ExtractionConfig
from caan.extraction.embed import describe_networks
from caan.outputs import layout
from caan.training import finetune, finetune_data, losses
from caan.training.augmentation import change_pictures
from caan.training.config import FinetuneConfig
from caan.training.finetune import FinetuneResult, PictureClassifier
from caan.training.finetune_data import FinetuneVideos, Numbers, PictureKeeper
from jobs.runtime import finetune as finetuning
from jobs.runtime.finetune_options import FinetuneOptions
from jobs.runtime.pipeline import Pipeline
from jobs.runtime.run import Run

logger = logging.getLogger(__name__)

IMAGE_BYTES = 224 * 224 * 3
"""Bytes of a kept image."""

WEIGHTS_FILE = "backbone.safetensors"
"""The fine-tuned weights; extraction finds them by the folder's name."""


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


def finetune_backbone(options: FinetuneOptions) -> int:
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
    backbone = dataclasses.replace(options.backbone_config(options.modality), precision="fp32")
    base = load_backbone(backbone)
    PictureClassifier(  # refuse what cannot be trained before anything is decoded
        base, len(videos.label_set), freeze_convolutions=options.train.freeze_convolutions
    )
    identity = {
        "modality": options.modality,
        "base": base.identity,
        "label_set": list(videos.label_set),
        "split": videos.seen.fingerprint,
        "train": config.to_dict(options.train),
        "extraction": config.to_dict(config.part(ExtractionConfig, options)),
    }
    if finetuning.begin(options.output, identity):
        return 0
    logger.info(
        "fine-tuning %s on %s: %d training and %d held-out videos of %s",
        base.identity.partition(":")[0],
        "faces" if options.modality == "face" else "whole frames",
        len(videos.seen.trained),
        len(videos.seen.held_out),
        ", ".join(videos.label_set),
    )
    if code := decode_pictures(options, videos):
        return code
    train = videos.numbers(videos.seen.trained)
    held = videos.numbers(videos.seen.held_out)
    folder = storage.join(options.output, finetuning.PICTURES)
    kept = layout.read_rows(folder, finetuning.PICTURES, ["video_id", "pictures"])
    counts_K, num_held = finetune_data.count_pictures(kept, train, held, len(videos.label_set))
    for label, count in zip(videos.label_set, counts_K, strict=True):
        if not count:
            raise InputError(
                f"no training picture shows `{label}`: no {options.modality} was found in its "
                "videos."
            )
    logger.info("%d training and %d held-out pictures", counts_K.sum(), num_held)
    task = BackboneTask(
        backbone=backbone,
        train=options.train,
        seed=options.seed,
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
    finetuning.train_network(
        options, run_worker, task, datasets, f"finetune-{videos.seen.fingerprint}"
    )
    facts = {
        "num_train_videos": len(videos.seen.trained),
        "num_held_out_videos": len(videos.seen.held_out),
        "num_train_pictures": int(counts_K.sum()),
        "num_held_out_pictures": num_held,
    }
    finetuning.finish(options, identity, facts, f"--{options.modality}-weights {options.output}")
    return 0


def decode_pictures(options: FinetuneOptions, videos: FinetuneVideos) -> int:
    """Write the pictures of all videos under OUTPUT/pictures; give 1 below `min_ok`, else 0."""
    extraction = config.part(ExtractionConfig, options)
    listed = storage.join(options.output, "videos.parquet")
    storage.write_table(videos.rows, listed)
    decoding = Run(
        job_name="finetune",
        manifest=listed,
        output=storage.join(options.output, finetuning.PICTURES),
        config=extraction,
        networks=describe_networks(extraction, (options.modality,)),
        whole_config=config.to_dict(options),
        min_ok=options.min_ok,
        modalities=(options.modality,),
    )
    pipeline = Pipeline(
        config=extraction,
        limits=options.limits,
        resources=options.resources,
        build=PictureKeeper,
        arguments=(options.modality, options.fps),
        table=finetuning.PICTURES,
        frame_bytes=IMAGE_BYTES,
    )
    with decoding.opened() as output:
        record = output.process(pipeline)
        return output.finish(record, output.writer.state.statuses())


def read_kept(folder: str, numbers: Mapping[str, Numbers]) -> ray.data.Dataset:
    """A row per decoded picture of these videos, read again in every epoch."""
    files = [pa.table({"file": [file]}) for file in layout.table_files(folder, finetuning.PICTURES)]
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
    rank, world_size = finetuning.worker_place()
    size = max(1, task.train.batch_pictures // world_size)
    device = ray.train.torch.get_device()

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        for table in finetuning.shuffled_batches(
            size, task.train.shuffle_pictures, task.seed, epoch
        ):
            pictures, label_B, _ = finetune_data.picture_batch(table)
            yield change_pictures(pictures.to(device), task.train.changes), label_B.to(device)

    def validate() -> dict[str, float]:
        if not len(task.labels_V):
            return {}
        return finetune.video_metrics(
            model,
            finetune_data.rows_of_worker(
                finetuning.validation_tables(64), "video", rank, world_size
            ),
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

    finetuning.fit_and_report(
        model,
        finetune.parameter_groups(model.last, model, task.train),
        batches,
        validate,
        task.train,
        task.seed,
        save,
        weights_file=WEIGHTS_FILE,
    )
