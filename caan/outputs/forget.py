"""Delete the rows of single videos from every table of an output folder.

Each file is replaced as a whole: a reader sees the old table or the new one. run.json is written
last. After an interruption the same command continues; a second run changes nothing. No job may
write to the folder meanwhile.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caan import schema, storage
from caan.errors import InputError, redact
from caan.outputs import layout, log
from caan.outputs.lease import Lease
from caan.outputs.verify import TABLES

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp$")


@dataclass
class Forgotten:
    """What was deleted."""

    num_rows: int = 0
    """Rows of Parquet tables, CSV and JSON Lines."""
    files: list[str] = field(default_factory=list)
    """Files of these videos alone, such as previews, and remains of killed writes."""
    mentions: list[str] = field(default_factory=list)
    """Files that still name the videos, such as reports; a job must write them again."""


def forget(output: str, video_ids: Sequence[str]) -> Forgotten:
    """Delete all rows and files of these videos under `output`.

    Old versions in a bucket with versioning, models trained on the videos, and manifests in other
    places stay. A run from a manifest that still names a video writes its rows again.

    Raises:
        InputError: no ids, a malformed id, or no run.json in `output`.
        StorageError: storage is not reachable or denies access.
    """
    if not video_ids:
        raise InputError("--video-ids names no video: give one or more ids.")
    for video_id in video_ids:
        if not re.fullmatch(r"[\w.-]{4,}", video_id):
            raise InputError(f"--video-ids `{video_id}` is not an id: copy it from the manifest.")
    run_file = storage.join(output, "run.json")
    if not storage.exists(run_file):
        raise InputError(
            f"`{redact(output)}` has no run.json: --output takes a folder that one of the "
            "jobs wrote."
        )
    done = Forgotten()
    record = storage.read_json(run_file)
    if storage.exists(storage.join(output, log.FOLDER)):  # of an interrupted run too
        with Lease(output, "forget") as lease:
            done.num_rows += forget_in_log(log.LogWriter(output, lease.writer), video_ids)
    named = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, video_ids))})(?=$|[.-])")
    history = storage.normalise(storage.join(output, log.FOLDER)) + "/"
    for file in storage.list_files(output):
        name = file.uri.rpartition("/")[2]
        is_kept = file.uri == storage.normalise(run_file) or file.uri.startswith(history)
        if _TEMPORARY.search(name) or (not is_kept and named.match(name)):
            storage.delete(file.uri)
            done.files.append(file.uri)
        elif is_kept:
            continue
        elif name.endswith(".parquet"):
            done.num_rows += _filter_table(file.uri, video_ids)
        elif name.endswith((".csv", ".jsonl")):
            done.num_rows += _filter_text(file.uri, video_ids)
        elif name.endswith((".json", ".html", ".md", ".vtt", ".eaf", ".txt")):
            text = storage.read_bytes(file.uri).decode(errors="replace")
            if any(video_id in text for video_id in video_ids):
                done.mentions.append(file.uri)
    if record.get("is_complete") and record.get("job") in TABLES:
        counted = record | counts_of(output, record)
        if counted != record:
            storage.write_json(run_file, counted)
    return done


def forget_in_log(writer: log.LogWriter, video_ids: Sequence[str]) -> int:
    """Remove the videos from row files, commits and checkpoints; return the number of segments.

    Row files are written anew. Then commits that name the videos are replaced by the same without
    them: the only time that a commit changes. Repeated after a kill, it goes on where it was.
    """
    output = writer.output
    num_segments = layout.drop_videos(writer, video_ids)
    for table in TABLES.values():
        layout.remove_garbage(output, table, writer.state)
    log.write_checkpoint(output, writer.state)
    folder = storage.join(output, log.FOLDER)
    newest = f"checkpoint-{writer.number:08d}.parquet"
    for name in storage.list_names(folder):
        path = storage.join(folder, name)
        if name.startswith("checkpoint-") and name != newest:
            storage.delete(path)
        elif name.endswith(".json"):
            commit = storage.read_json(path)
            if any(
                video_id in videos for videos in commit["add"].values() for video_id in video_ids
            ):
                add = {
                    file: {v: segments for v, segments in videos.items() if v not in video_ids}
                    for file, videos in commit["add"].items()
                }
                storage.write_json(path, commit | {"add": add})
    return num_segments


def _filter_table(uri: str, video_ids: Sequence[str]) -> int:
    """Remove the videos' rows from one Parquet file; return their number. The file stays."""
    table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    if "video_id" in table.column_names:
        drop = pc.is_in(table["video_id"], value_set=pa.array(video_ids, pa.string()))
    else:
        return 0
    num_dropped = pc.sum(drop).as_py() or 0
    if num_dropped:
        storage.write_table(table.filter(pc.invert(drop)), uri)
    return int(num_dropped)


def _filter_text(uri: str, video_ids: Sequence[str]) -> int:
    """Remove the videos' rows from a CSV with a header or from JSON Lines; return their number."""
    text = storage.read_bytes(uri).decode()
    if uri.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows: list[dict[str, Any]] = list(reader)
        if "video_id" not in (reader.fieldnames or []):
            return 0
    else:
        rows = [json.loads(line) for line in text.splitlines()]
    kept = [row for row in rows if row.get("video_id") not in video_ids]
    if len(kept) == len(rows):
        return 0
    if uri.endswith(".csv"):
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(kept)
        text = buffer.getvalue()
    else:
        text = "".join(json.dumps(row) + "\n" for row in kept)
    storage.write_bytes(uri, text.encode())
    return len(rows) - len(kept)


def counts_of(output: str, record: dict[str, Any]) -> dict[str, Any]:
    """Counts of run.json, from the tables as they are now."""
    manifest = storage.read_table(storage.join(output, "manifest.parquet"), ["video_id"])
    state = log.read(output)
    statuses = Counter(state.statuses())
    if record["job"] == "label":
        statuses = Counter()
        for name in layout.table_files(output, "labels"):
            table = storage.read_table(name, ["is_main", "status"])
            statuses.update(table.filter(table["is_main"])["status"].to_pylist())
    good = sum(statuses[status] for status in schema.GOOD_STATUSES)
    return {
        "num_videos": manifest.num_rows,
        "num_segments": state.segments.num_rows,
        "statuses": dict(sorted(statuses.items())),
        "good_share": good / max(1, manifest.num_rows),
    }
