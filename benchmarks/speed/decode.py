"""Decoding beside bare PyAV.

python -m benchmarks.speed.decode

A real clip is encoded as 720p H.264 with B-frames, a key frame every 250 images. Bare PyAV decodes
forward with one thread and converts what is sampled to RGB. Every way's images are compared: a
faster way that gives other ones fails.
"""

import argparse
import tempfile
from pathlib import Path

import av
import numpy as np

from benchmarks.measuring import RESULTS, digest, in_turn, write_clip, write_record
from caan.media.sampling import key_frames, probe, sample_frames


def bare(path: str, fps: float) -> list[np.ndarray]:
    """Forward decoding of everything; the last image at or before each grid time as RGB."""
    images: list[np.ndarray] = []
    shown = None
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            while shown is not None and len(images) / fps < frame.time:
                images.append(_rgb(shown))
            shown = frame
    while shown is not None and len(images) / fps <= shown.time:
        images.append(_rgb(shown))
    return images


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    return frame.reformat(format="rgb24", interpolation="BICUBIC", threads=1).to_ndarray()


def ours(path: str, fps: float, decoder: str) -> list[np.ndarray]:
    return [frame.image for frame in sample_frames(path, fps=fps, decoder=decoder)]  # type: ignore[arg-type]


def bare_keys(path: str) -> list[np.ndarray]:
    """Every image decoded; those of key frames kept: what key-frame mode must equal."""
    kept = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if frame.key_frame:
                kept.append(_rgb(frame))
    return kept


def our_keys(path: str, seconds: float) -> list[np.ndarray]:
    found = key_frames(path, fps=1.0, start_seconds=0.0, end_seconds=seconds, cell_seconds=0.04)
    return [frame.image for frame in found if frame.image is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "decode.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clip.mp4")
        encoding = {"preset": "veryfast", "bf": "3", "g": "250", "sc_threshold": "0"}
        write_clip(Path(path), seconds=options.seconds, height=720, options=encoding)
        found = probe(path)
        record: dict[str, object] = {
            "clip": f"{found.width}x{found.height} {found.codec}, {options.seconds} s at 25/s, "
            "B-frames, key frame every 250",
            "source_pictures": 25 * options.seconds,
        }
        for name, fps in (("full sampling", 25.0), ("1 per second", 1.0)):
            ways = {
                "bare": lambda fps=fps: digest(bare(path, fps)),
                "pyav": lambda fps=fps: digest(ours(path, fps, "pyav")),
                "decord": lambda fps=fps: digest(ours(path, fps, "decord")),
            }
            record[name] = compare(in_turn(ways, options.rounds), 25 * options.seconds)
        keys = {
            "bare": lambda: digest(bare_keys(path)),
            "key frames": lambda: digest(our_keys(path, float(options.seconds))),
        }
        record["key frames"] = compare(in_turn(keys, options.rounds), 25 * options.seconds)
        record["key frames given"] = len(our_keys(path, float(options.seconds)))
    write_record(options.output, record)


def compare(timed: dict[str, dict], num_images: int) -> dict[str, object]:
    """Source images per CPU second and the ratio to bare; all outputs equal, or it fails."""
    outputs = {name: of["result"] for name, of in timed.items()}
    if len(set(outputs.values())) != 1:
        raise SystemExit(f"the ways give different images: {outputs}")
    bare_seconds = timed["bare"]["cpu_seconds"]
    return {
        "output": outputs["bare"],
        "source_pictures_per_cpu_second": {
            name: round(num_images / of["cpu_seconds"], 1) for name, of in timed.items()
        },
        "times_bare": {
            name: round(bare_seconds / of["cpu_seconds"], 3) for name, of in timed.items()
        },
    }


if __name__ == "__main__":
    main()
