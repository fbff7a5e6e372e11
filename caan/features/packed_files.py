"""Features larger than memory, packed into files: a row per video, in random order.

Segments are first dealt out to buckets on local disk, all segments of a video into one; then each
bucket is packed on its own, its videos shuffled, and written to the file of its set:

    FOLDER/train/part-00000.parquet ...        training videos, each file a random sample of them
    FOLDER/validation/part-00000.parquet ...   validation videos
    FOLDER/packed.json                         written last: what the files hold
"""

import base64
import io
import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from caan import storage
from caan.arrow import joined_values
from caan.errors import InputError
from caan.features import packed as packing
from caan.features.manifest_arrays import manifest_arrays
from caan.features.packed import Frames, PackedVideos

PACKED_SCHEMA = pa.schema(
    [
        ("video", pa.int64()),  # its number within the set of its file
        ("frame_indices", pa.large_binary()),  # int64 of each frame
        ("has_face", pa.large_binary()),  # bool of each frame
        ("face", pa.large_binary()),  # float16 [frames, face_dim]
        ("context", pa.large_binary()),  # float16 [frames, context_dim]
    ]
)

FILE_BYTES = 128 << 20
"""Vectors of one packed file, about; a bucket is packed in memory at once."""
FEWEST_FILES, MOST_FILES = 8, 512
"""Several files even of little data, so that all workers read and every epoch has another order."""
ROW_GROUP_BYTES = 16 << 20
"""Vectors of a row group: what a reader holds at once, but for longer videos."""
BUFFER_BYTES = 256 << 20
"""Vectors that wait in memory to be dealt out to the buckets."""


@dataclass(frozen=True, kw_only=True)
class PackedFiles:
    """The videos of one set in packed files; takes the place of PackedVideos."""

    files: tuple[str, ...]
    """The files; local or s3://."""
    video_ids_V: np.ndarray
    """Video ids, str, by the videos' numbers."""
    labels_V: np.ndarray
    """Number of each label in `label_set`, int64."""
    label_set: tuple[str, ...]
    """The emotions, in the order of their numbers."""
    face_dim: int
    """Size of a face vector."""
    context_dim: int
    """Size of a context vector."""
    sums: dict[str, np.ndarray]
    """Of "face" and "context": count, sum and sum of squares of the vectors, float64 [3, D]."""
    has_all_faces: bool
    """Whether every frame has a face."""

    def __len__(self) -> int:
        return len(self.video_ids_V)

    @property
    def maps(self) -> Mapping[str, np.ndarray]:
        """None: packed files hold no pool5 maps."""
        return {}

    def moments(self, modality: str) -> tuple[Tensor, Tensor]:
        """Mean and deviation [D] of all frames' "face" or "context" vectors."""
        count_D, sum_D, squares_D = self.sums[modality]
        mean_D = sum_D / np.maximum(count_D, 1)
        variance_D = squares_D / np.maximum(count_D, 1) - mean_D**2
        deviation_D = np.sqrt(np.maximum(variance_D, 0.0))
        return torch.from_numpy(mean_D).float(), torch.from_numpy(deviation_D).float()

    def shares(self, rank: int, world_size: int) -> Iterator[PackedVideos]:
        """This worker's row groups, one by one; those of all workers are all videos."""
        number = 0
        for file in self.files:
            files, path = storage.filesystem(file)
            with pq.ParquetFile(path, filesystem=files) as opened:
                for group in range(opened.num_row_groups):
                    if number % world_size == rank:
                        yield self._packed(opened.read_row_group(group))
                    number += 1

    def _packed(self, rows: pa.Table) -> PackedVideos:
        videos = rows["video"].to_numpy()
        counts_V = np.array([len(value.as_buffer()) for value in rows["has_face"]], np.int64)
        total = int(counts_V.sum())
        return PackedVideos(
            face_ND=_vectors(rows["face"], self.face_dim),
            context_NE=_vectors(rows["context"], self.context_dim),
            has_face_N=joined_values(rows["has_face"], bool),
            frame_indices_N=joined_values(rows["frame_indices"], np.int64),
            pts_seconds_N=np.zeros(total),
            boxes_N4=np.full((total, 4), np.nan, np.float32),
            starts_V=np.cumsum(counts_V) - counts_V,
            counts_V=counts_V,
            labels_V=self.labels_V[videos],
            video_ids_V=self.video_ids_V[videos],
            splits_V=np.full(len(videos), ""),
            label_set=self.label_set,
        )


