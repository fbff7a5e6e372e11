"""The detector's part of jobs.finetune: WIDER FACE -> weights of `--detector faster_rcnn`."""

import dataclasses
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from caan import config
from caan.datasets.wider_face import decode_images, images_of, read_wider_face
from caan.faces import faster_rcnn
from caan.faces.detection import DetectorConfig
from caan.faces.faster_rcnn import MIN_BOX_PIXELS, DetectorLoss, average_precision
from caan.training import finetune
from caan.training.finetune import FinetuneResult
from jobs.runtime import cluster
from jobs.runtime.finetune import begin, finish, train_network, work, worker_place

if TYPE_CHECKING:
    from jobs.finetune import Job

logger = logging.getLogger(__name__)

DETECTOR_FILE = "detector.safetensors"
"""What the training leaves; extraction finds it by the folder's name."""

SHUFFLED_IMAGES = 128
"""Pictures that are mixed with each other on each worker (about 1 MB each)."""


def images(table: pa.Table, detector: DetectorConfig) -> ray.data.Dataset:
    """A row per listed picture, decoded."""
    parts = [table.slice(start, 64) for start in range(0, table.num_rows, 64)]
    return ray.data.from_arrow(parts).map_batches(
        partial(decode_images, detector=detector, min_box_pixels=MIN_BOX_PIXELS),
        batch_size=8,
        batch_format="pyarrow",
    )


def mirrored(picture: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture and its boxes seen in a mirror."""
    width = picture.shape[1]
    return picture[:, ::-1], np.stack(
        [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
    )


def detector_worker(options: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs to train the detector."""
    job: Job = options["job"]
    torch.manual_seed(job.seed)
    network = faster_rcnn.network_to_train(job.detector_network, job.detector_base)
    rank, world_size = worker_place()
    device = ray.train.torch.get_device()
    size = max(1, job.train.batch_images // world_size)

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        rng = np.random.default_rng([job.seed, epoch, rank])
        shard = ray.train.get_dataset_shard("train")
        for table in shard.iter_batches(
            batch_size=size,
            batch_format="pyarrow",
            local_shuffle_buffer_size=max(SHUFFLED_IMAGES, size),
            local_shuffle_seed=job.seed * 1009 + epoch,
        ):
            pictures, targets = [], []
            for picture, boxes in images_of(table):
                if job.train.changes > 0 and rng.random() < 0.5:
                    picture, boxes = mirrored(picture, boxes)
                light = 1 + job.train.changes * rng.uniform(-0.3, 0.3)
                pictures.append((faster_rcnn.to_input(picture) * light).clamp(0, 1).to(device))
                targets.append(
                    {
                        "boxes": torch.from_numpy(boxes.copy()).to(device),
                        "labels": torch.ones(len(boxes), dtype=torch.int64, device=device),
                    }
                )
            yield pictures, targets

    def validate() -> dict[str, float]:
        if not options["num_validation"]:
            return {}
        found: list[Any] = []
        shard = ray.train.get_dataset_shard("validation")
        for table in shard.iter_batches(batch_size=8, batch_format="pyarrow"):
            own = images_of(table.filter(pa.array(table["number"].to_numpy() % world_size == rank)))
            outputs = faster_rcnn.run_network(network, [picture for picture, _ in own], device)
            found += [(output, boxes) for output, (_, boxes) in zip(outputs, own, strict=True)]
        if world_size > 1:
            parts: list[Any] = [None] * world_size
            dist.all_gather_object(parts, found)
            found = [pair for part in parts for pair in part]
        value = average_precision([output for output, _ in found], [boxes for _, boxes in found])
        return {"validation_average_precision": value, "validation_images": float(len(found))}

    def save(folder: Path, result: FinetuneResult) -> None:
        faster_rcnn.save_network(
            network, job.detector_network, folder / DETECTOR_FILE, options["metadata"]
        )

    new: torch.nn.Module = network.roi_heads.box_predictor
    groups = finetune.parameter_groups(new, network, job.train)
    loop = dataclasses.replace(job.train, selection="average_precision")
    model = DetectorLoss(network)
    work(model, groups, batches, validate, loop, job.seed, save, resume_file=DETECTOR_FILE)


def train_detector(job: "Job") -> int:
    """Train the detector on WIDER FACE; gives the exit code."""
    listed = read_wider_face(job.wider_face, fraction=job.validation_fraction, seed=job.split_seed)
    faster_rcnn.network_to_train(job.detector_network, job.detector_base)
    detector = DetectorConfig(name="faster_rcnn", detect_size_pixels=job.detect_size_pixels)
    identity = {
        "network": job.detector_network,
        "base": job.detector_base,
        "detect_size_pixels": job.detect_size_pixels,
        "seed": job.seed,
        "train": config.to_dict(job.train),
        "pictures": config.fingerprint(
            {"train": listed.train.to_pylist(), "validation": listed.validation.to_pylist()}
        ),
    }
    if begin(job, identity):
        return 0
    cluster.start()
    cluster.configure_data()
    num_faces = sum(map(len, listed.train["boxes"].to_pylist()))
    logger.info(
        "training faster_rcnn over %s: %d pictures with %d faces, %d pictures held out",
        job.detector_network,
        listed.train.num_rows,
        num_faces,
        listed.validation.num_rows,
    )
    datasets = {"train": images(listed.train, detector)}
    if listed.validation.num_rows:
        datasets["validation"] = images(listed.validation, detector)
    options = {
        "job": job,
        "num_validation": listed.validation.num_rows,
        "metadata": {"pictures": identity["pictures"]},
    }
    name = f"detector-{config.fingerprint(identity)}"
    train_network(job, detector_worker, options, datasets, name)
    facts = {"num_train_images": listed.train.num_rows, "num_train_faces": num_faces}
    finish(job, identity, facts, f"--detector faster_rcnn --detector-weights {job.output}")
    return 0
