"""The chain as a job on a cluster that somebody else started, with token authentication."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from caan import storage
from tests.support.local_cluster import LocalCluster, roles


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A head without work, and a node each for decoding and for the networks."""
    nodes = LocalCluster(tmp_path)
    try:
        nodes.add("embed", 3)
        nodes.add("decode", 3)
        yield nodes
    finally:
        nodes.close()


@pytest.mark.ray
@pytest.mark.slow
def test_the_chain_runs_as_a_submitted_job_on_the_nodes_that_its_stages_ask_for(
    cluster: LocalCluster, carphone: Path, tmp_path: Path
) -> None:
    for number, emotion in enumerate(("joy", "joy", "anger", "anger")):
        (tmp_path / "videos" / emotion).mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / emotion / f"{number}.mp4").write_bytes(carphone.read_bytes())
    output = str(tmp_path / "demo")
    demo = ("jobs.demo", "--videos", str(tmp_path / "videos"), "--output", output)
    done = cluster.submit(*demo)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "report:" in done.stdout
    labels = storage.read_table(storage.join(output, "labels", "labels"))
    assert labels["status"].to_pylist() == ["ok"] * 4
    assert storage.exists(storage.join(output, "model", "model.safetensors"))
    assert not storage.exists(storage.join(output, "model", "unfinished"))
    for folder in ("features", "labels"):
        record = storage.read_json(storage.join(output, folder, "run.json"))
        assert {s: roles(record, s) for s in ("decode", "embed")} == {
            "decode": {"decode"},
            "embed": {"embed"},
        }
    decode = record["stages"]["decode"]
    assert decode["videos"] == 4
    assert decode["bytes"] == 4 * carphone.stat().st_size
    assert cluster.metrics("head")["caan_videos_total[label,decode]"] == 4

    refused = cluster.submit("jobs.index", "--input", "/no", "--output", "/no.parquet")
    assert refused.returncode == 1
    assert "error: nothing is at" in refused.stdout

    manifest = storage.join(output, "manifest.parquet")
    label = ("jobs.label", "--manifest", manifest, "--output", str(tmp_path / "labels"))
    waited = cluster.submit(*label, "--resources.min-cpus", "99", "--resources.wait-seconds", "1")
    assert waited.returncode == 1
    assert "has 6 CPU slots and 0 GPUs after 1 s" in waited.stdout
