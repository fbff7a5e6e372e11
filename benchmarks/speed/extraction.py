"""Extraction four ways on the same clips and cores.

python -m benchmarks.speed.extraction --clips FOLDER [--copies 20] [--other-copies 20] [--networks vgg]

(a) limit: core-seconds of decoding, detecting and embedding, each measured alone in one process with one
thread, summed and spread over the cores; taken before and after the rest. `limit_on_all_cores` is the same taken by
one process per core at the same time, as cores that share a cache, memory and heat are slower together. (b) this project's jobs.extract. (c) Ray's documented
pattern: `read_videos` -> `flat_map` -> `map_batches`. Of both the steady state counts, from the first
pictures in a network to the end; the start of Ray, workers and networks is reported apart. (d) the plain script:
decord, detector, torch, one process, torch's threads on all cores. Same clips, frames per second, detector,
weights (VGGs have seeded random ones) and precision. (c) and (d) hold torchvision's VGG16 as whoever writes them
would; `ray_tuned` and `script_tuned` are the same two with this project's backbones, which compute in channels_last. That both
give the same vectors is checked first. Frames and faces of (b) and (d) must be equal; (c) samples by stride
and may differ by a few, so its rate counts its own frames. A GPU is not used. `--defaults`: (b) and its limit in the
precision that the job chooses by itself, (c) and (d) in torch's, float32.
"""  # noqa: E501

import argparse
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits
from torchvision.models import vgg16

from benchmarks.measuring import RESULTS, write_record
from caan.backbones.backbone import Backbone, embed_pictures, keep_freed_memory
from caan.backbones.build import load_backbone
from caan.backbones.config import BackboneConfig
from caan.extraction.config import ExtractionConfig
from caan.faces.build import load_detector
from caan.faces.crops import crop_face, resize_context
from caan.faces.detection import DetectorConfig, select_faces
from caan.media.sampling import sample_frames
from caan.outputs import layout

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
"""Pictures uint8 [B, 224, 224, 3] -> vectors float16 [B, D]."""


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

    def embed(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous()
            batch = (batch / colours.scale - mean) / deviation
            return network(batch.to(backbone.dtype)).half().numpy()

    return embed


def embedders(name: str, precision: str, *, tuned: bool) -> list[Embed]:
    """Both networks of (c) and (d): plain, or this project's."""
    pair = networks(name, precision)
    if not tuned and name == "vgg":
        return [plain_vgg(network) for network in pair]
    return [lambda pictures, of=of: embed_pictures(of, pictures, BATCH)[0] for of in pair]  # type: ignore[misc]


def check_same_vectors(path: str, options: argparse.Namespace) -> float:
    """Largest difference of the plain and the tuned vectors, over their largest value.

    Raises:
        SystemExit: it is beyond what float16 rounds.
    """
    frames = itertools.islice(sample_frames(path, fps=options.fps), 4)
    pictures = np.stack([resize_context(frame.picture) for frame in frames])
    pairs = [embedders(options.networks, options.precision, tuned=t) for t in (False, True)]
    worst = 0.0
    for plain, tuned in zip(*pairs, strict=True):
        ours, theirs = (of(pictures).astype(np.float32) for of in (tuned, plain))
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(ours).max()))
    if worst > (1e-3 if options.precision == "fp32" else 3e-2):
        raise SystemExit(f"plain and tuned networks differ by {worst:.2g} of their largest value")
    return worst


def cut(detector: Any, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Face crop and context of a frame with a face."""
    kept = select_faces(detector.detect([picture])[0], "main", None, 1)
    if not kept:
        return None
    crop = crop_face(picture, kept[0].box, expand=1.2, size_pixels=224)
    return crop, resize_context(picture)


def in_batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(items, BATCH)):
        yield batch


def limit(paths: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Core-seconds of each stage alone, one thread each, over one copy of the clips."""
    torch.set_num_threads(1)
    threadpool_limits(1)  # the detector has threads of its own
    keep_freed_memory()  # as the job does: the limit is of the machine, not of an allocator
    detector = load_detector(DetectorConfig(name="libfacedetection"))
    pairs = networks(options.networks, "auto" if options.defaults else options.precision)
    seconds = {}
    start = time.process_time()
    frames = [f.picture for path in paths for f in sample_frames(path, fps=options.fps)]
    seconds["decode"] = time.process_time() - start
    start = time.process_time()
    cuts = [found for picture in frames if (found := cut(detector, picture))]
    seconds["detect"] = time.process_time() - start
    start = time.process_time()
    for position, network in enumerate(pairs):
        embed_pictures(network, np.stack([pair[position] for pair in cuts]), BATCH)
    seconds["embed"] = time.process_time() - start
    total = sum(seconds.values())
    return {
        "frames": len(frames),
        "faces": len(cuts),
        **{f"core_seconds_{name}": round(value, 2) for name, value in seconds.items()},
        "frames_per_second": options.cores * len(frames) / total,
    }


def project(paths: list[str], options: argparse.Namespace) -> dict[str, float]:
    """jobs.extract as a user runs it."""
    face, context, weights = NETWORKS[options.networks]
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder) / "videos"
        videos.mkdir()
        for number, path in enumerate(paths):
            os.link(path, videos / f"{number:05d}{Path(path).suffix}")
        manifest = Path(folder) / "manifest.parquet"
        run_job("index", "--input", videos, "--output", manifest)
        start = time.perf_counter()
        run_job(
            "extract", "--manifest", manifest, "--output", Path(folder) / "features",
            "--fps", options.fps, "--detector", "libfacedetection",
            "--face-backbone", face, "--context-backbone", context,
            *(["--face-weights", weights, "--context-weights", weights] if weights else []),
            *([] if options.defaults else ["--precision", options.precision]),
        )  # fmt: skip
        whole = time.perf_counter() - start
        record = json.loads((Path(folder) / "features" / "run.json").read_text())
        frames = faces = 0
        columns = ["segment_id", "video_id", "attempt", "frames", "faces"]
        for table in layout.latest_segments(f"{folder}/features", "features", columns):
            frames += len(pc.list_flatten(table["frames"]))
            faces += len(pc.list_flatten(table["faces"]))
    return {
        "frames": frames,
        "faces": faces,
        "seconds": whole,
        **steady(frames, record["seconds"] - record["seconds_until_networks"]),
        "pools": record["pools"],
        "batch_fill": record["batch_fill"],
    }


