"""Second phase of jobs.label: pool each video's segments into labels, and write sidecar files."""

import datetime
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from caan import storage
from caan.extraction.config import ExtractionConfig
from caan.labelling.config import Kind, PoolConfig, SidecarConfig
from caan.outputs import layout
from caan.people.config import Mark
from jobs.runtime.run import OpenRun

if TYPE_CHECKING:
    from caan.labelling.frame_scores import SegmentScorer

logger = logging.getLogger(__name__)

TABLE = "segment_scores"
"""Table of the first phase."""

TABLES = ("labels", "windows", "frame_scores")
"""Tables of the second phase."""

POOL_FACES = 100_000
"""Most faces of one task of the second phase, unless one video has more (160 MB of rows)."""

VIDEO_FACES = 100
"""Faces that a video weighs at least: opening its files takes time too."""

FRAME_BYTES = 1600
"""About the bytes of a face's row in the first phase's table."""

FILE_VIDEOS = 16
"""Most videos whose timelines, previews and strips one task writes."""

FOLDERS = {"vtt": "timelines", "eaf": "timelines", "preview": "previews", "strip": "strips"}
"""Folder of each kind of file that is written per video."""


def model_in_memory(folder: str | Path) -> dict[str, bytes]:
    """Contents of a model folder by file name, without the backbones' weights."""
    from caan.models import checkpoint

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
) -> "SegmentScorer":
    """Build the last stage of the first phase on this node.

    `model_refs` holds one reference to the model's files. Ray would replace a reference that is not
    in a list by the files.
    """
    from caan.labelling.frame_scores import SegmentScorer

    with tempfile.TemporaryDirectory(prefix="caan-model-") as folder:
        unpack(ray.get(model_refs[0]), folder)
        return SegmentScorer(extraction, folder, device, batch_size, num_threads, face_embedding)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Videos whose rows one task of the second phase makes."""

    number: int
    """Number of the part; names its files."""
    video_ids: tuple[str, ...]
    """The videos."""
    files: tuple[str, ...]
    """Row files that hold their segments."""


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """What the second phase made."""

    parts: tuple[Part, ...]
    """All parts."""
    num_people: int
    """People with a label row."""
    statuses: Counter[str]
    """Number of videos by status, where a video with false faces only is no_face."""


def parts_of(segments: pa.Table) -> list[Part]:
    """Parts of about POOL_FACES faces, from the log's segments; videos of the same files together.

    A video is never split.
    """
    by_file = segments.group_by(["video_id", "file"]).aggregate([("num_faces", "sum")])
    files = by_file["file"].cast(pa.string())
    by_file = by_file.set_column(by_file.schema.get_field_index("file"), "file", files)
    by_file = by_file.sort_by([("video_id", "ascending"), ("file", "ascending")])
    files_of: dict[str, list[str]] = {}
    faces_of: dict[str, int] = {}
    columns = ("video_id", "file", "num_faces_sum")
    for video_id, file, faces in zip(*(by_file[c].to_pylist() for c in columns), strict=True):
        files_of.setdefault(video_id, []).append(file)
        faces_of[video_id] = faces_of.get(video_id, 0) + faces
    parts: list[list[str]] = []
    size = math.inf
    for video_id in sorted(files_of, key=lambda v: (files_of[v][0], v)):
        weight = faces_of[video_id] + VIDEO_FACES
        if size + weight > POOL_FACES:
            parts.append([])
            size = 0
        parts[-1].append(video_id)
        size += weight
    return [
        Part(
            number=number,
            video_ids=tuple(ids),
            files=tuple(sorted({file for v in ids for file in files_of[v]})),
        )
        for number, ids in enumerate(parts)
    ]


def pool_part(
    output: str, part: Part, files: Any, config: PoolConfig, marks: dict[str, Any]
) -> tuple[int, Counter[str]]:
    """Read the segments of a part's videos and write their rows.

    Returns the number of people and of videos by status.
    """
    import pyarrow.compute as pc

    from caan.labelling import video_labels
    from caan.models import checkpoint

    with tempfile.TemporaryDirectory(prefix="caan-model-") as folder:
        unpack(files, folder)
        model = checkpoint.load_model(folder)
    pooled = video_labels.pool_videos(read_segments(output, part), model, config, marks)
    for name in TABLES:
        if name != "windows" or config.window_seconds:
            path = storage.join(output, name, part_name(part.number))
            storage.write_table(getattr(pooled, name), path)
    labels = pooled.labels
    mains = labels.filter(labels["is_main"])["status"].to_pylist()
    return pc.sum(pc.is_valid(labels["person_id"])).as_py() or 0, Counter(mains)


def read_segments(output: str, part: Part) -> pa.Table:
    """The segments of a part's videos in order, each column in one piece.

    What comes after reads them without a copy: ten hours of four faces take a gigabyte.
    """
    tables = [
        storage.read_table(storage.join(output, name), video_ids=part.video_ids)
        for name in part.files
    ]
    rows = [
        (segment_id, number, row)
        for number, table in enumerate(tables)
        for row, segment_id in enumerate(table["segment_id"].to_pylist())
    ]
    # Slices are joined in one allocation; `sort_by` takes four times the memory of nested columns.
    in_order = [tables[number].slice(row, 1) for _, number, row in sorted(rows)]
    return pa.concat_tables(in_order).combine_chunks()


def part_name(number: int) -> str:
    """File name of one part of the second phase's tables."""
    return f"part-{number:05d}.parquet"


