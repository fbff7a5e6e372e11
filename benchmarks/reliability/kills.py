"""Kills jobs that run on a local cluster, runs them again, compares the tables.

What is killed: the driver, a worker, a raylet with its workers, the whole machine (driver, raylets
and workers at once), or the job by `ray job stop`. When: see MOMENTS; each is seen by the names of
the files that appear in the table's folder and in the log.

More than 400 lines: the arena, its moments and its victims read each other's state.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
from ray.cluster_utils import Cluster

from caan import storage
from caan.media.sampling import sample_frames
from caan.outputs import layout, log
from caan.outputs.verify import verify

ROOT = Path(__file__).resolve().parents[2]
NUM_CLIPS = 11
SEGMENT_TABLES = {"extract": "features", "label": "segment_scores"}
TABLES = {"extract": ("features",), "label": ("labels", "frame_scores")}
"""Tables that are compared."""
MOMENTS = {
    "any": "up to 20 s after the start of the first phase",
    "file": "while a row file is written",
    "uncommitted": "between a row file and the commit that makes it count",
    "commit": "right after a commit",
    "checkpoint": "right after a checkpoint of the log",
    "second phase": "after the last commit",
}
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
    # sidecar files: tasks of the second phase
    "label": ("--write", "csv", "vtt", *COMMON),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill and what came of it."""

    job: str
    """extract or label."""
    victim: str
    """driver, worker, raylet, machine or job stop."""
    moment: str
    """Of MOMENTS."""
    seed: int
    """Of the random choices."""
    after_seconds: float
    """From the start of the run to the kill."""
    files_then: int
    """Row files of the segment table at the kill."""
    uncommitted_then: int
    """Those that no commit named after the kill."""
    exit_code: int
    """Of the run that was hit."""
    reruns: int
    """Runs of the same command until one ended well."""
    lost: int
    """Rows of the undisturbed tables that are not in the final ones."""
    doubled: int
    """Rows of the final tables that the undisturbed ones do not have, or not as often."""
    verified: str
    """`whole`, or the problems that jobs.verify finds."""


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
            tables = list(layout.read_rows(output, name))
        else:
            tables = [storage.read_table(file) for file in layout.table_files(output, name)]
        for table in tables:
            for row in table.to_pylist():
                content = {k: v for k, v in row.items() if not k.startswith("seconds_")}
                text = json.dumps([name, content], sort_keys=True, default=float)
                found[hashlib.sha256(text.encode()).hexdigest()] += 1
    return found


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a run that nobody disturbs leaves."""

    job: str
    """extract or label."""
    output: Path
    """Its output."""
    rows: Counter[str]
    """Its tables, as `row_hashes`."""
    num_segments: int
    """Segments that the log names in the end."""
    phase_seconds: float
    """From the last commit to the end of the run."""

    def compared(self, output: str) -> tuple[int, int]:
        """Rows that another output lacks, and those that it has beyond these."""
        found = row_hashes(output, self.job)
        return sum((self.rows - found).values()), sum((found - self.rows).values())


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
            self.wait(self._spawn(["jobs.index", *arguments], "index"))

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
        # Two drivers at a time find room.
        num_cpus = 14 if self.num_raylets == 1 else 5
        return ports | {"num_cpus": num_cpus, "object_store_memory": 300 << 20}

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

    def start(
        self, job: str, output: str | Path, *options: str, name: str = ""
    ) -> subprocess.Popen[bytes]:
        """A driver of this job; what it says goes to the log `name`, else the output's name."""
        module = [f"jobs.{job}", f"--manifest={self.manifest}", f"--output={output}"]
        module += [*OPTIONS[job], *options]
        return self._spawn(module, name or os.path.basename(output))

    def said(self, name: str) -> str:
        """What the drivers of this log said."""
        return (self.folder / f"{name}.log").read_text()

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

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code of a driver."""
        try:
            return process.wait(timeout=RUN_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"a run took more than {RUN_LIMIT_SECONDS:g} s") from None

    def undisturbed(self, job: str) -> Reference:
        """A run that nobody kills."""
        output = self.folder / f"{job}-undisturbed"
        code = self.wait(self.start(job, output))
        end = time.time()
        assert code == 0, self.said(output.name)[-3000:]
        commits = (output / log.FOLDER).glob("*.json")
        return Reference(
            job=job,
            output=output,
            rows=row_hashes(str(output), job),
            num_segments=storage.read_json(output / "run.json")["num_segments"],
            phase_seconds=end - max(commit.stat().st_mtime for commit in commits),
        )

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
            writing = [worker for worker in workers if "write_rows" in worker[1]]
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


def row_files(output: str | Path, job: str) -> set[str]:
    """Names of the row files of the segment table, in the log's words."""
    table = SEGMENT_TABLES[job]
    return {f"{table}/{name}" for name in storage.list_names(storage.join(output, table))}


