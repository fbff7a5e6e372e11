"""The Ray cluster: start, connect, count its nodes, wait for them."""

import logging
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from caan.errors import InputError

logger = logging.getLogger(__name__)

MIN_LOGICAL_CPUS = 6
"""Logical CPUs of an embedded Ray. Ray's read, filter and write tasks of a dataset take a
slot each beside the stages' actors; with fewer slots than stages a dataset waits for itself for
ever."""


def start() -> None:
    """Connect to the cluster that RAY_ADDRESS or a submitted job names, else start an embedded Ray.

    The embedded one listens on this machine only, has no dashboard, and stops with this process.
    """
    if ray.is_initialized():
        return
    # Workers on other nodes find this package through the job's working directory; those of an
    # embedded Ray, and of a driver started by hand on the head, need the path.
    path = os.pathsep.join(part for part in (os.getcwd(), os.environ.get("PYTHONPATH", "")) if part)
    # Ray's C++ log lines say nothing to the user of an embedded Ray; its errors reach Python.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    env_vars = {"PYTHONPATH": path}
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        return
    ray.init(
        address="local",
        num_cpus=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": env_vars},
    )


def poll_training_often() -> None:
    """Let Ray Train take a report every 0.2 s, unless the user's environment says otherwise.

    It takes one per poll, every 2 s by itself, and the workers wait: an epoch of a small head would
    take 2 s.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def configure_data() -> None:
    """Quiet progress bars and the settings of Ray Data that every dataset of ours shares."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
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
