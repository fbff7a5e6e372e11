"""An epoch of training: vectors mapped from files, the same in memory, and a plain loop.

Run: `python -m benchmarks.speed.training [--videos 2000] [--epochs 3] [--rounds 3]`.

Default CAAN with its default training: 16 frames of two 4096-d vectors per video, 8 of them drawn
for each epoch, batches of 56; the same batches and threads, one process.

Each round runs the three ways one after another. The first epoch of each is left out; a figure is
the median of the others. Recorded in training.json: wall and CPU seconds of an epoch, and the
memory that each way of reading adds to the process: `private` is its own, `mapped` is page cache
that all processes of the node share and that the kernel may drop.

`--workers 1 2 4` instead trains 112 videos for 4 epochs by jobs.train with each number of workers
and records the curves of the loss in workers.json.
"""

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from benchmarks.measuring import RESULTS, write_record
from benchmarks.speed.head_epoch import DIM, STORED, synthetic_videos
from benchmarks.speed.synthetic import plain_loss
from caan import schema, storage
from caan.features.batches import plan_epoch, sample_offsets
from caan.features.packed import PackedVideos
from caan.models.build import build_model
from caan.models.head import FrameBatch
from caan.outputs import layout
from caan.outputs.log import LogWriter
from caan.schema import EMOTIONS
from caan.training.loop import fit
from caan.training.recipes import RECIPES
from jobs import train
from jobs.runtime import cluster
from jobs.runtime.training_data import DataOptions, read_data

VIDEOS_PER_FILE = 100
LABELS = EMOTIONS[:7]


def write_features(folder: Path, videos: PackedVideos) -> None:
    """The videos as jobs.extract writes them, without a Python object per number.

    Videos without a split are for training, and then one more of the split `val` has no features:
    nothing to validate on.
    """
    wanted = schema.features_schema(DIM, DIM)
    writer = LogWriter(str(folder), "benchmark")
    for first in range(0, len(videos), VIDEOS_PER_FILE):
        part = videos.select(np.arange(first, min(first + VIDEOS_PER_FILE, len(videos))))
        rows = slice(int(part.starts_V[0]), int(part.starts_V[-1] + part.counts_V[-1]))
        total = rows.stop - rows.start
        index = pa.array(np.tile(np.arange(STORED), len(part)))
        offsets = pa.array(np.arange(len(part) + 1, dtype=np.int32) * STORED)
        boxes = np.tile(np.array([0, 0, 99, 99], np.float32), total)
        box_type = wanted.field("faces").type.value_type.field("box").type
        frames = [index, pa.array(np.zeros(total)), _vectors(videos.context_NE[rows])]
        faces = [
            index,
            pa.FixedSizeListArray.from_arrays(pa.array(boxes), 4).cast(box_type),
            pa.array(np.ones(total, np.float32)),
            _vectors(videos.face_ND[rows]),
        ]
        ids = part.video_ids_V.tolist()
        columns: dict[str, Any] = {name: pa.nulls(len(part)) for name in wanted.names}
        segment_ids = [schema.segment_id_of(video_id, 0) for video_id in ids]
        columns |= {"segment_id": pa.array(segment_ids), "video_id": pa.array(ids)}
        columns["status"] = pa.array(["ok"] * len(part))
        for name, arrays in (("frames", frames), ("faces", faces)):
            fields = list(wanted.field(name).type.value_type)
            structs = pa.StructArray.from_arrays(arrays, fields=fields)
            columns[name] = pa.ListArray.from_arrays(offsets, structs)
        table = pa.table(columns).cast(wanted)
        writer.commit(layout.write_rows(table, str(folder), "features"))
    splits = [split or "train" for split in videos.splits_V.tolist()]
    labels = [LABELS[label] for label in videos.labels_V.tolist()]
    manifest = [
        {"video_id": name, "uri": f"{name}.mp4", "label": label, "split": split}
        for name, label, split in zip(videos.video_ids_V.tolist(), labels, splits, strict=True)
    ]
    if not any(videos.splits_V):
        manifest.append({"video_id": "none", "uri": "none.mp4", "label": LABELS[0], "split": "val"})
    storage.write_table(
        schema.table_of(manifest, schema.MANIFEST_SCHEMA), folder / "manifest.parquet"
    )
    names = {"face_backbone": "vggface", "context_backbone": "vgg16", "detector": "retinaface"}
    options = {**names, "no_face": "drop", "fps": 2.0, "face_policy": "main"}
    record = {"job": "extract", "is_complete": True, "fingerprint": "f", "config": options}
    record |= {"format": layout.FORMAT, "identity": names}
    storage.write_json(folder / "run.json", record)


def _vectors(x_ND: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x_ND.reshape(-1)), DIM)


