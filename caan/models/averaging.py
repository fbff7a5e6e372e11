"""Heads that average the frames without attention: FAA, CAA, FFAA, Chen et al., Kosti et al.

Shape legend in `head.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caan.models.head import EncodedFrames, FrameBatch, Head, HeadOutput, HeadSizes, masked_mean
from caan.models.two_streams import TwoStreams


class AverageFirst(Head):
    """Mean of the vectors over frames, then layers, of which the first is linear in the vectors.

    A linear layer gives the same result before and after the mean. `encode` applies it before,
    which keeps g small; training applies it after, which costs T times less.
    """

    trains_frames = False

    def project(self, vectors: Sequence[Tensor]) -> Tensor:
        """The first layer, without its activation: one tensor per modality -> [..., F]."""
        raise NotImplementedError

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """The first layer's output of each frame."""
        g_BTF = self.project(self.vectors(frames))
        return EncodedFrames(g_BTF, torch.zeros_like(g_BTF[..., 0]), self.frames_alone(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over frames."""
        return masked_mean(g_BTF, mask_BT)

    def forward(self, frames: FrameBatch) -> HeadOutput:
        """As `Head.forward`; in training the mean comes first, and frame logits are zeros."""
        if not self.training:
            return super().forward(frames)
        pooled = [masked_mean(x_BTD, frames.mask_BT) for x_BTD in self.vectors(frames)]
        embedding_BR = self.project([mean_BD for mean_BD, _ in pooled])
        video_logits_BK = self.classify(embedding_BR)
        scores_BT = pooled[0][1]
        return HeadOutput(
            video_logits_BK,
            scores_BT.new_zeros(*scores_BT.shape, video_logits_BK.shape[-1]),
            scores_BT,
            torch.zeros_like(scores_BT),
            embedding_BR,
        )


class _SingleAverage(AverageFirst):
    """Mean of one modality's vectors, then two fully connected layers."""

    def __init__(self, sizes: HeadSizes, *, feature_size: int = 1024, dropout: float = 0.5) -> None:
        super().__init__(sizes, feature_size, dropout)
        self.first = nn.Linear(sizes.vector_dim(self.modalities), feature_size)
        self.classifier = nn.Linear(feature_size, sizes.num_emotions)

    def project(self, vectors: Sequence[Tensor]) -> Tensor:
        """The first of the two layers."""
        return self.first(self.dropout(vectors[0]))

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """ReLU and the second layer."""
        return self.classifier(self.dropout(F.relu(embedding_BR)))


class FAA(_SingleAverage):
    """Face average aggregate: mean face vector -> FC 1024 -> FC K.

    Source: paper Section 5.2; the 1024 is our choice.
    """

    modalities = ("face",)


class CAA(_SingleAverage):
    """Context average aggregate: mean context vector -> FC 1024 -> FC K.

    Source: paper Section 5.2; the 1024 is our choice.
    """

    modalities = ("context",)


class FFAA(TwoStreams):
    """Fusion feature average aggregate: FC 1024 each, concatenated, averaged, FC 1024, FC K.

    Source: paper Section 5.2; projecting before averaging follows "first passed ... then fused".
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        projection_size: int = 1024,
        feature_size: int = 1024,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, projection_size, 2 * projection_size, dropout, null_face)
        self.hidden = nn.Linear(2 * projection_size, feature_size)
        self.classifier = nn.Linear(feature_size, sizes.num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Both projections of each frame, side by side."""
        g_BTF = torch.cat(self.projected(frames), dim=-1)
        return EncodedFrames(g_BTF, torch.zeros_like(g_BTF[..., 0]), self.classify(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over frames."""
        return masked_mean(g_BTF, mask_BT)

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """Two fully connected layers."""
        hidden_BF = F.relu(self.hidden(self.dropout(embedding_BR)))
        return self.classifier(self.dropout(hidden_BF))


class ContextFusionNet(AverageFirst):
    """Chen et al.: each stream averaged, FC 1024 each, concatenated, fusion FC 2048, FC K.

    Source: [7] by way of the paper's Section 4.2 (the 1024); the rest from memory of [7], hence
    our choice; two streams here, three there.
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        projection_size: int = 1024,
        fusion_size: int = 2048,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, 2 * projection_size, dropout, null_face)
        self.project_face = nn.Linear(sizes.face_dim, projection_size)
        self.project_context = nn.Linear(sizes.context_dim, projection_size)
        self.fusion = nn.Linear(2 * projection_size, fusion_size)
        self.classifier = nn.Linear(fusion_size, sizes.num_emotions)

    def project(self, vectors: Sequence[Tensor]) -> Tensor:
        """Both streams' layers, side by side."""
        face, context = (self.dropout(stream) for stream in vectors)
        return torch.cat([self.project_face(face), self.project_context(context)], dim=-1)

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """ReLU, the fusion layer, the classifier."""
        fused_BF = F.relu(self.fusion(self.dropout(F.relu(embedding_BR))))
        return self.classifier(self.dropout(fused_BF))


class EmoticNet(AverageFirst):
    """Kosti et al.: face and context averaged and concatenated, FC 256, batch norm, ReLU, FC K.

    Train it with class weights `log`, and with `video_loss="l2"` for the original's loss. Batch
    statistics are those of a worker's part of the batch.

    Source: [6], the network of EMOTIC (body and image there; face and context here).
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        feature_size: int = 256,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, feature_size, dropout, null_face)
        self.first = nn.Linear(sizes.vector_dim(self.modalities), feature_size)
        self.norm = nn.BatchNorm1d(feature_size)
        self.classifier = nn.Linear(feature_size, sizes.num_emotions)

    def project(self, vectors: Sequence[Tensor]) -> Tensor:
        """The layer over both modalities."""
        return self.first(torch.cat(list(vectors), dim=-1))

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """Batch norm, ReLU, dropout, classifier."""
        norm = self.norm
        # A batch of one video has no statistics of its own: take the running ones.
        normed_BR = F.batch_norm(
            embedding_BR,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            training=self.training and len(embedding_BR) > 1,
        )
        return self.classifier(self.dropout(F.relu(normed_BR)))
