"""How long a run will take and which stage limits it: arithmetic on what the stages reported.

A stage is a pool of workers; its cost is the busy time of one worker per sampled frame. Workers
that share cores cannot all be busy, so without a GPU the cores are a limit of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Counts = Mapping[str, Mapping[str, float]]
"""What the stages reported: stage -> name -> total, as run.json has it under `stages`."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """The workers of a run."""

    num_decoders: int
    """Decoding workers, of one core each."""
    num_embedders: int
    """Workers that hold the networks."""
    embedder_threads: int
    """Cores that each of them uses where it has no GPU."""
    num_gpus: int
    """GPUs in use."""
    num_cores: int
    """CPU cores of all nodes."""
    num_nodes: int
    """Nodes."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Busy seconds of one worker per sampled frame, and bytes written per frame."""

    decode: float
    """Opening, seeking and decoding."""
    detect: float
    """Face detection, in the decoding worker unless a GPU does it."""
    embed: float
    """Both networks."""
    output_bytes: float
    """Bytes of the table per sampled frame."""


def costs_of(stages: Counts, output_bytes: float) -> Costs:
    """Costs per frame from the totals of a run.

    Raises:
        ValueError: no frame went through it.
    """
    frames = stages.get("embed", {}).get("frames", 0.0)
    if not frames:
        raise ValueError("no frame was read, so there is nothing to measure")
    decode = stages.get("decode", {})
    detect = decode.get("seconds_detect", 0.0) + stages.get("detect", {}).get("seconds_detect", 0.0)
    return Costs(
        decode=decode.get("seconds_decode", 0.0) / frames,
        detect=detect / frames,
        embed=stages["embed"].get("seconds_networks", 0.0) / frames,
        output_bytes=output_bytes / frames,
    )


def stage_rates(costs: Costs, pools: Pools) -> dict[str, float]:
    """Frames per second that each stage could do if it never waited for another.

    `decode` is decoding and, without a GPU detector, detection; `embed` the networks; without a
    GPU `cores` is what all cores could do together.
    """
    decoding = costs.decode + costs.detect
    rates = {
        "decode": pools.num_decoders / decoding if decoding else float("inf"),
        "embed": pools.num_embedders / costs.embed if costs.embed else float("inf"),
    }
    if not pools.num_gpus:
        core_seconds = decoding + pools.embedder_threads * costs.embed
        rates["cores"] = pools.num_cores / core_seconds if core_seconds else float("inf")
    return rates


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run over many frames will take."""

    frames: int
    """Sampled frames of the plan."""
    frames_per_second: float
    """Of the slowest stage."""
    hours: float
    """Wall-clock time, without the start of the cluster."""
    limiting_stage: str
    """decode, embed, or cores."""
    stage_frames_per_second: dict[str, float]
    """What each stage could do alone."""
    cores_per_gpu: float | None
    """Decoding cores that keep one GPU busy; None without a GPU."""
    output_bytes: int
    """Size of the output."""
    cost: float | None
    """Hours x nodes x price of a node-hour; None without a price."""


def predict(costs: Costs, pools: Pools, frames: int, price: float | None = None) -> Prediction:
    """What `frames` will take on these workers; `price` is that of one node for one hour."""
    rates = stage_rates(costs, pools)
    slowest = min(rates, key=lambda name: rates[name])
    hours = frames / rates[slowest] / 3600
    return Prediction(
        frames=frames,
        frames_per_second=rates[slowest],
        hours=hours,
        limiting_stage=slowest,
        stage_frames_per_second=rates,
        cores_per_gpu=(costs.decode + costs.detect) / costs.embed
        if pools.num_gpus and costs.embed
        else None,
        output_bytes=round(costs.output_bytes * frames),
        cost=None if price is None else hours * pools.num_nodes * price,
    )


def limit_of(stages: Counts, pools: Pools, seconds: float) -> tuple[str, float]:
    """The stage that was busiest over a whole run, and that share, 0 to 1, of its limit.

    A stage's limit is all its workers busy all the time; that of `cores`, all cores.
    """
    try:
        costs = costs_of(stages, 0.0)
    except ValueError:
        return "", 0.0
    reached = stages["embed"]["frames"] / seconds if seconds else 0.0
    shares = {name: reached / rate for name, rate in stage_rates(costs, pools).items()}
    busiest = max(shares, key=lambda name: shares[name])
    return busiest, shares[busiest]
