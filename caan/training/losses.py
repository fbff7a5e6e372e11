"""What the heads are trained on. Shape legend in `caan/models/head.py`; N: all of a batch.

Cross-entropies are returned per video, so that a batch split over workers sums to the same loss;
metric losses take the features of the whole batch. Targets are class numbers [B], or
probabilities [B, K] where annotators' votes are known.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caan.errors import InputError
from caan.training.config import ClassWeights, TripletMining


def soft_targets(targets_B: Tensor, soft_BK: Tensor | None, votes_share: float) -> Tensor:
    """Targets of the cross-entropies: class numbers [B], or probabilities [B, K] with the votes.

    Raises:
        InputError: votes are wanted, and the videos have none.
    """
    if votes_share == 0:
        return targets_B
    if soft_BK is None:
        raise InputError(
            f"option `votes_share` is {votes_share}, and the manifest's videos have no votes, or "
            "they are streamed: write the manifest with `jobs.annotate votes`, or leave it at 0"
        )
    label_BK = F.one_hot(targets_B, soft_BK.shape[1]).to(soft_BK)
    return (1 - votes_share) * label_BK + votes_share * soft_BK


def video_cross_entropy(logits_BK: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of each video: [B], in nats."""
    return F.cross_entropy(
        logits_BK.float(), targets, label_smoothing=label_smoothing, reduction="none"
    )


def video_squared_error(logits_BK: Tensor, targets: Tensor) -> Tensor:
    """Squared error of sigmoids against 0/1 targets, summed over emotions: [B].

    Source: Kosti et al. [6], the discrete part of the EMOTIC loss.
    """
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits_BK.shape[1])
    return (torch.sigmoid(logits_BK.float()) - targets.float()).square().sum(dim=1)


def frame_cross_entropy(
    frame_logits_BTK: Tensor,
    targets: Tensor,
    mask_BT: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy of each frame with its video's label, averaged per video: [B].

    Source: paper Section 4.2; every video counts the same, however many frames it has.
    """
    num_videos, num_frames, _ = frame_logits_BTK.shape
    targets_N = targets.repeat_interleave(num_frames, dim=0)
    loss_BT = F.cross_entropy(
        frame_logits_BTK.float().flatten(0, 1),
        targets_N,
        label_smoothing=label_smoothing,
        reduction="none",
    ).view(num_videos, num_frames)
    loss_BT = loss_BT.masked_fill(~mask_BT, 0.0)
    return loss_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)


def squared_distances(embedding_NR: Tensor) -> Tensor:
    """Squared distances of L2-normalised features: [N, N], 0 to 4."""
    unit_NR = F.normalize(embedding_NR.float(), dim=1)
    return (2.0 - 2.0 * unit_NR @ unit_NR.T).clamp(min=0.0)


def triplet_loss(
    embedding_NR: Tensor, labels_N: Tensor, margin: float, mining: TripletMining = "semi_hard"
) -> Tensor:
    """Triplet loss on normalised video features: a scalar, 0 where no triplet exists.

    `semi_hard` takes for each pair of a class the nearest negative beyond the positive, else the
    farthest one; `batch_all` averages over all triplets that violate the margin.

    Source: paper Section 4.2 with [34] (FaceNet); mining and margin are our choice.
    """
    distance_NN = squared_distances(embedding_NR)
    same_NN = labels_N[:, None] == labels_N[None, :]
    positive_NN = same_NN & ~torch.eye(len(labels_N), dtype=torch.bool, device=same_NN.device)
    # [anchor, positive, negative]
    gap_NNN = distance_NN[:, :, None] - distance_NN[:, None, :]
    if mining == "batch_all":
        valid_NNN = positive_NN[:, :, None] & ~same_NN[:, None, :]
        loss_NNN = F.relu(gap_NNN + margin) * valid_NNN
        return loss_NNN.sum() / (loss_NNN.detach() > 0).sum().clamp(min=1)
    with torch.no_grad():
        beyond_NNN = (gap_NNN < 0) & ~same_NN[:, None, :]
        nearest_NN = distance_NN[:, None, :].masked_fill(~beyond_NNN, torch.inf).min(dim=2)
        farthest_N = distance_NN.masked_fill(same_NN, -torch.inf).argmax(dim=1)
        negative_NN = torch.where(
            torch.isinf(nearest_NN.values), farthest_N[:, None], nearest_NN.indices
        )
        has_negative_N = (~same_NN).any(dim=1)
        valid_NN = positive_NN & has_negative_N[:, None]
    loss_NN = F.relu(distance_NN - distance_NN.gather(1, negative_NN) + margin)
    return (loss_NN * valid_NN).sum() / valid_NN.sum().clamp(min=1)


def contrastive_loss(embedding_NR: Tensor, labels_N: Tensor, margin: float) -> Tensor:
    """Contrastive loss on normalised video features: a scalar, the mean over both kinds of pair.

    Like pairs cost their squared distance, unlike pairs what they lack to the margin.

    Source: QAN [8]; the two kinds of pair weigh the same here (our choice: unlike pairs are many).
    """
    distance_NN = squared_distances(embedding_NR)
    same_NN = labels_N[:, None] == labels_N[None, :]
    pair_NN = torch.ones_like(same_NN).triu(diagonal=1)
    like_NN, unlike_NN = pair_NN & same_NN, pair_NN & ~same_NN
    like = (distance_NN * like_NN).sum() / like_NN.sum().clamp(min=1)
    unlike = (F.relu(margin - distance_NN) * unlike_NN).sum() / unlike_NN.sum().clamp(min=1)
    return (like + unlike) / 2


def class_weights(
    labels_V: np.ndarray | Sequence[int], num_emotions: int, kind: ClassWeights
) -> Tensor:
    """Weight of each emotion's videos in the cross-entropies: [K], mean 1."""
    share_K = np.bincount(np.asarray(labels_V), minlength=num_emotions) / max(len(labels_V), 1)
    if kind == "none":
        return torch.ones(num_emotions)
    weights_K = 1.0 / np.maximum(share_K, 1e-3) if kind == "balanced" else 1 / np.log(1.2 + share_K)
    return torch.tensor(weights_K / weights_K.mean(), dtype=torch.float32)
