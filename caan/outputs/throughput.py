"""How long a run takes and which stage limits it, computed from what the stages reported.

A stage has several workers. Its cost is the busy time of one worker per sampled frame. Workers that
share cores cannot all be busy, so without a GPU the cores are a limit of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Counts = Mapping[str, Mapping[str, float]]
"""What the stages reported: stage -> name -> total; `stages` of run.json."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers of a run."""

    num_decoders: int
    """Decoding workers, each with one core."""
    num_embedders: int
    """Workers that hold the networks."""
    embedder_threads: int
    """Cores that each of them uses if it has no GPU."""
    num_gpus: int
    """GPUs in use."""
    num_cores: int
    """CPU cores of all nodes."""
    num_nodes: int
    """Nodes of the cluster."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Busy seconds of one worker per sampled frame, and bytes written per frame."""

    decode: float
    """Opening, seeking and decoding."""
    detect: float
    """Face detection, in the decoding worker or on a GPU."""
    embed: float
    """Both networks."""
    output_bytes: float
    """Bytes of the table per sampled frame."""


def costs_of(stages: Counts, output_bytes: float) -> Costs:
    """Costs per frame, from the totals of a run.

    Raises:
        ValueError: the run read no frame.
    """
    frames = stages.get("embed", {}).get("frames", 0.0)
    if not frames:
        raise ValueError("no frame was read")
    decode = stages.get("decode", {})
    detect = decode.get("seconds_detect", 0.0) + stages.get("detect", {}).get("seconds_detect", 0.0)
    return Costs(
        decode=decode.get("seconds_decode", 0.0) / frames,
        detect=detect / frames,
        embed=stages["embed"].get("seconds_networks", 0.0) / frames,
        output_bytes=output_bytes / frames,
    )


def stage_rates(costs: Costs, workers: Workers) -> dict[str, float]:
    """Frames per second of each stage if it never waited for another.

    `decode` is decoding and, without a GPU detector, detection. `embed` is the networks. Without a
    GPU, `cores` is the limit of all cores together.
    """
    decoding = costs.decode + costs.detect
    rates = {
        "decode": workers.num_decoders / decoding if decoding else float("inf"),
        "embed": workers.num_embedders / costs.embed if costs.embed else float("inf"),
    }
    if not workers.num_gpus:
        core_seconds = decoding + workers.embedder_threads * costs.embed
        rates["cores"] = workers.num_cores / core_seconds if core_seconds else float("inf")
    return rates


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted time and size of a run."""

    frames: int
    """Sampled frames of the plan."""
    frames_per_second: float
    """Rate of the slowest stage."""
    hours: float
    """Wall-clock time, without the start of the cluster."""
    limiting_stage: str
    """decode, embed, or cores."""
    stage_frames_per_second: dict[str, float]
    """Rate of each stage alone."""
    cores_per_gpu: float | None
    """Decoding cores that keep one GPU busy; None without a GPU."""
    output_bytes: int
    """Size of the output."""
    cost: float | None
    """Hours x nodes x price per node-hour; None without a price."""


def predict(costs: Costs, workers: Workers, frames: int, price: float | None = None) -> Prediction:
    """Predict the run over `frames` on these workers; `price` is per node and hour."""
    rates = stage_rates(costs, workers)
    slowest = min(rates, key=lambda name: rates[name])
    hours = frames / rates[slowest] / 3600
    return Prediction(
        frames=frames,
        frames_per_second=rates[slowest],
        hours=hours,
        limiting_stage=slowest,
        stage_frames_per_second=rates,
        cores_per_gpu=(costs.decode + costs.detect) / costs.embed
        if workers.num_gpus and costs.embed
        else None,
        output_bytes=round(costs.output_bytes * frames),
        cost=None if price is None else hours * workers.num_nodes * price,
    )


def limit_of(stages: Counts, workers: Workers, seconds: float) -> tuple[str, float]:
    """The busiest stage of a run, and its share, 0 to 1, of its limit.

    A stage at its limit keeps all its workers busy all the time; `cores` keeps all cores busy.
    """
    try:
        costs = costs_of(stages, 0.0)
    except ValueError:
        return "", 0.0
    reached = stages["embed"]["frames"] / seconds if seconds else 0.0
    shares = {name: reached / rate for name, rate in stage_rates(costs, workers).items()}
    busiest = max(shares, key=lambda name: shares[name])
    return busiest, shares[busiest]
