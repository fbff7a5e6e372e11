"""How many actors of each stage run, where, and what each claims."""

import dataclasses

import ray

from caan.errors import InputError
from jobs.runtime.cluster import (
    _nodes,
    _slots,
    num_gpus,
    physical_cpus,
)

ROLE = "caan-role"
"""Label of nodes by which the stages find their place: `decode` or `embed`."""


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

    Without a GPU the networks take nearly all the time: one embedder per 16 cores uses all of them,
    and decoding overlaps with it. On two cores each core has an embedder of its own: two threads of
    one network wait for each other while a decoder uses one of the cores (13 clips, one embedder of
    two threads against two of one: 1.76 and 1.85 frames/s). With GPUs there is one embedder per
    GPU, and the cores decode. If nodes have the label `caan-role` with `decode` or `embed`, that
    stage runs on these nodes only.

    Raises:
        InputError: the cluster has too few CPU slots, so that a dataset would wait for ever.
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

    Two whole slots stay free for the read, filter and write tasks. If the largest of several nodes
    dies, its actors must find room on the others; else the dataset waits for them for ever.
    """
    left = sorted(node_cpus)[:-1] if sum(sorted(node_cpus)[:-1]) > 2 else node_cpus
    claim = max(0.01, min(1.0, round((sum(left) - 2.0) / num_actors - 0.005, 2)))
    while claim > 0.01 and sum(int(cpus / claim) for cpus in left) < num_actors:
        claim = round(claim - 0.01, 2)
    return claim
