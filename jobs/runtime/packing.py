"""How jobs.train reads features larger than memory: packed into files, streamed by Ray Data."""

import functools
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train

from caan import config, storage
from caan.errors import InputError
from caan.features import packed_files
from caan.features.manifest_arrays import manifest_arrays
from caan.features.packed_files import Buckets, PackedFiles
from caan.features.splits import Division, divided
from caan.features.streaming import FrameSampler, StreamLoader
from caan.outputs import layout
from caan.training.config import TrainConfig
from jobs.runtime import cluster

logger = logging.getLogger(__name__)

COLUMNS = ["segment_id", "video_id", "attempt", "frames", "faces"]
"""What training reads of the features."""
SHUFFLE_BATCHES = 8
"""Batches from which a worker draws the videos of its next one."""


def is_streamed(features: str, loader: str, memory_limit_gb: float) -> bool:
    """Whether a run reads these features from files, by --loader and --memory-limit-gb."""
    if loader != "auto":
        return loader == "stream"
    limit = packed_files.memory_limit_bytes(memory_limit_gb)
    found = packed_files.vector_bytes(layout.part_files(features, "features"))
    is_over = found > limit
    logger.info(
        "loader %s: the vectors take %.2f GB, and %.2f GB may be held in memory",
        "stream" if is_over else "memory",
        found / 1e9,
        limit / 1e9,
    )
    return is_over


def packed(
    features: str,
    record: dict[str, Any],
    manifest: pa.Table,
    label_set: tuple[str, ...],
    division: Division,
    *,
    folder: str,
    scratch: Path,
) -> tuple[PackedFiles, PackedFiles]:
    """Training and validation videos in files under `folder`, packed unless they are there.

    Raises:
        InputError: nothing to train on.
    """
    no_face = record["config"]["no_face"]
    known = manifest_arrays(manifest, label_set)
    content = hashlib.sha256()
    for values_V in (known["video_ids_V"], known["labels_V"], known["splits_V"]):
        content.update("\n".join(map(str, values_V.tolist())).encode())
    if "face_box" in manifest.column_names:
        content.update(str(manifest["face_box"].to_pylist()).encode())
    identity = {
        "features": record["fingerprint"],
        "manifest": content.hexdigest(),
        "division": config.to_dict(division),
    }
    target = storage.join(folder, f"packed-{config.fingerprint(identity)}")
    sets = packed_files.read_record(target)
    if sets is None:
        storage.delete(target)
        names = {division.split, "val"}
        is_split = bool((known["splits_V"] != "").any())
        buckets = Buckets(
            layout.latest_segments(features, "features", COLUMNS),
            manifest,
            label_set,
            no_face=no_face,
            wanted_V=(known["labels_V"] >= 0)
            & (np.isin(known["splits_V"], list(names)) if is_split else True),
            num_bytes=packed_files.vector_bytes(layout.part_files(features, "features")),
            folder=scratch / "buckets",
            seed=division.seed,
        )
        train, validation = divided(buckets.outline, division)
        sets = buckets.write({"train": train, "validation": validation}, target)
        packed_files.write_record(target, sets)
    logger.info("streaming from %s", target)
    return sets["train"], sets["validation"]


def check_slots(num_workers: int, storage_path: str) -> None:
    """Say so if the files could not be read beside the workers.

    Raises:
        InputError: too few CPU slots, or files on one node's disk that others cannot see.
    """
    slots = float(ray.cluster_resources().get("CPU", 0))
    if slots < num_workers + 1:
        raise InputError(
            f"--loader stream reads in CPU slots beside those of the workers: {num_workers} "
            f"workers need at least {num_workers + 1}, and the Ray cluster has {slots:g}."
        )
    if not storage_path and sum(node["Alive"] for node in ray.nodes()) > 1:
        raise InputError(
            "--loader stream on several nodes needs --storage-path, a folder that all of them "
            "see: local (shared) or s3://."
        )


def rows(videos: PackedFiles, train: TrainConfig, modalities: tuple[str, ...]) -> ray.data.Dataset:
    """The training videos with the frames of an epoch; each pass has another order of files."""
    cluster.configure_data()
    dims = {"face": videos.face_dim, "context": videos.context_dim}
    sampler = FrameSampler(train.num_frames, {name: dims[name] for name in modalities})
    files, _ = storage.filesystem(videos.files[0])
    dataset = ray.data.read_parquet(
        [storage.filesystem(file)[1] for file in videos.files],
        filesystem=files,
        shuffle=ray.data.FileShuffleConfig(seed=train.seed),
    )
    return dataset.map_batches(
        functools.partial(_sampled, sampler=sampler), batch_size=None, batch_format="pyarrow"
    )


def _sampled(rows: pa.Table, sampler: FrameSampler) -> pa.Table:
    return sampler(rows)


def loader(
    videos: PackedFiles, train: TrainConfig, modalities: tuple[str, ...], world_size: int
) -> StreamLoader:
    """This worker's batches.

    Raises:
        InputError: fewer videos, or a smaller batch, than there are workers.
    """
    if len(videos) < world_size or train.batch_videos < world_size:
        raise InputError(
            f"{len(videos)} training videos in batches of {train.batch_videos} are too few for "
            f"{world_size} workers"
        )
    shard = ray.train.get_dataset_shard("train")
    batch_size = train.batch_videos // world_size

    def batches(epoch: int) -> Iterable[pa.Table]:
        return shard.iter_batches(
            batch_size=batch_size,
            batch_format="pyarrow",
            prefetch_batches=2,
            local_shuffle_buffer_size=SHUFFLE_BATCHES * batch_size,
            local_shuffle_seed=train.seed * 100_003 + epoch,
        )

    return StreamLoader(videos, batches, modalities=modalities, sampling=train.sampling)
