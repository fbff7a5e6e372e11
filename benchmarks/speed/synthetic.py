"""What benchmarks on synthetic videos share: videos of equal length, and CAAN's losses by hand."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from caan.features.packed import PackedVideos
from caan.models.head import HeadOutput
from caan.training import losses


def equal_videos(
    face_ND: np.ndarray, context_NE: np.ndarray, labels_V: np.ndarray, *, split: str
) -> PackedVideos:
    """Videos of equally many frames with these vectors, a face in every frame, in one split.

    The labels are numbers of seven emotions.
    """
    num_videos, num_frames = len(labels_V), len(face_ND) // len(labels_V)
    return PackedVideos(
        face_ND=face_ND,
        context_NE=context_NE,
        has_face_N=np.ones(len(face_ND), bool),
        frame_indices_N=np.tile(np.arange(num_frames), num_videos),
        pts_seconds_N=np.zeros(len(face_ND)),
        boxes_N4=np.zeros((len(face_ND), 4), np.float32),
        starts_V=np.arange(num_videos) * num_frames,
        counts_V=np.full(num_videos, num_frames),
        labels_V=labels_V,
        video_ids_V=np.array([f"v{number}" for number in range(num_videos)]),
        splits_V=np.array([split] * num_videos),
        label_set=tuple("abcdefg"),
    )


def plain_loss(output: HeadOutput, targets_B: Tensor) -> Tensor:
    """The losses of the recipe `caan` as one would write them by hand."""
    per_frame = targets_B.repeat_interleave(output.frame_logits_BTK.shape[1])
    return (
        F.cross_entropy(output.video_logits_BK, targets_B)
        + F.cross_entropy(output.frame_logits_BTK.flatten(0, 1), per_frame)
        + losses.triplet_loss(output.embedding_BR, targets_B, 0.3)
    )
