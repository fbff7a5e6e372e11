"""Every table that the jobs exchange, as a `pa.schema`, with the emotions, statuses and ids in it.

All schemas are in this one file, so that one place says what every column means.

Boxes are `x0, y0, x1, y1` in pixels of the upright image at the video's full size. Times are
seconds since the video's first frame. Vectors are fixed-size lists of float16.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from caan.errors import InputError

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
"""The paper's seven emotions in the order of its Table 5."""

LABEL_SETS: dict[str, tuple[str, ...]] = {
    "heiv7": EMOTIONS,
    "ekman6": ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
    "plutchik8": (
        "anger",
        "anticipation",
        "disgust",
        "fear",
        "joy",
        "sadness",
        "surprise",
        "trust",
    ),
}

EMOTION_ALIASES = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "scared": "fear",
    "happy": "joy",
    "happiness": "joy",
    "joyful": "joy",
    "sad": "sadness",
    "surprised": "surprise",
    "calm": "neutral",
}
"""Names that data sets use for the same emotion (DATASETS: one alias table)."""

UNCERTAIN = "uncertain"
"""Label of a person or window whose confidence is below `--abstain-below`; the probabilities stay,
and every count takes it for no label."""

STATUSES = {
    "ok": "labelled, or ready to be",
    "partial": "some segments of the video failed; what was read is used",
    "no_face": "read to the end, and no face found",
    "missing": "the manifest names a file that is not there",
    "unreadable": "no allowed demuxer can open the file",
    "no_video": "the file has no video stream",
    "too_large": "image or file beyond the stated limit",
    "decode_failed": "the file opens, but its frames cannot be decoded",
    "timed_out": "decoding ran over its time limit and was killed",
    "out_of_memory": "decoding ran over its memory limit and was killed",
    "crashed": "the decoder died, or the video was tried too often",
    "changed": "the file changed after it was indexed",
}

_BOX = pa.list_(pa.float32(), 4)
_PROBABILITIES = pa.map_(pa.string(), pa.float32())

