"""Two drivers on one output, and workers that write after their driver died.

`refused`: the second driver starts while the first one runs. `taken over`: the first one is stopped
(SIGSTOP) with its lease grown old, a second one takes over and finishes, then the first one goes
on. `zombie`: row files appear after the driver was killed, during the run that goes on, and after
it.
"""

import datetime
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.reliability.kills import (
    ROOT,
    RUN_LIMIT_SECONDS,
    SEGMENT_TABLES,
    Arena,
    Reference,
    row_files,
    uncommitted,
)
from caan import storage
from caan.outputs import layout, lease, log
from caan.outputs.verify import verify

BUCKET = "s3://outputs"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case and what came of it."""

    kind: str
    """refused, taken over or zombie."""
    job: str
    """extract or label."""
    place: str
    """Where the output lies: local or s3."""
    first_exit_code: int
    """Of the driver that began."""
    second_exit_code: int
    """Of the driver that came later."""
    said: str
    """The sentence of the driver that had to give way; empty: none had to."""
    foreign_files: int
    """Row files that a zombie wrote."""
    cleaned: int
    """Row files that `jobs.verify --clean` deleted in the end."""
    lost: int
    """Rows of the undisturbed tables that are not in the final ones."""
    doubled: int
    """Rows of the final tables that the undisturbed ones do not have, or not as often."""
    verified: str
    """`whole`, or the problems that jobs.verify finds."""


def run_case(arena: Arena, kind: str, place: str, reference: Reference) -> Case:
    """One case, on an output of its own."""
    name = f"{reference.job}-{kind.replace(' ', '-')}-{place}"
    output = f"{BUCKET}/{name}" if place == "s3" else str(arena.folder / name)
    runs = {"refused": refused, "taken over": taken_over, "zombie": zombie}
    first_exit_code, second_exit_code, said, foreign = runs[kind](arena, output, reference)
    lost, doubled = reference.compared(output)
    problems = verify(output).problems
    cleaned = clean(output)
    left = row_files(output, reference.job) - set(
        log.read(output).files(SEGMENT_TABLES[reference.job])
    )
    if left:
        problems.append(f"{len(left)} row files are left that no commit names")
    if reference.compared(output) != (lost, doubled):
        problems.append("jobs.verify --clean changed what counts")
    return Case(
        kind=kind, job=reference.job, place=place, first_exit_code=first_exit_code,
        second_exit_code=second_exit_code, said=said, foreign_files=foreign, cleaned=cleaned,
        lost=lost, doubled=doubled, verified="; ".join(problems) or "whole",
    )  # fmt: skip


def refused(arena: Arena, output: str, reference: Reference) -> tuple[int, int, str, int]:
    """A second driver while the first one runs."""
    job, name = reference.job, output.rpartition("/")[2]
    first = arena.start(job, output)
    wait_for(lambda: storage.exists(storage.join(output, lease.FILE)), first)
    second = arena.start(job, output, name=f"{name}-second")
    code = arena.wait(second)
    assert first.poll() is None, "the first driver had ended before the second one was refused"
    return arena.wait(first), code, sentence(arena.said(f"{name}-second")), 0


def taken_over(arena: Arena, output: str, reference: Reference) -> tuple[int, int, str, int]:
    """A second driver takes over from one that sleeps, which then wakes up."""
    job, name = reference.job, output.rpartition("/")[2]
    first = arena.start(job, output)
    wait_for(lambda: bool(uncommitted(output, job)), first)
    first.send_signal(signal.SIGSTOP)
    try:
        path = storage.join(output, lease.FILE)
        hours_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2)
        said = storage.read_json(path) | {"renewed": hours_ago.isoformat(timespec="seconds")}
        storage.write_json(path, said)
        code = arena.wait(arena.start(job, output, "--take-over", name=f"{name}-second"))
    finally:
        first.send_signal(signal.SIGCONT)
    return arena.wait(first), code, sentence(arena.said(name)), 0


def zombie(arena: Arena, output: str, reference: Reference) -> tuple[int, int, str, int]:
    """Row files of a killed driver's worker: after the kill, during the next run, and after it."""
    job = reference.job
    table = SEGMENT_TABLES[job]
    foreign = 0

    def write() -> None:
        nonlocal foreign
        for rows in layout.read_rows(str(reference.output), table):
            foreign += len(layout.write_rows(rows, output, table)["file"].unique())

    first = arena.start(job, output)
    wait_for(lambda: bool(log.read(output).segments.num_rows), first)
    first.kill()
    first_exit_code = arena.wait(first)
    write()
    number = log.read(output).number
    second = arena.start(job, output)
    wait_for(lambda: log.read(output).number > number, second)
    write()
    code = arena.wait(second)
    write()
    return first_exit_code, code, "", foreign


def clean(output: str) -> int:
    """`jobs.verify --clean`; gives the number of files that it deleted."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.verify", f"--output={output}", "--clean"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return int(done.stdout.split()[0])


def sentence(said: str) -> str:
    """What a driver told its user at its end."""
    return next((line for line in said.splitlines() if line.startswith("error: ")), "")


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    """Wait until something is true while the driver runs."""
    end = time.monotonic() + RUN_LIMIT_SECONDS
    while not condition():
        if driver.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the driver ended too soon, with {driver.poll()}")
        time.sleep(0.05)
