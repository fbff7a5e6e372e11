"""Batches of packed videos: what an epoch sees, the same for any number of workers."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caan.errors import InputError
from caan.features.config import Sampling
from caan.features.packed import PackedVideos
from caan.models.head import FrameBatch, Head


class Batch(NamedTuple):
    """One worker's part of a batch."""

    frames: FrameBatch
    targets_B: Tensor
    """Class numbers, int64."""
    soft_BK: Tensor | None = None
    """Shares of the annotators' votes, if they are known."""


class Loader:
    """Batches of packed videos in a seeded order that all workers compute alike.

    Each worker takes its slice of every global batch, so what is learned does not depend on how
    many there are.
    """

    def __init__(
        self,
        videos: PackedVideos,
        *,
        modalities: tuple[str, ...],
        maps: Iterable[str] = (),
        batch_videos: int,
        num_frames: int,
        sampling: Sampling,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.videos = videos.usable()
        if len(self.videos) < world_size or batch_videos < world_size:
            raise InputError(
                f"{len(self.videos)} training videos in batches of {batch_videos} are too few "
                f"for {world_size} workers"
            )
        self.label_counts_K = np.bincount(
            self.videos.labels_V, minlength=len(self.videos.label_set)
        )
        self._modalities = modalities
        self._maps = tuple(maps)
        self._batch_videos = batch_videos
        self._num_frames = num_frames
        self._sampling = sampling
        self._seed = seed
        self._rank = rank
        self._world_size = world_size

    def moments(self, modality: str) -> tuple[Tensor, Tensor]:
        """Mean and deviation [D] of the training frames' vectors; at most 20,000 of them."""
        rows = rows_of_all(self.videos)
        if modality == "face":
            rows = rows[self.videos.has_face_N[rows]]
        rows = rows[:: max(len(rows) // 20_000, 1)]
        vectors_ND = self.videos.face_ND if modality == "face" else self.videos.context_NE
        total_D = torch.zeros(vectors_ND.shape[1], dtype=torch.float64)
        squares_D = torch.zeros_like(total_D)
        for part in np.array_split(rows, max(len(rows) // 1024, 1)):
            x_ND = torch.from_numpy(vectors_ND[part]).float()
            total_D += x_ND.sum(dim=0)
            squares_D += x_ND.square().sum(dim=0)
        mean_D = total_D / max(len(rows), 1)
        variance_D = (squares_D / max(len(rows), 1) - mean_D.square()).clamp(min=0.0)
        return mean_D.float(), variance_D.sqrt().float()

    def training(self, epoch: int) -> Iterator[Batch]:
        """This worker's slice of each batch of an epoch."""
        plan = plan_epoch(
            self.videos.labels_V, self._batch_videos, self._sampling, self._seed, epoch
        )
        rng = np.random.default_rng((self._seed, epoch, 1))
        for videos in plan:
            rows_BT, mask_BT = sample_frames_of(self.videos, videos, self._num_frames, rng)
            # Interleaved slices differ by one video at most, and the order is random anyway.
            mine = slice(self._rank, None, self._world_size)
            frames = gather_frames(
                self.videos, rows_BT[mine], mask_BT[mine], self._modalities, self._maps
            )
            soft_VK = self.videos.soft_VK
            yield Batch(
                frames,
                torch.from_numpy(self.videos.labels_V[videos[mine]]),
                None if soft_VK is None else torch.from_numpy(soft_VK[videos[mine]]),
            )


def plan_epoch(
    labels_V: np.ndarray, batch_videos: int, sampling: Sampling, seed: int, epoch: int
) -> list[np.ndarray]:
    """Video numbers of each global batch of an epoch, about one pass over the videos.

    `balanced` fills every batch with equally many videos of each class (P x K, at least two of a
    class; videos of small classes come back sooner); `shuffled` is a plain permutation.

    Source: P x K batches for the triplet loss are our choice; the paper names no sampler.
    """
    rng = np.random.default_rng((seed, epoch, 0))
    num_videos = len(labels_V)
    if sampling == "shuffled":
        order = rng.permutation(num_videos)
        return np.array_split(order, -(-num_videos // batch_videos))
    members = [np.flatnonzero(labels_V == label) for label in np.unique(labels_V)]
    batch_videos = min(batch_videos, max(num_videos, 2 * len(members)))
    num_classes = min(len(members), max(batch_videos // 2, 1))
    num_batches = -(-num_videos // batch_videos)
    queues: list[np.ndarray] = [np.empty(0, dtype=np.int64) for _ in members]
    turn = np.empty(0, dtype=np.int64)
    plan = []
    for _ in range(num_batches):
        if len(turn) < num_classes:
            turn = np.concatenate([turn, rng.permutation(len(members))])
        classes, turn = turn[:num_classes], turn[num_classes:]
        quota, extra = divmod(batch_videos, num_classes)
        batch = []
        for place, label in enumerate(classes):
            wanted = quota + (place < extra)
            while len(queues[label]) < wanted:
                queues[label] = np.concatenate([queues[label], rng.permutation(members[label])])
            batch.append(queues[label][:wanted])
            queues[label] = queues[label][wanted:]
        plan.append(rng.permutation(np.concatenate(batch)))
    return plan


def sample_frames_of(
    videos: PackedVideos, chosen: np.ndarray, num_frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Frame rows [B, T] of the chosen videos, and a mask: one frame of each of T equal segments.

    A video of at most `num_frames` frames gives all of them.
    """
    offset_BT, mask_BT = sample_offsets(videos.counts_V[chosen], num_frames, rng)
    return videos.starts_V[chosen][:, None] + offset_BT, mask_BT


def sample_offsets(
    counts_B: np.ndarray, num_frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`sample_frames_of` for videos of so many frames: places of frames within their video."""
    edges_BT = np.arange(num_frames + 1) * counts_B[:, None] // num_frames
    jitter_BT = rng.random((len(counts_B), num_frames)) * np.diff(edges_BT, axis=1)
    jittered_BT = edges_BT[:, :-1] + jitter_BT.astype(np.int64)
    plain_BT = np.broadcast_to(np.arange(num_frames), jittered_BT.shape)
    few_B1 = counts_B[:, None] <= num_frames
    offset_BT = np.where(few_B1, plain_BT, jittered_BT)
    mask_BT = offset_BT < counts_B[:, None]
    offset_BT = np.minimum(offset_BT, counts_B[:, None] - 1)
    width = int(mask_BT.any(axis=0).sum())
    return offset_BT[:, :width], mask_BT[:, :width]


def gather_frames(
    videos: PackedVideos,
    rows_BT: np.ndarray,
    mask_BT: np.ndarray,
    modalities: tuple[str, ...],
    maps: Iterable[str] = (),
) -> FrameBatch:
    """The frames at these rows as a batch; float16, on the CPU. `maps`: whose pool5 as well."""
    vectors = {
        "face": videos.face_ND,
        "context": videos.context_NE,
    }
    taken = {
        name: torch.from_numpy(np.take(vectors[name], rows_BT.reshape(-1), axis=0)).view(
            *rows_BT.shape, -1
        )
        for name in modalities
    }
    return FrameBatch(
        taken.get("face"),
        taken.get("context"),
        torch.from_numpy(mask_BT),
        torch.from_numpy(videos.has_face_N[rows_BT]),
        **{f"{name}_pool5_BTCHW": torch.from_numpy(videos.maps[name][rows_BT]) for name in maps},
    )


def rows_of_all(videos: PackedVideos) -> np.ndarray:
    """Rows of all frames of these videos, in their order: int64 [sum of counts]."""
    ends_V = np.cumsum(videos.counts_V)
    first_V = videos.starts_V - (ends_V - videos.counts_V)
    return np.repeat(first_V, videos.counts_V) + np.arange(ends_V[-1] if len(ends_V) else 0)


def check_faces(model: Head, videos: PackedVideos) -> None:
    """Say so if frames have no face and the head has nothing to put there.

    Raises:
        InputError: features packed with `context_only` for a head without a null face vector.
    """
    if "face" not in model.modalities or hasattr(model, "null_face_D"):
        return
    if not videos.has_all_faces:
        raise InputError(
            "some frames have no face (no_face=context_only), and this head has no vector for "
            "that; set `null_face` if the head has it, or take no_face=drop"
        )


def check_classes(counts_K: np.ndarray, label_set: tuple[str, ...]) -> None:
    """Say so if there is too little to learn from.

    Raises:
        InputError: an emotion without training videos, or fewer than two emotions.
    """
    empty = [label for label, count in zip(label_set, counts_K, strict=True) if count == 0]
    if len(label_set) - len(empty) < 2:
        raise InputError(
            "training needs videos of at least two emotions with a face found; there are "
            f"{int(counts_K.sum())} usable videos of {len(label_set) - len(empty)}"
        )
    if empty:
        raise InputError(
            f"no usable training video shows {', '.join(empty)}; add some, or choose a label set "
            "without"
        )
