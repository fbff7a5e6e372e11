"""Time and memory of labelling over the length of a video.

python -m benchmarks.speed.long_video --video people.mp4

Labels the first minute of a long video (such as benchmarks.accuracy.people composes) and then all
of it with jobs.label and the starter model, and records the seconds per video-hour and the peak
memory of each kind of process.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

from benchmarks.measuring import RESULTS, read_record, write_record
from caan import storage
from caan.media.sampling import probe
from caan.schema import MANIFEST_SCHEMA, table_of

KINDS = {
    "spawn": "decoding child",
    "write_rows": "writing task",
    "MapWorker": "actor",
    "pool_part": "second phase",
    "jobs.label": "driver",
}
"""Kinds of process, by what their command lines hold."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark."""

    video: Path
    """A long video."""
    output: Path = RESULTS / "long_video.json"
    """JSON file of the figures; runs that it has already are not done again."""
    minutes: tuple[float, ...] = (1.0, 60.0)
    """Lengths that are labelled, from the start."""
    fps: float = 1.0
    """Sampled frames per second."""


def kind_of(process: psutil.Process) -> str:
    """What a process of the run is, by its command line."""
    line = " ".join(process.cmdline())
    return next((kind for part, kind in KINDS.items() if part in line), "Ray")


def label(video: Path, minutes: float, fps: float) -> dict[str, Any]:
    """Label a part of the video in a Ray of its own; gives seconds and peaks in MiB."""
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        row = {
            "video_id": "long", "uri": str(video.resolve()), "end_seconds": 60 * minutes,
            "duration_seconds": probe(str(video)).duration_seconds, "status": "ok",
        }  # fmt: skip
        manifest = f"{folder}/manifest.parquet"
        storage.write_table(table_of([row], MANIFEST_SCHEMA), manifest)
        command = [
            *(sys.executable, "-m", "jobs.label", "--manifest", manifest),
            *("--output", f"{folder}/labels", "--fps", str(fps), "--face-policy", "all"),
        ]
        start = time.perf_counter()
        job = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        tree = psutil.Process(job.pid)
        while job.poll() is None:
            for process in (tree, *tree.children(recursive=True)):
                try:
                    kind, mb = kind_of(process), process.memory_full_info().uss / 2**20
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
                peaks[kind] = max(peaks.get(kind, 0.0), mb)
            time.sleep(0.5)
        seconds = time.perf_counter() - start
        record = storage.read_json(f"{folder}/labels/run.json")
    stages = record["stages"]
    work = {
        "decode": stages["decode"]["seconds_decode"],
        "detect_and_identify": stages["decode"]["seconds_detect"],
        "networks": stages["embed"]["seconds_networks"],
    }
    return {
        "minutes": minutes,
        "fps": fps,
        "exit_code": job.returncode,
        "seconds": round(seconds, 1),
        "segments": record["num_segments"],
        "people": record["num_people"],
        "stage_seconds_per_video_hour": {
            name: round(value * 60 / minutes, 1) for name, value in work.items()
        },
        "peak_mb": {kind: round(mb) for kind, mb in sorted(peaks.items())},
    }


def main(options: Options) -> None:
    """Label each length, and record."""
    runs: list[dict[str, Any]] = read_record(options.output).get("runs", [])
    for minutes in options.minutes:
        if not any((run["minutes"], run["fps"]) == (minutes, options.fps) for run in runs):
            runs.append(label(options.video, minutes, options.fps))
            write_record(options.output, {"runs": runs})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
