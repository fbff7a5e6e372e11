"""Options that several jobs share. Importing them costs no Ray and no torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from caan.extraction.config import SandboxConfig
from caan.media.config import Decoder


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How the cluster is used. Nothing here changes a result."""

    decoders: int = 0
    """Decoding actors; 0: from the cluster's cores."""
    embedders: int = 0
    """Actors that hold the networks; 0: one per GPU, else one per 16 cores, two on two cores."""
    embed_batch: int = 0
    """Images per pass of a network; 0: 128 on a GPU, 16 on a CPU."""
    embed_segments: int = 0
    """Segments whose images are embedded together to fill those batches; 0: as many average-length
    segments as fill eight passes on a GPU and one on a CPU, at most 128."""
    min_cpus: int = 0
    """CPU slots to request from the cluster's autoscaler and to wait for, before the number of
    actors is chosen."""
    min_gpus: int = 0
    """GPUs to request and to wait for."""
    wait_seconds: float = 900.0
    """Longest wait for them."""


@dataclass(frozen=True, kw_only=True)
class Limits(SandboxConfig):
    """Limits on the decoding of one segment."""

    max_attempts: Annotated[int, tyro.conf.arg(aliases=("--max-attempts",))] = (
        SandboxConfig.max_attempts
    )
    """Most times that the decoding child may die (crash, time or memory limit) on one video. After
    them the rest of the video gets that status."""
    spool_dir: Annotated[str, tyro.conf.arg(aliases=("--spool-dir",))] = ""
    """Folder of these copies on every node; empty: the local disk with the most free space among
    the temporary folder and the NVMe disks that are mounted."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a job that reads the videos of a manifest into an output folder."""

    manifest: str
    """Manifest written by jobs.index; local or s3://."""
    output: str
    """Folder of the output; local or s3://."""
    decoder: Decoder = "pyav"
    """Library that decodes the files it can; PyAV decodes the others. Both give the same frames.
    pyav takes 0.65 to 0.8 times the CPU time of decord on 720p H.264 (docs/results.md)."""
    take_over: bool = False
    """Go on in an output whose driver ended without saying so: waits until its lease expires."""
    retry_failed: bool = False
    """Read the segments again that failed."""
    on_change: Literal["error", "recompute"] = "error"
    """What to do if options, weights or a video differ from those of the existing output."""
    min_ok: float = 0.0
    """Lowest accepted share of videos that are ok, partial or no_face; below it the exit code is
    1."""
    limits: Limits = field(default_factory=Limits)
    """Limits on the decoding of one segment."""
    resources: Resources = field(default_factory=Resources)
    """How the cluster is used."""
