"""List videos and probe their headers: a folder, glob, s3:// prefix, CSV or Parquet -> manifest.

python -m jobs.index --input videos/ --output manifest.parquet

Folders named after emotions (anger/, happy/, ...) label the videos in them, folders named train,
val or test above them give the split. A CSV or Parquet list has a column `uri` or `path` and may
have label, split, start_seconds, end_seconds, gender, age_range, face_box and others of the
manifest. Files that cannot be read become rows with a status.
"""

import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray

from caan import storage
from caan.datasets.registry import DATASETS, check_labels, check_splits, compare_counts
from caan.errors import InputError
from caan.extraction.probe import IndexProber
from caan.schema import MANIFEST_SCHEMA, table_of
from jobs.runtime import cli, cluster, stages

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.index."""

    input: str
    """Folder, glob, s3://bucket/prefix, CSV or Parquet list."""
    output: str
    """The manifest to write: a .parquet file, local or s3://."""
    dataset: str = "folder"
    """Layout of the input: folder (class folders give labels) or a data set's name."""
    lists: str = ""
    """Folder of the published train and test lists; empty: somewhere under the input."""
    published_split: int = 1
    """Number of the published train-test split, from 1."""
    shared_videos: Literal["error", "keep"] = "error"
    """What to do with videos that are in more than one split, by id or content."""
    split: str = ""
    """Split of videos that the input gives none for: train, val or test."""
    probes: int = 0
    """Probing actors; 0: one per core."""


def list_rows(job: Job) -> list[dict[str, Any]]:
    """Rows of the data set, checked, not probed yet.

    Raises:
        InputError: no videos, foreign labels, or splits that share videos.
    """
    dataset = DATASETS[job.dataset]
    if not 1 <= job.published_split <= dataset.num_splits:
        raise InputError(
            f"--published-split {job.published_split}: data set `{job.dataset}` has the splits "
            f"1 to {dataset.num_splits}."
        )
    rows = dataset.read(job.input, job.lists, job.published_split)
    if not rows:
        raise InputError(f"no video is under `{job.input}`: check the path.")
    check_labels(rows, dataset, job.dataset)
    if job.shared_videos == "error":
        check_splits(rows)
    for sentence in compare_counts(rows, dataset):
        logger.info("%s, %s", job.dataset, sentence)
    if dataset.is_face_crops:
        logger.warning("%s holds cut-out faces only: use no context branch", job.dataset)
    return rows


def main(job: Job) -> int:
    """Write the manifest; gives the exit code."""
    if job.dataset not in DATASETS:
        raise InputError(
            f"option `dataset` is `{job.dataset}`; choose one of {', '.join(DATASETS)}"
        )
    if not job.output.endswith(".parquet"):
        raise InputError(f"--output `{job.output}` must name a .parquet file.")
    storage.check_writable(job.output.rpartition("/")[0] or ".")
    start_seconds = time.perf_counter()
    rows = list_rows(job)
    rows = [row | {"split": row.get("split") or job.split or None} for row in rows]
    logger.info("%d videos listed in %.1f s", len(rows), time.perf_counter() - start_seconds)
    cluster.start()
    cluster.configure_data()
    table = table_of(rows, MANIFEST_SCHEMA)
    probes = job.probes or max(1, cluster.physical_cpus())
    monitor = stages.start_monitor("index")
    probed = (
        ray.data.from_arrow([table.slice(n, 32) for n in range(0, table.num_rows, 32)])
        .map_batches(
            stages.Staged,
            fn_constructor_args=("probe", IndexProber, (), monitor),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=probes),
            num_cpus=min(1.0, 2.0 / probes),
        )
        .to_arrow_refs()
    )
    manifest = pa.concat_tables(ray.get(probed)).cast(MANIFEST_SCHEMA).sort_by("uri")
    monitor.end.remote()
    facts = {"dataset": job.dataset, "face_crops": str(DATASETS[job.dataset].is_face_crops)}
    storage.write_table(manifest.replace_schema_metadata(facts), job.output)
    statuses = Counter(manifest["status"].to_pylist())
    seconds = time.perf_counter() - start_seconds
    hours = sum(manifest["duration_seconds"].drop_null().to_pylist()) / 3600
    logger.info(
        "%s: %d videos, %.2f hours, %s, in %.1f s",
        job.output,
        manifest.num_rows,
        hours,
        ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())),
        seconds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
