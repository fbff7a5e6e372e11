"""Schemas of all tables that jobs exchange, and their emotions, statuses and ids.

Boxes are `x0, y0, x1, y1` in pixels of the upright image at the video's full size. Times are
seconds since the video's first frame. Vectors are fixed-size lists of float16. docs/tables.md
describes the columns of outputs.
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
"""Emotions of a label set, in the order of a head's outputs."""

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
"""Emotion by the other names that data sets give it."""

UNCERTAIN = "uncertain"
"""Label of a person or window whose confidence is below `--abstain-below`. Its probabilities stay,
and figures count it as no label."""

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
"""Meaning of each status of a video or segment."""

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

UNITS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("face_box", _BOX),
        ("face_pts_seconds", pa.float64()),
        ("first_index", pa.int64()),
        ("end_index", pa.int64()),
        ("reach", pa.int64()),
        ("share_of_file", pa.float64()),
        ("video_start_seconds", pa.float64()),
        ("known_status", pa.string()),
        ("known_error", pa.string()),
    ]
)
"""One row per unit of work: consecutive segments of one video, grid frames from `first_index` to
before `end_index`; the last segment may be longer by `reach` frames. `known_status` is set where
the index already found the file bad."""

_OUTCOME_FIELDS: list[tuple[str, pa.DataType]] = [
    ("status", pa.string()),
    ("error", pa.string()),
    ("decoder", pa.string()),
    ("seconds_decode", pa.float64()),
    ("seconds_detect", pa.float64()),
]

_FRAME_FIELDS: list[tuple[str, pa.DataType]] = [
    ("frame_index", pa.int64()),
    ("pts_seconds", pa.float64()),
]

_FACE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("frame_index", pa.int64()),
    ("box", _BOX),
    ("score", pa.float32()),
]


def _items(name: str, fields: Sequence[tuple[str, pa.DataType]]) -> tuple[str, pa.DataType]:
    """A column that holds a list of structs of these fields in each row."""
    return name, pa.list_(pa.struct(fields))


IMAGES_SCHEMA = pa.schema(
    [
        *_SEGMENT_FIELDS,
        *_OUTCOME_FIELDS,
        ("face_box", _BOX),
        _items(
            "frames",
            [
                *_FRAME_FIELDS,
                ("height", pa.int32()),
                ("width", pa.int32()),
                ("scale", pa.float32()),
                ("histogram", pa.list_(pa.uint8(), 64)),
                ("picture", pa.large_binary()),
            ],
        ),
        _items(
            "faces",
            [
                *_FACE_FIELDS,
                ("picture", pa.large_binary()),
                ("appearance_vector", pa.list_(pa.float16(), 128)),
            ],
        ),
    ]
)
"""One row per segment, from the decoding stage to the networks.

`picture` is a uint8 RGB image [H, W, 3], null for a frame that no network needs. Faces and contexts
are 224x224 (`height` = `width` = 224). If a detector on a GPU comes next, frames are whole, at
`scale` times the full size. `face_box` is the manifest's. `appearance_vector` is dlib's; null: none
was computed (`caan.people.config`).
"""


