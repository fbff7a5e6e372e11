"""What a run will take: rates of stages, the slowest of them, and what was reached."""

import pytest

from caan.outputs.throughput import Costs, Workers, costs_of, limit_of, predict

LAPTOP = Workers(
    num_decoders=2, num_embedders=1, embedder_threads=2, num_gpus=0, num_cores=2, num_nodes=1
)
GPU = Workers(
    num_decoders=8, num_embedders=1, embedder_threads=1, num_gpus=1, num_cores=9, num_nodes=2
)
STAGES = {
    "decode": {"seconds_decode": 4.0, "seconds_detect": 6.0},
    "embed": {"frames": 100.0, "seconds_networks": 20.0},
}


def test_costs_are_busy_seconds_per_frame() -> None:
    costs = costs_of(STAGES, output_bytes=800.0)
    assert (costs.decode, costs.detect, costs.embed) == (0.04, 0.06, 0.2)
    assert costs.output_bytes == 8.0
    with pytest.raises(ValueError, match="no frame"):
        costs_of({"decode": {"seconds_decode": 1.0}}, 0.0)


def test_without_a_gpu_the_cores_limit() -> None:
    found = predict(costs_of(STAGES, 800.0), LAPTOP, frames=7200)
    assert found.limiting_stage == "cores"
    assert found.frames_per_second == pytest.approx(2 / (0.1 + 2 * 0.2))
    assert found.hours == pytest.approx(0.5)
    assert (found.cores_per_gpu, found.cost, found.output_bytes) == (None, None, 57_600)


def test_with_a_gpu_the_slowest_pool_limits_and_tells_how_many_cores_one_gpu_needs() -> None:
    costs = Costs(decode=0.04, detect=0.06, embed=0.005, output_bytes=0.0)
    found = predict(costs, GPU, frames=3600 * 80, price=3.0)
    assert found.limiting_stage == "decode"
    assert found.stage_frames_per_second == pytest.approx({"decode": 80.0, "embed": 200.0})
    assert found.cores_per_gpu == pytest.approx(20.0)
    assert found.cost == pytest.approx(1.0 * 2 * 3.0)


def test_the_share_of_the_limit_is_what_was_reached_of_what_could_be() -> None:
    stage, share = limit_of(STAGES, LAPTOP, seconds=30.0)
    assert stage == "cores"
    assert share == pytest.approx((100 / 30) / 4)
    assert limit_of({}, LAPTOP, seconds=30.0) == ("", 0.0)
