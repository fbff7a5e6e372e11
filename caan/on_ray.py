"""The little that the jobs share of Ray: starting it, running a job's main, counting progress."""

import dataclasses
import logging
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa
import ray
import tyro
from ray.autoscaler.sdk import request_resources
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from caan.errors import InputError, StorageError, redact
from caan.storage.failures import fault_of

logger = logging.getLogger(__name__)

J = TypeVar("J")

MIN_LOGICAL_CPUS = 6
"""Logical CPUs of an embedded Ray. Ray's read, filter and write tasks of a dataset take a
slot each beside the stages' actors; with fewer slots than stages a dataset waits for itself for
ever."""

ROLE = "caan-role"
"""Label of nodes by which the stages find their place: `decode` or `embed`."""

PROGRESS_SECONDS = 10.0
"""Time between two progress lines."""


def run_job(kind: type[J], main: Callable[[J], int], arguments: list[str] | None = None) -> int:
    """Parse the command line into `kind`, run `main` and give its exit code.

    0 done, 1 failed or below `--min-ok`, 2 bad input (one sentence on stderr).
    """
    job = tyro.cli(kind, args=arguments, description=sys.modules[kind.__module__].__doc__)
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("aiobotocore.credentials").setLevel(logging.WARNING)  # a line per session
    sys.excepthook = _print_redacted
    try:
        return main(job)
    except InputError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 1
    except ray.exceptions.RayError as error:
        cause = cause_of_ours(error)
        if cause is None:
            raise
        print(f"error: {redact(str(cause))}", file=sys.stderr)
        return 2 if isinstance(cause, InputError) else 1


class _Redacting(logging.Formatter):
    """Log lines without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What Python prints of an error that nobody handles, without credentials."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def cause_of_ours(error: BaseException) -> BaseException | None:
    """The error of ours that a worker raised, inside Ray's wrappers."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, InputError | StorageError):
            return found
        if isinstance(found, OSError) and (fault := fault_of(found)):
            return fault
        inner = getattr(found, "cause", None)
        found = inner if isinstance(inner, BaseException) else found.__cause__
    # Where Ray Data wraps and pickles what a stage raised, only its text remains.
    texts = re.findall(r"^caan\.errors\.(StorageError|InputError): (.+)$", str(error), re.MULTILINE)
    kinds = {"StorageError": StorageError, "InputError": InputError}
    return kinds[texts[-1][0]](texts[-1][1]) if texts else None


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolSizes:
    """How many actors of each stage run, and what each claims."""

    num_decoders: int
    """Decoding actors, each with one sandboxed child that uses about one core."""
    decoder_cpus: float
    """Logical CPUs that a decoding actor claims."""
    num_embedders: int
    """Actors that hold the networks."""
    embedder_cpus: float
    """Logical CPUs that an embedding actor claims."""
    embedder_gpus: float
    """GPUs that an embedding actor claims."""
    embedder_threads: int
    """Threads that torch uses in an embedding actor."""
    decode_on: dict[str, str]
    """Labels of the nodes that decode; empty: any."""
    embed_on: dict[str, str]
    """Labels of the nodes that hold the networks; empty: any."""


