"""Memory of a decoding worker: a short clip against a two-hour 1080p film.

python -m benchmarks.speed.memory

Makes both from drawn moving images (the film by repeating a minute's packets with later times),
decodes segments of 128 frames at the start, the middle and the end, and records the peak
resident memory of the sandboxed child and of this process.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np
import psutil

from benchmarks.measuring import RESULTS, write_record
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.outputs.plan import plan
from caan.schema import MANIFEST_SCHEMA, table_of

MINUTES = 120


def write_minute(path: Path, seconds: int = 60, fps: int = 25) -> None:
    """A minute of 1080p H.264 with a key frame every 250 images and B-frames."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 255, (68, 120, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)[:1080]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"preset": "veryfast", "g": "250"}
        )
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for number in range(seconds * fps):
            image = np.roll(still, 4 * number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def repeat(source: Path, target: Path, times: int) -> None:
    """`source` `times` over, without encoding again."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = read.streams.video[0]
        copied = write.add_stream_from_template(stream)
        packets = [packet for packet in read.demux(stream) if packet.dts is not None]
        length = round(60 / stream.time_base)
        first = [(packet.pts, packet.dts) for packet in packets]
        for number in range(times):
            for packet, (pts, dts) in zip(packets, first, strict=True):
                packet.stream = copied
                packet.pts, packet.dts = pts + number * length, dts + number * length
                packet.time_base = stream.time_base
                write.mux(packet)


def peak_mb(path: Path, seconds: float, rows: list[int]) -> dict[str, float]:
    """Peak memory of child and parent while these segments of the video are cut."""
    video = {
        "video_id": "a", "uri": str(path), "duration_seconds": seconds, "status": "ok",
    }  # fmt: skip
    config = ExtractionConfig(detector="libfacedetection")
    planned = plan(table_of([video], MANIFEST_SCHEMA), fps=2.0, segment_frames=128)
    units = planned.units(np.ones(planned.num_segments, bool), 1)
    peaks = {"child": 0.0, "parent": 0.0}
    is_over = threading.Event()
    decoder = SegmentDecoder(config.segment_config(detect_here=True), SandboxConfig())

    def watch() -> None:
        me = psutil.Process()
        while not is_over.wait(0.05):
            peaks["parent"] = max(peaks["parent"], me.memory_info().rss / 2**20)
            pid = decoder.sandbox.child_pid
            if pid and psutil.pid_exists(pid):
                child = psutil.Process(pid).memory_info().rss / 2**20
                peaks["child"] = max(peaks["child"], child)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    statuses = [next(decoder(units.slice(row, 1)))["status"][0].as_py() for row in rows]
    taken = time.perf_counter() - started
    is_over.set()
    watcher.join()
    decoder.sandbox.close()
    return {
        "segments": planned.num_segments,
        "statuses": ",".join(statuses),
        "child_peak_mb": round(peaks["child"]),
        "parent_peak_mb": round(peaks["parent"]),
        "seconds": round(taken, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        minute, film = Path(folder) / "minute.mp4", Path(folder) / "film.mp4"
        write_minute(minute)
        repeat(minute, film, MINUTES)
        last = int(MINUTES * 60 * 2 / 128)
        found = {
            "one minute": peak_mb(minute, 60.0, [0]),
            "two hours": peak_mb(film, MINUTES * 60.0, [0, last // 2, last]),
        }
    write_record(options.output, found)


if __name__ == "__main__":
    main()