def plain_loop(videos: PackedVideos, epochs: int) -> list[dict[str, float]]:
    """Seconds of each epoch of the loop that one would write by hand, on tensors in memory."""
    recipe = RECIPES["caan"]
    config = recipe.train
    head = build_model(recipe.model, face_dim=DIM, context_dim=DIM, num_emotions=len(LABELS))
    face = torch.from_numpy(videos.face_ND).view(len(videos), STORED, DIM)
    context = torch.from_numpy(videos.context_NE).view(len(videos), STORED, DIM)
    targets = torch.from_numpy(videos.labels_V)
    optimizer = torch.optim.Adam(head.parameters(), 1e-4, weight_decay=1e-4, fused=True)
    rows = []
    for epoch in range(epochs):
        started, cpu_started = time.perf_counter(), time.process_time()
        head.train()
        rng = np.random.default_rng((0, epoch, 1))
        for chosen in plan_epoch(videos.labels_V, config.batch_videos, config.sampling, 0, epoch):
            places, mask = sample_offsets(videos.counts_V[chosen], config.num_frames, rng)
            frames = FrameBatch(
                face[chosen[:, None], places], context[chosen[:, None], places], torch.tensor(mask)
            )
            output = head(frames)
            loss = plain_loss(output, targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), config.grad_clip)
            optimizer.step()
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        rows.append({"train_seconds": wall, "train_cpu_seconds": cpu})
    return rows


def read_epochs(
    features: Path, mapped: Path | None, epochs: int
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The history of a training, and the memory in MB that reading its features took."""
    config = replace(RECIPES["caan"].train, epochs=epochs, patience_epochs=0, seed=0)
    if mapped is not None:
        mapped.mkdir(exist_ok=True)
    before = psutil.Process().memory_info()
    data = read_data(DataOptions(features=str(features)), mapped)
    head = build_model(
        RECIPES["caan"].model, face_dim=DIM, context_dim=DIM, num_emotions=len(LABELS)
    )
    history = fit(head, data.train, data.validation, config).history
    after = psutil.Process().memory_info()
    shared = (after.shared - before.shared) / 1e6
    memory = {"private": (after.rss - before.rss) / 1e6 - shared, "mapped": shared}
    if mapped is not None:
        shutil.rmtree(mapped)
    return history, memory


def job_epochs(folder: Path, epochs: int, workers: int) -> list[dict[str, float]]:
    """The history of a run of jobs.train."""
    config = replace(RECIPES["caan"].train, epochs=epochs, patience_epochs=0, seed=0)
    output = Path(tempfile.mkdtemp(dir=folder)) / "model"
    train.main(
        train.Job(features=str(folder), output=str(output), num_workers=workers, train=config)
    )
    return storage.read_json(output / "metrics.json")["history"]


def measure(folder: Path, videos: PackedVideos, epochs: int, rounds: int) -> None:
    """Compare both kinds of arrays with the plain loop."""
    memory: dict[str, dict[str, float]] = {}

    def read(name: str, mapped: Path | None) -> list[dict[str, float]]:
        rows, taken = read_epochs(folder, mapped, epochs)
        memory.setdefault(name, taken)
        return rows

    ways = {
        "mapped": lambda: read("mapped", folder / "mapped"),
        "memory": lambda: read("memory", None),
        "plain": lambda: plain_loop(videos, epochs),
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rows[name] += way()[1:]
            print(name, rows[name][-1], flush=True)
    result: dict[str, Any] = {
        "videos": len(videos),
        "frames_stored": STORED,
        "frames_drawn": RECIPES["caan"].train.num_frames,
        "dim": DIM,
        "epochs_measured": rounds * (epochs - 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }
    for kind in ("train_seconds", "train_cpu_seconds"):
        medians = {name: float(np.median([row[kind] for row in rows[name]])) for name in ways}
        result[kind] = {name: round(value, 2) for name, value in medians.items()}
        result[kind]["mapped_over_memory"] = round(medians["mapped"] / medians["memory"], 3)
        result[kind]["mapped_over_plain"] = round(medians["mapped"] / medians["plain"], 3)
    result["memory_mb"] = {
        name: {kind: round(value) for kind, value in taken.items()}
        for name, taken in memory.items()
    }
    write_record(RESULTS / "training.json", result)


def compare_workers(folder: Path, numbers: list[int]) -> None:
    """The same training by different numbers of workers."""
    curves = {
        str(number): [row["train_loss"] for row in job_epochs(folder, 4, number)]
        for number in numbers
    }
    first = np.array(next(iter(curves.values())))
    apart = {
        number: float(np.abs(np.array(curve) / first - 1).max()) for number, curve in curves.items()
    }
    result = {"losses_by_workers": curves, "greatest_relative_difference": apart}
    write_record(RESULTS / "workers.json", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[])
    options = parser.parse_args()
    videos = synthetic_videos(112 if options.workers else options.videos)
    with tempfile.TemporaryDirectory(prefix="caan-benchmark-") as name:
        folder = Path(name)
        write_features(folder, videos)
        if options.workers:
            cluster.start()
            compare_workers(folder, options.workers)
        else:
            measure(folder, videos, options.epochs, options.rounds)


if __name__ == "__main__":
    main()
