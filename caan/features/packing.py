"""Features of jobs.extract -> PackedVideos: one face per frame, frames in the order of time."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from caan import storage
from caan.arrow import flat_list, positions, rows_of_items, vectors_there
from caan.config import check_choice
from caan.errors import InputError
from caan.faces.detection import NoFace, paired_iou
from caan.features.manifest_arrays import manifest_arrays, marked_boxes, soft_labels
from caan.features.packed import PackedVideos, mapped

MAP_SEGMENTS = 16
"""Segments whose pool5 maps are copied at once (100 MB of VGG's with 128 frames each)."""

ORDERED_FRAMES = 4096
"""Vectors that are copied at once where the features files do not have them in order (32 MB)."""


def pack_features(
    features: Iterable[pa.Table],
    manifest: pa.Table,
    label_set: Sequence[str],
    *,
    no_face: NoFace = "drop",
    folder: Path | None = None,
) -> PackedVideos:
    """All videos of the manifest with their frames, one face per frame, in the manifest's order.

    With `folder`, an empty one on this node, the vectors are written to files in it and mapped:
    no more than a record batch of them is held in memory. Without it they are plain arrays.

    `features` are tables of `features_schema`, a row per segment, each segment once. The face of a
    frame is the one that overlaps the manifest's `face_box` most, else the largest. Frames without
    a face are dropped (paper 4.1), or with `no_face="context_only"` kept with a zero face vector.

    Raises:
        InputError: a label outside the label set, no features for the manifest's videos, features
            of different backbones.
    """
    vectors = _Vectors(folder)
    parts = []
    for frames in usable_frames(features, manifest, no_face=no_face):
        vectors.add(frames)
        parts.append(dataclasses.replace(frames, face_ND=_NONE, context_NE=_NONE))
    if not any(part.any_known for part in parts):
        raise InputError("no features belong to the videos of this manifest")
    video_N = _joined(parts, "video_N")
    index_N = _joined(parts, "frame_index_N")
    order_N = np.lexsort((index_N, video_N))
    in_order = bool((order_N[1:] > order_N[:-1]).all())
    arrays: dict[str, Any] = {
        name: _joined(parts, name, None if in_order else order_N)
        for name in ("has_face_N", "pts_seconds_N", "boxes_N4")
    }
    counts_V = np.bincount(video_N, minlength=manifest.num_rows).astype(np.int64)
    return PackedVideos(
        **arrays,
        face_ND=vectors.array("face", None if in_order else order_N),
        context_NE=vectors.array("context", None if in_order else order_N),
        frame_indices_N=index_N if in_order else index_N[order_N],
        starts_V=np.concatenate([[0], np.cumsum(counts_V)[:-1]]).astype(np.int64),
        counts_V=counts_V,
        **manifest_arrays(manifest, label_set),
        soft_VK=soft_labels(manifest, label_set),
    )


def usable_frames(
    features: Iterable[pa.Table], manifest: pa.Table, *, no_face: NoFace = "drop"
) -> Iterator["Frames"]:
    """The usable frames of each record batch of these tables, chosen as `pack_features` says.

    Raises:
        InputError: features of different backbones, or an unknown `no_face`.
    """
    check_choice("no_face", no_face, NoFace)
    video_ids = manifest["video_id"].combine_chunks()
    marked_V4 = marked_boxes(manifest)
    dims: tuple[int, int] | None = None
    for table in features:
        table_dims = _dimensions(table.schema)
        if dims is not None and table_dims != dims:
            raise InputError(
                f"features of different backbones: vectors of {dims} and {table_dims} numbers "
                "(face, context); pack each extraction on its own"
            )
        dims = table_dims
        for batch in table.to_batches():
            if batch.num_rows:
                yield _frames_of_batch(batch, video_ids, marked_V4, no_face)


def add_maps(
    videos: PackedVideos,
    features: Iterable[pa.Table],
    shapes: Mapping[str, Sequence[int]],
    *,
    max_bytes: int = 8 << 30,
    folder: Path | None = None,
) -> PackedVideos:
    """The whole pack with the pool5 maps of its frames and faces, in float16 as they are stored.

    `features` are those that were packed, read again with `face_pool5` or `context_pool5`; `shapes`
    has channels, height and width of each modality wanted. The arrays are made once, at their full
    size, and filled table by table: no second copy of the maps is ever held. With `folder` they are
    files of it and mapped.

    Raises:
        InputError: the features have no such maps, or not of every frame; the maps would take more
            than `max_bytes`.
    """
    num_frames = len(videos.pts_seconds_N)
    wanted = {name: (num_frames, *(int(size) for size in shape)) for name, shape in shapes.items()}
    num_bytes = sum(2 * int(np.prod(shape)) for shape in wanted.values())
    if num_bytes > max_bytes:
        raise InputError(
            f"the pool5 maps of {num_frames} frames take {num_bytes / 2**30:.1f} GiB, and the "
            f"limit is {max_bytes / 2**30:.1f} (`--pool5-gib`): leave out the models that score "
            "from pool5, extract fewer frames per second, or raise the limit"
        )
    maps: dict[str, np.ndarray] = {
        name: np.zeros(shape, np.float16)
        if folder is None or 0 in shape
        else np.memmap(folder / f"{name}_pool5.f16", np.float16, "w+", shape=shape)
        for name, shape in wanted.items()
    }
    filled = {name: np.zeros(num_frames, bool) for name in maps}
    ids = pa.array(videos.video_ids_V.tolist(), pa.string())
    span = int(videos.frame_indices_N.max(initial=0)) + 2
    key_N = np.repeat(np.arange(len(videos)), videos.counts_V) * span + videos.frame_indices_N
    for table in features:
        for name in maps:
            if f"{name}_pool5" not in table.column_names:
                raise InputError(_no_maps(name))
        for batch in table.to_batches(max_chunksize=MAP_SEGMENTS):
            for name in maps:
                rows, map_rows, values = _map_rows(batch, name, ids, span, key_N, videos.boxes_N4)
                maps[name][rows] = values[map_rows].reshape(-1, *wanted[name][1:])
                filled[name][rows] = True
    for name, filled_N in filled.items():
        if not (filled_N | ~videos.has_face_N if name == "face" else filled_N).all():
            raise InputError(_no_maps(name))
    return dataclasses.replace(videos, maps=maps)


def _no_maps(modality: str) -> str:
    return (
        f"these features have no pool5 maps of the {modality} for every frame: extract them with "
        f"`--pool5 {modality}` (or `both`), or take a model that scores from fc6"
    )


def _map_rows(
    batch: pa.RecordBatch,
    modality: str,
    video_ids: pa.Array,
    span: int,
    key_N: np.ndarray,
    boxes_N4: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the pack, for each its row in these maps, and the maps [n, C * H * W]."""
    items, offsets = flat_list(batch.column("faces" if modality == "face" else "frames"))
    values, map_row = vectors_there(batch.column(f"{modality}_pool5").flatten())
    index = items.field("frame_index").to_numpy(zero_copy_only=False)
    video = positions(batch.column("video_id"), video_ids)[rows_of_items(offsets)]
    key = video * span + np.minimum(index, span - 1)
    row = np.minimum(np.searchsorted(key_N, key), max(len(key_N) - 1, 0))
    good = (video >= 0) & (map_row >= 0) & (len(key_N) > 0)
    good[good] = key_N[row[good]] == key[good]
    if modality == "face":
        boxes = items.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        good[good] = (boxes_N4[row[good]] == boxes[good]).all(axis=1)
    return row[good], map_row[good], values


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Usable frames of some segments, in file order."""

    video_N: np.ndarray
    """Number of each frame's video in the manifest; -1 for one that it does not name."""
    frame_index_N: np.ndarray
    pts_seconds_N: np.ndarray
    has_face_N: np.ndarray
    boxes_N4: np.ndarray
    face_ND: np.ndarray
    context_NE: np.ndarray
    any_known: bool


_NONE = np.empty((0, 0), np.float16)


class _Vectors:
    """Collects vectors in the order of the features files: in memory, or in files of a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._parts: dict[str, list[np.ndarray]] = {"face": [], "context": []}
        self._dims = {"face": 0, "context": 0}
        self._count = 0

    def add(self, frames: Frames) -> None:
        """Append the vectors of some frames."""
        self._count += len(frames.face_ND)
        for name, x_ND in (("face", frames.face_ND), ("context", frames.context_NE)):
            self._dims[name] = x_ND.shape[1]
            if self.folder is None:
                self._parts[name].append(x_ND)
            else:
                path = self.folder / f"{name}.f16"
                with storage.explained(path, "writing"), path.open("ab") as file:
                    x_ND.tofile(file)

    def array(self, name: str, order_N: np.ndarray | None) -> np.ndarray:
        """All vectors [N, D], in the given order of rows."""
        if self.folder is None:
            x_ND = np.concatenate(self._parts.pop(name))
            return x_ND if order_N is None else x_ND[order_N]
        shape = (self._count, self._dims[name])
        x_ND = mapped(self.folder, name, shape)
        if order_N is None:
            return x_ND
        path = self.folder / f"{name}.f16"
        unfinished = path.with_suffix(".ordered")
        with storage.explained(path, "writing"), unfinished.open("wb") as file:
            for start in range(0, self._count, ORDERED_FRAMES):
                x_ND[order_N[start : start + ORDERED_FRAMES]].tofile(file)
        unfinished.replace(path)
        return mapped(self.folder, name, shape)


def _joined(parts: list[Frames], name: str, order: np.ndarray | None = None) -> np.ndarray:
    """One array of all parts, in the given order of rows."""
    joined = np.concatenate([getattr(part, name) for part in parts])
    return joined if order is None else joined[order]


def _frames_of_batch(
    batch: pa.RecordBatch, video_ids: pa.Array, marked_V4: np.ndarray, no_face: NoFace
) -> Frames:
    """The usable frames of some segments, without a Python loop over frames."""
    video_S = positions(batch.column("video_id"), video_ids)
    frames, frame_offsets = flat_list(batch.column("frames"))
    faces, face_offsets = flat_list(batch.column("faces"))
    segment_F, segment_P = rows_of_items(frame_offsets), rows_of_items(face_offsets)
    context_CE, context_row_F = vectors_there(frames.field("context_vector"))
    face_QD, face_row_P = vectors_there(faces.field("face_vector"))
    frame_index_F = frames.field("frame_index").to_numpy(zero_copy_only=False)
    face_index_P = faces.field("frame_index").to_numpy(zero_copy_only=False)
    boxes_P4 = faces.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)

    video_P = video_S[segment_P]
    overlap_P = paired_iou(boxes_P4, marked_V4[np.maximum(video_P, 0)])
    area_P = (boxes_P4[:, 2] - boxes_P4[:, 0]) * (boxes_P4[:, 3] - boxes_P4[:, 1])
    # A segment's frames are numbered by the grid: segment and grid index name a frame.
    span = int(max(frame_index_F.max(initial=0), face_index_P.max(initial=0))) + 1
    key_F = segment_F * span + frame_index_F
    key_P = segment_P * span + face_index_P
    order_P = np.lexsort((area_P, overlap_P, key_P))
    order_P = order_P[face_row_P[order_P] >= 0]
    ordered_key = key_P[order_P]
    last = np.ones(len(order_P), dtype=bool)
    last[:-1] = ordered_key[1:] != ordered_key[:-1]
    best_face, best_key = order_P[last], ordered_key[last]

    place_F = np.searchsorted(best_key, key_F)
    has_face_F = np.zeros(len(key_F), dtype=bool)
    inside = place_F < len(best_key)
    has_face_F[inside] = best_key[place_F[inside]] == key_F[inside]
    usable_F = (context_row_F >= 0) & (video_S[segment_F] >= 0)
    if no_face == "drop":
        usable_F &= has_face_F
    kept = np.flatnonzero(usable_F)
    has_face_N = has_face_F[kept]
    chosen = best_face[place_F[kept][has_face_N]]
    face_ND = np.zeros((len(kept), face_QD.shape[1]), dtype=np.float16)
    face_ND[has_face_N] = face_QD[face_row_P[chosen]]
    boxes_N4 = np.full((len(kept), 4), np.nan, dtype=np.float32)
    boxes_N4[has_face_N] = boxes_P4[chosen]
    return Frames(
        video_N=video_S[segment_F[kept]],
        frame_index_N=frame_index_F[kept],
        pts_seconds_N=frames.field("pts_seconds").to_numpy(zero_copy_only=False)[kept],
        has_face_N=has_face_N,
        boxes_N4=boxes_N4,
        face_ND=face_ND,
        context_NE=context_CE[context_row_F[kept]],
        any_known=bool((video_S >= 0).any()),
    )


def _dimensions(schema: pa.Schema) -> tuple[int, int]:
    """Sizes of face and context vectors that a features schema states.

    Raises:
        InputError: it is no features schema.
    """
    try:
        face = schema.field("faces").type.value_type.field("face_vector").type.list_size
        context = schema.field("frames").type.value_type.field("context_vector").type.list_size
    except (KeyError, AttributeError) as error:
        raise InputError(
            "these tables are no features: they lack the columns `frames` with `context_vector` "
            "and `faces` with `face_vector`; write them with jobs.extract"
        ) from error
    return face, context
