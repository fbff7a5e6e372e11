"""Training batches from packed files: frames drawn where the files are read, losses weighed."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from caan.arrow import joined_values
from caan.errors import InputError
from caan.features.batches import SAMPLINGS, Batch, sample_offsets
from caan.features.packed_files import PackedFiles
from caan.models.head import FrameBatch
from caan.training import losses


class FrameSampler:
    """Packed rows with the frames of one epoch: one of each of `num_frames` equal segments.

    Runs where the files are read, so that only these frames travel to the workers. Each call
    draws anew.
    """

    def __init__(self, num_frames: int, dims: dict[str, int]) -> None:
        self.num_frames = num_frames
        self.dims = dims

    def __call__(self, rows: pa.Table) -> pa.Table:
        """A table of the same schema, without the vectors that the head does not look at."""
        counts_B = np.array([len(value.as_buffer()) for value in rows["has_face"]], np.int64)
        offset_BT, mask_BT = sample_offsets(counts_B, self.num_frames, np.random.default_rng())
        columns: dict[str, Any] = {"video": rows["video"]}
        for name, kind, dim in [
            ("frame_indices", np.int64, 1),
            ("has_face", bool, 1),
            *((name, np.float16, dim) for name, dim in self.dims.items()),
        ]:
            columns[name] = pa.array(
                [
                    np.frombuffer(value.as_buffer(), kind).reshape(-1, dim)[places[mask]].tobytes()
                    for value, places, mask in zip(rows[name], offset_BT, mask_BT, strict=True)
                ],
                pa.large_binary(),
            )
        return pa.table(columns)


class StreamLoader:
    """Batches from packed files as they come from disk, in an order that no seed decides.

    Instead of equally many videos of each class per batch, `balanced` weighs the classes' losses.
    """

    def __init__(
        self,
        videos: PackedFiles,
        batches: Callable[[int], Iterable[pa.Table]],
        *,
        modalities: tuple[str, ...],
        sampling: str,
    ) -> None:
        """`batches(epoch)` gives this worker's sampled rows, as many tables on every worker."""
        if sampling not in SAMPLINGS:
            raise InputError(
                f"option `sampling` is `{sampling}`; choose one of {', '.join(SAMPLINGS)}"
            )
        num_emotions = len(videos.label_set)
        self.videos = videos
        self.label_counts_K = np.bincount(videos.labels_V, minlength=num_emotions)
        kind = "balanced" if sampling == "balanced" else "none"
        self.class_weights_K = losses.class_weights(videos.labels_V, num_emotions, kind).numpy()
        self._batches = batches
        self._modalities = modalities

    def moments(self, modality: str) -> tuple[Tensor, Tensor]:
        """Mean and deviation [D] of all training frames' vectors."""
        return self.videos.moments(modality)

    def training(self, epoch: int) -> Iterator[Batch]:
        """This worker's part of each batch of an epoch."""
        dims = {"face": self.videos.face_dim, "context": self.videos.context_dim}
        for rows in self._batches(epoch):
            counts = [len(value.as_buffer()) for value in rows["has_face"]]
            mask_BT = np.arange(max(counts)) < np.array(counts)[:, None]
            has_face_BT = np.zeros(mask_BT.shape, bool)
            has_face_BT[mask_BT] = joined_values(rows["has_face"], bool)
            vectors = {}
            for name in self._modalities:
                padded = np.zeros((*mask_BT.shape, dims[name]), np.float16)
                for row, value in enumerate(rows[name]):
                    padded[row, : counts[row]] = np.frombuffer(
                        value.as_buffer(), np.float16
                    ).reshape(counts[row], -1)
                vectors[name] = torch.from_numpy(padded)
            frames = FrameBatch(
                vectors.get("face"),
                vectors.get("context"),
                torch.from_numpy(mask_BT),
                torch.from_numpy(has_face_BT),
            )
            yield Batch(frames, torch.from_numpy(self.videos.labels_V[rows["video"].to_numpy()]))