def steady(frames: int, seconds: float) -> dict[str, float]:
    """What (b) and (c) did from the first pictures in a network to the end."""
    return {"steady_seconds": seconds, "frames_per_second": frames / seconds}


def at_once(
    way: Callable[..., Any], processes: int, paths: list[str] | str, options: argparse.Namespace
) -> list[Any]:
    """What so many processes measured at the same time, each fresh.

    Threads, caches and allocators of one way do not help another.
    """
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        return pool.starmap(way, [(paths, options)] * processes, chunksize=1)


def limits_of(paths: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """The limit by one process alone, and by one per core at once (their mean rate)."""
    alone = at_once(limit, 1, paths, options)[0]
    together = at_once(limit, options.cores, paths, options)
    rates = [of["frames_per_second"] for of in together]
    found = {"alone": alone, "on_all_cores": together, "mean_rate": sum(rates) / len(rates)}
    print("limit", found, flush=True)
    return found


def run_job(name: str, *arguments: object) -> None:
    words = [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"jobs.{name} failed: {done.stderr[-2000:]}")


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
    """(c), with plain networks unless `tuned`."""
    import ray

    # Of the module by its name: Ray's workers cannot look into this process's `__main__`.
    from benchmarks.speed.extraction import Cutter, Embedder

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
    """(d): one process; the networks get full batches across clips; plain unless `tuned`."""
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
            for picture in video.get_batch(index.tolist()).asnumpy():
                num_frames += 1
                if found := cut(detector, picture):
                    yield found

    num_faces = 0
    vectors = []
    for batch in in_batches(crops()):
        num_faces += len(batch)
        for embed, pictures in zip(pair, zip(*batch, strict=True), strict=True):
            vectors.append(embed(np.stack(pictures)))
    seconds = time.perf_counter() - start
    return {
        "frames": num_frames,
        "faces": num_faces,
        "seconds": seconds,
        "frames_per_second": num_frames / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="mp4 files that decord opens")
    parser.add_argument("--copies", type=int, default=20, help="of all clips, for (b)")
    parser.add_argument("--other-copies", type=int, default=20, help="the same for (c) and (d)")
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--networks", choices=NETWORKS, default="vgg")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--defaults", action="store_true", help="(b) at its own defaults")
    ways = ["project", "ray", "script", "ray_tuned", "script_tuned"]
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument("--output", type=Path, default=RESULTS / "extraction.json")
    options = parser.parse_args()
    options.cores = os.cpu_count() or 1
    ExtractionConfig(precision=options.precision)
    clips = sorted(str(path) for path in options.clips.glob("*.mp4"))
    if not clips:
        raise SystemExit(f"no .mp4 in {options.clips}")
    if options.fps != int(options.fps):
        raise SystemExit("--fps must be whole: read_videos samples at whole rates only")
    scratch = tempfile.mkdtemp()
    copied = [shutil.copy(path, Path(scratch) / f"{n}.mp4") for n, path in enumerate(clips)]
    once = [str(path) for path in copied]
    copies = {"project": options.copies}
    others: dict[str, Callable[[list[str], argparse.Namespace], dict[str, float]]] = {
        "project": project, "ray": ray_pattern, "script": script,
        "ray_tuned": functools.partial(ray_pattern, tuned=True),
        "script_tuned": functools.partial(script, tuned=True),
    }  # fmt: skip
    difference = at_once(check_same_vectors, 1, once[0], options)[0]
    limits = [limits_of(once, options)]
    found: dict[str, dict[str, float]] = {}
    for name in options.ways:
        used = once * copies.get(name, options.other_copies)
        found[name] = at_once(others[name], 1, used, options)[0]
        print(name, found[name], flush=True)
    limits.append(limits_of(once, options))
    shutil.rmtree(scratch)
    if {"project", "script"} <= set(found):
        for what in ("frames", "faces"):
            ours, theirs = found["project"][what], found["script"][what]
            if ours * options.other_copies != theirs * options.copies:
                raise SystemExit(f"other {what}: {found}")
    rates = {name: of["frames_per_second"] for name, of in found.items()}
    rates["limit"] = sum(of["alone"]["frames_per_second"] for of in limits) / len(limits)
    rates["limit_on_all_cores"] = sum(of["mean_rate"] for of in limits) / len(limits)
    precision = "defaults" if options.defaults else options.precision
    record = {
        "clips": len(clips),
        "copies": options.copies,
        "copies_of_ray_and_script": options.other_copies,
        "fps": options.fps,
        "plain_and_tuned_vectors_differ_by": difference,
        "limits_before_and_after": limits,
        "ways": found,
        "project_over": {
            name: round(rates["project"] / rate, 3)
            for name, rate in rates.items()
            if "project" in rates and name != "project"
        },
    }
    write_record(options.output, record, f"{options.networks} {precision}")


if __name__ == "__main__":
    main()
