"""What jobs.extract downloads of one long video on S3, on one node and on three.

python -m benchmarks.speed.s3_bytes

An hour of H.264 with sound, its index at the end of the file, lies on a loopback S3 server (moto's)
behind a proxy that counts requests and bytes. It has 29 segments, which several workers share. Each
byte should be fetched about once, whatever the number of nodes.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import boto3
import numpy as np
import tyro
from moto.server import ThreadedMotoServer

from benchmarks.measuring import RESULTS, packaged_clip, write_record
from caan import storage
from caan.media.sampling import sample_frames
from tests.support.faults import FaultProxy
from tests.support.local_cluster import LocalCluster

RATE = 10
SOUND_RATE = 48_000
BUCKET = "s3://archive"
KEY = "videos/hour.mp4"
LIMIT = 1.2
"""Most bytes that may be fetched, over the size of the object."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark."""

    minutes: int = 60
    """Length of the video."""
    kbit: int = 300
    """Kilobits per second of its pictures."""
    nodes: tuple[int, ...] = (1, 3)
    """Numbers of nodes."""
    output: Path = RESULTS / "s3_bytes.json"
    """JSON file of the figures."""


def write_minute(path: Path, kbit: int) -> None:
    """A minute of a man who talks, played forth and back, with noise as its sound."""
    clip = packaged_clip("carphone_pristine.mp4")
    images = [frame.image for frame in sample_frames(str(clip), fps=float(RATE))]
    images += images[-2:0:-1]
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "maxrate": f"{kbit}k", "bufsize": f"{kbit}k"}
        pictures = container.add_stream("libx264", rate=RATE, options=options)
        pictures.width, pictures.height, pictures.pix_fmt = 640, 360, "yuv420p"
        pictures.bit_rate = 1000 * kbit
        sound = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        sound.bit_rate = 64_000
        for number in range(60 * RATE):
            image = av.VideoFrame.from_ndarray(images[number % len(images)], format="rgb24")
            container.mux(pictures.encode(image.reformat(640, 360)))
            wave = rng.normal(0, 0.1, (1, SOUND_RATE // RATE)).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            samples.sample_rate, samples.pts = SOUND_RATE, number * wave.shape[1]
            container.mux(sound.encode(samples))
        container.mux(pictures.encode())
        container.mux(sound.encode())


def repeat(source: Path, target: Path, times: int) -> None:
    """`source` `times` over, without encoding again; the index comes last."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        copies = {stream: write.add_stream_from_template(stream) for stream in read.streams}
        packets = []
        for packet in read.demux():
            # the sound is a little longer than the minute
            if packet.dts is not None and packet.dts * packet.time_base < 60 - 1024 / SOUND_RATE:
                length = round(60 / packet.time_base)
                packets.append((packet, copies[packet.stream], packet.pts, packet.dts, length))
        for number in range(times):
            for packet, copy, pts, dts, length in packets:
                packet.stream = copy
                packet.pts, packet.dts = pts + number * length, dts + number * length
                write.mux(packet)


def extract(manifest: str, output: str, nodes: int) -> None:
    """jobs.extract by an embedded Ray, or submitted to a cluster of so many nodes."""
    words = [
        "jobs.extract", "--manifest", manifest, "--output", output, "--fps", "1",
        "--segment-frames", "128", "--detector", "libfacedetection",
        "--face-backbone", "starter_face", "--context-backbone", "starter_context",
    ]  # fmt: skip
    if nodes == 1:
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=False
        )
    else:
        with tempfile.TemporaryDirectory() as logs:
            cluster = LocalCluster(Path(logs))
            try:
                for number in range(nodes):
                    cluster.add(f"node-{number}", 3)
                # as many as on machines of two cores
                done = cluster.submit(*words, "--resources.decoders", str(nodes))
            finally:
                cluster.close()
    if done.returncode:
        raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def measured(proxy: FaultProxy, manifest: str, size_bytes: int, nodes: int) -> dict[str, Any]:
    """One run and what it asked of the object."""
    output = f"{BUCKET}/features-{nodes}"
    proxy.requests.clear()
    proxy.sent_bytes.clear()
    start = time.perf_counter()
    extract(manifest, output, nodes)
    seconds = time.perf_counter() - start
    of_object: Counter[str] = Counter()
    for (operation, path), count in proxy.requests.items():
        if path.endswith(KEY):
            of_object[operation] += count
    num_bytes = sum(n for (_, path), n in proxy.sent_bytes.items() if path.endswith(KEY))
    record = storage.read_json(f"{output}/run.json")
    return {
        "nodes": nodes,
        "nodes_that_decoded": len(record["stage_nodes"]["decode"]),
        "decoders": record["pools"]["num_decoders"],
        "segments": record["num_segments"],
        "statuses": record["statuses"],
        "downloaded_bytes": num_bytes,
        "bytes_over_object": round(num_bytes / size_bytes, 3),
        "requests": dict(sorted(of_object.items())),
        "requests_of_the_whole_run": proxy.requests.total(),
        "seconds": round(seconds, 1),
    }


def main(options: Options) -> None:
    """Make the video, run, record."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    proxy = FaultProxy(f"http://{host}:{port}")
    os.environ |= {
        "AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "a-key-for-tests", "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    boto3.client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))
    with tempfile.TemporaryDirectory() as folder:
        minute, film = Path(folder) / "minute.mp4", Path(folder) / "hour.mp4"
        write_minute(minute, options.kbit)
        repeat(minute, film, options.minutes)
        size_bytes = film.stat().st_size
        index_bytes = size_bytes - film.read_bytes().rindex(b"moov") + 4
        storage.write_bytes(f"{BUCKET}/{KEY}", film.read_bytes())
    manifest = f"{BUCKET}/manifest.parquet"
    words = ["jobs.index", "--input", f"{BUCKET}/videos", "--output", manifest]
    subprocess.run([sys.executable, "-m", *words], check=True)
    runs = [measured(proxy, manifest, size_bytes, nodes) for nodes in options.nodes]
    proxy.close()
    server.stop()
    record = {"object_bytes": size_bytes, "of_them_index": index_bytes, "runs": runs}
    write_record(options.output, record)
    if any(run["bytes_over_object"] > LIMIT for run in runs):
        raise SystemExit(f"more than {LIMIT} times the object was fetched")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
