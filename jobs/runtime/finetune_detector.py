"""jobs.finetune for the face detector: WIDER FACE -> weights of `--detector faster_rcnn`."""

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
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
from caan.training.finetune_data import rows_of_worker
from jobs.runtime import cluster
from jobs.runtime import finetune as finetuning
from jobs.runtime.finetune_options import FinetuneOptions

logger = logging.getLogger(__name__)

DETECTOR_FILE = "detector.safetensors"
"""The trained weights; extraction finds them by the folder's name."""

SHUFFLED_IMAGES = 128
"""Pictures that are mixed with each other on each worker (about 1 MB each)."""


@dataclass(frozen=True, kw_only=True)
class DetectorTask:
    """What a worker needs to know besides its pictures."""

    options: FinetuneOptions
    """The training."""
    num_validation: int
    """Number of held-out pictures."""
    metadata: dict[str, str]
    """What the weight file says of itself."""


def train_detector(options: FinetuneOptions) -> int:
    """Train the detector on WIDER FACE; give the exit code.

    Raises:
        InputError: a folder that is not WIDER FACE, weights that do not fit, or an output that
            holds something else.
    """
    listed = read_wider_face(
        options.wider_face, fraction=options.validation_fraction, seed=options.split_seed
    )
    # Refuse bad weights early.
    faster_rcnn.network_to_train(options.detector_network, options.detector_base)
    pictures = config.fingerprint(
        {"train": listed.train.to_pylist(), "validation": listed.validation.to_pylist()}
    )
    identity = {
        "network": options.detector_network,
        "base": options.detector_base,
        "detect_size_pixels": options.detect_size_pixels,
        "seed": options.seed,
        "train": config.to_dict(options.train),
        "pictures": pictures,
    }
    if finetuning.begin(options.output, identity):
        return 0
    cluster.start()
    cluster.configure_data()
    num_faces = sum(map(len, listed.train["boxes"].to_pylist()))
    logger.info(
        "training faster_rcnn over %s: %d pictures with %d faces, %d pictures held out",
        options.detector_network,
        listed.train.num_rows,
        num_faces,
        listed.validation.num_rows,
    )
    datasets = {"train": read_images(listed.train, options.detect_size_pixels)}
    if listed.validation.num_rows:
        datasets["validation"] = read_images(listed.validation, options.detect_size_pixels)
    task = DetectorTask(
        options=options,
        num_validation=listed.validation.num_rows,
        metadata={"pictures": pictures},
    )
    finetuning.train_network(
        options, run_worker, task, datasets, f"detector-{config.fingerprint(identity)}"
    )
    facts = {"num_train_images": listed.train.num_rows, "num_train_faces": num_faces}
    finetuning.finish(
        options, identity, facts, f"--detector faster_rcnn --detector-weights {options.output}"
    )
    return 0


def read_images(table: pa.Table, detect_size_pixels: int) -> ray.data.Dataset:
    """A row per listed picture, decoded again in every epoch."""
    detector = DetectorConfig(name="faster_rcnn", detect_size_pixels=detect_size_pixels)
    parts = [table.slice(start, 64) for start in range(0, table.num_rows, 64)]
    return ray.data.from_arrow(parts).map_batches(
        partial(decode_images, detector=detector, min_box_pixels=MIN_BOX_PIXELS),
        batch_size=8,
        batch_format="pyarrow",
    )


def mirror(picture: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror a picture [H, W, 3] and its boxes x0, y0, x1, y1 [F, 4] left to right."""
    width = picture.shape[1]
    return picture[:, ::-1], np.stack(
        [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
    )


def run_worker(task: DetectorTask) -> None:
    """Train the detector on one of Ray Train's workers."""
    options, train = task.options, task.options.train
    torch.manual_seed(options.seed)
    network = faster_rcnn.network_to_train(options.detector_network, options.detector_base)
    rank, world_size = finetuning.worker_place()
    device = ray.train.torch.get_device()
    size = max(1, train.batch_images // world_size)

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        rng = np.random.default_rng([options.seed, epoch, rank])
        for table in finetuning.shuffled_batches(size, SHUFFLED_IMAGES, options.seed, epoch):
            pictures, targets = [], []
            for picture, boxes in images_of(table):
                if train.changes > 0 and rng.random() < 0.5:
                    picture, boxes = mirror(picture, boxes)
                light = 1 + train.changes * rng.uniform(-0.3, 0.3)
                pictures.append((faster_rcnn.to_input(picture) * light).clamp(0, 1).to(device))
                targets.append(
                    {
                        "boxes": torch.from_numpy(boxes.copy()).to(device),
                        "labels": torch.ones(len(boxes), dtype=torch.int64, device=device),
                    }
                )
            yield pictures, targets

    def validate() -> dict[str, float]:
        if not task.num_validation:
            return {}
        found: list[Any] = []
        for table in rows_of_worker(finetuning.validation_tables(8), "number", rank, world_size):
            own = images_of(table)
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
            network, options.detector_network, folder / DETECTOR_FILE, task.metadata
        )

    new: torch.nn.Module = network.roi_heads.box_predictor
    finetuning.fit_and_report(
        DetectorLoss(network),
        finetune.parameter_groups(new, network, train),
        batches,
        validate,
        dataclasses.replace(train, selection="average_precision"),
        options.seed,
        save,
        weights_file=DETECTOR_FILE,
    )
