"""A Ray cluster of several nodes on this machine, with the labels that cluster.yaml gives.

Each node is a `ray start` of its own, as on machines of their own; all of them are ended by their
process groups. Used by tests and by `benchmarks/reliability/cluster_run.py`.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class LocalCluster:
    """A head without work, and nodes that come and go."""

    def __init__(self, logs: Path, variables: dict[str, str] | None = None) -> None:
        self.logs = logs
        self.variables = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **(variables or {}),
        }
        self.variables.pop("RAY_ADDRESS", None)
        self.groups: dict[str, int] = {}
        self.folders: list[str] = []
        self.metrics_ports: dict[str, int] = {}
        self.gcs, port = f"127.0.0.1:{free_port()}", free_port()
        self.address = f"http://127.0.0.1:{port}"
        try:
            self._start_head(port)
        except BaseException:
            self.close()
            raise

    def _start_head(self, port: int) -> None:
        self.add(
            "head", 0, "--head", f"--port={self.gcs.rpartition(':')[2]}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
            f"--ray-client-server-port={free_port()}", "--disable-usage-stats",
        )  # fmt: skip
        for _ in range(240):
            try:
                urllib.request.urlopen(self.address, timeout=2)
                break
            except urllib.error.HTTPError:
                break  # it answers, and asks for the token
            except OSError:
                time.sleep(0.5)

    def add(self, name: str, num_cpus: int, *options: str, role: str = "", tries: int = 2) -> None:
        """Start a node; its label `caan-role` is the role, or else its name."""
        self.metrics_ports[name] = free_port()
        command = [
            "ray", "start", f"--num-cpus={num_cpus}", "--num-gpus=0",
            f"--labels=caan-role={role or name}", "--object-store-memory=300000000",
            f"--metrics-export-port={self.metrics_ports[name]}",
            f"--dashboard-agent-listen-port={free_port()}",  # Ray's own is one port for all nodes
            *(options or (f"--address={self.gcs}", f"--temp-dir={self._own_folder()}")),
        ]  # fmt: skip
        with (self.logs / f"{name}.log").open("w") as log:
            starter = subprocess.Popen(
                command, env=self.variables, stdout=log, stderr=log, start_new_session=True
            )
        self.groups[name] = starter.pid  # what it starts stays in its group
        if starter.wait(timeout=300) and tries:
            # Ray gives a node 30 s to start and its agents 15 s, too few for a busy machine.
            _signal(self.groups.pop(name), signal.SIGKILL)
            self.add(name, num_cpus, *options, role=role, tries=tries - 1)
        assert starter.returncode == 0 or tries, (self.logs / f"{name}.log").read_text()[-2000:]

    def _own_folder(self) -> str:
        """A temporary folder for a node.

        In a shared one each node unpacks a job's files anew, under the others' running processes.
        """
        self.folders.append(tempfile.mkdtemp(prefix="ray-"))
        return self.folders[-1]

    def remove(self, name: str) -> None:
        """Take a node away at once, as a spot instance goes."""
        del self.metrics_ports[name]
        os.killpg(self.groups.pop(name), signal.SIGKILL)

    def close(self) -> None:
        """End all nodes, the head last."""
        for group in reversed(self.groups.values()):
            _signal(group, signal.SIGTERM)
        end = time.monotonic() + 15
        while time.monotonic() < end and any(_signal(g, 0) for g in self.groups.values()):
            time.sleep(0.2)
        for group in self.groups.values():
            _signal(group, signal.SIGKILL)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def command(self, *job: str, submission_id: str = "", wait: bool = True) -> list[str]:
        """The `ray job submit` of one of our jobs, as docs/cluster.md has it."""
        named = ["--submission-id", submission_id] if submission_id else []
        return [
            *("ray", "job", "submit", "--address", self.address, "--working-dir", str(ROOT)),
            *named, *([] if wait else ["--no-wait"]), "--", "python", "-m", *job,
        ]  # fmt: skip

    def submit(self, *job: str) -> subprocess.CompletedProcess[str]:
        """Run one of our jobs to its end."""
        end = time.monotonic() + 120
        while True:
            done = self.ray(*self.command(*job)[1:])
            # Right after the start a busy machine's nodes may not be ready to take a job.
            if "No available agent" not in done.stderr or time.monotonic() > end:
                return done
            time.sleep(3)

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Any `ray ...` as a client of the cluster."""
        return subprocess.run(
            ["ray", *arguments], env=self.variables, capture_output=True, text=True, check=False
        )

    def metrics(self, name: str) -> dict[str, float]:
        """What Prometheus would read from a node, by name and labels: ours only."""
        url = f"http://127.0.0.1:{self.metrics_ports[name]}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        found = {}
        for line in text.splitlines():
            if match := re.match(r"ray_(caan_\w+)\{(.*)\} (\S+)$", line):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                key = ",".join(labels[n] for n in ("caan_job", "stage", "status") if labels.get(n))
                found[f"{match[1]}[{key}]"] = float(match[3])
        return found


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def roles(record: dict[str, dict[str, object]], stage: str) -> set[str]:
    """Roles of the nodes that a stage ran on, by a run.json."""
    labels = json.loads(json.dumps(record["node_labels"]))
    return {labels[node].get("caan-role", "") for node in record["stage_nodes"][stage]}