MANIFEST_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("votes", pa.map_(pa.string(), pa.int32())),
        ("gender", pa.string()),
        ("age_range", pa.string()),
        ("face_box", _BOX),
        ("face_pts_seconds", pa.float64()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("duration_seconds", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("container", pa.string()),
        ("fps", pa.float64()),
        ("rotation_degrees", pa.int32()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)

_SEGMENT_FIELDS: list[tuple[str, pa.DataType]] = [
    ("segment_id", pa.string()),
    ("video_id", pa.string()),
    ("start_seconds", pa.float64()),
    ("end_seconds", pa.float64()),
]

PLAN_SCHEMA = pa.schema(
    [
        *_SEGMENT_FIELDS,
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("first_index", pa.int64()),
        ("num_frames", pa.int32()),
        ("video_start_seconds", pa.float64()),
        ("face_box", _BOX),
        ("face_pts_seconds", pa.float64()),
        ("known_status", pa.string()),
        ("known_error", pa.string()),
        ("attempt", pa.int32()),
    ]
)
"""One row per segment to do. `known_status` is set where the index already found the file bad."""

_OUTCOME_FIELDS: list[tuple[str, pa.DataType]] = [
    ("status", pa.string()),
    ("error", pa.string()),
    ("decoder", pa.string()),
    ("attempt", pa.int32()),
    ("seconds_decode", pa.float64()),
    ("seconds_detect", pa.float64()),
]

IMAGES_SCHEMA = pa.schema(
    [
        *_SEGMENT_FIELDS,
        *_OUTCOME_FIELDS,
        ("face_box", _BOX),
        (
            "frames",
            pa.list_(
                pa.struct(
                    [
                        ("frame_index", pa.int64()),
                        ("pts_seconds", pa.float64()),
                        ("height", pa.int32()),
                        ("width", pa.int32()),
                        ("scale", pa.float32()),
                        ("histogram", pa.list_(pa.uint8(), 64)),
                        ("picture", pa.large_binary()),
                    ]
                )
            ),
        ),
        (
            "faces",
            pa.list_(
                pa.struct(
                    [
                        ("frame_index", pa.int64()),
                        ("box", _BOX),
                        ("score", pa.float32()),
                        ("picture", pa.large_binary()),
                        ("appearance_vector", pa.list_(pa.float16(), 128)),
                    ]
                )
            ),
        ),
    ]
)
"""What travels from the decoding stage to the networks: uint8 RGB images, 224x224x3 for faces and
context (`height` = `width` = 224), or whole frames where a detector on a GPU comes next, `scale`
times the full size. `picture` is null for a frame that no network needs to see. `face_box` is the
manifest's, in pixels of the full size, for the detector that comes next. `appearance_vector` is
dlib's, where it was asked for (`caan.people.config`)."""


def features_schema(
    face_dim: int, context_dim: int, *, face_pool5: int = 0, context_pool5: int = 0
) -> pa.Schema:
    """Schema of the features: one row per segment, vectors of `face_dim` and `context_dim`.

    With `face_pool5` or `context_pool5` numbers per map there is a column of that name beside
    `faces` or `frames`, item for item, so that whoever reads vectors does not read maps.
    """
    maps = [
        (name, pa.list_(pa.list_(pa.float16(), size)))
        for name, size in (("face_pool5", face_pool5), ("context_pool5", context_pool5))
        if size
    ]
    return pa.schema(
        [
            *_SEGMENT_FIELDS,
            *_OUTCOME_FIELDS,
            (
                "frames",
                pa.list_(
                    pa.struct(
                        [
                            ("frame_index", pa.int64()),
                            ("pts_seconds", pa.float64()),
                            ("context_vector", pa.list_(pa.float16(), context_dim)),
                        ]
                    )
                ),
            ),
            (
                "faces",
                pa.list_(
                    pa.struct(
                        [
                            ("frame_index", pa.int64()),
                            ("box", _BOX),
                            ("score", pa.float32()),
                            ("face_vector", pa.list_(pa.float16(), face_dim)),
                        ]
                    )
                ),
            ),
            *maps,
        ]
    )


def segment_scores_schema(feature_dim: int, num_emotions: int, appearance_dim: int) -> pa.Schema:
    """Schema of label's first phase: per face what the head's pooling needs later.

    `feature_vector` is the head's g (paper eq. 2), `raw_score` its s (eq. 3), `logits` the frame
    branch's output over the model's label set; `blind_` the same with the context replaced by its
    training mean, null for a head that looks at one modality. `appearance_vector` tells people
    apart; it is null for faces that have none. `histogram` is null in tables without images.
    """
    return pa.schema(
        [
            *_SEGMENT_FIELDS,
            *_OUTCOME_FIELDS,
            (
                "frames",
                pa.list_(
                    pa.struct(
                        [
                            ("frame_index", pa.int64()),
                            ("pts_seconds", pa.float64()),
                            ("histogram", pa.list_(pa.uint8(), 64)),
                        ]
                    )
                ),
            ),
            (
                "faces",
                pa.list_(
                    pa.struct(
                        [
                            ("frame_index", pa.int64()),
                            ("box", _BOX),
                            ("score", pa.float32()),
                            ("raw_score", pa.float32()),
                            ("feature_vector", pa.list_(pa.float16(), feature_dim)),
                            ("logits", pa.list_(pa.float32(), num_emotions)),
                            ("appearance_vector", pa.list_(pa.float16(), appearance_dim)),
                            ("blind_raw_score", pa.float32()),
                            ("blind_feature_vector", pa.list_(pa.float16(), feature_dim)),
                            ("blind_logits", pa.list_(pa.float32(), num_emotions)),
                        ]
                    )
                ),
            ),
        ]
    )


LABELS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("person_id", pa.string()),
        ("is_main", pa.bool_()),
        ("label", pa.string()),
        ("confidence", pa.float32()),
        ("probabilities", _PROBABILITIES),
        ("num_frames", pa.int32()),
        ("num_faces", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("model_id", pa.string()),
        ("label_without_context", pa.string()),
        ("context_effect", pa.float32()),
    ]
)

WINDOWS_SCHEMA = LABELS_SCHEMA.insert(2, pa.field("window_index", pa.int32()))

FRAME_SCORES_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("person_id", pa.string()),
        ("track_id", pa.string()),
        ("frame_index", pa.int64()),
        ("pts_seconds", pa.float64()),
        ("box", _BOX),
        ("emotion_score", pa.float32()),
        ("probabilities", _PROBABILITIES),
    ]
)


