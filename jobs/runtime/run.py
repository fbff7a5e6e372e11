"""One output folder of extract, label or finetune: open it, plan, process, record."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from caan import config as configs
from caan import schema, storage
from caan.datasets.registry import face_crops_of, require_context
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig
from caan.extraction.keyframes import estimated_savings
from caan.outputs import layout
from caan.outputs.committer import Committer
from caan.outputs.lease import Lease
from caan.outputs.log import RECEIPTS_SCHEMA, LogWriter
from caan.outputs.plan import WATCHED, Plan, changed_videos, check_manifest
from caan.outputs.plan import plan as make_plan
from caan.outputs.throughput import Workers, limit_of
from jobs.runtime import cluster
from jobs.runtime.pipeline import Pipeline

logger = logging.getLogger(__name__)

FORECAST = ".forecast.json"
"""Prediction of `--plan-only` in the output folder, with which the run is compared. The name has a
dot, so that the folder still counts as empty."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One output folder, and what the job writes there."""

    job_name: str
    """extract, label or finetune."""
    manifest: str
    """The manifest; local or s3://."""
    output: str
    """The output folder; local or s3://."""
    config: ExtractionConfig
    """What is read from each video."""
    networks: dict[str, Any]
    """Detector, backbones and model with their weights fingerprints."""
    whole_config: dict[str, Any]
    """All options of the job, for the record."""
    retry_failed: bool = False
    """Read failed segments again."""
    on_change: str = "error"
    """error or recompute."""
    take_over: bool = False
    """Take an expired lease."""
    min_ok: float = 0.0
    """Lowest accepted share of good videos."""
    modalities: tuple[str, ...] = ()
    """What the model sees: face, context or both; empty: there is no model."""
    face_policy: str = ""
    """Whose rows are wanted in the end; empty: as `config` says."""

    @contextlib.contextmanager
    def opened(self) -> Iterator["OpenRun"]:
        """Hold the output: no other driver writes there meanwhile.

        Raises:
            InputError: a bad option or manifest, an output made with other options or held by
                another driver, or a data set of face crops with a model that sees whole frames.
        """
        self._check_options()
        table, manifest = self._read_manifest()
        fingerprint_of = configs.to_dict(self.config) | self.networks
        fingerprint = configs.fingerprint(fingerprint_of)
        is_changed = layout.open_output(self.output, fingerprint_of, fingerprint, self.on_change)
        with Lease(self.output, self.job_name, take_over=self.take_over) as lease:
            writer = LogWriter(self.output, lease.writer)
            if is_changed:
                layout.clear(writer)
                layout.begin_record(self.output, fingerprint_of, fingerprint)
            yield OpenRun(self, writer, manifest, face_crops_of(table))

    def _check_options(self) -> None:
        if not 0.0 <= self.min_ok <= 1.0:
            raise InputError(f"--min-ok {self.min_ok} must be a share from 0 to 1.")
        if self.config.cascade and self.config.no_face == "context_only":
            raise InputError(
                "--cascade drops frames without a face, which `--no-face context_only` keeps: "
                "leave out one of the two."
            )

    def _read_manifest(self) -> tuple[pa.Table, pa.Table]:
        """The manifest as it is stored, and checked."""
        table = storage.read_table(self.manifest)
        manifest = check_manifest(table, self.manifest)
        require_context(face_crops_of(table), self.modalities)
        policy = self.face_policy or self.config.face_policy
        if policy == "marked" and manifest["face_box"].null_count:
            raise InputError(
                f"--face-policy marked needs a face_box for every video, and manifest "
                f"`{self.manifest}` has {manifest['face_box'].null_count} videos without one: give "
                "them in a list to jobs.index, or use --face-policy main."
            )
        return table, manifest


