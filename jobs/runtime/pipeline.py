"""The stages of a run on Ray Data, shard by shard: decode, detect on a GPU, embed, write."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from caan import storage
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.extraction.gpu_detection import FaceCropper
from caan.faces.build import DETECTORS
from caan.media.config import Decoder
from caan.outputs import commits
from caan.outputs.layout import SUCCESS, Shard
from caan.outputs.plan import longest_first, mean_frames
from caan.outputs.throughput import Workers
from caan.people.config import FaceEmbeddingConfig
from jobs.runtime import cluster, pools, stages
from jobs.runtime.options import Resources
from jobs.runtime.progress import Progress

logger = logging.getLogger(__name__)

SHARD_TRIES = 3
"""Runs of a shard until all its segments are committed. More than one is needed where a writer of
a killed run still wrote meanwhile."""

MAX_SEGMENTS_TOGETHER = 128
"""Most segments whose images are embedded together."""

TASKS_AT_HAND = 2
"""Batches that Ray gives to an actor at a time, the running one included."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """segments -> images -> rows of the last stage, on a running Ray."""

    config: ExtractionConfig
    """What is read from each video."""
    limits: SandboxConfig
    """Limits on the decoding of a segment."""
    resources: Resources
    """How the cluster is used."""
    build: Callable[..., Any]
    """Makes the last stage: `build(*arguments, device, batch_size, num_threads)`."""
    arguments: tuple[Any, ...]
    """First arguments of `build`."""
    face_embedding: FaceEmbeddingConfig | None = None
    """Faces that get an appearance vector; None: no face."""
    decoder: Decoder = "pyav"
    """Library that decodes the files it can."""

    def run(self, job: str, shards: list[Shard]) -> dict[str, Any]:
        """Finish the unfinished shards; return the stages' counts and seconds, for run.json."""
        left = [shard for shard in shards if not shard.is_finished()]
        for shard in shards:
            if shard not in left:
                storage.delete(shard.state)  # stays where a run was killed after _SUCCESS
        wanted = self.resources
        if left:
            cluster.wait_for(
                cpus=wanted.min_cpus, gpus=wanted.min_gpus, seconds=wanted.wait_seconds
            )
        monitor = stages.start_monitor(job)
        to_do = [commits.to_do(shard) for shard in left]
        num_segments = sum(segments for segments, _ in to_do)
        start_time, start_seconds = time.time(), time.perf_counter()
        sizes = self._sizes()
        workers = sizes.num_decoders + sizes.num_embedders
        with Progress(monitor, num_segments, sum(s for _, s in to_do), workers) as progress:
            for shard in left:
                self._run_shard(shard, monitor)
            time.sleep(0.2 if left else 0)  # the last reports still arrive
            totals, nodes = progress.totals()
            began = ray.get(monitor.when_began.remote())
            if left:
                logger.info("%s", progress.line())
        monitor.end.remote()
        return {
            "stages": totals,
            "stage_nodes": nodes,
            "node_labels": cluster.node_labels(
                {n for of_stage in nodes.values() for n in of_stage}
            ),
            "pools": dataclasses.asdict(self._workers()) if left else {},
            "seconds": time.perf_counter() - start_seconds,
            # until then workers start, networks load, and the first images are decoded
            "seconds_until_networks": max(0.0, began.get("embed", start_time) - start_time),
        }

    def _sizes(self) -> pools.PoolSizes:
        return pools.pool_sizes(self.resources.decoders, self.resources.embedders)

    def _workers(self) -> Workers:
        sizes = self._sizes()
        return Workers(
            num_decoders=sizes.num_decoders,
            num_embedders=sizes.num_embedders,
            embedder_threads=sizes.embedder_threads,
            num_gpus=cluster.num_gpus(),
            num_cores=cluster.physical_cpus(),
            num_nodes=cluster.num_nodes(),
        )

    def _run_shard(self, shard: Shard, monitor: Any) -> None:
        for _ in range(SHARD_TRIES):
            commits.undo_unfinished(shard)
            self._write_rows(shard, monitor)
            left = commits.settle(shard)
            if not left:
                break
            logger.warning("%d segments of %s are not committed: again", left, shard.folder)
        else:
            raise RuntimeError(
                f"{left} segments of {shard.folder} are not committed after {SHARD_TRIES} tries: "
                "check that no other job writes there, and run the same command again."
            )
        storage.write_bytes(storage.join(shard.folder, SUCCESS), b"")
        storage.delete(shard.state)

    def _write_rows(self, shard: Shard, monitor: Any) -> None:
        """Run the stages over the shard's segments that Ray's checkpoint does not name."""
        sizes = self._sizes()
        has_gpu = sizes.embedder_gpus > 0
        detect_on_gpu = has_gpu and DETECTORS[self.config.detector].runs_on_gpu
        context = ray.data.DataContext.get_current()
        context.checkpoint_config = ray.data.checkpoint.CheckpointConfig(
            id_column="segment_id",
            checkpoint_path=storage.normalise(storage.join(shard.state, "checkpoint")),
            override_filesystem=storage.filesystem(shard.state)[0],
            delete_checkpoint_on_success=False,
        )
        files, plan_path = storage.filesystem(shard.plan)
        rows = ray.data.read_parquet(plan_path, filesystem=files)
        if not has_gpu:
            rows = rows.map_batches(longest_first, batch_size=None, batch_format="pyarrow")
        rows = rows.repartition(target_num_rows_per_block=1)
        decoding = self.config.segment_config(
            detect_here=not detect_on_gpu, face_embedding=self.face_embedding, decoder=self.decoder
        )
        tries = storage.join(shard.state, "tries")
        rows = rows.map_batches(
            stages.Staged,
            fn_constructor_args=(
                "decode", SegmentDecoder, (decoding, self.limits, tries), monitor
            ),
            batch_size=1,
            batch_format="pyarrow",
            compute=actors(sizes.num_decoders),
            num_cpus=sizes.decoder_cpus,
            label_selector=sizes.decode_on or None,
        )  # fmt: skip
        if detect_on_gpu:
            rows = rows.map_batches(
                stages.Staged,
                fn_constructor_args=(
                    "detect", FaceCropper, (self.config, "cuda", self.face_embedding), monitor
                ),
                batch_size=1,
                batch_format="pyarrow",
                compute=actors(sizes.num_embedders),
                num_cpus=sizes.embedder_cpus,
                num_gpus=0.3,
                label_selector=sizes.embed_on or None,
            )  # fmt: skip
        device = "cuda" if has_gpu else "cpu"
        batch = self.resources.embed_batch or (128 if has_gpu else 16)
        arguments = (*self.arguments, device, batch, sizes.embedder_threads)
        together = self.resources.embed_segments or segments_together(
            mean_frames(shard.plan, self.config.fps), batch * (8 if has_gpu else 1)
        )
        rows = rows.map_batches(
            stages.Staged,
            fn_constructor_args=("embed", self.build, arguments, monitor),
            batch_size=together,
            batch_format="pyarrow",
            compute=actors(sizes.num_embedders),
            num_cpus=sizes.embedder_cpus,
            num_gpus=(0.7 if detect_on_gpu else 1.0) if has_gpu else 0,
            label_selector=sizes.embed_on or None,
        )
        files, folder = storage.filesystem(shard.folder)
        rows.write_parquet(folder, filesystem=files, compression="zstd")
        context.checkpoint_config = None


