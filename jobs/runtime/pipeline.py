"""The stages of a run as one Ray Data pipeline: decode, detect on a GPU, embed, write."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from caan.errors import StorageError
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.deaths import deaths_of
from caan.extraction.decode import SegmentDecoder
from caan.extraction.gpu_detection import FaceCropper
from caan.faces.build import DETECTORS
from caan.media.config import Decoder
from caan.outputs import layout
from caan.outputs.committer import Committer
from caan.outputs.plan import Plan, longest_first, unit_sizes
from caan.outputs.throughput import Workers
from caan.people.config import FaceEmbeddingConfig
from jobs.runtime import cluster, pools, stages
from jobs.runtime.options import Resources
from jobs.runtime.progress import Progress

logger = logging.getLogger(__name__)

ROUNDS = 3
"""Runs of the pipeline until all segments count. More than one is needed where a lost node's tasks
were repeated."""

MAX_SEGMENTS_TOGETHER = 128
"""Most segments whose images are embedded together."""

TASKS_AT_HAND = 2
"""Batches that Ray gives to an actor at a time, the running one included."""

MAX_UNITS_TOGETHER = 16
"""Most units of one decoding task: short videos."""

BLOCK_BYTES = 32 << 20
"""Size at which a stage passes its rows on: about one segment's images."""

FILE_BYTES = 64 << 20
"""Most bytes of rows in one row file, before compression."""

FILES_PER_WORKER = 16
"""Row files that each embedding worker gets at least, where there are so many segments: a killed
run loses the rows that no file holds yet."""

MAX_CPU_FILE_SEGMENTS = 16
"""Most segments of one row file without a GPU, where a segment takes up to a minute."""


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
    table: str
    """Table that the rows of the last stage go to."""
    frame_bytes: int
    """About the bytes of a row per frame, which sizes the row files."""
    face_embedding: FaceEmbeddingConfig | None = None
    """Faces that get an appearance vector; None: no face."""
    decoder: Decoder = "pyav"
    """Library that decodes the files it can."""

    def run(
        self, job: str, plan: Plan, committer: Committer, wanted_N: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Run the stages over the segments that do not count yet, or those of `wanted_N`.

        Returns the stages' counts and seconds, for run.json.
        """
        left_N = self._left(plan, committer, wanted_N)
        wanted = self.resources
        if left_N.any():
            cluster.wait_for(
                cpus=wanted.min_cpus, gpus=wanted.min_gpus, seconds=wanted.wait_seconds
            )
        monitor = stages.start_monitor(job, deaths_of(committer.writer.state.segments))
        start_time, start_seconds = time.time(), time.perf_counter()
        sizes = self._sizes()
        workers = sizes.num_decoders + sizes.num_embedders
        did_run = bool(left_N.any())
        with Progress(monitor, int(left_N.sum()), plan.seconds(left_N), workers) as progress:
            for _ in range(ROUNDS):
                if not left_N.any():
                    break
                for receipts in self._receipts(plan, left_N, committer, monitor):
                    committer.add(receipts)
                committer.flush()
                left_N = self._left(plan, committer, wanted_N)
            time.sleep(0.2 if did_run else 0)  # the last reports still arrive
            totals, nodes = progress.totals()
            began = ray.get(monitor.when_began.remote())
            if did_run:
                logger.info("%s", progress.line())
        monitor.end.remote()
        if left_N.any():
            raise StorageError(
                f"{left_N.sum()} segments are not done after {ROUNDS} rounds, since workers were "
                "lost again and again: run the same command again."
            )
        return {
            "stages": totals,
            "stage_nodes": nodes,
            "node_labels": cluster.node_labels(
                {n for of_stage in nodes.values() for n in of_stage}
            ),
            "pools": dataclasses.asdict(self._workers()) if did_run else {},
            "seconds": time.perf_counter() - start_seconds,
            # until then workers start, networks load, and the first images are decoded
            "seconds_until_networks": max(0.0, began.get("embed", start_time) - start_time),
        }

    def _left(self, plan: Plan, committer: Committer, wanted_N: np.ndarray | None) -> np.ndarray:
        left_N = plan.not_in(committer.writer.state.segments)
        return left_N if wanted_N is None else left_N & wanted_N

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

    def _receipts(
        self, plan: Plan, left_N: np.ndarray, committer: Committer, monitor: Any
    ) -> Iterator[pa.Table]:
        """Receipts of the row files of one run of the stages, as they are written."""
        sizes = self._sizes()
        has_gpu = sizes.embedder_gpus > 0
        detect_on_gpu = has_gpu and DETECTORS[self.config.detector].runs_on_gpu
        ray.data.DataContext.get_current().target_max_block_size = BLOCK_BYTES
        units = plan.units(left_N, unit_sizes(plan, left_N, sizes.num_decoders))
        if not has_gpu:
            units = longest_first(units)
        num_left = int(left_N.sum())
        frames_per_segment = max(1.0, self.config.fps * plan.seconds(left_N) / num_left)
        units_together = min(
            MAX_UNITS_TOGETHER, max(1, units.num_rows // (16 * sizes.num_decoders))
        )
        blocks = [units.slice(start, 1000) for start in range(0, units.num_rows, 1000)]
        rows = ray.data.from_arrow(blocks).repartition(target_num_rows_per_block=units_together)
        decoding = self.config.segment_config(
            detect_here=not detect_on_gpu, face_embedding=self.face_embedding, decoder=self.decoder
        )
        arguments = decoding, self.limits, stages.SharedDeathLog(monitor)
        rows = rows.map_batches(
            stages.Staged,
            fn_constructor_args=("decode", SegmentDecoder, arguments, monitor),
            batch_size=None,
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
        building = (*self.arguments, device, batch, sizes.embedder_threads)
        together = self.resources.embed_segments or segments_together(
            frames_per_segment, batch * (8 if has_gpu else 1)
        )
        rows = rows.map_batches(
            stages.Staged,
            fn_constructor_args=("embed", self.build, building, monitor),
            batch_size=together,
            batch_format="pyarrow",
            compute=actors(sizes.num_embedders),
            num_cpus=sizes.embedder_cpus,
            num_gpus=(0.7 if detect_on_gpu else 1.0) if has_gpu else 0,
            label_selector=sizes.embed_on or None,
        )
        most = FILE_BYTES / (self.frame_bytes * frames_per_segment)
        rows = rows.map_batches(
            partial(layout.write_rows, output=committer.writer.output, table=self.table),
            batch_size=segments_per_file(
                num_left, sizes.num_embedders, most if has_gpu else min(most, MAX_CPU_FILE_SEGMENTS)
            ),
            batch_format="pyarrow",
            num_cpus=0.5,
        )
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


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


def segments_per_file(num_left: int, num_workers: int, most: float) -> int:
    """Segments of a row file: at most `most`, fewer where each worker has few segments."""
    return max(1, min(int(most), num_left // (FILES_PER_WORKER * num_workers)))
