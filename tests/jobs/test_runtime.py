"""What the jobs share of Ray, without a Ray."""

import pytest

from caan.errors import StorageError
from jobs.runtime import cluster
from jobs.runtime.cli import cause_of_ours
from jobs.runtime.pools import actor_claim, pool_sizes
from jobs.runtime.progress import Progress


@pytest.mark.parametrize(
    ("node_cpus", "num_actors"),
    [([6.0], 3), ([64.0], 64), ([4.0] * 3, 12), ([4.0] * 5, 21), ([8.0, 8.0, 64.0], 80),
     ([3.0] * 3, 9), ([2.0, 2.0], 3), ([4.0, 0.0], 3)],
)  # fmt: skip
def test_actors_fit_beside_rays_tasks_and_after_the_largest_node_is_lost(
    node_cpus: list[float], num_actors: int
) -> None:
    claim = actor_claim(node_cpus, num_actors)
    assert 0 < claim <= 1
    left = sorted(node_cpus)[:-1]
    if sum(left) <= 2:
        left = node_cpus
    assert claim * num_actors <= sum(left) - 2 + 1e-9
    assert sum(int(cpus / claim) for cpus in left) >= num_actors


def test_a_storage_error_that_ray_wrapped_is_found_by_its_text() -> None:
    text = "ray::Map()\ncaan.errors.StorageError: access denied: `s3://a/b`\n\nUDF failed"
    found = cause_of_ours(RuntimeError(text))
    assert isinstance(found, StorageError)
    assert str(found) == "access denied: `s3://a/b`"
    assert cause_of_ours(RuntimeError("a StorageError: of somebody else")) is None


@pytest.mark.parametrize(
    ("embed", "decode", "started", "line"),
    [({}, {}, 0, "0/2 segments done, 0 failed, 2 left; starting 2 workers"),
     ({}, {}, 1, "0/2 segments done, 0 failed, 2 left; starting 1 worker"),
     ({}, {}, 2, "0/2 segments done, 0 failed, 2 left; decoding the first frames"),
     ({}, {"frames": 9}, 2, "2 left; the first frames are in the networks"),
     ({"segments": 1}, {"failed": 1}, 2, "1/2 segments done, 1 failed, 1 left; decoding"),
     ({"segments": 2}, {"failed": 2}, 2, "2/2 segments done, 2 failed, 0 left; 0.0 frames/s"),
     ({"segments": 1, "video_seconds": 30.0, "frames": 30}, {}, 2, "about 5 s left"),
     ({"segments": 2, "video_seconds": 50.0, "frames": 50}, {}, 2, "about 0 s left")],
)  # fmt: skip
def test_the_progress_line_says_what_a_run_waits_for_until_it_knows_a_speed(
    monkeypatch: pytest.MonkeyPatch,
    embed: dict[str, float],
    decode: dict[str, float],
    started: int,
    line: str,
) -> None:
    progress = Progress(monitor=None, num_segments=2, video_seconds=60.0, workers=2)
    progress.start_seconds -= 5.0
    monkeypatch.setattr(progress, "totals", lambda: ({"embed": embed, "decode": decode}, {}))
    monkeypatch.setattr(progress, "num_workers", lambda: started)
    assert line in progress.line()
    assert "?" not in progress.line()


@pytest.mark.parametrize(
    ("cores", "gpus", "embedders", "threads"),
    [(1, 0, 1, 1), (2, 0, 2, 1), (4, 0, 1, 4), (32, 0, 2, 16), (8, 1, 1, 8)],
)
def test_networks_fill_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, embedders: int, threads: int
) -> None:
    node = {"Alive": True, "Labels": {}, "Resources": {"CPU": 64.0}}
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [node])
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": gpus})
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: cores)
    sizes = pool_sizes()
    assert (sizes.num_embedders, sizes.embedder_threads) == (embedders, threads)
