"""What extract and label share: the stages on Ray Data, shard by shard, and the record of a run."""

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from caan import config as configs
from caan import schema, storage
from caan.datasets.registry import face_crops_of, require_context
from caan.errors import InputError
from caan.extraction.config import CutConfig, ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.extraction.gpu_detection import FaceCutter
from caan.extraction.keyframes import estimated_savings
from caan.faces.detection import GPU_DETECTORS
from caan.outputs import commits, layout
from caan.outputs.layout import SUCCESS, Shard
from caan.outputs.plan import WATCHED, check_manifest, plan_segments
from caan.outputs.throughput import Pools, limit_of
from caan.people.config import FaceEmbeddingConfig
from jobs.runtime import cluster, pools, stages
from jobs.runtime import progress as progress_

logger = logging.getLogger(__name__)

FORECAST = ".forecast.json"
"""Where the prediction of `--plan-only` waits, in the output folder, for the run that it is
compared with. A name with a dot, so that the folder still counts as empty."""

SHARD_TRIES = 3
"""Runs of a shard until all its segments are committed; more than one where a writer that a kill
left behind got between."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How the cluster is used; nothing here changes a result."""

    decoders: int = 0
    """Decoding actors; 0: from the cluster's cores."""
    embedders: int = 0
    """Actors that hold the networks; 0: one per GPU, else one per 16 cores, two on two cores."""
    embed_batch: int = 0
    """Pictures per pass of a network; 0: 128 on a GPU, 16 on a CPU."""
    embed_segments: int = 0
    """Segments whose pictures are put together to fill those batches; 0: as many as have, by the
    plan, eight passes of pictures on a GPU and one on a CPU, at most 128."""
    min_cpus: int = 0
    """CPU slots to ask the cluster's autoscaler for and to wait for, before pools are sized."""
    min_gpus: int = 0
    """GPUs to wait for, likewise."""
    wait_seconds: float = 900.0
    """Longest wait for them."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """segments -> pictures -> the last stage's rows, on a running Ray."""

    config: ExtractionConfig
    """What is read from each video."""
    limits: SandboxConfig
    """Limits on the decoding of a segment."""
    resources: Resources
    """How the cluster is used."""
    build: Callable[..., Any]
    """Makes the last stage: `build(*arguments, device, batch_size, num_threads)`."""
    arguments: tuple[Any, ...]
    """Its first arguments."""
    identity: FaceEmbeddingConfig | None = None
    """Which faces get a vector that tells people apart; None: none."""

    def run(self, job: str, shards: list[Shard]) -> dict[str, Any]:
        """Finish the unfinished shards; gives the counts of each stage and the seconds it took."""
        left = [shard for shard in shards if not shard.is_finished()]
        for shard in shards:
            if shard not in left:
                storage.delete(shard.state)  # a kill may have come right before
        wanted = self.resources
        if left:
            cluster.wait_for(
                cpus=wanted.min_cpus, gpus=wanted.min_gpus, seconds=wanted.wait_seconds
            )
        monitor = stages.start_monitor(job)
        to_do = [commits.to_do(shard) for shard in left]
        num_segments = sum(segments for segments, _ in to_do)
        start_time, start_seconds = time.time(), time.perf_counter()
        with progress_.Progress(monitor, num_segments, sum(s for _, s in to_do)) as progress:
            for shard in left:
                self._run_shard(shard, monitor)
            time.sleep(0.2 if left else 0)  # the last reports are on their way
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
            "pools": dataclasses.asdict(self._pools()) if left else {},
            "seconds": time.perf_counter() - start_seconds,
            # workers start, networks load, the first pictures are cut
            "seconds_until_networks": max(0.0, began.get("embed", start_time) - start_time),
        }

    def _pools(self) -> Pools:
        sizes = pools.pool_sizes(self.resources.decoders, self.resources.embedders)
        return Pools(
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
            raise RuntimeError(f"{left} segments of {shard.folder} cannot be committed")
        storage.write_bytes(storage.join(shard.folder, SUCCESS), b"")
        storage.delete(shard.state)

    def _write_rows(self, shard: Shard, monitor: Any) -> None:
        sizes = pools.pool_sizes(self.resources.decoders, self.resources.embedders)
        has_gpu = sizes.embedder_gpus > 0
        detect_on_gpu = has_gpu and self.config.detector in GPU_DETECTORS
        cut: CutConfig = self.config.cut_config(
            detect_here=not detect_on_gpu, identity=self.identity
        )
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
        tries = storage.join(shard.state, "tries")
        rows = rows.map_batches(
            stages.Staged,
            fn_constructor_args=("decode", SegmentDecoder, (cut, self.limits, tries), monitor),
            batch_size=1,
            batch_format="pyarrow",
            compute=actor_pool(sizes.num_decoders, at_hand=2),
            num_cpus=sizes.decoder_cpus,
            label_selector=sizes.decode_on or None,
        )
        if detect_on_gpu:
            rows = rows.map_batches(
                stages.Staged,
                fn_constructor_args=(
                    "detect",
                    FaceCutter,
                    (self.config, "cuda", self.identity),
                    monitor,
                ),
                batch_size=1,
                batch_format="pyarrow",
                compute=actor_pool(sizes.num_embedders, at_hand=2),
                num_cpus=sizes.embedder_cpus,
                num_gpus=0.3,
                label_selector=sizes.embed_on or None,
            )
        device = "cuda" if has_gpu else "cpu"
        batch = self.resources.embed_batch or (128 if has_gpu else 16)
        arguments = (*self.arguments, device, batch, sizes.embedder_threads)
        together = self.resources.embed_segments or segments_together(
            shard.plan, self.config.fps, batch * (8 if has_gpu else 1)
        )
        rows = rows.map_batches(
            stages.Staged,
            fn_constructor_args=("embed", self.build, arguments, monitor),
            batch_size=together,
            batch_format="pyarrow",
            compute=actor_pool(sizes.num_embedders, at_hand=2),
            num_cpus=sizes.embedder_cpus,
            num_gpus=(0.7 if detect_on_gpu else 1.0) if has_gpu else 0,
            label_selector=sizes.embed_on or None,
        )
        files, folder = storage.filesystem(shard.folder)
        rows.write_parquet(folder, filesystem=files, compression="zstd")
        context.checkpoint_config = None


def actor_pool(size: int, *, at_hand: int) -> ray.data.ActorPoolStrategy:
    """Actors of a stage, each with so many batches given to it, the one in work included.

    What is given to an actor stays with it. Where Ray gave four at a time, one of two embedders on
    a CPU had the last rounds, of half a minute each, and the other none. With one at a time it
    waits for Ray, which looks every 0.1 s, before each next: 5% of the frames a second where a
    round takes a second (bf16 on 2 cores, 1,296 frames: 11.4 and 12.0; our measurements).

    One batch at a time, in the actor's main thread. Ray by itself takes a second one, from whose
    heaps, of 64 MB, glibc gives a network's memory back after every layer (`keep_freed_memory`).
    """
    return ray.data.ActorPoolStrategy(
        size=size, max_tasks_in_flight_per_actor=at_hand, enable_true_multi_threading=True
    )


def longest_first(segments: pa.Table) -> pa.Table:
    """The segments, those of the longest time first and of one video in its order.

    A segment of 128 frames takes a VGG on one core more than a minute: where it came last, the
    other cores had nothing to do meanwhile. On a GPU it takes a second, and rounds of many segments
    are more alike in the order of the plan.
    """
    seconds = pc.subtract(segments["end_seconds"], segments["start_seconds"])
    return segments.take(pc.sort_indices(pc.negate(seconds)))


def segments_together(plan: str, fps: float, num_frames: int) -> int:
    """Segments that have, by the plan's mean, so many frames: their pictures are embedded together.

    Only the last pass over them is not full. On a GPU it costs as much as a full one, a tenth of
    eight; on a CPU it costs what its pictures cost, and short rounds leave no worker without work
    at the end. Segments of full length have that many alone.
    """
    times = storage.read_table(plan, ["start_seconds", "end_seconds"])
    seconds = pc.sum(pc.subtract(times["end_seconds"], times["start_seconds"])).as_py() or 0.0
    mean = max(1.0, fps * seconds / max(1, times.num_rows))
    return min(128, math.ceil(num_frames / mean))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One output folder and what is to be in it."""

    job_name: str
    """extract or label."""
    manifest_uri: str
    """The manifest."""
    output: str
    """The output folder."""
    table: str
    """Name of the table with a row per segment."""
    config: ExtractionConfig
    """What is read from each video."""
    identity: dict[str, Any]
    """Detector, backbones and model with their hashes: part of the fingerprint."""
    whole_config: dict[str, Any]
    """All options of the job, for the record."""
    retry_failed: bool
    """Do failed videos again."""
    on_change: str
    """error or recompute."""
    min_ok: float
    """Lowest accepted share of good videos."""
    modalities: tuple[str, ...] = ()
    """What the model looks at; empty: no model is at work."""
    face_policy: str = ""
    """Whose rows are wanted in the end; empty: as the config says."""

    def process(self, pipeline: Pipeline) -> dict[str, Any]:
        """Plan, run the stages over what is left, and give the record of the run.

        Raises:
            InputError: a bad manifest, an output made with other options, or cut-out faces for a
                model that looks at whole frames.
        """
        if not 0.0 <= self.min_ok <= 1.0:
            raise InputError(f"--min-ok {self.min_ok} is not a share from 0 to 1.")
        if self.config.cascade and self.config.no_face == "context_only":
            raise InputError(
                "--cascade leaves out frames without a face, and with `--no-face context_only` "
                "they count: leave out one of the two."
            )
        table = storage.read_table(self.manifest_uri)
        manifest = check_manifest(table, self.manifest_uri)
        require_context(face_crops_of(table), self.modalities)
        policy = self.face_policy or self.config.face_policy
        if policy == "marked" and manifest["face_box"].null_count:
            raise InputError(
                f"--face-policy marked needs a face_box for every video, and manifest "
                f"`{self.manifest_uri}` has {manifest['face_box'].null_count} without: give them "
                "in a list to jobs.index, or use --face-policy main."
            )
        of = configs.to_dict(self.config) | self.identity
        fingerprint = configs.fingerprint(of)
        layout.open_output(self.output, of, fingerprint, self.on_change)
        for name in ("face", "context"):
            if self.identity.get(f"{name}_is_random"):
                logger.warning(
                    "the %s backbone has RANDOM weights: its vectors mean nothing to people", name
                )
        plan = plan_segments(
            manifest, fps=self.config.fps, segment_frames=self.config.segment_frames
        )
        shards = layout.extend_plan(
            self.output,
            self.table,
            plan,
            retry_failed=self.retry_failed,
            recompute_changed=self.on_change == "recompute",
            watched=(*WATCHED, "face_box") if self.config.face_policy == "marked" else WATCHED,
        )
        storage.write_table(manifest, storage.join(self.output, "manifest.parquet"))
        cluster.start()
        cluster.configure_data()
        logger.info(
            "%d videos, %d segments, %.0f seconds of video; detector %s, backbones %s and %s",
            manifest.num_rows,
            plan.num_rows,
            pc.sum(pc.subtract(plan["end_seconds"], plan["start_seconds"])).as_py() or 0.0,
            self.config.detector,
            self.config.face_backbone,
            self.config.context_backbone,
        )
        run_file = storage.join(self.output, "run.json")
        before = storage.read_json(run_file)
        if before["is_complete"] and all(shard.is_finished() for shard in shards):
            # A repeated command finds nothing to do: the figures stay those of the real run.
            names = ("stages", "stage_nodes", "node_labels", "pools", "seconds")
            counts = {name: before.get(name, {}) for name in names}
            counts["seconds_until_networks"] = before.get("seconds_until_networks")
        else:
            storage.write_json(run_file, before | {"is_complete": False})
            counts = pipeline.run(self.job_name, shards)
        return {
            "job": self.job_name,
            "is_complete": True,
            "fingerprint": fingerprint,
            "fingerprint_of": of,
            "config": self.whole_config,
            "identity": self.identity,
            "versions": layout.versions(),
            "face_crops": face_crops_of(table),
            "num_videos": manifest.num_rows,
            "num_segments": plan.num_rows,
            **throughput(counts),
            "cascade": estimated_savings(counts["stages"].get("decode", {})),
            "balance": balance_of(counts, self._forecast()),
            **counts,
        }

    def _forecast(self) -> dict[str, Any] | None:
        path = storage.join(self.output, FORECAST)
        return storage.read_json(path) if storage.exists(path) else None

    def statuses(self) -> Counter[str]:
        """How many videos have which status, by their segments."""
        statuses: dict[str, list[str]] = {}
        columns = ["video_id", "attempt", "status"]
        for table in layout.latest_segments(self.output, self.table, columns):
            for row in table.to_pylist():
                statuses.setdefault(row["video_id"], []).append(row["status"])
        return Counter(schema.video_status(of_video) for of_video in statuses.values())

    def finish(self, record: dict[str, Any], counts: Counter[str]) -> int:
        """Write run.json with these statuses of the videos and give the exit code."""
        good = sum(counts[status] for status in schema.GOOD_STATUSES)
        share = good / max(1, record["num_videos"])
        record |= {"statuses": dict(sorted(counts.items())), "good_share": share}
        storage.write_json(storage.join(self.output, "run.json"), record)
        logger.info(
            "%s: %s; %.1f frames/s, %.1f x real time, networks %.0f%% of the work, %.1f s",
            self.output,
            ", ".join(f"{count} {status}" for status, count in sorted(counts.items())),
            record["frames_per_second"],
            record["times_real_time"],
            100 * record["network_share"],
            record["seconds"],
        )
        if record["cascade"] is not None:
            logger.info("%s", cascade_line(record["cascade"]))
        if record["balance"]:
            logger.info("%s", balance_line(record["balance"]))
        if share < self.min_ok:
            logger.error(
                "only %.1f%% of the videos were read, and --min-ok asks for %.1f%%",
                100 * share,
                100 * self.min_ok,
            )
            return 1
        return 0


def pools_of(counts: dict[str, Any]) -> Pools:
    """The workers of a run, from what `Pipeline.run` gave."""
    return Pools(**counts["pools"])


def balance_of(counts: dict[str, Any], forecast: dict[str, Any] | None) -> dict[str, Any]:
    """The stage that limited a run, how near it came to its limit, and what was predicted."""
    if not counts["pools"]:
        return {}
    stage, share = limit_of(counts["stages"], pools_of(counts), counts["seconds"])
    if not stage:
        return {}
    return {
        "limiting_stage": stage,
        "share_of_its_limit": share,
        "predicted_frames_per_second": forecast and forecast["frames_per_second"],
        "predicted_hours": forecast and forecast["hours"],
    }


def balance_line(balance: dict[str, Any]) -> str:
    """The same for the log."""
    told = (
        f"`{balance['limiting_stage']}` limited the run, which reached "
        f"{100 * balance['share_of_its_limit']:.0f}% of its limit"
    )
    if balance["predicted_frames_per_second"]:
        told += f"; predicted were {balance['predicted_frames_per_second']:.1f} frames/s"
    return told


def cascade_line(savings: dict[str, float | None]) -> str:
    """What the cascade spared, for the log."""
    saved = ", ".join(
        f"{savings[f'saved_seconds_{name}']:.1f} s of {what}"
        for name, what in (("decode", "decoding"), ("detect", "detection"))
        if savings[f"saved_seconds_{name}"] is not None
    )
    return (
        f"cascade: {savings['frames_looked']:.0f} key frames looked at, "
        f"{savings['frames_skipped']:.0f} frames skipped, {savings['frames_sampled']:.0f} sampled; "
        f"about {saved or 'an unknown time'} saved"
    )


def throughput(counts: dict[str, Any]) -> dict[str, float]:
    """Frames per second, times real time, share of the networks and mean batch fill of a run."""
    embed = counts["stages"].get("embed", {})
    decode = counts["stages"].get("decode", {})
    seconds = counts["seconds"] or 1.0
    networks = embed.get("seconds_networks", 0.0)
    work = networks + decode.get("seconds_decode", 0.0) + decode.get("seconds_detect", 0.0)
    return {
        "frames_per_second": embed.get("frames", 0.0) / seconds,
        "times_real_time": (embed.get("video_seconds", 0.0) + decode.get("skipped_seconds", 0.0))
        / seconds,
        "network_share": networks / work if work else 0.0,
        "batch_fill": embed.get("pictures", 0.0) / (embed.get("batch_places", 0.0) or 1.0),
    }