def uncommitted(output: str | Path, job: str) -> set[str]:
    """Row files that no commit names."""
    files = row_files(output, job)
    return files - set(log.read(str(output)).files(SEGMENT_TABLES[job]))


def is_complete(output: Path) -> bool:
    """Whether the output's last run has ended well."""
    record = output / "run.json"
    return record.exists() and bool(json.loads(record.read_text())["is_complete"])


def almost_checkpoint(output: Path, like: Path) -> None:
    """Begin an output whose next run writes a checkpoint with its first commit.

    Nobody waits for a hundred commits of ten seconds each; these are empty.
    """
    record = storage.read_json(like / "run.json")
    layout.begin_record(str(output), record["fingerprint_of"], record["fingerprint"])
    writer = log.LogWriter(str(output), "benchmark")
    while writer.number < log.CHECKPOINT_COMMITS - 3:
        writer.commit(log.RECEIPTS_SCHEMA.empty_table())


class Moment:
    """Waits for the moment of a kill."""

    def __init__(
        self, moment: str, job: str, output: Path, rng: random.Random, reference: Reference
    ) -> None:
        self.moment, self.job, self.output, self.rng = moment, job, output, rng
        self.reference = reference
        self._log_files: list[str] = []
        self._num_segments = 0

    def wait(self, has_ended: Any) -> bool:
        """Returns at the moment; False where the run ended before."""
        if self.moment == "second phase":
            return self._until(self._is_read, has_ended) and (
                self._sleep(self.rng.uniform(0, 0.9 * self.reference.phase_seconds), has_ended)
            )
        if self.moment == "any":
            lease = self.output / "lease.json"
            return self._until(lease.exists, has_ended) and (
                self._sleep(self.rng.uniform(1.0, 20.0), has_ended)
            )
        table = self.output / SEGMENT_TABLES[self.job]
        history = self.output / log.FOLDER
        count = self.rng.randrange(1, 4)
        start = time.time()
        checks = {
            "file": lambda: (
                any(table.glob("*.tmp")) and len(list(table.glob("*.parquet"))) >= count
            ),
            "uncommitted": lambda: len(uncommitted(self.output, self.job)) >= count,
            # the first commit of a run has no rows
            "commit": lambda: (
                sum(c.stat().st_mtime > start for c in history.glob("*.json")) >= 1 + min(count, 2)
            ),
            "checkpoint": lambda: any(history.glob("checkpoint-*.parquet")),
        }
        return self._until(table.exists, has_ended) and self._until(checks[self.moment], has_ended)

    def _is_read(self) -> bool:
        """Whether every segment counts."""
        files = storage.list_names(self.output / log.FOLDER)
        if files != self._log_files:
            self._num_segments = log.read(str(self.output)).segments.num_rows
            self._log_files = files
        return self._num_segments == self.reference.num_segments

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
            if self.moment == "any" and self._is_read():
                break  # the phase is shorter than that
            time.sleep(min(0.05, max(0.0, end - time.monotonic())))
        return not has_ended()


def kill_once(
    arena: Arena, job: str, victim: str, moment: str, seed: int, reference: Reference
) -> Kill | None:
    """Run, kill, run again until it ends well, and compare; None where the run was too quick."""
    rng = random.Random(seed)
    output = arena.folder / f"{job}-{victim}-{moment}-{seed}".replace(" ", "_")
    if moment == "checkpoint":
        almost_checkpoint(output, reference.output)
    start = time.monotonic()
    at = Moment(moment, job, output, rng, reference)
    if victim == "job stop":
        name = arena.submit(job, output)
        if not at.wait(lambda: is_complete(output)):
            return None
        after = time.monotonic() - start
        files = len(row_files(output, job))
        arena.stop(name)
        code = -signal.SIGTERM
    else:
        driver = arena.start(job, output)
        if not at.wait(lambda: driver.poll() is not None):
            return None
        after = time.monotonic() - start
        files = len(row_files(output, job))
        arena.kill(victim, driver, rng)
        code = arena.wait(driver)
    left = len(uncommitted(output, job))
    reruns, last = 0, code
    while last != 0:
        reruns += 1
        if reruns > MAX_RERUNS:
            raise RuntimeError(f"{output.name}: still exit code {last} after {MAX_RERUNS} reruns")
        last = arena.wait(arena.start(job, output))
    lost, doubled = reference.compared(str(output))
    return Kill(
        job=job, victim=victim, moment=moment, seed=seed, after_seconds=round(after, 2),
        files_then=files, uncommitted_then=left, exit_code=code, reruns=reruns,
        lost=lost, doubled=doubled, verified="; ".join(verify(str(output)).problems) or "whole",
    )  # fmt: skip
