"""The chain as a job on a cluster that somebody else started, with token authentication."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from caan import storage

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a head node of its own, and the environment that may submit to it."""
    variables = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    variables.pop("RAY_ADDRESS", None)
    port = free_port()
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=6", f"--port={free_port()}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
    ]  # fmt: skip
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, env=variables, stdout=log, stderr=log, start_new_session=True
        )
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(address, timeout=2)
                break
            except urllib.error.HTTPError:
                break  # it answers, and asks for the token
            except OSError:
                time.sleep(0.5)
        yield address, variables
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.slow
def test_the_chain_runs_as_a_submitted_job(
    cluster: tuple[str, dict[str, str]], carphone: Path, tmp_path: Path
) -> None:
    address, variables = cluster
    for number, emotion in enumerate(("joy", "joy", "anger", "anger")):
        (tmp_path / "videos" / emotion).mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / emotion / f"{number}.mp4").write_bytes(carphone.read_bytes())
    submit = ["ray", "job", "submit", "--address", address, "--working-dir", str(ROOT)]
    demo = ["python", "-m", "jobs.demo", "--videos", str(tmp_path / "videos")]
    output = str(tmp_path / "demo")
    command = [*submit, "--", *demo, "--output", output]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "report:" in done.stdout
    labels = storage.read_table(storage.join(output, "labels", "labels"))
    assert labels["status"].to_pylist() == ["ok"] * 4
    assert storage.exists(storage.join(output, "model", "model.safetensors"))

    refused = subprocess.run(
        [*submit, "--", "python", "-m", "jobs.index", "--input", "/no", "--output", "/no.parquet"],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "error: nothing is at" in refused.stdout
