"""Extraction four ways on the same clips, cores, detector, weights and precision.

python -m benchmarks.speed.extraction --clips FOLDER [--copies 20] [--other-copies 20]

- limit: core-seconds of decoding, detection and embedding, each alone in one process with one
  thread, summed and spread over the cores. `limit_on_all_cores` is the same by one process per core
  at once, as cores share cache, memory and heat. Both are taken before and after the other ways.
- project: jobs.extract. With `--defaults`, it and the limit take the precision that the job
  chooses, and the others float32.
- ray: Ray's documented pattern, `read_videos` -> `flat_map` -> `map_batches`.
- script: decord, detector and torch in one process, torch's threads on all cores.

`ray` and `script` run torchvision's VGG16; `ray_tuned` and `script_tuned` run this project's
backbones, in channels_last. VGGs have seeded random weights. No GPU is used.

The rates of `project` and `ray` count from the first images in a network; start-up is a figure of
its own. The run fails if plain and tuned networks give other vectors, or if `project` and `script`
give other numbers of frames or faces. `ray` samples by stride, so its rate counts its own frames.
"""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from threadpoolctl import threadpool_limits

from benchmarks.measuring import RESULTS, write_record
from benchmarks.speed.plain_extraction import (
    BATCH,
    NETWORKS,
    cut,
    embedders,
    networks,
    ray_pattern,
    script,
    steady,
)
from caan.backbones.backbone import embed_images, keep_freed_memory
from caan.extraction.config import ExtractionConfig
from caan.faces.build import load_detector
from caan.faces.crops import resize_context
from caan.faces.detection import DetectorConfig
from caan.media.sampling import sample_frames
from caan.outputs import layout


def check_same_vectors(path: str, options: argparse.Namespace) -> float:
    """Largest difference of the plain and the tuned vectors, over their largest value.

    Raises:
        SystemExit: it is beyond what float16 rounds.
    """
    frames = itertools.islice(sample_frames(path, fps=options.fps), 4)
    images = np.stack([resize_context(frame.image) for frame in frames])
    pairs = [embedders(options.networks, options.precision, tuned=t) for t in (False, True)]
    worst = 0.0
    for plain, tuned in zip(*pairs, strict=True):
        ours, theirs = (of(images).astype(np.float32) for of in (tuned, plain))
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(ours).max()))
    if worst > (1e-3 if options.precision == "fp32" else 3e-2):
        raise SystemExit(f"plain and tuned networks differ by {worst:.2g} of their largest value")
    return worst


def limit(paths: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Core-seconds of each stage alone, one thread each, over one copy of the clips."""
    torch.set_num_threads(1)
    threadpool_limits(1)  # the detector has threads of its own
    keep_freed_memory()  # as the job does: the limit is of the machine, not of an allocator
    detector = load_detector(DetectorConfig(name="libfacedetection"))
    pairs = networks(options.networks, "auto" if options.defaults else options.precision)
    seconds = {}
    start = time.process_time()
    frames = [f.image for path in paths for f in sample_frames(path, fps=options.fps)]
    seconds["decode"] = time.process_time() - start
    start = time.process_time()
    cuts = [found for image in frames if (found := cut(detector, image))]
    seconds["detect"] = time.process_time() - start
    start = time.process_time()
    for position, network in enumerate(pairs):
        embed_images(network, np.stack([pair[position] for pair in cuts]), BATCH)
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
        for table in layout.read_rows(f"{folder}/features", "features", ["frames", "faces"]):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="mp4 files that decord opens")
    parser.add_argument("--copies", type=int, default=20, help="of all clips, for project")
    parser.add_argument(
        "--other-copies", type=int, default=20, help="of all clips, for ray and script"
    )
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--networks", choices=NETWORKS, default="vgg")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--defaults", action="store_true", help="project at its own defaults")
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
