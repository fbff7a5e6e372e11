"""Second phase of jobs.label: pool each video's segments into labels, and write sidecar files."""

import datetime
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from caan import storage
from caan.extraction.config import ExtractionConfig
from caan.labelling import video_labels
from caan.labelling.config import Kind, PoolConfig, SidecarConfig
from caan.labelling.frame_scores import SegmentScorer
from caan.labelling.sidecars import labels_as_csv, labels_as_json_lines, write_sidecars
from caan.models import checkpoint
from caan.outputs import layout
from caan.people.people import Mark
from caan.schema import MANIFEST_SCHEMA

logger = logging.getLogger(__name__)

TABLE = "segment_scores"
"""Table of the first phase."""

TABLES = ("labels", "windows", "frame_scores")
"""Tables of the second phase."""

POOL_SEGMENTS = 500
"""Most segments of one task of the second phase (about 130 MB of frame vectors)."""

FILE_VIDEOS = 16
"""Most videos whose timelines, previews and strips one task writes."""

FOLDERS = {"vtt": "timelines", "eaf": "timelines", "preview": "previews", "strip": "strips"}
"""Folder of each kind of file that is written per video."""


def model_in_memory(folder: str | Path) -> dict[str, bytes]:
    """Contents of a model folder by file name, without the backbones' weights."""
    heavy = checkpoint.BACKBONE_FILE.format("")
    return {
        path.name: path.read_bytes()
        for path in Path(folder).iterdir()
        if path.is_file() and not path.name.endswith(heavy)
    }


def unpack(files: dict[str, bytes], folder: str) -> None:
    """Write a model's files into a folder of this node."""
    for name, content in files.items():
        (Path(folder) / name).write_bytes(content)


def build_scorer(
    extraction: ExtractionConfig,
    model_refs: list[Any],
    face_embedding: str,
    device: str,
    batch_size: int,
    num_threads: int,
) -> SegmentScorer:
    """Build the last stage of the first phase on this node.

    `model_refs` holds one reference to the model's files. Ray would replace a reference that is not
    in a list by the files.
    """
    with tempfile.TemporaryDirectory(prefix="caan-model-") as folder:
        unpack(ray.get(model_refs[0]), folder)
        return SegmentScorer(extraction, folder, device, batch_size, num_threads, face_embedding)


def pool_part(
    output: str, number: int, video_files: dict[str, list[str]], files: Any, config: PoolConfig
) -> int:
    """Read the segments of some videos, write their rows, and return the number of people."""
    wanted = pa.array(sorted(video_files), pa.string())
    names = sorted({name for of_video in video_files.values() for name in of_video})
    tables = []
    for table in layout.latest_segments(output, TABLE, only=names):
        tables.append(table.filter(pc.is_in(table["video_id"], wanted)))
    with tempfile.TemporaryDirectory(prefix="caan-model-") as folder:
        unpack(files, folder)
        model = checkpoint.load_model(folder)
    marks = read_marks(output, wanted) if config.face_policy == "marked" else {}
    pooled = video_labels.pool_videos(pa.concat_tables(tables), model, config, marks)
    for name in TABLES:
        if name != "windows" or config.window_seconds:
            part = storage.join(output, name, part_name(number))
            storage.write_table(getattr(pooled, name), part)
    return pc.sum(pc.is_valid(pooled.labels["person_id"])).as_py() or 0


def part_name(number: int) -> str:
    """File name of one part of the second phase's tables."""
    return f"part-{number:05d}.parquet"


def read_marks(output: str, video_ids: pa.Array) -> dict[str, Mark]:
    """The marked person of each of these videos, from the run's manifest."""
    columns = ["video_id", "face_box", "face_pts_seconds"]
    manifest = storage.read_table(storage.join(output, "manifest.parquet"), columns)
    rows = manifest.filter(pc.is_in(manifest["video_id"], video_ids)).to_pylist()
    return {
        row["video_id"]: Mark(box=tuple(row["face_box"]), pts_seconds=row["face_pts_seconds"])
        for row in rows
        if row["face_box"] is not None
    }


