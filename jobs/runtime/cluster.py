"""The Ray cluster: start, connect, count its nodes, wait for them."""

import contextlib
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from caan.errors import InputError

logger = logging.getLogger(__name__)

MIN_LOGICAL_CPUS = 6
"""Fewest logical CPUs of an embedded Ray. Ray's read, filter and write tasks of a dataset take a
slot each beside the stages' actors. With fewer slots than stages a dataset waits for ever."""


def start() -> None:
    """Connect to the cluster that RAY_ADDRESS or a submitted job names, else start an embedded Ray.

    The embedded one listens on this machine only, has no dashboard, and stops with this process.
    """
    if ray.is_initialized():
        return
    # Ray's C++ log lines say nothing to the user of a job; its errors reach Python.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _without_lines(b"environment variable RAY_BACKEND_LOG_LEVEL"):
        if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"):
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        else:
            _start_embedded()


def _start_embedded() -> None:
    num_cpus = max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)
    # Its notice about token authentication names options of clusters that others can reach.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # By default Ray starts a Python process per logical CPU before a task asks for one, as many at
    # a time as there are cores, and prints a warning when a run needs more than that.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(4 * num_cpus))
    # Workers import this package from the working directory. An inherited variable costs them
    # nothing, a runtime environment of Ray costs each a set-up.
    given = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (os.getcwd(), given) if part)
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    finally:
        if given is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = given


@contextlib.contextmanager
def _without_lines(text: bytes) -> Iterator[None]:
    """Hold back what this process writes to stderr; write it at the end, without lines of `text`.

    Ray's C++ says on stderr that it has read RAY_BACKEND_LOG_LEVEL, and no option turns that off.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            os.write(2, b"".join(line for line in held if text not in line))


def poll_training_often() -> None:
    """Let Ray Train take a report every 0.2 s, unless the user's environment says otherwise.

    By default it takes one every 2 s, and the workers wait for that: each epoch of a small head
    would take 2 s.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def configure_data() -> None:
    """Set what every dataset of the jobs shares in Ray Data; turn its progress bars off."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "bars disabled"
    # Ray warns where a pool has more actors than a small run has blocks, which harms nothing.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")


def physical_cpus(on: Mapping[str, str] | None = None) -> int:
    """CPU cores of the cluster, or of its nodes with these labels; of one node, this machine's."""
    slots = int(sum(_slots(on)))
    return max(1, slots if num_nodes() > 1 else min(os.cpu_count() or 1, slots))


def _nodes(on: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The nodes that are there, or those of them with these labels."""
    labels = set((on or {}).items())
    return [n for n in ray.nodes() if n["Alive"] and labels <= set((n["Labels"] or {}).items())]


def node_labels(node_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """The labels that whoever started these nodes gave them, by node id."""
    wanted = set(node_ids)
    return {
        node["NodeID"]: {
            name: value
            for name, value in sorted((node["Labels"] or {}).items())
            if not name.startswith("ray.io/")
        }
        for node in ray.nodes()
        if node["NodeID"] in wanted
    }


def wait_for(*, cpus: int, gpus: int, seconds: float) -> None:
    """Ask the cluster's autoscaler for that many, and wait until they are there.

    Raises:
        InputError: they are not there after so long.
    """
    if not cpus and not gpus:
        return
    logger.info("waiting for %d CPU slots and %d GPUs", cpus, gpus)
    request_resources(num_cpus=cpus, bundles=[{"GPU": 1}] * gpus)
    end = time.monotonic() + seconds
    try:
        while True:
            found = ray.cluster_resources()
            if found.get("CPU", 0) >= cpus and found.get("GPU", 0) >= gpus:
                return
            if time.monotonic() > end:
                raise InputError(
                    f"the Ray cluster has {found.get('CPU', 0):g} CPU slots and "
                    f"{found.get('GPU', 0):g} GPUs after {seconds:g} s: ask for fewer than "
                    f"--resources.min-cpus {cpus} --resources.min-gpus {gpus}, or look why no "
                    "nodes come (`ray status`)."
                )
            time.sleep(1)
    finally:
        request_resources(num_cpus=0)  # nodes with work stay; without any, none is asked for


def num_nodes() -> int:
    """Nodes of the cluster, those without work included."""
    return len(_nodes())


def num_gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def _slots(on: Mapping[str, str] | None = None) -> list[float]:
    """Logical CPUs of each node with these labels."""
    return [node["Resources"].get("CPU", 0.0) for node in _nodes(on)]