def features_schema(
    face_dim: int, context_dim: int, *, face_pool5: int = 0, context_pool5: int = 0
) -> pa.Schema:
    """Schema of features, one row per segment.

    Args:
        face_dim: numbers per face vector.
        context_dim: numbers per context vector.
        face_pool5: numbers per pool5 map of a face; 0: no column `face_pool5`.
        context_pool5: numbers per pool5 map of a frame; 0: no column `context_pool5`.

    Maps are columns of their own, parallel to `faces` or `frames`, so that reading vectors does not
    read maps.
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
            _items(
                "frames", [*_FRAME_FIELDS, ("context_vector", pa.list_(pa.float16(), context_dim))]
            ),
            _items("faces", [*_FACE_FIELDS, ("face_vector", pa.list_(pa.float16(), face_dim))]),
            *maps,
        ]
    )


def segment_scores_schema(feature_dim: int, num_emotions: int, appearance_dim: int) -> pa.Schema:
    """Schema of the first phase of jobs.label, one row per segment: what the head pools per face.

    | column of a face | content |
    |---|---|
    | `feature_vector` | g of the head (paper eq. 2), `feature_dim` numbers |
    | `raw_score` | s of the head (paper eq. 3) |
    | `logits` | output of the frame branch, `num_emotions` numbers |
    | `blind_...` | the same with the context at its training mean; null for one modality |
    | `appearance_vector` | tells people apart, `appearance_dim` numbers; null: none computed |

    `histogram` of a frame is null for features that were made without images.
    """
    return pa.schema(
        [
            *_SEGMENT_FIELDS,
            *_OUTCOME_FIELDS,
            _items("frames", [*_FRAME_FIELDS, ("histogram", pa.list_(pa.uint8(), 64))]),
            _items(
                "faces",
                [
                    *_FACE_FIELDS,
                    ("raw_score", pa.float32()),
                    ("feature_vector", pa.list_(pa.float16(), feature_dim)),
                    ("logits", pa.list_(pa.float32(), num_emotions)),
                    ("appearance_vector", pa.list_(pa.float16(), appearance_dim)),
                    ("blind_raw_score", pa.float32()),
                    ("blind_feature_vector", pa.list_(pa.float16(), feature_dim)),
                    ("blind_logits", pa.list_(pa.float32(), num_emotions)),
                ],
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
    """Translate a data set's emotion name to the project's: "Happiness" -> "joy"."""
    word = name.strip().lower()
    return EMOTION_ALIASES.get(word, word)


def label_set_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Emotions of `labels` in the order of the first label set with all of them, else sorted."""
    found = set(labels)
    for emotions in LABEL_SETS.values():
        if found <= set(emotions):
            return tuple(emotion for emotion in emotions if emotion in found)
    return tuple(sorted(found))


def video_id_of(uri: str, start_seconds: float | None, end_seconds: float | None) -> str:
    """Id of a video: 16 hex digits of sha256 over its normalised uri and its time range."""
    key = f"{uri}|{start_seconds}|{end_seconds}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def segment_id_of(video_id: str, first_index: int) -> str:
    """Id of a segment: `<video_id>-<first grid index>`, the index in 8 digits."""
    return f"{video_id}-{first_index:08d}"


ID_PATTERN = r"^[\p{L}\p{N}_-][\p{L}\p{N}_.-]*$"
"""RE2 pattern of ids. Ids are parts of file names: no separators, no leading dot."""

MAX_ID_BYTES = 150
"""Largest size of an id in UTF-8; the rest of a file name of 255 bytes is for suffixes."""

_ID_COLUMNS = ("video_id", "segment_id", "person_id", "track_id")


def check_ids(ids: pa.Array | pa.ChunkedArray, what: str) -> None:
    """Check that ids can be parts of file names; `what` names the table in the error.

    Raises:
        InputError: an id has another character or is too long.
    """
    fits = pc.and_(
        pc.match_substring_regex(ids, ID_PATTERN),
        pc.less_equal(pc.binary_length(ids), MAX_ID_BYTES),
    )
    if (first := pc.index(fits, False).as_py()) >= 0:
        raise InputError(
            f"{what} has the id {ids[first].as_py()[:80]!r}, and ids name files: use letters, "
            f"digits, `_`, `-` and inner dots, and at most {MAX_ID_BYTES} bytes."
        )


def table_of(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build a table of this schema; a key that a row lacks becomes null.

    Raises:
        ValueError: a row has a key that the schema lacks; a bug, never bad input.
    """
    known = set(schema.names)
    for row in rows:
        if extra := set(row) - known:
            raise ValueError(f"columns not in the schema: {sorted(extra)}")
    return pa.Table.from_pylist(list(rows), schema=schema)


def check_table(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """Select and cast the columns of `schema`; `what` names the table in errors.

    An absent column becomes null, except `video_id`, `uri` and `segment_id`.

    Raises:
        InputError: one of those three is absent, a cast loses values, or an id is invalid.
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
                    f"{what}: column `{field.name}` is {column.type}: write it as {field.type}."
                ) from error
        if field.name in _ID_COLUMNS:
            check_ids(column, what)
        columns.append(column)
    return pa.table(columns, schema=schema)


GOOD_STATUSES = ("ok", "partial", "no_face")
"""Statuses of videos that were read; `--min-ok` is about their share."""


def video_status(statuses: list[str]) -> str:
    """Status of a video from the statuses of its segments; at least one."""
    failures = [status for status in statuses if status not in GOOD_STATUSES]
    if len(failures) == len(statuses):
        return failures[0]
    if failures or "partial" in statuses:
        return "partial"
    return "ok" if "ok" in statuses else "no_face"
