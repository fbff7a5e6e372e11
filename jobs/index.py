"""List videos and probe their headers: a folder, glob, s3:// prefix, CSV or Parquet -> manifest.

python -m jobs.index --input videos/ --output manifest.parquet

Folders named after emotions (anger/, happy/, ...) label the videos in them; folders above them
named train, val or test give the split. A CSV or Parquet list has a column `uri` or `path`;
optional columns are label, split, start_seconds, end_seconds, gender, age_range, face_box and
others of the manifest. Files that cannot be read become rows with a status.
"""

import logging
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from caan.errors import InputError
from jobs.runtime import cli

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Layout = Literal[
    "folder",
    "class_folders",
    "csv",
    "heiv",
    "ekman6",
    "ve8",
    "caer",
    "afew",
    "dfew",
    "ferv39k",
    "mafw",
]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.index."""

    input: str
    """Folder, glob, s3://bucket/prefix, CSV or Parquet list."""
    output: str
    """The manifest to write: a .parquet file, local or s3://."""
    dataset: Layout = "folder"
    """Layout of the input: folder (class folders give labels) or the name of a data set."""
    lists: str = ""
    """Folder of the published train and test lists; empty: somewhere under the input."""
    published_split: int = 1
    """Number of the published train-test split, from 1."""
    shared_videos: Literal["error", "keep"] = "error"
    """What to do if one video is in more than one split, by id or by content."""
    split: str = ""
    """Split of videos that the input gives none for: train, val or test."""
    probes: int = 0
    """Actors that probe; 0: one per core."""


def main(job: Job) -> int:
    """Write the manifest; give the exit code."""
    from caan import storage
    from caan.datasets.registry import DATASETS
    from caan.schema import MANIFEST_SCHEMA, table_of

    if not job.output.endswith(".parquet"):
        raise InputError(f"--output `{job.output}` must name a .parquet file.")
    storage.check_writable(job.output.rpartition("/")[0] or ".")
    start_seconds = time.perf_counter()
    rows = [row | {"split": row.get("split") or job.split or None} for row in list_rows(job)]
    logger.info("%d videos listed in %.1f s", len(rows), time.perf_counter() - start_seconds)
    from jobs.runtime.probing import probe_rows  # imports Ray: only after the input is checked

    manifest = probe_rows(table_of(rows, MANIFEST_SCHEMA), job.probes)
    facts = {"dataset": job.dataset, "face_crops": str(DATASETS[job.dataset].is_face_crops)}
    storage.write_table(manifest.replace_schema_metadata(facts), job.output)
    seconds = time.perf_counter() - start_seconds
    logger.info("%s: %s, in %.1f s", job.output, summary(manifest), seconds)
    return 0


def list_rows(job: Job) -> list[dict[str, Any]]:
    """Rows of the data set, checked, not probed yet.

    Raises:
        InputError: no videos, foreign labels, or splits that share videos.
    """
    from caan.datasets.registry import DATASETS, check_labels, check_splits, compare_counts

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
        logger.warning("%s has face crops only: use no context branch", job.dataset)
    return rows


def summary(manifest: "pa.Table") -> str:
    """Number of videos, hours, and videos per status."""
    statuses = sorted(manifest["status"].value_counts().to_pylist(), key=lambda s: s["values"])
    counts = ", ".join(f"{status['counts']} {status['values']}" for status in statuses)
    hours = sum(manifest["duration_seconds"].drop_null().to_pylist()) / 3600
    return f"{manifest.num_rows} videos, {hours:.2f} hours, {counts}"


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