@dataclass(frozen=True)
class OpenRun:
    """An output that this driver holds."""

    run: Run
    writer: LogWriter
    manifest: pa.Table
    """MANIFEST_SCHEMA."""
    face_crops: str
    """Data set of cut-out faces, if the videos are of one."""

    @property
    def output(self) -> str:
        """The output folder."""
        return self.run.output

    def process(self, pipeline: Pipeline) -> dict[str, Any]:
        """Run the stages over the segments that are left; return the record for run.json.

        Raises:
            InputError: a video changed since it was read, or the output was taken over.
        """
        config, networks = self.run.config, self.run.networks
        for name in ("face", "context"):
            if networks.get(f"{name}_is_random"):
                logger.warning("the %s backbone has RANDOM weights: its vectors mean nothing", name)
        plan = make_plan(self.manifest, fps=config.fps, segment_frames=config.segment_frames)
        self._drop_what_changed()
        if self.run.retry_failed:
            self._drop_failed()
        if plan.not_in(self.writer.state.segments).any():
            self._mark_unfinished()
        storage.write_table(self.manifest, storage.join(self.output, "manifest.parquet"))
        cluster.start()
        cluster.configure_data()
        logger.info(
            "%d videos, %d segments, %.0f seconds of video; detector %s, backbones %s and %s",
            self.manifest.num_rows,
            plan.num_segments,
            plan.seconds(),
            config.detector,
            config.face_backbone,
            config.context_backbone,
        )
        counts = self._counts(pipeline, plan)
        fingerprint_of = configs.to_dict(config) | networks
        return {
            "format": layout.FORMAT,
            "job": self.run.job_name,
            "is_complete": True,
            "fingerprint": configs.fingerprint(fingerprint_of),
            "fingerprint_of": fingerprint_of,
            "config": self.run.whole_config,
            "identity": networks,
            "versions": layout.versions(),
            "face_crops": self.face_crops,
            "num_videos": self.manifest.num_rows,
            "num_segments": self.writer.state.segments.num_rows,
            **throughput(counts),
            "cascade": estimated_savings(counts["stages"].get("decode", {})),
            "balance": balance_of(counts, self._forecast()),
            **counts,
        }

    def finish(self, record: dict[str, Any], statuses: Mapping[str, int]) -> int:
        """Write run.json with the number of videos by status; give the exit code.

        Raises:
            LostOutput: another driver has taken the output over.
        """
        self.writer.check()
        good = sum(statuses.get(status, 0) for status in schema.GOOD_STATUSES)
        share = good / max(1, record["num_videos"])
        record |= {"statuses": dict(sorted(statuses.items())), "good_share": share}
        storage.write_json(storage.join(self.output, "run.json"), record)
        logger.info(
            "%s: %s; %.1f frames/s, %.1f x real time, networks %.0f%% of the work, %.1f s",
            self.output,
            ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())),
            record["frames_per_second"],
            record["times_real_time"],
            100 * record["network_share"],
            record["seconds"],
        )
        if record["cascade"] is not None:
            logger.info("%s", cascade_line(record["cascade"]))
        if record["balance"]:
            logger.info("%s", balance_line(record["balance"]))
        if share < self.run.min_ok:
            logger.error(
                "only %.1f%% of the videos were read, and --min-ok asks for %.1f%%",
                100 * share,
                100 * self.run.min_ok,
            )
            return 1
        return 0

    def _drop_what_changed(self) -> None:
        """Remove the rows of videos whose files are not those that were read."""
        path = storage.join(self.output, "manifest.parquet")
        if not storage.exists(path):
            return
        before = check_manifest(storage.read_table(path), path)
        is_marked = self.run.config.face_policy == "marked"
        watched = (*WATCHED, "face_box") if is_marked else WATCHED
        changed = changed_videos(before, self.manifest, watched)
        read = self.writer.state.of_videos(list(changed))["video_id"].unique().to_pylist()
        if read and self.run.on_change != "recompute":
            names = ", ".join(changed[read[0]])
            at = self.manifest["video_id"].index(read[0]).as_py()
            raise InputError(
                f"`{self.manifest['uri'][at].as_py()}` changed ({names}) since this output was "
                "made: use another --output, or `--on-change recompute`."
            )
        if read:
            self._mark_unfinished()
            layout.drop_videos(self.writer, read)

    def _drop_failed(self) -> None:
        """Let the files of failed segments count no more, so that these are read again."""
        failed = self.writer.state.failed_files()
        if failed:
            self._mark_unfinished()
            self.writer.commit(RECEIPTS_SCHEMA.empty_table(), failed)

    def _mark_unfinished(self) -> None:
        """Say in run.json that segments are missing, before any is: readers refuse the output."""
        run_file = storage.join(self.output, "run.json")
        before = storage.read_json(run_file)
        if before["is_complete"]:
            storage.write_json(run_file, before | {"is_complete": False})

    def _counts(self, pipeline: Pipeline, plan: Plan) -> dict[str, Any]:
        """Run the stages; if nothing is left to do, give the figures of the run that did it."""
        before = storage.read_json(storage.join(self.output, "run.json"))
        if before["is_complete"] and not plan.not_in(self.writer.state.segments).any():
            names = ("stages", "stage_nodes", "node_labels", "pools", "seconds")
            counts = {name: before.get(name, {}) for name in names}
            counts["seconds_until_networks"] = before.get("seconds_until_networks")
            return counts
        with Committer(self.writer) as committer:
            counts = pipeline.run(self.run.job_name, plan, committer)
        self.writer.check()  # another driver's rows are no garbage
        layout.remove_garbage(self.output, pipeline.table, self.writer.state)
        return counts

    def _forecast(self) -> dict[str, Any] | None:
        path = storage.join(self.output, FORECAST)
        return storage.read_json(path) if storage.exists(path) else None


def workers_of(counts: dict[str, Any]) -> Workers:
    """The workers of a run, from what `Pipeline.run` returned."""
    return Workers(**counts["pools"])


def balance_of(counts: dict[str, Any], forecast: dict[str, Any] | None) -> dict[str, Any]:
    """The limiting stage of a run, its share of its own limit, and the prediction."""
    if not counts["pools"]:
        return {}
    stage, share = limit_of(counts["stages"], workers_of(counts), counts["seconds"])
    if not stage:
        return {}
    return {
        "limiting_stage": stage,
        "share_of_its_limit": share,
        "predicted_frames_per_second": forecast and forecast["frames_per_second"],
        "predicted_hours": forecast and forecast["hours"],
    }


def balance_line(balance: dict[str, Any]) -> str:
    """The log line of `balance_of`."""
    line = (
        f"the slowest part is `{balance['limiting_stage']}`; the run had "
        f"{100 * balance['share_of_its_limit']:.0f}% of the speed that it alone would allow"
    )
    if balance["predicted_frames_per_second"]:
        line += f"; predicted were {balance['predicted_frames_per_second']:.1f} frames/s"
    return line


def cascade_line(savings: dict[str, float | None]) -> str:
    """The log line of `estimated_savings`."""
    saved = ", ".join(
        f"{savings[f'saved_seconds_{name}']:.1f} s of {what}"
        for name, what in (("decode", "decoding"), ("detect", "detection"))
        if savings[f"saved_seconds_{name}"] is not None
    )
    return (
        f"cascade: {savings['frames_looked']:.0f} key frames searched, "
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
