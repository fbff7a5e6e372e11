"""Features of many videos in a few flat arrays, in memory or mapped from files of this node."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caan.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PackedVideos:
    """Frames of all videos end to end; a video is `starts[v]` and the `counts[v]` rows from there.

    N frames of the whole pack, V videos of this selection. Selections share the frame arrays.
    Vectors and maps are plain arrays, or arrays that are mapped from files (`vectors_in`): all
    processes of a node then share one copy, which may be larger than its memory.
    """

    face_ND: np.ndarray
    """Face vectors, float16; zeros where a frame has no face."""
    context_NE: np.ndarray
    """Context vectors, float16."""
    has_face_N: np.ndarray
    """False where a frame has no face (only with no_face=context_only)."""
    frame_indices_N: np.ndarray
    """Index on the sampling grid, int64."""
    pts_seconds_N: np.ndarray
    """Seconds since the video's first frame, float64."""
    boxes_N4: np.ndarray
    """Face boxes x0, y0, x1, y1 in pixels of the full-size image, float32; NaN without a face."""
    starts_V: np.ndarray
    """First row of each video, int64."""
    counts_V: np.ndarray
    """Usable frames of each video, int64; 0 for a video without any."""
    labels_V: np.ndarray
    """Number of the label in `label_set`, int64; -1 where it is unknown."""
    video_ids_V: np.ndarray
    """Video ids, str."""
    splits_V: np.ndarray
    """Splits of the manifest, str; empty where there is none."""
    label_set: tuple[str, ...]
    """The emotions, in the order of their numbers."""
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    """pool5 maps by modality, float16 [N, C, H, W], where `add_maps` put them beside the vectors;
    zeros where a frame has no face."""
    soft_VK: np.ndarray | None = None
    """Share of the annotators' votes of each emotion, float32 [V, K]; the label alone where a video
    has no votes; None where none has."""

    def __len__(self) -> int:
        return len(self.video_ids_V)

    @property
    def face_dim(self) -> int:
        """Size of a face vector."""
        return self.face_ND.shape[1]

    @property
    def context_dim(self) -> int:
        """Size of a context vector."""
        return self.context_NE.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of the frame arrays."""
        maps = sum(maps_NCHW.nbytes for maps_NCHW in self.maps.values())
        return self.face_ND.nbytes + self.context_NE.nbytes + maps

    @property
    def has_all_faces(self) -> bool:
        """Whether every frame of these videos has a face."""
        missing = np.concatenate([[0], np.cumsum(~self.has_face_N)])
        return bool((missing[self.starts_V + self.counts_V] == missing[self.starts_V]).all())

    def without_vectors(self) -> "PackedVideos":
        """The same videos without vectors and maps: small enough to send to another process."""
        return dataclasses.replace(
            self,
            face_ND=np.empty((0, self.face_dim), np.float16),
            context_NE=np.empty((0, self.context_dim), np.float16),
            maps={name: np.empty((0, *m.shape[1:]), np.float16) for name, m in self.maps.items()},
        )

    def vectors_in(self, folder: Path) -> "PackedVideos":
        """The same videos with vectors and maps mapped from the files that `pack_features` wrote.

        Raises:
            FileNotFoundError: the folder lacks a file.
        """
        count = len(self.has_face_N)
        return dataclasses.replace(
            self,
            face_ND=mapped(folder, "face", (count, self.face_dim)),
            context_NE=mapped(folder, "context", (count, self.context_dim)),
            maps={
                name: mapped(folder, f"{name}_pool5", (count, *maps_NCHW.shape[1:]))
                for name, maps_NCHW in self.maps.items()
            },
        )

    def select(self, videos: np.ndarray | Sequence[int]) -> "PackedVideos":
        """These videos (numbers, or a mask), sharing the frame arrays."""
        chosen = np.asarray(videos)
        if chosen.dtype != bool:
            chosen = chosen.astype(np.int64)
        per_video = ("starts_V", "counts_V", "labels_V", "video_ids_V", "splits_V")
        soft_VK = None if self.soft_VK is None else self.soft_VK[chosen]
        return dataclasses.replace(
            self, soft_VK=soft_VK, **{name: getattr(self, name)[chosen] for name in per_video}
        )

    def split(self, name: str) -> "PackedVideos":
        """The videos of one split.

        Raises:
            InputError: there is no video of this split.
        """
        chosen = self.splits_V == name
        if not chosen.any():
            known = ", ".join(sorted({str(split) or "(none)" for split in self.splits_V}))
            raise InputError(f"no video has the split `{name}`; the manifest has {known}")
        return self.select(chosen)

    def usable(self) -> "PackedVideos":
        """The videos with a label and at least one frame: what can be learned from or scored."""
        return self.select((self.labels_V >= 0) & (self.counts_V > 0))

    def shares(self, rank: int, world_size: int) -> Iterator["PackedVideos"]:
        """This worker's part of a pass over all videos, in portions that fit into memory."""
        if world_size == 1:
            yield self
        else:
            yield self.select(np.arange(rank, len(self), world_size))

    def rows_of(self, video: int) -> slice:
        """Rows of the frame arrays that belong to one video of this selection."""
        start = int(self.starts_V[video])
        return slice(start, start + int(self.counts_V[video]))


def mapped(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float16 array `name` of a folder of packed features, mapped read-only."""
    if 0 in shape:
        return np.empty(shape, np.float16)  # an empty file cannot be mapped
    return np.memmap(folder / f"{name}.f16", np.float16, "r", shape=shape)