def marks_of(rows: list[dict[str, Any]]) -> dict[str, Mark]:
    """The marked person of each video, from rows of the manifest."""
    return {
        row["video_id"]: Mark(box=tuple(row["face_box"]), pts_seconds=row["face_pts_seconds"])
        for row in rows
        if row["face_box"] is not None
    }


def manifest_rows(manifest: pa.Table, video_ids: Sequence[str]) -> list[dict[str, Any]]:
    """The manifest's rows of these videos; a video that it does not name has none."""
    import pyarrow.compute as pc

    at = pc.index_in(pa.array(video_ids, pa.string()), manifest["video_id"].combine_chunks())
    return manifest.take(at.drop_null()).to_pylist()


def pool(opened: OpenRun, model_ref: Any, config: PoolConfig) -> Pooled:
    """Write the rows of all videos, in parts of whole videos.

    Each part depends only on the rows of the first phase and replaces its files as a whole. A run
    that was interrupted here repeats this phase and ends with the same tables.
    """
    output = opened.output
    opened.writer.check()
    parts = parts_of(opened.writer.state.segments)
    needs_marks = config.face_policy == "marked"

    def marks(part: Part) -> dict[str, Mark]:
        return marks_of(manifest_rows(opened.manifest, part.video_ids)) if needs_marks else {}

    if len(parts) == 1:  # the driver has loaded torch; a task would start a worker that loads it
        done = [pool_part(output, parts[0], ray.get(model_ref), config, marks(parts[0]))]
    else:
        task: Any = ray.remote(num_cpus=1)(pool_part)
        done = ray.get([task.remote(output, p, model_ref, config, marks(p)) for p in parts])
    for table in TABLES:
        first_old = 0 if table == "windows" and not config.window_seconds else len(parts)
        for name in layout.table_files(output, table)[first_old:]:
            storage.delete(name)
    pooled = Pooled(
        parts=tuple(parts),
        num_people=sum(people for people, _ in done),
        statuses=sum((statuses for _, statuses in done), Counter()),
    )
    num_videos = sum(len(part.video_ids) for part in parts)
    logger.info("%d videos labelled, with %d people", num_videos, pooled.num_people)
    return pooled


def write_files(
    opened: OpenRun, pooled: Pooled, emotions: Sequence[str], kinds: Sequence[Kind]
) -> dict[str, str]:
    """Write tables, timelines, previews and strips as tasks on the cluster.

    Deletes those of an earlier run first. Returns what failed: `video_id kind` -> a sentence.
    """
    output = opened.output
    for folder in sorted({*FOLDERS.values(), "tables"}):
        storage.delete(storage.join(output, folder))
    tasks = []
    texts = [kind for kind in kinds if kind in ("csv", "jsonl")]
    if texts:
        tasks.append(write_texts.remote(output, tuple(emotions), texts))
    of_videos = tuple(kind for kind in kinds if kind in FOLDERS)
    written_at = datetime.datetime.now(datetime.UTC)
    for part in pooled.parts if of_videos else ():
        for start in range(0, len(part.video_ids), FILE_VIDEOS):
            rows = manifest_rows(opened.manifest, part.video_ids[start : start + FILE_VIDEOS])
            config = SidecarConfig(kinds=of_videos)
            tasks.append(write_part.remote(output, part.number, rows, emotions, written_at, config))
    failed = {name: why for found in ray.get(tasks) for name, why in found.items()}
    for name, why in sorted(failed.items())[:10]:
        logger.warning("not written: %s: %s", name, why)
    return failed


@ray.remote(num_cpus=1)
def write_part(
    output: str,
    number: int,
    videos: list[dict[str, Any]],
    emotions: Sequence[str],
    written_at: datetime.datetime,
    config: SidecarConfig,
) -> dict[str, str]:
    """Write timelines, previews and strips of some videos of one part; return what failed.

    `videos` has their rows of the manifest.
    """
    from caan.labelling.sidecars import write_sidecars

    ids = [video["video_id"] for video in videos]
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in TABLES}
    for name in TABLES:
        path = storage.join(output, name, part_name(number))
        if name != "windows" or storage.exists(path):
            for row in storage.read_table(path, video_ids=ids).to_pylist():
                rows[name].setdefault(row["video_id"], []).append(row)
    failed: dict[str, str] = {}
    for video in videos:
        video_id = video["video_id"]
        found = write_sidecars(
            output,
            video,
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
    from caan.labelling.sidecars import labels_as_csv, labels_as_json_lines

    for name in ("labels", "windows"):
        texts: dict[str, list[str]] = {kind: [] for kind in kinds}
        for file in layout.table_files(output, name):
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
