"""Run a function in a warm child process under a time and a memory limit.

A decoder may hang, crash or use all memory on a hostile file. Then the child is killed, the call
raises, and the next call gets a new child.

multiprocessing and pebble are not used: their `spawn` imports the parent's main module again, which
in a Ray worker or under `python -m jobs.extract` loads ray and torch in the child. Neither limits
the child's memory. Here the child is a plain interpreter that communicates over one pipe.
"""

import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

import psutil

from caan.errors import Crashed, OutOfMemory, TimedOut, VideoError

Result = TypeVar("Result")

POLL_SECONDS = 0.05
"""Time between two checks of the child's memory; a loop can allocate some 200 MB in it."""

RECYCLE_SHARE = 0.5
"""A child is replaced after a call if it keeps more than this share of the memory between what it
had when ready and its limit. Libraries leak, and the leak must not count against the next video."""

START_LIMIT_SECONDS = 300.0
"""Longest time for a child to start and to run its initializer, which may load a network."""

_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_CHILD_CODE = (
    "import json, sys; fd, parent, sys.path[:] = json.loads(sys.argv[1]); "
    "from caan.media.sandbox import _serve; _serve(fd, parent)"
)


class Sandbox:
    """One child process that runs one call at a time. It starts at the first call.

    Functions, arguments and results are pickled. A function must be at the top level of a module
    that the child can import (not `__main__`). Results may have tens of megabytes: the pipe carries
    about 1 GB/s. The child ends when the sandbox is closed or this process ends, for any reason.
    """

    def __init__(
        self,
        initializer: Callable[[], object] | None = None,
        time_limit_seconds: float = 600.0,
        memory_limit_bytes: int = 3 * 2**30,
        *,
        max_calls: int | None = None,
    ) -> None:
        """Keep the limits; no child starts yet.

        Args:
            initializer: runs once per child.
            time_limit_seconds: limit on one call.
            memory_limit_bytes: limit on the child's resident memory. Its address space may grow by
                twice that after it is ready, which stops one huge allocation between two checks.
            max_calls: a child is replaced after so many calls; None: never.
        """
        self._initializer = initializer
        self._time_limit_seconds = time_limit_seconds
        self._memory_limit_bytes = memory_limit_bytes
        self._max_calls = max_calls
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def child_pid(self) -> int | None:
        """The child's process id; None if there is no child now."""
        return self._child.process.pid if self._child else None

    def run(
        self,
        function: Callable[..., Result],
        *args: object,
        time_limit_seconds: float | None = None,
    ) -> Result:
        """Return what `function(*args)` returns in the child, and raise what it raises.

        Raises:
            TimedOut: it ran longer than the limit (this call's, else the sandbox's).
            OutOfMemory: the child exceeded its memory limit, or could not allocate.
            Crashed: the child died; the message names the signal or the exit code.
        """
        limit = self._time_limit_seconds if time_limit_seconds is None else time_limit_seconds
        with self._lock:
            if self._child is not None and self._child.process.poll() is not None:
                self._stop()  # it died between two calls, through no fault of a video
            if self._child is None:
                self._start()
            result = self._ask(function, args, limit)
            assert self._child is not None
            self._child.num_calls += 1
            if self._child.num_calls == self._max_calls or self._has_grown(self._child):
                self._stop()
            return result

    def _has_grown(self, child: "_Child") -> bool:
        room = self._memory_limit_bytes - child.ready_bytes
        return child.resident_bytes() > child.ready_bytes + RECYCLE_SHARE * room

    def close(self) -> None:
        """End the child, at once if it is idle."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _start(self) -> None:
        self._child = _Child()
        try:
            self._ask(_set_up, (self._initializer, self._memory_limit_bytes), START_LIMIT_SECONDS)
            self._child.ready_bytes = self._child.resident_bytes()
        except VideoError as error:
            raise RuntimeError(f"the sandbox's child could not start: {error}") from error
        except BaseException:
            self._stop()
            raise

    def _ask(
        self, function: Callable[..., Any], args: tuple[object, ...], limit_seconds: float
    ) -> Any:
        """Return the child's answer, or raise the reason why there is none."""
        assert self._child is not None
        child = self._child
        payload = pickle.dumps((function, args, limit_seconds), pickle.HIGHEST_PROTOCOL)
        deadline = time.monotonic() + limit_seconds
        try:
            child.connection.send_bytes(payload)
            while not child.connection.poll(POLL_SECONDS):
                if child.resident_bytes() > self._memory_limit_bytes:
                    self._stop()
                    raise OutOfMemory(
                        f"killed above {self._memory_limit_bytes / 2**20:.0f} MiB of memory"
                    )
                if time.monotonic() > deadline:
                    self._stop()
                    raise TimedOut(f"killed after {limit_seconds:g} seconds")
            ok, value = pickle.loads(child.connection.recv_bytes())
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            reason = child.death()
            self._stop()
            raise Crashed(f"the child {reason}") from error
        except BaseException:
            self._stop()  # interrupted: a late answer must not reach the next call
            raise
        if ok:
            return value
        if isinstance(value, MemoryError):
            self._stop()
            raise OutOfMemory("the child could not allocate memory") from value
        raise value


