"""A stage of the library as a Ray Data actor, with its counts."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from caan.extraction.deaths import Deaths, OwnDeathLog


class Monitor:
    """Sum the counts that the stages report while a dataset runs, for run.json and Prometheus.

    A count `name` becomes the metric `ray_caan_<name>_total` with the labels `caan_job` and
    `stage`; of a count `status.<word>` the word is the label `status`.
    """

    def __init__(self, job: str, deaths: dict[str, Deaths]) -> None:
        self.job = job
        self.deaths = OwnDeathLog(deaths)
        self.totals: dict[str, dict[str, float]] = {}
        self.nodes: dict[str, set[str]] = {}
        self.num_started = 0
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

    def worker_started(self) -> None:
        """Count an actor whose stage is built."""
        self.num_started += 1

    def num_workers(self) -> int:
        """Actors whose stage is built, over all stages."""
        return self.num_started

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
        """End this actor; its process exports the last counts first."""
        ray.actor.exit_actor()

    def deaths_of(self, video_id: str) -> Deaths:
        """Children that died on this video."""
        return self.deaths.of(video_id)

    def add_death(self, video_id: str, status: str, error: str) -> None:
        """Count one more."""
        self.deaths.add(video_id, status, error)

    def when_began(self) -> dict[str, float]:
        """Start of the first reported call of each stage, in seconds since 1970."""
        return self.began

    def read(self) -> tuple[dict[str, dict[str, float]], dict[str, list[str]]]:
        """Totals and node ids, each by stage."""
        return self.totals, {stage: sorted(nodes) for stage, nodes in self.nodes.items()}


def start_monitor(job: str, deaths: dict[str, Deaths] | None = None) -> Any:
    """Start a monitor on the driver's node, which no lost node takes away; return its handle.

    `deaths` are those of earlier runs, by video id.
    """
    node = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(num_cpus=0)(Monitor)
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return actor.options(scheduling_strategy=here).remote(job, deaths or {})


class Staged:
    """Run a stage of the library as a Ray Data actor and report its counts to the monitor.

    The stage is built once per actor with `build(*arguments)`. `stage(table)` returns a table,
    or an iterator of tables; `stage.take_counts()` returns the counts since the last call.
    """

    def __init__(
        self, name: str, build: Callable[..., Any], arguments: tuple[Any, ...], monitor: Any
    ) -> None:
        self.name = name
        self.stage = build(*arguments)
        self.monitor = monitor
        self.node_id = ray.get_runtime_context().get_node_id()
        monitor.worker_started.remote()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """One batch through the stage, which gives one table or several, one after another."""
        start_seconds = time.perf_counter()
        given = self.stage(table)
        for result in (given,) if isinstance(given, pa.Table) else given:
            counts = self.stage.take_counts()
            counts["seconds"] = time.perf_counter() - start_seconds
            self.monitor.add.remote(self.name, self.node_id, counts)
            yield result
            start_seconds = time.perf_counter()


class SharedDeathLog:
    """`DeathLog` of a run, kept by its monitor."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor

    def of(self, video_id: str) -> Deaths:
        """The deaths on this video so far."""
        deaths: Deaths = ray.get(self.monitor.deaths_of.remote(video_id))
        return deaths

    def add(self, video_id: str, status: str, error: str) -> None:
        """Count one more."""
        ray.get(self.monitor.add_death.remote(video_id, status, error))
