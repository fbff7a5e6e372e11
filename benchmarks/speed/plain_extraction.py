"""Extraction without this project: Ray's documented pattern and a plain script.

Both take this project's detector, crops and, if `tuned`, its networks.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from torchvision.models import vgg16

from caan.backbones.backbone import Backbone, embed_images
from caan.backbones.build import load_backbone
from caan.backbones.config import BackboneConfig
from caan.faces.build import load_detector
from caan.faces.crops import crop_face, resize_context
from caan.faces.detection import DetectorConfig, select_faces

NETWORKS = {
    "vgg": ("vggface", "vgg16", "random"),
    "starter": ("starter_face", "starter_context", ""),
}
BATCH = 16


def networks(name: str, precision: str) -> tuple[Backbone, Backbone]:
    face, context, weights = NETWORKS[name]
    return tuple(  # type: ignore[return-value]
        load_backbone(BackboneConfig(name=kind, weights=weights, precision=precision))
        for kind in (face, context)
    )


Embed = Callable[[np.ndarray], np.ndarray]
"""Images uint8 [B, 224, 224, 3] -> vectors float16 [B, D]."""


def plain_vgg(backbone: Backbone) -> Embed:
    """Torchvision's VGG16 up to fc6 with the weights of `backbone`, in plain torch."""
    network = vgg16()
    network.classifier = network.classifier[:2]
    network.load_state_dict(backbone.network.state_dict())
    network.to(backbone.dtype).to(memory_format=torch.contiguous_format).eval()
    colours = backbone.colours
    assert colours is not None
    assert backbone.relu
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (colours.mean, colours.deviation))

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()
            batch = (batch / colours.scale - mean) / deviation
            return network(batch.to(backbone.dtype)).half().numpy()

    return embed


def embedders(name: str, precision: str, *, tuned: bool) -> list[Embed]:
    """Face and context network of `ray` and `script`: plain, or this project's."""
    pair = networks(name, precision)
    if not tuned and name == "vgg":
        return [plain_vgg(network) for network in pair]
    return [lambda images, of=of: embed_images(of, images, BATCH)[0] for of in pair]  # type: ignore[misc]


def cut(detector: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Face crop and context of a frame with a face."""
    kept = select_faces(detector.detect([image])[0], "main", None, 1)
    if not kept:
        return None
    crop = crop_face(image, kept[0].box, expand=1.2, size_pixels=224)
    return crop, resize_context(image)


def in_batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(items, BATCH)):
        yield batch


def steady(frames: int, seconds: float) -> dict[str, float]:
    """Seconds and rate from the first images in a network to the end."""
    return {"steady_seconds": seconds, "frames_per_second": frames / seconds}


class Cutter:
    """Rows of frames -> rows of crops, in the documented pattern's `flat_map`."""

    detector: Any = None

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        cv2.setNumThreads(1)
        if Cutter.detector is None:
            Cutter.detector = load_detector(DetectorConfig(name="libfacedetection"))
        found = cut(Cutter.detector, row["frame"])
        empty = np.zeros((224, 224, 3), np.uint8)
        pair = found or (empty, empty)
        return [{"face": pair[0], "context": pair[1], "has_face": found is not None}]


class Embedder:
    """Batches of crops -> vectors, in the documented pattern's `map_batches`."""

    def __init__(self, name: str, precision: str, tuned: bool, threads: int, began: str) -> None:
        self.began = Path(began)
        torch.set_num_threads(threads)
        self.embedders = embedders(name, precision, tuned=tuned)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self.began.exists():
            self.began.write_text(str(time.time()))
        kept = batch["has_face"]
        rows = {"has_face": kept}
        for kind, embed in zip(("face", "context"), self.embedders, strict=True):
            vectors = embed(batch[kind][kept])
            rows[kind] = np.zeros((len(kept), vectors.shape[1]), np.float16)
            rows[kind][kept] = vectors
        return rows


def ray_pattern(
    paths: list[str], options: argparse.Namespace, *, tuned: bool = False
) -> dict[str, float]:
    """Way `ray`: plain networks unless `tuned`."""
    import ray

    ray.init(
        address="local", num_cpus=max(6, options.cores), include_dashboard=False,
        log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        began = Path(folder) / "began"
        (
            ray.data.read_videos(paths, fps=int(max(1, options.fps)))
            .flat_map(Cutter())
            .map_batches(
                Embedder,
                fn_constructor_args=(
                    options.networks,
                    options.precision,
                    tuned,
                    options.cores,
                    str(began),
                ),
                batch_size=BATCH,
                concurrency=1,
            )
            .write_parquet(f"{folder}/rows")
        )
        end, first = time.time(), float(began.read_text())
        table = pq.read_table(f"{folder}/rows", columns=["has_face"])
    ray.shutdown()
    return {
        "frames": table.num_rows,
        "faces": sum(table["has_face"].to_pylist()),
        "seconds": end - start,
        **steady(table.num_rows, end - first),
    }


def script(
    paths: list[str], options: argparse.Namespace, *, tuned: bool = False
) -> dict[str, float]:
    """Way `script`: one process; networks get full batches across clips; plain unless `tuned`."""
    import decord

    torch.set_num_threads(options.cores)
    detector = load_detector(DetectorConfig(name="libfacedetection"))
    pair = embedders(options.networks, options.precision, tuned=tuned)
    num_frames = 0
    start = time.perf_counter()

    def crops() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal num_frames
        for path in paths:
            video = decord.VideoReader(path, num_threads=1)
            times = video.get_frame_timestamp(range(len(video)))[:, 0]
            times = times - times[0]
            wanted = np.arange(0, times[-1] + 1e-6, 1 / options.fps)
            index = np.searchsorted(times, wanted + 1e-6, side="right") - 1
            for image in video.get_batch(index.tolist()).asnumpy():
                num_frames += 1
                if found := cut(detector, image):
                    yield found

    num_faces = 0
    vectors = []
    for batch in in_batches(crops()):
        num_faces += len(batch)
        for embed, images in zip(pair, zip(*batch, strict=True), strict=True):
            vectors.append(embed(np.stack(images)))
    seconds = time.perf_counter() - start
    return {
        "frames": num_frames,
        "faces": num_faces,
        "seconds": seconds,
        "frames_per_second": num_frames / seconds,
    }