class _Child:
    """The process, its pipe, and a thread that lives as long as the process.

    The kernel sends the parent-death signal when the thread that started a process ends, and Ray's
    threads end at any time. So a thread of its own starts the child and then waits for it.
    """

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        self.num_calls = 0
        self.ready_bytes = 0
        started = threading.Event()
        failure: list[OSError] = []

        def keep() -> None:
            try:
                self.process = _start_child(theirs)
            except OSError as error:
                failure.append(error)
                return
            finally:
                theirs.close()
                started.set()
            self.process.wait()

        self._keeper = threading.Thread(target=keep, name="sandbox-keeper", daemon=True)
        self._keeper.start()
        started.wait()
        if failure:
            raise failure[0]
        self._info = psutil.Process(self.process.pid)

    def resident_bytes(self) -> int:
        try:
            return self._info.memory_info().rss
        except psutil.NoSuchProcess:
            return 0  # the pipe reports its end

    def death(self) -> str:
        self._keeper.join(_GRACE_SECONDS)
        code = self.process.poll()
        if code is None:
            return "closed its pipe"
        if code >= 0:
            return f"exited with code {code}"
        return f"was killed by {signal.Signals(-code).name}"

    def stop(self) -> None:
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self._keeper.join(_GRACE_SECONDS)


def _start_child(connection: Connection) -> subprocess.Popen[bytes]:
    fd = connection.fileno()
    setup = json.dumps([fd, os.getpid(), [os.path.abspath(entry) for entry in sys.path]])
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD_CODE, setup],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[fd],
        # One child uses one core; detectors built with OpenMP would otherwise use all.
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def _serve(fd: int, parent_pid: int) -> None:
    """Main loop of the child: one call after another until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the child
    _die_with_parent(parent_pid)
    connection = Connection(fd)
    try:
        while True:
            _answer(connection, connection.recv_bytes())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _set_up(initializer: Callable[[], object] | None, memory_limit_bytes: int) -> None:
    if initializer is not None:
        initializer()
    if sys.platform == "linux":
        import resource

        most = psutil.Process().memory_info().vms + 2 * memory_limit_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _answer(connection: Connection, request: bytes) -> None:
    answer: tuple[bool, object]
    try:
        function, args, limit_seconds = pickle.loads(request)
        # The kernel ends a child that is in an endless loop when its parent dies.
        signal.setitimer(signal.ITIMER_REAL, limit_seconds + _GRACE_SECONDS)
        answer = True, function(*args)
    except Exception as error:  # any error is raised in the caller
        error.add_note("In the sandbox:\n" + traceback.format_exc())
        answer = False, error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        payload = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
        if not answer[0]:
            pickle.loads(payload)  # exceptions with arguments of their own may fail here
    except Exception as error:  # pickling runs foreign code, which may raise anything
        payload = pickle.dumps((False, RuntimeError(f"cannot pickle the answer: {error!r}")))
    connection.send_bytes(payload)


def _die_with_parent(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch_parent, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:
        os._exit(1)


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(1.0)
    os._exit(1)
