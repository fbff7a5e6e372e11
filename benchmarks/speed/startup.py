"""What starting costs: the help of every job, a Ray worker and a decoding child.

python -m benchmarks.speed.startup

CPU seconds (user and system, best of three) of `python -m jobs.X --help`; resident memory of the
Ray workers that read and write a Parquet file, and of a decoding child.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import RESULTS, write_record

ROOT = Path(__file__).resolve().parents[2]

CHILD_STATUS = "[__import__('caan.extraction.segment'), open('/proc/self/status').read()][1]"
"""What the decoding child evaluates: it imports what decodes, then reads its own memory."""


def help_cpu_seconds(job: str) -> float:
    """CPU seconds of `python -m jobs.<job> --help`, the best of three."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", f"jobs.{job}", "--help"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(min(found), 2)


def resident_mb(status: str) -> int:
    """Resident memory that a /proc/PID/status says, in MB."""
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return round(int(fields["VmRSS"].split()[0]) / 1024)


def decoding_child_mb() -> int:
    """Resident memory of a decoding child that has imported its code and decoded nothing."""
    from caan.media.sandbox import Sandbox

    with Sandbox() as sandbox:
        return resident_mb(sandbox.run(eval, CHILD_STATUS))


def parquet_worker_mb() -> int:
    """Resident memory of the largest worker of a Ray that reads and writes a Parquet file."""
    import pyarrow as pa
    import ray

    from caan import storage
    from jobs.runtime import cluster

    cluster.start()
    cluster.configure_data()
    with tempfile.TemporaryDirectory() as folder:
        storage.write_table(pa.table({"n": list(range(1000))}), f"{folder}/in.parquet")
        ray.data.read_parquet(f"{folder}/in.parquet").write_parquet(f"{folder}/out")
        raylets = [p for p in Path("/proc").glob("[0-9]*") if _is_child_of(p, "self", "raylet")]
        workers = [
            resident_mb((process / "status").read_text())
            for process in Path("/proc").glob("[0-9]*")
            if any(_is_child_of(process, raylet.name, "ray::") for raylet in raylets)
        ]
    ray.shutdown()
    return max(workers)


def _is_child_of(process: Path, parent: str, name: str) -> bool:
    """Whether a process of this name is a child of `parent` (`self` or a process id)."""
    number = Path("/proc", parent).resolve().name
    try:
        status = (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return False
    return f"PPid:\t{number}\n" in status and status.startswith(f"Name:\t{name}")


def main() -> None:
    """Measure and record."""
    jobs = sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))
    record = {
        "help_cpu_seconds": {job: help_cpu_seconds(job) for job in jobs},
        "decoding_child_mb": decoding_child_mb(),
        "parquet_worker_mb": parquet_worker_mb(),
    }
    write_record(RESULTS / "startup.json", record)


if __name__ == "__main__":
    main()
