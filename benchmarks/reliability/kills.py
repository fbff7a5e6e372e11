"""Kills jobs that run on a local cluster, runs them again, compares the tables.

What is killed: the driver, a worker, a raylet with its workers, the whole machine (driver, raylets
and workers at once), or the job by `ray job stop`. When: at any moment of the first phase, during
a write or its commit, or in label's second phase; seen by the names of files that appear.
"""

import hashlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
from ray.cluster_utils import Cluster

from caan import storage
from caan.media.sampling import sample_frames
from caan.outputs import layout

ROOT = Path(__file__).resolve().parents[2]
NUM_CLIPS = 16
SEGMENT_TABLES = {"extract": "features", "label": "segment_scores"}
TABLES = {"extract": ("features",), "label": ("labels", "frame_scores")}
"""Tables that are compared."""
MAX_RERUNS = 3
RUN_LIMIT_SECONDS = 600.0
"""A job that runs longer than this is a hang."""

# One image a pass, so that a vector has the same bits however images are put together.
COMMON = ("--resources.decoders=2", "--resources.embed-batch=1", "--resources.embed-segments=2")
OPTIONS = {
    "extract": (
        "--detector=libfacedetection", "--face-backbone=starter_face", "--segment-frames=3",
        "--context-backbone=starter_context", *COMMON,
    ),
    "label": COMMON,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill and what came of it."""

    job: str
    """extract or label."""
    victim: str
    """driver, worker, raylet, machine or job stop."""
    moment: str
    """any, write or second phase."""
    seed: int
    """Of the random choices."""
    after_seconds: float
    """From the start of the run to the kill."""
    files_then: int
    """Part files of the segment table at the kill."""
    pending_then: int
    """Commits under way at the kill: pending checkpoints that it left."""
    exit_code: int
    """Of the run that was hit."""
    reruns: int
    """Runs of the same command until one ended well."""
    lost: int
    """Rows of the undisturbed tables that are not in the final ones."""
    doubled: int
    """Rows of the final tables that the undisturbed ones do not have, or not as often."""


def write_clips(folder: Path, carphone: Path) -> None:
    """Clips of a talking man, of two to three seconds, and two files that are no videos."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [frame.image for frame in sample_frames(str(carphone), fps=12.0)]
    for number in range(NUM_CLIPS):
        start = number % 12
        with av.open(str(folder / f"{number:02d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=12, options={"preset": "ultrafast"})
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for image in images[start : start + 24 + number % 3 * 6]:
                shade = np.minimum(image.astype(int) + number, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
            container.mux(stream.encode())
    (folder / "text.mp4").write_text("no video")
    whole = (folder / "00.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 3])


def row_hashes(output: str, job: str) -> Counter[str]:
    """The content of every row of the job's tables, each as a hash; not how long a row took."""
    found: Counter[str] = Counter()
    for name in TABLES[job]:
        if name in SEGMENT_TABLES.values():
            tables = list(layout.latest_segments(output, name))
        else:
            tables = [storage.read_table(file) for file in layout.part_files(output, name)]
        for table in tables:
            for row in table.to_pylist():
                content = {k: v for k, v in row.items() if not k.startswith("seconds_")}
                text = json.dumps([name, content], sort_keys=True, default=float)
                found[hashlib.sha256(text.encode()).hexdigest()] += 1
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(start: Callable[[], Any]) -> Any:
    """What `start` gives, tried again where a busy machine was too slow for Ray's 30 seconds."""
    for left in reversed(range(8)):
        before = {process.pid for process in psutil.Process().children()}
        try:
            return start()
        except Exception:  # Ray raises no kind of its own
            if not left:
                raise
        for process in psutil.Process().children():
            if process.pid not in before:
                process.kill()
    raise AssertionError


class Arena:
    """Raylets of its own on this machine, clips, and jobs that are started and killed."""

    def __init__(
        self, folder: Path, carphone: Path, *, num_raylets: int = 3, takes_jobs: bool = False
    ) -> None:
        """`takes_jobs`: by `ray job submit`, for which the head needs a dashboard."""
        self.folder, self.takes_jobs, self.num_raylets = folder, takes_jobs, num_raylets
        self.dashboard = free_port()
        write_clips(folder / "videos", carphone)
        self.cluster: Cluster
        self._start_cluster()
        self.manifest = str(folder / "manifest.parquet")
        if not os.path.exists(self.manifest):
            arguments = [f"--input={folder / 'videos'}", f"--output={self.manifest}"]
            self._wait(self._spawn(["jobs.index", *arguments], "index"))

    def _start_cluster(self) -> None:
        head = self._node_arguments() | {
            "include_dashboard": self.takes_jobs, "dashboard_port": self.dashboard,
        }  # fmt: skip
        self.cluster = started(lambda: Cluster(initialize_head=True, head_node_args=head))
        for _ in range(self.num_raylets - 1):
            self._add_node()

    def _add_node(self) -> None:
        started(lambda: self.cluster.add_node(**self._node_arguments()))

    def _node_arguments(self) -> dict[str, Any]:
        # With ports given a raylet need not wait for its agents, which a busy machine makes long.
        agents = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        ports = {name: free_port() for name in agents}
        return ports | {"num_cpus": 9 // self.num_raylets, "object_store_memory": 300 << 20}

    def close(self) -> None:
        """Ends the raylets and all that they started."""
        for node in [*self.cluster.worker_nodes, self.cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)

    def _spawn(self, module: list[str], name: str) -> subprocess.Popen[bytes]:
        variables = os.environ | {"RAY_ADDRESS": self.cluster.address}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start(self, job: str, output: Path) -> subprocess.Popen[bytes]:
        """A driver of this job."""
        module = [f"jobs.{job}", f"--manifest={self.manifest}", f"--output={output}", *OPTIONS[job]]
        return self._spawn(module, output.name)

    def submit(self, job: str, output: Path) -> str:
        """The same as a submitted job; gives its id."""
        name = f"{job}-{secrets.token_hex(4)}"
        command = ["python", "-m", f"jobs.{job}", f"--manifest={self.manifest}"]
        command += [f"--output={output}", *OPTIONS[job]]
        subprocess.run(
            [*self._ray_job("submit"), "--no-wait", "--submission-id", name, "--", *command],
            check=True, capture_output=True, cwd=ROOT,
        )  # fmt: skip
        return name

    def _ray_job(self, verb: str) -> list[str]:
        return ["ray", "job", verb, "--address", f"http://127.0.0.1:{self.dashboard}"]

    def stop(self, name: str) -> None:
        """`ray job stop`."""
        subprocess.run([*self._ray_job("stop"), name], check=True, capture_output=True)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(timeout=RUN_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"a run took more than {RUN_LIMIT_SECONDS:g} s") from None

    def undisturbed(self, job: str) -> tuple[Counter[str], float]:
        """The tables of a run that nobody kills, and the seconds of label's second phase."""
        output = self.folder / f"{job}-undisturbed"
        process = self.start(job, output)
        while process.poll() is None and not marker(output, job).exists():
            time.sleep(0.02)
        start = time.monotonic()
        code = self._wait(process)
        assert code == 0, (self.folder / f"{output.name}.log").read_text()[-3000:]
        return row_hashes(str(output), job), time.monotonic() - start

    def workers(self) -> list[tuple[psutil.Process, str]]:
        """The processes of this cluster that run tasks and actors now, with their titles."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if title.startswith("ray::") and "IDLE" not in title:
                    found.append((process, title))
        return found

    def kill(self, victim: str, driver: subprocess.Popen[bytes], rng: random.Random) -> None:
        """SIGKILL to a victim; a raylet or machine that died is replaced at once."""
        if victim == "driver":
            driver.kill()
        elif victim == "worker":
            while not (workers := self.workers()) and driver.poll() is None:
                time.sleep(0.01)
            writing = [worker for worker in workers if "Write" in worker[1]]
            with suppress(psutil.NoSuchProcess, IndexError):  # it ended just now
                rng.choice(writing or workers)[0].kill()
        elif victim == "raylet":
            node = rng.choice(list(self.cluster.worker_nodes))
            raylet = node.all_processes["raylet"][0].process.pid
            os.kill(raylet, signal.SIGKILL)
            self.cluster.remove_node(node, allow_graceful=False)
            self._add_node()
        elif victim == "machine":
            driver.kill()
            driver.wait()  # before psutil, which would take its exit code
            workers = [process for process, _ in self.workers()]
            processes = [*workers, *psutil.Process().children(recursive=True)]
            for process in dict.fromkeys(processes):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=30)
            self._start_cluster()
        else:
            raise ValueError(victim)


def marker(output: Path, job: str) -> Path:
    """The file that ends the first phase."""
    return output / SEGMENT_TABLES[job] / "attempt=0" / "shard-00000" / layout.SUCCESS


def pending_files(output: Path) -> list[Path]:
    """Commits under way."""
    return list(output.glob("state/*/checkpoint/*.pending.parquet"))


def part_files(output: Path, job: str) -> int:
    """Part files of the segment table."""
    return len(list(marker(output, job).parent.glob("*.parquet")))


def is_complete(output: Path) -> bool:
    """Whether the output's last run has ended well."""
    record = output / "run.json"
    return record.exists() and bool(json.loads(record.read_text())["is_complete"])


class Moment:
    """Waits for the moment of a kill."""

    def __init__(
        self, moment: str, job: str, output: Path, rng: random.Random, phase_seconds: float
    ) -> None:
        self.moment, self.job, self.output, self.rng = moment, job, output, rng
        self.phase_seconds = phase_seconds

    def wait(self, has_ended: Any) -> bool:
        """Returns at the moment; False where the run ended before."""
        if self.moment == "second phase":
            return self._until(lambda: marker(self.output, self.job).exists(), has_ended) and (
                self._sleep(self.rng.uniform(0, 0.9 * self.phase_seconds), has_ended)
            )
        if self.moment == "write":
            count = part_files(self.output, self.job) + self.rng.randrange(1, 6)
            return self._until(
                lambda: (
                    bool(pending_files(self.output))
                    and part_files(self.output, self.job) + 1 >= count
                ),
                has_ended,
            )
        plan = self.output / "plan"
        return self._until(plan.exists, has_ended) and self._sleep(
            self.rng.uniform(1.0, 20.0), has_ended
        )

    def _until(self, is_so: Any, has_ended: Any) -> bool:
        next_look, limit = 0.0, time.monotonic() + RUN_LIMIT_SECONDS
        while not is_so():
            if time.monotonic() > limit:
                raise TimeoutError(f"{self.output.name} took more than {RUN_LIMIT_SECONDS:g} s")
            if time.monotonic() > next_look:
                if has_ended():
                    return False
                next_look = time.monotonic() + 0.5
            time.sleep(0.001)
        return True

    def _sleep(self, seconds: float, has_ended: Any) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if marker(self.output, self.job).exists() and self.moment == "any":
                break  # the phase is shorter than that
            time.sleep(min(0.05, max(0.0, end - time.monotonic())))
        return not has_ended()


def kill_once(
    arena: Arena,
    job: str,
    victim: str,
    moment: str,
    seed: int,
    reference: Counter[str],
    phase_seconds: float,
) -> Kill | None:
    """Run, kill, run again until it ends well, and compare; None where the run was too quick."""
    rng = random.Random(seed)
    output = arena.folder / f"{job}-{victim}-{moment}-{seed}".replace(" ", "_")
    start = time.monotonic()
    at = Moment(moment, job, output, rng, phase_seconds)
    if victim == "job stop":
        name = arena.submit(job, output)
        if not at.wait(lambda: is_complete(output)):
            return None
        after = time.monotonic() - start
        files = part_files(output, job)
        arena.stop(name)
        code = -signal.SIGTERM
        pending = len(pending_files(output))
    else:
        driver = arena.start(job, output)
        if not at.wait(lambda: driver.poll() is not None):
            return None
        after = time.monotonic() - start
        files = part_files(output, job)
        arena.kill(victim, driver, rng)
        pending = len(pending_files(output))
        code = arena._wait(driver)
    reruns, last = 0, code
    while last != 0:
        reruns += 1
        if reruns > MAX_RERUNS:
            raise RuntimeError(f"{output.name}: still exit code {last} after {MAX_RERUNS} reruns")
        last = arena._wait(arena.start(job, output))
    found = row_hashes(str(output), job)
    return Kill(
        job=job, victim=victim, moment=moment, seed=seed, after_seconds=round(after, 2),
        files_then=files, pending_then=pending, exit_code=code, reruns=reruns,
        lost=sum((reference - found).values()), doubled=sum((found - reference).values()),
    )  # fmt: skip


def as_json(kills: list[Kill]) -> list[dict[str, Any]]:
    """Plain values for a record."""
    return [asdict(kill) for kill in kills]
