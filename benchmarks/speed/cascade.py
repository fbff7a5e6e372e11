"""What --cascade saves and what it misses: the decoding stage with and without it.

python -m benchmarks.speed.cascade --clips CLIPS

CLIPS is a folder of real clips, some with faces and some without. Measured are the clips as they
are, and films of `--minutes` composed of them as shots of 6 to 20 s, with a face in none, an
eighth and all of the shots (x264 with its default groups of pictures, 25 per second, 640x360). One
decoding child; times are its CPU seconds, which other work on the machine changes little.
"""

import dataclasses
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil
import tyro

from benchmarks.measuring import RESULTS, write_record
from caan.errors import VideoError
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.extraction.keyframes import LOOK_SECONDS, estimated_savings
from caan.media.sampling import key_frames, probe, sample_frames
from caan.outputs.plan import plan
from caan.schema import MANIFEST_SCHEMA, table_of

WIDTH, HEIGHT, RATE = 640, 360, 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options."""

    clips: Path
    """Folder of clips."""
    output: Path = RESULTS / "cascade.json"
    """JSON file of the results."""
    minutes: float = 3.0
    """Length of each composed film."""
    fps: float = 2.0
    """Sampled frames per second."""


def main(options: Benchmark) -> None:
    """Measure and write the results."""
    full = ExtractionConfig(detector="libfacedetection", face_policy="all", fps=options.fps)
    clips = [path for path in sorted(options.clips.iterdir()) if path.suffix != ".md"]
    results: dict[str, Any] = {}
    all_of_clips = run(clips, full)
    results["clips"] = compare(clips, full, all_of_clips)
    save(options, results)
    material: dict[bool, list[Path]] = {False: [], True: []}
    for path, seconds in all_of_clips.durations.items():
        with_face = len({face[1] for face in all_of_clips.faces if face[0] == path})
        # a shot shows a face if nearly every sampled frame does
        if with_face == 0 or with_face >= 0.9 * seconds * full.fps:
            material[with_face > 0].append(Path(path))
    with tempfile.TemporaryDirectory() as folder:
        for name, share in (("no_face", 0.0), ("face_in_an_eighth", 0.125), ("face_in_all", 1.0)):
            film = Path(folder) / f"{name}.mp4"
            compose(film, material, share, options.minutes * 60)
            results[name] = compare([film], full, run([film], full))
            save(options, results)


def save(options: Benchmark, results: dict[str, Any]) -> None:
    """Write what was measured so far."""
    write_record(
        options.output, {"minutes": options.minutes, "fps": options.fps, "results": results}
    )


Faces = set[tuple[str, int, float, tuple[float, ...]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One pass of the stage over some files."""

    durations: dict[str, float]
    """Seconds by path, of those that can be opened."""
    counts: dict[str, float]
    """The stage's own."""
    cpu_seconds: float
    """Of the decoding child."""
    faces: Faces
    """Each face as path, frame, time, box."""


def compare(paths: list[Path], full: ExtractionConfig, plain: Outcome) -> dict[str, Any]:
    """The stage over these files with the cascade, beside what it gave without."""
    found = run(paths, dataclasses.replace(full, cascade=True))
    looked = {(path, pts) for path in plain.durations for pts in look_times(path, full.fps)}
    at_looks = {face for face in plain.faces if (face[0], face[2]) in looked}
    savings = estimated_savings(found.counts) or {}
    return {
        "video_seconds": round(sum(plain.durations.values()), 1),
        "cpu_seconds_full": round(plain.cpu_seconds, 2),
        "cpu_seconds_cascade": round(found.cpu_seconds, 2),
        "share_of_time": round(found.cpu_seconds / plain.cpu_seconds, 3),
        "run_json": {name: value and round(value, 2) for name, value in savings.items()},
        "faces_full": len(plain.faces),
        "faces_cascade": len(plain.faces & found.faces),
        "faces_at_looks": len(at_looks),
        "faces_at_looks_lost": len(at_looks - found.faces),
    }


def run(paths: list[Path], config: ExtractionConfig) -> Outcome:
    """The decoding stage over these files."""
    durations = {}
    for path in paths:
        try:
            durations[str(path)] = probe(str(path)).duration_seconds
        except VideoError:
            continue
    manifest = [
        {"video_id": f"{i:04d}", "uri": path, "duration_seconds": seconds}
        for i, (path, seconds) in enumerate(durations.items())
    ]
    planned = plan(
        table_of(manifest, MANIFEST_SCHEMA), fps=config.fps, segment_frames=config.segment_frames
    )
    uri_of = {row["video_id"]: row["uri"] for row in manifest}
    counts: dict[str, float] = {}
    faces: Faces = set()
    units = planned.units(np.ones(planned.num_segments, bool), 1)
    decoder = SegmentDecoder(config.segment_config(detect_here=True), SandboxConfig())
    child = psutil.Process(decoder.sandbox.run(os.getpid))
    before = sum(child.cpu_times()[:2])
    for table in decoder(units):
        for name, value in decoder.take_counts().items():
            counts[name] = counts.get(name, 0.0) + value
        for segment in table.to_pylist():
            times = {f["frame_index"]: f["pts_seconds"] for f in segment["frames"]}
            path = uri_of[segment["video_id"]]
            faces |= {
                (path, f["frame_index"], round(times[f["frame_index"]], 4), tuple(f["box"]))
                for f in segment["faces"]
            }
    cpu_seconds = sum(child.cpu_times()[:2]) - before
    decoder.sandbox.close()
    return Outcome(durations=durations, counts=counts, cpu_seconds=cpu_seconds, faces=faces)


def look_times(path: str, fps: float) -> list[float]:
    """Times of the cascade's looks; none where key frames cannot be had."""
    try:
        looks = list(
            key_frames(
                path, fps=fps, start_seconds=0, end_seconds=86_400, cell_seconds=LOOK_SECONDS
            )
        )
    except VideoError:
        return []
    return [round(look.pts_seconds, 4) for look in looks if look.image is not None]


def compose(path: Path, material: dict[bool, list[Path]], share: float, seconds: float) -> None:
    """A film of shots from clips with a face (this share of the time) and without."""
    random_ = random.Random(0)
    start = time.perf_counter()
    num_images, with_face = 0, 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        while num_images < seconds * RATE:
            shows = with_face < share * (num_images + 1)
            length = int(RATE * random_.uniform(6, 20))
            source = random_.choice(material[shows])
            for _, image in zip(range(length), looped(source), strict=False):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            num_images += length
            with_face += length * shows
        container.mux(stream.encode())
    print(f"{path.name}: composed in {time.perf_counter() - start:.0f} s", flush=True)


def looped(path: Path) -> Iterator[np.ndarray]:
    """Images of a clip at the film's rate and size, over and over, there and back."""
    images = []
    for frame in sample_frames(str(path), fps=RATE, num_frames=8 * RATE):
        height, width = frame.image.shape[:2]
        scale = min(WIDTH / width, HEIGHT / height)
        small = cv2.resize(frame.image, (int(width * scale), int(height * scale)))
        canvas = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        top, left = (HEIGHT - small.shape[0]) // 2, (WIDTH - small.shape[1]) // 2
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        images.append(canvas)
        yield canvas
    while True:
        yield from reversed(images)
        yield from images


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
