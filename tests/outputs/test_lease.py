"""The lease: one driver at a time, and what becomes of the lease of one that died."""

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from caan import storage
from caan.errors import InputError
from caan.outputs import lease
from caan.outputs.lease import Lease

ROOT = Path(__file__).resolve().parents[2]
DIE = """
import os, sys
from caan.outputs.lease import Lease
Lease(sys.argv[1], "extract")
os._exit(9)
"""


def ago(seconds: float) -> str:
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return then.isoformat(timespec="seconds")


def held(output: str, age_seconds: float = 0.0, **changes: Any) -> dict[str, Any]:
    """The lease of a driver on another machine, renewed so long ago."""
    said = {
        "id": "0123456789abcdef", "host": "farm-7", "process": 4711, "process_started": 1.0,
        "job": "label", "since": "2030-01-02T03:04:05+00:00", "renewed": ago(age_seconds),
    }  # fmt: skip
    said |= changes
    storage.write_json(storage.join(output, lease.FILE), said)
    return said


def holder(output: str) -> dict[str, Any]:
    found: dict[str, Any] = storage.read_json(storage.join(output, lease.FILE))
    return found


def test_a_lease_is_there_while_its_driver_works_and_gone_after(output: str) -> None:
    with pytest.raises(ZeroDivisionError), Lease(output, "extract") as mine:
        assert holder(output) == mine.said
        assert mine.said["job"] in mine.writer
        assert mine.said["host"] in mine.writer
        raise ZeroDivisionError
    assert not storage.exists(storage.join(output, lease.FILE))
    with Lease(output, "label") as another:
        assert another.writer != mine.writer


def test_a_live_lease_refuses_a_second_driver_by_host_job_and_time(output: str) -> None:
    said = held(output, age_seconds=5)
    with pytest.raises(InputError) as refused:
        Lease(output, "extract")
    for word in ("farm-7", "jobs.label", "process 4711", said["since"], said["renewed"]):
        assert word in str(refused.value)
    assert "if that machine is gone, use `--take-over`" in str(refused.value)
    assert holder(output) == said


def test_a_live_process_of_this_machine_is_not_taken_for_dead(tmp_path: Path) -> None:
    parent = psutil.Process().parent()
    assert parent is not None
    here = {"host": lease.socket.gethostname(), "process": parent.pid}
    held(str(tmp_path), **here, process_started=parent.create_time())
    with pytest.raises(InputError, match=f"process {parent.pid}"):
        Lease(str(tmp_path), "extract")
    held(str(tmp_path), **here, process_started=parent.create_time() - 60)  # its number only
    with Lease(str(tmp_path), "extract") as mine:
        assert holder(str(tmp_path)) == mine.said


@pytest.mark.parametrize("is_reaped", [True, False])
def test_the_lease_of_a_dead_process_of_this_machine_is_taken(output: str, is_reaped: bool) -> None:
    dead = subprocess.Popen([sys.executable, "-c", DIE, output], cwd=ROOT)
    while psutil.Process(dead.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
    if is_reaped:
        assert dead.wait() == 9
    assert holder(output)["process"] == dead.pid
    with Lease(output, "extract") as mine:
        assert holder(output) == mine.said
    dead.wait()


def test_an_expired_lease_is_taken_over_only_when_asked(output: str) -> None:
    said = held(output, age_seconds=lease.EXPIRY_SECONDS + 5)
    with pytest.raises(InputError, match="not renewed since, so that `--take-over` takes it"):
        Lease(output, "extract")
    assert holder(output) == said
    with Lease(output, "extract", take_over=True) as mine:
        assert holder(output) == mine.said


def test_taking_over_waits_until_the_lease_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 2.0)
    held(str(tmp_path))
    start = time.monotonic()
    with Lease(str(tmp_path), "extract", take_over=True) as mine:
        assert time.monotonic() - start > 0.9
        assert holder(str(tmp_path)) == mine.said


def test_a_lease_that_is_renewed_meanwhile_is_not_taken_over(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(output, age_seconds=lease.EXPIRY_SECONDS - 30)
    waited: list[float] = []

    def renew(seconds: float) -> None:
        waited.append(seconds)
        held(output)

    monkeypatch.setattr(lease.time, "sleep", renew)
    with pytest.raises(InputError, match=r"jobs.label on farm-7 still writes to .*: stop it first"):
        Lease(output, "extract", take_over=True)
    assert waited == [pytest.approx(30, abs=3)]
    assert holder(output)["host"] == "farm-7"


@pytest.mark.parametrize("take_over", [False, True])
def test_a_lease_that_ends_while_it_is_looked_at_is_free(
    output: str, take_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = storage.join(output, lease.FILE)
    held(output, age_seconds=lease.EXPIRY_SECONDS - 1)
    read, calls = storage.read_json, []

    def end(name: str) -> Any:
        calls.append(name)
        if len(calls) == (2 if take_over else 1):  # after the wait, or at once
            storage.delete(path)
        return read(name)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_json", end)
        patch.setattr(lease.time, "sleep", lambda _: None)
        mine = Lease(output, "extract", take_over=take_over)
    assert holder(output) == mine.said
    mine.release()


def test_a_lease_is_renewed_when_due_and_never_once_another_has_it(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Lease(output, "extract")
    monkeypatch.setattr(lease, "_now", lambda: "2031-01-01T00:00:00+00:00")
    mine.renew()
    assert "2031" not in holder(output)["renewed"]
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.0)
    mine.renew()
    assert holder(output)["renewed"] == "2031-01-01T00:00:00+00:00"
    assert "2031" not in holder(output)["since"]
    taken = held(output)
    mine.renew()
    mine.release()
    assert holder(output) == taken


def test_drivers_that_begin_together_get_one_lease(tmp_path: Path) -> None:
    code = DIE.replace("os._exit(9)", "print('mine', flush=True); sys.stdin.read()")
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    said = [driver.stdout.readline() for driver in drivers if driver.stdout]
    assert sorted(said) == ["", "", "mine\n"]
    assert holder(str(tmp_path))["process"] == drivers[said.index("mine\n")].pid
    assert os.listdir(tmp_path) == [lease.FILE]
    for driver in drivers:
        driver.communicate("")


def test_the_lease_is_renewed_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    with Lease(output, "extract") as mine:
        monkeypatch.setattr(lease, "_now", lambda: "later")
        end = time.monotonic() + 30
        while storage.read_json(mine.path)["renewed"] != "later" and time.monotonic() < end:
            time.sleep(0.02)
        assert storage.read_json(mine.path)["renewed"] == "later"
