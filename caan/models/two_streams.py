"""What heads share that start with one layer per modality. Shape legend in `head.py`."""

import torch.nn.functional as F
from torch import Tensor, nn

from caan.models.head import FrameBatch, Head, HeadSizes


class TwoStreams(Head):
    """One layer over the face vectors and one over the context vectors, of P cells each."""

    drops_inputs = True
    """Whether vectors go through dropout before their layer."""

    def __init__(
        self,
        sizes: HeadSizes,
        projection_size: int,
        feature_dim: int,
        dropout: float,
        null_face: bool,
    ) -> None:
        super().__init__(sizes, feature_dim, dropout, null_face)
        self.project_face = nn.Linear(sizes.face_dim, projection_size)
        self.project_context = nn.Linear(sizes.context_dim, projection_size)

    def projected(self, frames: FrameBatch) -> tuple[Tensor, Tensor]:
        """Both layers' outputs after their ReLU: [B, T, P] of the face and of the context."""
        face_BTD, context_BTE = self.face_vectors(frames), self.context_vectors(frames)
        if self.drops_inputs:
            face_BTD, context_BTE = self.dropout(face_BTD), self.dropout(context_BTE)
        return F.relu(self.project_face(face_BTD)), F.relu(self.project_context(context_BTE))
