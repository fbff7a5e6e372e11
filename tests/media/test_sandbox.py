"""The sandbox against real crashes, hangs and memory hogs."""

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from caan.errors import Crashed, DecodeFailed, OutOfMemory, TimedOut
from caan.media.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
state: list[Any] = []


def remember() -> None:
    state.append(os.getpid())


def recall() -> list[Any]:
    return state


def heavy_modules() -> list[str]:
    return [name for name in ("ray", "torch", "job") if name in sys.modules]


def segfault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(7)


def spin() -> None:
    while True:
        pass


def hold_the_gil() -> None:
    ctypes.PyDLL(None).pause()


def eat_slowly() -> int:
    hoard = []
    while True:
        hoard.append(np.ones(MIB))


def eat_at_once() -> int:
    return len(bytearray(20_000 * MIB))


def leak(num_mib: int) -> int:
    state.append(bytearray(os.urandom(MIB) * num_mib))
    return os.getpid()


def fail() -> None:
    raise DecodeFailed("damaged at pts 3")


def images(count: int) -> np.ndarray:
    return np.full((count, 224, 224, 3), 7, np.uint8)


def broken_initializer() -> None:
    raise FileNotFoundError("no weights")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(remember, time_limit_seconds=60, memory_limit_bytes=400 * MIB) as sandbox:
        yield sandbox


def test_child_is_reused_and_initialized_once(sandbox: Sandbox) -> None:
    pids = sandbox.run(recall)
    assert pids == sandbox.run(recall) == [sandbox.child_pid]
    assert pids != [os.getpid()]


def test_child_imports_neither_ray_nor_torch(sandbox: Sandbox) -> None:
    assert sandbox.run(heavy_modules) == []


def test_segfault_is_named_and_the_next_call_works(sandbox: Sandbox) -> None:
    with pytest.raises(Crashed, match="SIGSEGV"):
        sandbox.run(segfault)
    with pytest.raises(Crashed, match="code 7"):
        sandbox.run(leave)
    assert sandbox.run(abs, -3) == 3


@pytest.mark.parametrize("function", [spin, hold_the_gil])
def test_hanging_call_ends_at_its_limit(sandbox: Sandbox, function) -> None:
    sandbox.run(abs, 1)
    start = time.monotonic()
    with pytest.raises(TimedOut):
        sandbox.run(function, time_limit_seconds=0.5)
    assert time.monotonic() - start < 3
    assert sandbox.child_pid is None


@pytest.mark.parametrize("function", [eat_slowly, eat_at_once])
def test_memory_hog_is_stopped(sandbox: Sandbox, function) -> None:
    with pytest.raises(OutOfMemory):
        sandbox.run(function)
    assert sandbox.run(abs, -3) == 3


def test_error_of_the_call_is_raised_here_and_keeps_the_child(sandbox: Sandbox) -> None:
    sandbox.run(abs, 1)
    pid = sandbox.child_pid
    with pytest.raises(DecodeFailed, match="pts 3"):
        sandbox.run(fail)
    assert sandbox.child_pid == pid


def test_images_of_a_segment_come_back_whole(sandbox: Sandbox) -> None:
    result = sandbox.run(images, 128)
    assert result.shape == (128, 224, 224, 3)
    assert (result == 7).all()


def test_child_is_replaced_after_max_calls() -> None:
    with Sandbox(max_calls=2) as sandbox:
        pids = [sandbox.run(os.getpid) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_child_that_leaks_is_replaced_before_it_costs_a_call(sandbox: Sandbox) -> None:
    pids = [sandbox.run(leak, 60) for _ in range(12)]  # 720 MiB in all, and 400 are allowed
    assert len(set(pids)) > 2
    assert pids[0] == pids[1]


def test_broken_initializer_is_no_fault_of_a_video() -> None:
    with Sandbox(broken_initializer) as sandbox:
        with pytest.raises(FileNotFoundError, match="no weights"):
            sandbox.run(abs, 1)
        assert sandbox.child_pid is None


def test_child_outlives_the_thread_that_made_it(sandbox: Sandbox) -> None:
    thread = threading.Thread(target=sandbox.run, args=(abs, 1))
    thread.start()
    thread.join()
    pid = sandbox.child_pid
    time.sleep(0.2)
    assert sandbox.run(os.getpid) == pid


def test_child_that_died_between_calls_is_replaced(sandbox: Sandbox) -> None:
    sandbox.run(abs, 1)
    assert sandbox.child_pid is not None
    os.kill(sandbox.child_pid, signal.SIGKILL)
    time.sleep(0.2)
    assert sandbox.run(abs, -3) == 3


def test_killed_parent_leaves_no_child_even_a_spinning_one(tmp_path: Path) -> None:
    """The parent runs as `python -m`, and is killed in mid-call."""
    (tmp_path / "job.py").write_text(
        textwrap.dedent(
            """
            import sys, threading, time
            sys.path.append(sys.argv[1])
            from caan.media.sandbox import Sandbox
            import test_sandbox
            print("imported", __name__, flush=True)
            if __name__ == "__main__":
                sandbox = Sandbox()
                assert sandbox.run(test_sandbox.heavy_modules) == []
                threading.Thread(target=sandbox.run, args=(test_sandbox.spin,)).start()
                time.sleep(0.3)
                print(sandbox.child_pid, flush=True)
                time.sleep(60)
            """
        )
    )
    parent = subprocess.Popen(
        [sys.executable, "-m", "job", str(ROOT / "tests" / "media")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "imported __main__\n"
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    child.wait(timeout=5)
    assert not child.is_running()