def pool_sizes(decoders: int = 0, embedders: int = 0) -> PoolSizes:
    """Sizes and places of the pools, leaving CPU slots for Ray's own tasks.

    Without a GPU the networks take nearly all the time, so an actor per 16 cores uses all of them
    and decoding overlaps with it. Of two cores each has its own: two threads of one network wait
    for each other while a decoder has one of the cores (13 clips, one of two threads against two of
    one: 1.76 and 1.85 frames/s). With GPUs each carries one embedder and the cores decode. Where
    nodes carry the label `caan-role` with `decode` or `embed`, that stage runs on them alone.

    Raises:
        InputError: the cluster has too few CPU slots: a dataset would wait for ever.
    """
    logical = float(ray.cluster_resources().get("CPU", 0))
    if logical < 3:
        raise InputError(
            f"the Ray cluster has {logical:g} CPU slots, and a run needs at least 3: start it with "
            "`ray start --num-cpus 4` or more (logical slots may exceed the cores), or let "
            "`--resources.min-cpus` ask its autoscaler for nodes."
        )
    decode_on, embed_on = (
        {ROLE: role} if _nodes({ROLE: role}) else {} for role in ("decode", "embed")
    )
    gpus = num_gpus()
    cores, decode_cores, embed_cores = map(physical_cpus, ({}, decode_on, embed_on))
    few = not gpus and cores <= 2
    num_embedders = embedders or gpus or (embed_cores if few else max(1, embed_cores // 16))
    num_decoders = decoders or max(1, min(cores, 2) if few else decode_cores - 1)
    if decode_on or embed_on:
        decoder_claim = actor_claim(_slots(decode_on), num_decoders)
        embedder_claim = actor_claim(_slots(embed_on), num_embedders)
    else:
        decoder_claim = embedder_claim = actor_claim(_slots(), num_decoders + num_embedders)
    return PoolSizes(
        num_decoders=num_decoders,
        decoder_cpus=decoder_claim,
        num_embedders=num_embedders,
        embedder_cpus=embedder_claim,
        embedder_gpus=1.0 if gpus else 0.0,
        embedder_threads=max(1, embed_cores // num_embedders),
        decode_on=decode_on,
        embed_on=embed_on,
    )


def actor_claim(node_cpus: list[float], num_actors: int) -> float:
    """Logical CPUs that each of so many actors may claim.

    Two whole slots stay free for the read, filter and write tasks. Of several nodes the largest may
    die: its actors must find room on the others, or the dataset waits for ever for, say, the only
    one that holds the networks.
    """
    left = sorted(node_cpus)[:-1] if sum(sorted(node_cpus)[:-1]) > 2 else node_cpus
    claim = max(0.01, min(1.0, round((sum(left) - 2.0) / num_actors - 0.005, 2)))
    while claim > 0.01 and sum(int(cpus / claim) for cpus in left) < num_actors:
        claim = round(claim - 0.01, 2)
    return claim


def _slots(on: Mapping[str, str] | None = None) -> list[float]:
    """Logical CPUs of each node with these labels."""
    return [node["Resources"].get("CPU", 0.0) for node in _nodes(on)]


class Monitor:
    """Sums what the stages report while a dataset runs, for run.json and for Prometheus.

    A count `name` becomes the metric `ray_caan_<name>_total` with the labels `caan_job` and
    `stage`; of a count `status.<word>` the word is the label `status`.
    """

    def __init__(self, job: str) -> None:
        self.job = job
        self.totals: dict[str, dict[str, float]] = {}
        self.nodes: dict[str, set[str]] = {}
        self.began: dict[str, float] = {}
        self.counters: dict[str, metrics.Counter] = {}

    def add(self, stage: str, node_id: str, counts: dict[str, float]) -> None:
        """Add one call's counts to the stage's totals."""
        self.began.setdefault(stage, time.time() - counts.get("seconds", 0.0))
        totals = self.totals.setdefault(stage, {})
        for name, value in counts.items():
            totals[name] = totals.get(name, 0.0) + value
            if value > 0:
                self._export(stage, name, value)
        self.nodes.setdefault(stage, set()).add(node_id)

    def _export(self, stage: str, name: str, value: float) -> None:
        kind, _, status = name.partition(".")
        if kind not in self.counters:
            said = f"CAAN: {kind.replace('_', ' ')}, summed over the actors of a stage"
            self.counters[kind] = metrics.Counter(
                f"caan_{kind}", said, ("caan_job", "stage", "status")
            )
        tags = {"caan_job": self.job, "stage": stage, "status": status}
        self.counters[kind].inc(value, tags)

    def end(self) -> None:
        """Leave as a process does, which hands the last counts on."""
        ray.actor.exit_actor()

    def when_began(self) -> dict[str, float]:
        """When the first reported call of each stage began, in seconds since 1970."""
        return self.began

    def read(self) -> tuple[dict[str, dict[str, float]], dict[str, list[str]]]:
        """Totals and node ids, each by stage."""
        return self.totals, {stage: sorted(nodes) for stage, nodes in self.nodes.items()}


def start_monitor(job: str) -> Any:
    """A handle to a new monitor on the driver's node, which outlives all others for this run."""
    node = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(num_cpus=0)(Monitor)
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return actor.options(scheduling_strategy=here).remote(job)


class Staged:
    """Runs a stage of the library as a Ray Data actor and reports its counts to the monitor.

    The stage is built once per actor from `build(*arguments)`; `stage(table)` gives a table, and
    `stage.take_counts()` what to add to the totals since the last call.
    """

    def __init__(
        self, name: str, build: Callable[..., Any], arguments: tuple[Any, ...], monitor: Any
    ) -> None:
        self.name = name
        self.stage = build(*arguments)
        self.monitor = monitor
        self.node_id = ray.get_runtime_context().get_node_id()

    def __call__(self, table: pa.Table) -> pa.Table:
        """One batch through the stage."""
        start_seconds = time.perf_counter()
        result = self.stage(table)
        counts = self.stage.take_counts()
        counts["seconds"] = time.perf_counter() - start_seconds
        self.monitor.add.remote(self.name, self.node_id, counts)
        return result


class Progress:
    """Logs one line every few seconds while a dataset runs, from the monitor's totals."""

    def __init__(self, monitor: Any, num_segments: int, video_seconds: float) -> None:
        self.monitor = monitor
        self.num_segments = num_segments
        self.video_seconds = video_seconds
        self.start_seconds = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def totals(self) -> tuple[dict[str, dict[str, float]], dict[str, list[str]]]:
        """What the stages have reported so far."""
        return ray.get(self.monitor.read.remote())

    def line(self) -> str:
        """Segments done, failed and left, frames per second, times real time and time left."""
        totals, _ = self.totals()
        embed = totals.get("embed", {})
        decode = totals.get("decode", {})
        done = int(embed.get("segments", 0))
        passed = time.perf_counter() - self.start_seconds
        left = self.num_segments - done
        video_seconds = embed.get("video_seconds", 0.0) + decode.get("skipped_seconds", 0.0)
        rate = video_seconds / passed if passed else 0.0
        # Files that hold less than their headers say leave a rest when nothing is left to do.
        remaining = max(0.0, self.video_seconds - video_seconds) if left > 0 else 0.0
        eta = f"{remaining / rate:.0f} s" if rate else "?"
        if not remaining:
            eta = "0 s"
        return (
            f"{done}/{self.num_segments} segments done, {int(decode.get('failed', 0))} failed, "
            f"{left} left; {embed.get('frames', 0) / passed if passed else 0:.1f} frames/s, "
            f"{rate:.1f} x real time; about {eta} left"
        )

    def _watch(self) -> None:
        while not self._stop.wait(PROGRESS_SECONDS):
            logger.info("%s", self.line())
