"""Log lines of a training: from the worker that trains to the log of the job.

Ray's own forwarding (`log_to_driver`) would bring every line of every process.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SHOW_SECONDS = 5.0
"""Time between two lines; of what comes in between, the last is shown."""


class Latest:
    """Actor that keeps the last line until it is taken."""

    def __init__(self) -> None:
        self.line = ""

    def put(self, line: str) -> None:
        """Keep this line instead."""
        self.line = line

    def take(self) -> str:
        """The line, once; else nothing."""
        line, self.line = self.line, ""
        return line


@contextlib.contextmanager
def shown(logger: logging.Logger) -> Iterator[Any]:
    """A handle for `say` on the workers, whose lines `logger` logs here until the block ends."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(num_cpus=0)(Latest)
    latest = kind.options(scheduling_strategy=here).remote()
    has_ended = threading.Event()

    def show() -> None:
        while not has_ended.wait(SHOW_SECONDS):
            take()

    def take() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # no line is worth a training
            if line := ray.get(latest.take.remote(), timeout=SHOW_SECONDS):
                logger.info("%s", line)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield latest
    finally:
        has_ended.set()
        thread.join()
        take()
        ray.kill(latest)


class Sending(logging.Handler):
    """Sends what is logged to the job that holds `latest`."""

    def __init__(self, latest: Any) -> None:
        super().__init__(logging.INFO)
        self.latest = latest

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line; nobody waits for it."""
        self.latest.put.remote(record.getMessage())


def say(latest: Any, name: str) -> None:
    """On a worker: send what the logger `name` says."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.addHandler(Sending(latest))
