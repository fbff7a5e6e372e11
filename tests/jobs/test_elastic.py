"""A lost node: training goes on with the workers that are left."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from caan import storage
from jobs import train
from tests.support.training_runs import (
    assert_same,
    job_of,
    training_features,
    undisturbed_metrics,
    when_there_is_a_state,
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of one node with one CPU slot; the driver is on it."""
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_goes_on_without_a_lost_node(cluster: Cluster, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    states = tmp_path / "states"
    job = job_of(
        training_features(tmp_path / "features"),
        tmp_path / "model",
        num_workers=2,
        min_workers=1,
        storage_path=str(states),
    )
    thread = when_there_is_a_state(
        states, lambda: cluster.remove_node(second, allow_graceful=False)
    )
    assert train.main(job) == 0
    thread.join(timeout=30)
    assert len([node for node in ray.nodes() if node["Alive"]]) == 1, "the node was lost"
    expected = undisturbed_metrics(job)
    assert_same(storage.read_json(tmp_path / "model/metrics.json"), expected)
