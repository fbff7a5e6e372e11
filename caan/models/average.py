"""Average aggregation, the paper's own baselines: FAA, CAA, FFAA. Shape legend in `frames.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caan.models.frames import EncodedFrames, FrameBatch, Head, masked_mean


class _SingleAverage(Head):
    """Mean of one modality's vectors, then two fully connected layers."""

    def __init__(
        self,
        *,
        face_dim: int,
        context_dim: int,
        num_emotions: int,
        feature_size: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(face_dim=face_dim, context_dim=context_dim, feature_dim=feature_size)
        self.dropout = nn.Dropout(dropout)
        dim = face_dim if self.modalities == ("face",) else context_dim
        self.first = nn.Linear(dim, feature_size)
        self.classifier = nn.Linear(feature_size, num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """The first layer before its ReLU: being linear, it may come before the mean."""
        vectors = self.face_vectors if self.modalities == ("face",) else self.context_vectors
        g_BTF = self.first(self.dropout(vectors(frames)))
        return EncodedFrames(g_BTF, torch.zeros_like(g_BTF[..., 0]), self.classify(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over frames."""
        return masked_mean(g_BTF, mask_BT)

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


class FFAA(Head):
    """Fusion feature average aggregate: FC 1024 each, concatenated, averaged, FC 1024, FC K.

    Source: paper Section 5.2; projecting before averaging follows "first passed ... then fused".
    """

    def __init__(
        self,
        *,
        face_dim: int,
        context_dim: int,
        num_emotions: int,
        projection_size: int = 1024,
        feature_size: int = 1024,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(
            face_dim=face_dim,
            context_dim=context_dim,
            feature_dim=2 * projection_size,
            null_face=null_face,
        )
        self.dropout = nn.Dropout(dropout)
        self.project_face = nn.Linear(face_dim, projection_size)
        self.project_context = nn.Linear(context_dim, projection_size)
        self.hidden = nn.Linear(2 * projection_size, feature_size)
        self.classifier = nn.Linear(feature_size, num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Both projections of each frame, side by side."""
        face_BTP = F.relu(self.project_face(self.dropout(self.face_vectors(frames))))
        context_BTP = F.relu(self.project_context(self.dropout(self.context_vectors(frames))))
        g_BTF = torch.cat([face_BTP, context_BTP], dim=-1)
        return EncodedFrames(g_BTF, torch.zeros_like(g_BTF[..., 0]), self.classify(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over frames."""
        return masked_mean(g_BTF, mask_BT)

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """Two fully connected layers."""
        hidden_BF = F.relu(self.hidden(self.dropout(embedding_BR)))
        return self.classifier(self.dropout(hidden_BF))
