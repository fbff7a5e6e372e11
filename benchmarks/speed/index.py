"""Listing a bucket beside a bare paginator.

python -m benchmarks.speed.index [--objects 100000]

A real S3 server (moto's, in this process) holds that many small objects in 100 folders. `storage.list_files`
and boto3's own paginator list them in turn; the keys are compared.
"""  # noqa: E501

import argparse
import os
from pathlib import Path

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from benchmarks.measuring import RESULTS, digest, in_turn, write_record
from caan import storage

BUCKET = "archive"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "index.json")
    options = parser.parse_args()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    # Straight into the server's store: a hundred thousand PUTs would take longer than the test.
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for number in range(options.objects):
        backend.put_object(BUCKET, f"videos/{number % 100:03d}/{number:07d}.mp4", b"x")

    def bare() -> str:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="videos/")
        keys = [item["Key"] for page in pages for item in page["Contents"]]
        return f"{len(keys)} {digest(key.encode() for key in sorted(keys))}"

    def ours() -> str:
        files = storage.list_files(f"s3://{BUCKET}/videos/")
        keys = [file.uri.removeprefix(f"s3://{BUCKET}/") for file in files]
        return f"{len(keys)} {digest(key.encode() for key in sorted(keys))}"

    timed = in_turn({"bare": bare, "ours": ours}, options.rounds)
    server.stop()
    if timed["bare"]["result"] != timed["ours"]["result"]:
        raise SystemExit(f"other keys: {timed}")
    record = {
        "objects": options.objects,
        "keys": timed["ours"]["result"],
        "objects_per_second": {
            name: round(options.objects / of["seconds"]) for name, of in timed.items()
        },
        "ours_over_bare": round(timed["bare"]["seconds"] / timed["ours"]["seconds"], 3),
        "note": "server and client share this machine; the server's own work is in both figures",
    }
    write_record(options.output, record)


if __name__ == "__main__":
    main()