def actors(count: int, *, at_hand: int = TASKS_AT_HAND) -> ray.data.ActorPoolStrategy:
    """`count` actors for a stage; Ray gives each `at_hand` batches, the running one included.

    A batch that is given to an actor stays with it. With four at a time, one of two embedders on a
    CPU got the last rounds, of half a minute each, and the other none. With one at a time an actor
    waits for Ray, which looks every 0.1 s, before each batch. Where a batch takes a second, that
    costs 5% of the frames per second (bf16 on 2 cores, 1,296 frames: 11.4 against 12.0; our
    measurements).

    A batch runs in the actor's main thread. By default Ray uses a second thread, from whose heaps
    of 64 MB glibc returns a network's memory after every layer (`keep_freed_memory`).
    """
    return ray.data.ActorPoolStrategy(
        size=count, max_tasks_in_flight_per_actor=at_hand, enable_true_multi_threading=True
    )


def segments_together(mean_frames_per_segment: float, num_frames: int) -> int:
    """Number of average-length segments needed to fill `num_frames`, at most 128.

    Of the passes over segments that are embedded together, only the last is not full. On a GPU it
    costs as much as a full one, which is little beside eight. On a CPU it costs what its images
    cost, and short rounds leave no worker idle at the end.
    """
    return min(MAX_SEGMENTS_TOGETHER, math.ceil(num_frames / max(1.0, mean_frames_per_segment)))