def canonical_emotion(name: str) -> str:
    """The project's word for an emotion name of a data set ("Happiness" -> "joy")."""
    word = name.strip().lower()
    return EMOTION_ALIASES.get(word, word)


def label_set_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The emotions that occur, in the order of the first known label set that has them all."""
    found = set(labels)
    for emotions in LABEL_SETS.values():
        if found <= set(emotions):
            return tuple(emotion for emotion in emotions if emotion in found)
    return tuple(sorted(found))


def video_id_of(uri: str, start_seconds: float | None, end_seconds: float | None) -> str:
    """First 16 hex digits of sha256 over the normalised uri and the time range."""
    key = f"{uri}|{start_seconds}|{end_seconds}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def segment_id_of(video_id: str, first_index: int) -> str:
    """`<video_id>-<first grid index>`, which names a segment whatever else changes."""
    return f"{video_id}-{first_index:08d}"


ID_PATTERN = r"^[\p{L}\p{N}_-][\p{L}\p{N}_.-]*$"
"""RE2 of ids: they become parts of file names, so no separators and no leading dot."""

MAX_ID_BYTES = 150
"""Longest id in UTF-8, which leaves room in a file name of 255 bytes."""

_ID_COLUMNS = ("video_id", "segment_id", "person_id", "track_id")


def check_ids(ids: pa.Array | pa.ChunkedArray, what: str) -> None:
    """Refuse ids that are no plain file names.

    Raises:
        InputError: naming `what` and the first of them.
    """
    fits = pc.and_(
        pc.match_substring_regex(ids, ID_PATTERN),
        pc.less_equal(pc.binary_length(ids), MAX_ID_BYTES),
    )
    if (first := pc.index(fits, False).as_py()) >= 0:
        raise InputError(
            f"{what} has the id {ids[first].as_py()[:80]!r}: ids name files, so they take letters, "
            f"digits, `_`, `-` and inner dots, and at most {MAX_ID_BYTES} bytes."
        )


def table_of(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of exactly this schema; keys that a row lacks become null.

    Raises:
        ValueError: a row has a key that the schema lacks (an invariant of ours, never user input).
    """
    known = set(schema.names)
    for row in rows:
        if extra := set(row) - known:
            raise ValueError(f"columns not in the schema: {sorted(extra)}")
    return pa.Table.from_pylist(list(rows), schema=schema)


def check_table(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """`table` with the columns of `schema`, cast where that loses nothing.

    Columns that are allowed to be absent (nullable, in a table written by hand) come back null.

    Raises:
        InputError: a key column is missing, a column has another type, or an id is no plain name.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            if field.name in ("video_id", "uri", "segment_id"):
                raise InputError(
                    f"{what} has no column `{field.name}`; it has "
                    f"{', '.join(table.column_names) or 'none'}. Write it with jobs.index, or add "
                    "the column."
                )
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name]
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputError(
                    f"{what}: column `{field.name}` is {column.type}, and should be {field.type}."
                ) from error
        if field.name in _ID_COLUMNS:
            check_ids(column, what)
        columns.append(column)
    return pa.table(columns, schema=schema)


GOOD_STATUSES = ("ok", "partial", "no_face")
"""Statuses of videos that were read; `--min-ok` counts them."""


def video_status(statuses: list[str]) -> str:
    """Status of a video from those of its segments."""
    failures = [status for status in statuses if status not in GOOD_STATUSES]
    if len(failures) == len(statuses):
        return failures[0]
    if failures or "partial" in statuses:
        return "partial"
    return "ok" if "ok" in statuses else "no_face"