def _vectors(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    return joined_values(column, np.float16).reshape(-1, dim)


def memory_limit_bytes(gigabytes: float) -> int:
    """So many gigabytes; for 0 a quarter of the memory that this machine or container has."""
    if gigabytes > 0:
        return int(gigabytes * 1e9)
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total // 4


def vector_bytes(files: Iterable[str]) -> int:
    """Bytes of all face and context vectors in features files, from their footers alone."""

    def of_file(file: str) -> int:
        filesystem, path = storage.filesystem(file)
        with storage.explained(file, "reading"):
            footer = pq.read_metadata(path, filesystem=filesystem)
        columns = [
            footer.row_group(group).column(number)
            for group in range(footer.num_row_groups)
            for number in range(footer.num_columns)
        ]
        names = ("face_vector", "context_vector")
        return sum(2 * c.num_values for c in columns if any(n in c.path_in_schema for n in names))

    with ThreadPoolExecutor(16) as pool:
        return sum(pool.map(of_file, files))


class Buckets:
    """Usable frames of the manifest's videos on local disk, dealt out at random by video.

    `outline` is the packed videos without their vectors: what a split needs to know.
    """

    def __init__(
        self,
        features: Iterable[pa.Table],
        manifest: pa.Table,
        label_set: tuple[str, ...],
        *,
        no_face: str,
        wanted_V: np.ndarray,
        num_bytes: int,
        folder: Path,
        seed: int,
    ) -> None:
        """Deal out the frames of the videos in the mask `wanted_V` from about `num_bytes`.

        Raises:
            InputError: what `packing.usable_frames` refuses.
        """
        self.folder = folder
        self.seed = seed
        self.num_buckets = min(max(-(-num_bytes // FILE_BYTES), FEWEST_FILES), MOST_FILES)
        rng = np.random.default_rng((seed, 2))
        self._bucket_V = rng.permutation(manifest.num_rows) % self.num_buckets
        self._rows: list[list[dict[str, Any]]] = [[] for _ in range(self.num_buckets)]
        self._writers: dict[int, pq.ParquetWriter] = {}
        counts_V = np.zeros(manifest.num_rows, np.int64)
        waiting, is_known, face_dim, context_dim = 0, False, 0, 0
        folder.mkdir(parents=True)
        for frames in packing.usable_frames(features, manifest, no_face=no_face):
            is_known |= frames.any_known
            face_dim, context_dim = frames.face_ND.shape[1], frames.context_NE.shape[1]
            for video, place in _runs(frames.video_N):
                if wanted_V[video]:
                    counts_V[video] += place.stop - place.start
                    self._rows[self._bucket_V[video]].append(_piece(video, frames, place))
                    waiting += (place.stop - place.start) * 2 * (face_dim + context_dim)
            if waiting > BUFFER_BYTES:
                self._flush()
                waiting = 0
        if not is_known:
            raise InputError("no features belong to the videos of this manifest")
        self._flush()
        for writer in self._writers.values():
            writer.close()
        self.outline = PackedVideos(
            face_ND=np.empty((0, face_dim), np.float16),
            context_NE=np.empty((0, context_dim), np.float16),
            has_face_N=np.empty(0, bool),
            frame_indices_N=np.empty(0, np.int64),
            pts_seconds_N=np.empty(0),
            boxes_N4=np.empty((0, 4), np.float32),
            starts_V=np.cumsum(counts_V) - counts_V,
            counts_V=counts_V,
            **manifest_arrays(manifest, label_set),
        )

    def _path(self, bucket: int) -> Path:
        return self.folder / f"bucket-{bucket:05d}.parquet"

    def _flush(self) -> None:
        for bucket, rows in enumerate(self._rows):
            if rows:
                if bucket not in self._writers:
                    self._writers[bucket] = pq.ParquetWriter(
                        self._path(bucket), PACKED_SCHEMA, compression="none"
                    )
                self._writers[bucket].write_table(_table(rows))
                rows.clear()

    def write(self, sets: dict[str, PackedVideos], folder: str) -> dict[str, PackedFiles]:
        """Pack the videos of each set (disjoint selections of `outline`) into files of its own."""
        place = {name: number for number, name in enumerate(self.outline.video_ids_V.tolist())}
        set_V = np.full(len(place), -1)
        number_V = np.full(len(place), -1)
        for index, chosen in enumerate(sets.values()):
            where = np.array([place[name] for name in chosen.video_ids_V.tolist()], np.int64)
            set_V[where], number_V[where] = index, np.arange(len(chosen))
        writers = [_Writer(storage.join(folder, name), self.outline) for name in sets]
        for bucket in sorted(self._writers):
            rows = pq.read_table(self._path(bucket)).to_pylist()
            self._path(bucket).unlink()
            by_video: dict[int, list[dict[str, Any]]] = {}
            for row in rows:
                by_video.setdefault(row["video"], []).append(row)
            rng = np.random.default_rng((self.seed, 3, bucket))
            for video in rng.permutation(sorted(by_video)):
                if set_V[video] >= 0:
                    writers[set_V[video]].add(int(number_V[video]), by_video[int(video)])
            for writer in writers:
                writer.close_file()
        shutil.rmtree(self.folder)
        return {
            name: writer.packed(chosen)
            for writer, (name, chosen) in zip(writers, sets.items(), strict=True)
        }


def _runs(video_N: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each run of frames of one video: its number and its place."""
    edges = np.flatnonzero(np.diff(video_N, prepend=-1, append=-1))
    for start, stop in itertools.pairwise(edges):
        yield int(video_N[start]), slice(int(start), int(stop))


def _piece(video: int, frames: Frames, place: slice) -> dict[str, Any]:
    return {
        "video": video,
        "frame_indices": frames.frame_index_N[place].astype(np.int64).tobytes(),
        "has_face": frames.has_face_N[place].tobytes(),
        "face": frames.face_ND[place].tobytes(),
        "context": frames.context_NE[place].tobytes(),
    }


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, PACKED_SCHEMA)


class _Writer:
    """Writes the packed files of one set, a file at a time, and sums up its vectors."""

    def __init__(self, folder: str, outline: PackedVideos) -> None:
        self.folder = folder
        self.outline = outline
        self.files: list[str] = []
        dims = {"face": outline.face_dim, "context": outline.context_dim}
        self.sums = {name: np.zeros((3, dim)) for name, dim in dims.items()}
        self.has_all_faces = True
        self._rows: list[dict[str, Any]] = []
        self._num_bytes = 0
        self._buffer = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None

    def add(self, number: int, pieces: list[dict[str, Any]]) -> None:
        """One video, from its pieces in any order."""
        joined = {
            name: b"".join(piece[name] for piece in pieces) for name in PACKED_SCHEMA.names[1:]
        }
        indices_N = np.frombuffer(joined["frame_indices"], np.int64)
        has_face_N = np.frombuffer(joined["has_face"], bool)
        vectors = {
            name: np.frombuffer(joined[name], np.float16).reshape(len(indices_N), -1)
            for name in self.sums
        }
        order_N = np.argsort(indices_N, kind="stable")
        if (order_N[1:] < order_N[:-1]).any():
            indices_N, has_face_N = indices_N[order_N], has_face_N[order_N]
            vectors = {name: x_ND[order_N] for name, x_ND in vectors.items()}
        for name, x_ND in vectors.items():
            known = x_ND[has_face_N] if name == "face" else x_ND
            for start in range(0, len(known), 1024):
                part_ND = known[start : start + 1024].astype(np.float32)
                self.sums[name] += (
                    np.full(part_ND.shape[1], len(part_ND)),
                    part_ND.sum(axis=0, dtype=np.float64),
                    np.square(part_ND).sum(axis=0, dtype=np.float64),
                )
        self.has_all_faces &= bool(has_face_N.all())
        arrays = {"frame_indices": indices_N, "has_face": has_face_N, **vectors}
        row = {name: values.tobytes() for name, values in arrays.items()}
        self._rows.append({"video": number, **row})
        self._num_bytes += sum(x_ND.nbytes for x_ND in vectors.values())
        if self._num_bytes > ROW_GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._buffer, PACKED_SCHEMA, compression="lz4", use_dictionary=False
            )
        self._writer.write_table(_table(self._rows))
        self._rows, self._num_bytes = [], 0

    def close_file(self) -> None:
        """Store the open file, if it holds anything."""
        if self._rows:
            self._write_group()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self.files.append(storage.join(self.folder, f"part-{len(self.files):05d}.parquet"))
            storage.write_bytes(self.files[-1], self._buffer.getvalue())
            self._buffer = io.BytesIO()

    def packed(self, chosen: PackedVideos) -> PackedFiles:
        """The finished set."""
        return PackedFiles(
            files=tuple(self.files),
            video_ids_V=chosen.video_ids_V,
            labels_V=chosen.labels_V,
            label_set=chosen.label_set,
            face_dim=chosen.face_dim,
            context_dim=chosen.context_dim,
            sums=self.sums,
            has_all_faces=self.has_all_faces,
        )


def write_record(folder: str, sets: dict[str, PackedFiles]) -> None:
    """Note in FOLDER/packed.json what the files hold; it says that they are whole."""
    record = {}
    for name, packed in sets.items():
        record[name] = {
            "files": [file.rpartition("/")[2] for file in packed.files],
            "video_ids": packed.video_ids_V.tolist(),
            "labels": packed.labels_V.tolist(),
            "label_set": list(packed.label_set),
            "face_dim": packed.face_dim,
            "context_dim": packed.context_dim,
            "sums": {k: base64.b64encode(v.tobytes()).decode() for k, v in packed.sums.items()},
            "has_all_faces": packed.has_all_faces,
        }
    storage.write_json(storage.join(folder, "packed.json"), record)


def read_record(folder: str) -> dict[str, PackedFiles] | None:
    """The packed sets in a folder; None if they are not whole."""
    file = storage.join(folder, "packed.json")
    if not storage.exists(file):
        return None
    return {
        name: PackedFiles(
            files=tuple(storage.join(folder, name, file) for file in values["files"]),
            video_ids_V=np.array(values["video_ids"], dtype=np.str_),
            labels_V=np.array(values["labels"], dtype=np.int64),
            label_set=tuple(values["label_set"]),
            face_dim=values["face_dim"],
            context_dim=values["context_dim"],
            sums={
                kind: np.frombuffer(base64.b64decode(text)).reshape(3, -1)
                for kind, text in values["sums"].items()
            },
            has_all_faces=values["has_all_faces"],
        )
        for name, values in storage.read_json(file).items()
    }
