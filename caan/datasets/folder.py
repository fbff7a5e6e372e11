"""Manifest rows of plain videos: a folder, a glob, a prefix, or a CSV or Parquet list."""

import io
import math
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from caan import storage
from caan.errors import InputError
from caan.schema import EMOTION_ALIASES, LABEL_SETS, canonical_emotion, check_ids, video_id_of

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder names and the split that they mean."""

NOT_VIDEOS = (
    ".csv", ".json", ".jsonl", ".md", ".parquet", ".txt", ".vtt", ".srt", ".xml", ".yaml", ".yml",
    ".jpg", ".jpeg", ".png", ".py", ".html", ".eaf", ".npy", ".zip", ".tar", ".gz", ".xlsx",
)  # fmt: skip
"""Endings of files that are no videos. All other files are probed."""

LIST_ENDINGS = (".csv", ".parquet")

LIST_COLUMNS = (
    *("video_id", "label", "split", "start_seconds", "end_seconds", "gender", "age_range"),
    *("face_box", "face_pts_seconds"),
)
"""Columns of a list that are copied to the manifest. All others are ignored."""

_KNOWN_EMOTIONS = {emotion for emotions in LABEL_SETS.values() for emotion in emotions} | set(
    EMOTION_ALIASES
)


def read_folder(path: str) -> Iterable[dict[str, Any]]:
    """Manifest rows, not yet probed, of every file that may be a video.

    Raises:
        InputError: nothing lies at `path`, or a list has no column of paths.
    """
    is_pattern = any(mark in path for mark in "*?[")
    if path.lower().endswith(LIST_ENDINGS) and not is_pattern:
        return _read_list(path)
    root = storage.normalise(path)
    if is_pattern and not storage.exists(path):
        root = re.split(r"[*?\[]", root, maxsplit=1)[0].rpartition("/")[0]
    rows = []
    for file in storage.list_files(path):
        if file.uri.lower().endswith(NOT_VIDEOS):
            continue
        # Only folders below the input name labels and splits: not `joy` of /home/joy/clips.
        label, split = _from_folders(file.uri, root)
        rows.append(_row(file, {"label": label, "split": split}))
    return rows


def read_plain_folder(path: str, lists: str, split: int) -> list[dict[str, Any]]:
    """Rows of `read_folder`; `lists` and `split` are not used."""
    return list(read_folder(path))


def read_class_folders(path: str, lists: str, split: int) -> list[dict[str, Any]]:
    """Rows of a folder in which every video lies in a folder named after its emotion.

    Raises:
        InputError: a video lies in no such folder.
    """
    rows = list(read_folder(path))
    _check_folders(
        rows,
        "label",
        kind="named after an emotion",
        advice="use `--dataset folder` for videos without labels.",
    )
    return rows


def read_split_folders(path: str, lists: str, split: int) -> list[dict[str, Any]]:
    """Rows of `<split>/<emotion>/<video>` (CAER, AFEW).

    Raises:
        InputError: a video lies in no folder named after an emotion or a split.
    """
    rows = read_class_folders(path, lists, split)
    _check_folders(
        rows,
        "split",
        kind="train, val or test",
        advice="give the folder above these, or use `--dataset class_folders`.",
    )
    return rows


def _check_folders(rows: list[dict[str, Any]], column: str, *, kind: str, advice: str) -> None:
    """Refuse rows without a value that their folders should have given."""
    if bare := [row["uri"] for row in rows if not row[column]]:
        raise InputError(
            f"{len(bare)} videos lie in no folder {kind}, for example `{bare[0]}`: {advice}"
        )


def read_list(path: str, lists: str, split: int) -> list[dict[str, Any]]:
    """Rows of a CSV or Parquet list; HEIV is given in this form.

    Raises:
        InputError: `path` is no list, or the list is wrong.
    """
    if not path.lower().endswith(LIST_ENDINGS):
        raise InputError(f"`{path}` is not a list: give a .csv or .parquet file.")
    return _read_list(path)


def _row(file: storage.StoredFile, known: dict[str, Any]) -> dict[str, Any]:
    start, end = known.get("start_seconds"), known.get("end_seconds")
    return known | {
        "video_id": known.get("video_id") or video_id_of(file.uri, start, end),
        "uri": file.uri,
        "size_bytes": file.size_bytes,
        "etag": file.etag,
    }


def _from_folders(uri: str, root: str) -> tuple[str | None, str | None]:
    parts = uri[len(root) :].strip("/").split("/")[:-1]
    label = next(
        (canonical_emotion(p) for p in reversed(parts) if p.lower() in _KNOWN_EMOTIONS), None
    )
    split = next((SPLIT_NAMES[p.lower()] for p in parts if p.lower() in SPLIT_NAMES), None)
    return label, split


def _read_list(path: str) -> list[dict[str, Any]]:
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise InputError(f"no list lies at `{path}`: check the path.") from error
    try:
        if path.lower().endswith(".csv"):
            table = pyarrow.csv.read_csv(io.BytesIO(content))
        else:
            table = pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid as error:
        raise InputError(f"cannot read the list `{path}`: {error}") from error
    column = next((name for name in ("uri", "path", "file") if name in table.column_names), None)
    if column is None:
        raise InputError(
            f"the list `{path}` has no column `uri`, `path` or `file`; it has "
            f"{', '.join(table.column_names)}."
        )
    base = storage.normalise(path).rpartition("/")[0]
    rows = []
    first_with: dict[str, int] = {}
    for number, values in enumerate(table.to_pylist(), start=1):
        where = f"row {number} of the list `{path}`"
        if not values[column]:
            raise InputError(f"{where} has no {column}: fill it in or remove the row.")
        row = _listed(values, str(values[column]), base, where)
        before = first_with.setdefault(row["video_id"], number)
        if before != number:
            raise InputError(f"{where} names the same video as row {before}: keep one of them.")
        rows.append(row)
    return rows


def _listed(values: dict[str, Any], name: str, base: str, where: str) -> dict[str, Any]:
    known = {key: values[key] for key in LIST_COLUMNS if values.get(key) not in (None, "")}
    for key in ("start_seconds", "end_seconds", "face_pts_seconds"):
        if key in known:
            known[key] = _number(known[key], f"{where}: {key}")
    start, end = known.get("start_seconds", 0.0), known.get("end_seconds", math.inf)
    if not 0 <= start < math.inf:
        raise InputError(f"{where}: start_seconds {start} must be 0 or more.")
    if not start < end:
        raise InputError(f"{where}: end_seconds {end} must lie after start_seconds {start}.")
    if "face_box" in known:
        known["face_box"] = _box(known["face_box"], where)
    if "label" in known:
        known["label"] = canonical_emotion(str(known["label"]))
    for key in ("video_id", "split", "gender", "age_range"):
        if key in known:
            known[key] = str(known[key])
    if "video_id" in known:
        check_ids(pa.array([known["video_id"]]), where)
    uri = name if name.startswith(("/", "s3://", "file://")) else f"{base}/{name}"
    try:
        file = storage.stat(uri)
    except FileNotFoundError:
        file = storage.StoredFile(uri=storage.normalise(uri), size_bytes=0, etag="")
        known |= {"status": "missing", "error": f"no file lies at `{uri}`"}
    return _row(file, known)


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise InputError(f"{what} `{value}` is not a number.") from error


def _box(value: Any, where: str) -> list[float]:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", value) if isinstance(value, str) else value
    if len(numbers) != 4:
        raise InputError(f"{where}: face_box must be four numbers, x0 y0 x1 y1.")
    return [float(number) for number in numbers]