def pool(output: str, model_ref: Any, config: PoolConfig) -> int:
    """Write the rows of all videos, in parts of whole videos; return the number of people.

    Each part depends only on the rows of the first phase and replaces its files as a whole. A run
    that was interrupted here repeats this phase and ends with the same tables.
    """
    video_files: dict[str, list[str]] = {}
    num_segments: dict[str, int] = {}
    for name in layout.part_files(output, TABLE):
        for video_id in storage.read_table(name, ["video_id"])["video_id"].to_pylist():
            of_video = video_files.setdefault(video_id, [])
            if not of_video or of_video[-1] != name:
                of_video.append(name)
            num_segments[video_id] = num_segments.get(video_id, 0) + 1
    parts: list[dict[str, list[str]]] = []
    size = np.inf
    for video_id in sorted(video_files, key=lambda v: (video_files[v][0], v)):
        if size + num_segments[video_id] > POOL_SEGMENTS:
            parts.append({})
            size = 0
        parts[-1][video_id] = video_files[video_id]
        size += num_segments[video_id]
    if len(parts) == 1:  # the driver has loaded torch; a task would start a worker that loads it
        num_people = pool_part(output, 0, parts[0], ray.get(model_ref), config)
    else:
        task: Any = ray.remote(num_cpus=1)(pool_part)
        tasks = [task.remote(output, n, part, model_ref, config) for n, part in enumerate(parts)]
        num_people = sum(ray.get(tasks))
    for table in TABLES:
        first_old = 0 if table == "windows" and not config.window_seconds else len(parts)
        for name in layout.part_files(output, table)[first_old:]:
            storage.delete(name)
    logger.info("%d videos labelled, with %d people", len(video_files), num_people)
    return num_people


def write_files(output: str, emotions: Sequence[str], kinds: Sequence[Kind]) -> dict[str, str]:
    """Write tables, timelines, previews and strips as tasks on the cluster.

    Deletes those of an earlier run first. Returns what failed: `video_id kind` -> a sentence.
    """
    for folder in sorted({*FOLDERS.values(), "tables"}):
        storage.delete(storage.join(output, folder))
    tasks = []
    texts = [kind for kind in kinds if kind in ("csv", "jsonl")]
    if texts:
        tasks.append(write_texts.remote(output, tuple(emotions), texts))
    of_videos = tuple(kind for kind in kinds if kind in FOLDERS)
    written_at = datetime.datetime.now(datetime.UTC)
    for number in range(len(layout.part_files(output, "labels")) if of_videos else 0):
        part = storage.join(output, "labels", part_name(number))
        ids = pc.unique(storage.read_table(part, ["video_id"])["video_id"]).to_pylist()
        for start in range(0, len(ids), FILE_VIDEOS):
            some = ids[start : start + FILE_VIDEOS]
            config = SidecarConfig(kinds=of_videos)
            tasks.append(write_part.remote(output, number, some, emotions, written_at, config))
    failed = {name: why for found in ray.get(tasks) for name, why in found.items()}
    for name, why in sorted(failed.items())[:10]:
        logger.warning("not written: %s: %s", name, why)
    return failed


@ray.remote(num_cpus=1)
def write_part(
    output: str,
    number: int,
    video_ids: list[str],
    emotions: Sequence[str],
    written_at: datetime.datetime,
    config: SidecarConfig,
) -> dict[str, str]:
    """Write timelines, previews and strips of some videos of one part; return what failed."""
    wanted = pa.array(video_ids, pa.string())
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in TABLES}
    for name in TABLES:
        path = storage.join(output, name, part_name(number))
        if name != "windows" or storage.exists(path):
            table = storage.read_table(path)
            for row in table.filter(pc.is_in(table["video_id"], wanted)).to_pylist():
                rows[name].setdefault(row["video_id"], []).append(row)
    manifest = storage.read_table(
        storage.join(output, "manifest.parquet"), list(MANIFEST_SCHEMA.names)
    )
    failed: dict[str, str] = {}
    for row in manifest.filter(pc.is_in(manifest["video_id"], wanted)).to_pylist():
        video_id = row["video_id"]
        found = write_sidecars(
            output,
            row,
            people=rows["labels"][video_id],
            windows=rows["windows"].get(video_id, []),
            frame_scores=rows["frame_scores"].get(video_id, []),
            emotions=emotions,
            written_at=written_at,
            config=config,
        )
        failed |= {f"{video_id} {kind}": why for kind, why in found.items()}
    return failed


@ray.remote(num_cpus=1)
def write_texts(output: str, emotions: Sequence[str], kinds: Sequence[str]) -> dict[str, str]:
    """Write `tables/labels.csv`, `tables/labels.jsonl` and the same of the windows."""
    for name in ("labels", "windows"):
        texts: dict[str, list[str]] = {kind: [] for kind in kinds}
        for file in layout.part_files(output, name):
            table = storage.read_table(file)
            if "csv" in texts:
                text = labels_as_csv(table, emotions)
                texts["csv"].append(text.partition("\n")[2] if texts["csv"] else text)
            if "jsonl" in texts:
                texts["jsonl"].append(labels_as_json_lines(table))
        for kind, parts in texts.items():
            if parts:
                path = storage.join(output, "tables", f"{name}.{kind}")
                storage.write_bytes(path, "".join(parts).encode())
    return {}


def statuses(output: str) -> Counter[str]:
    """Number of videos by status in the labels, where a video with false faces only is no_face."""
    counts: Counter[str] = Counter()
    for name in layout.part_files(output, "labels"):
        table = storage.read_table(name, ["is_main", "status"])
        counts.update(table.filter(table["is_main"])["status"].to_pylist())
    return counts
