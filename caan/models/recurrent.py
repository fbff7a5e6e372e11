"""Heads that read the frames in order: Fan et al., Vielzeuf et al. Shape legend in `head.py`.

Frames of a video come first and padding after them; H is the size of an LSTM's state.
"""

import torch
from torch import Tensor, nn

from caan.models.head import EncodedFrames, FrameBatch, HeadSizes, masked_mean
from caan.models.two_streams import TwoStreams


class _TwoLSTMs(TwoStreams):
    """FC and LSTM over each modality; the video feature is both last states side by side.

    Every frame gets the same emotion score: an LSTM has no attention.
    """

    keeps_order = True
    trains_frames = False

    def __init__(
        self,
        sizes: HeadSizes,
        projection_size: int,
        recurrent_size: int,
        dropout: float,
        null_face: bool,
    ) -> None:
        super().__init__(sizes, projection_size, 2 * projection_size, dropout, null_face)
        self.lstm_face = nn.LSTM(projection_size, recurrent_size, batch_first=True)
        self.lstm_context = nn.LSTM(projection_size, recurrent_size, batch_first=True)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Both projections of each frame, side by side."""
        g_BTF = torch.cat(self.projected(frames), dim=-1)
        return EncodedFrames(g_BTF, torch.zeros_like(g_BTF[..., 0]), self.frames_alone(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Both LSTMs' states after the last frame, [B, 2H]."""
        face_BTP, context_BTP = g_BTF.chunk(2, dim=-1)
        # Padding comes after the last frame, so it cannot reach the state that is read here.
        last_B = mask_BT.sum(dim=1).clamp(min=1) - 1
        videos_B = torch.arange(len(last_B), device=last_B.device)
        face_BH = self.lstm_face(face_BTP)[0][videos_B, last_B]
        context_BH = self.lstm_context(context_BTP)[0][videos_B, last_B]
        weights_BT = masked_mean(g_BTF[..., :1], mask_BT)[1]
        return torch.cat([face_BH, context_BH], dim=-1), weights_BT


class LateFusionLSTM(_TwoLSTMs):
    """Fan et al.: an LSTM over each modality's frames, and the mean of the two softmaxes.

    Video logits are the logarithm of that mean, with `face_share` (default a half) for the face.

    Source: [25], CNN-RNN part, from memory: sizes and the mean are our choice.
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        projection_size: int = 512,
        recurrent_size: int = 512,
        face_share: float = 0.5,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, projection_size, recurrent_size, dropout, null_face)
        self.face_share = face_share
        self.classify_face = nn.Linear(recurrent_size, sizes.num_emotions)
        self.classify_context = nn.Linear(recurrent_size, sizes.num_emotions)

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """Logarithm of the mean of both streams' probabilities."""
        face_BH, context_BH = self.dropout(embedding_BR).chunk(2, dim=-1)
        shares = torch.tensor([self.face_share, 1.0 - self.face_share], device=face_BH.device)
        streams_2BK = torch.stack([self.classify_face(face_BH), self.classify_context(context_BH)])
        return _log_mixture(streams_2BK, shares)


class ScoreTree(_TwoLSTMs):
    """Vielzeuf et al.: each modality's feature meets the other's scores, then a learned mix.

    s_m = FC(h_m); t_m = FC(ReLU(FC 256([h_m; softmax(s_other)]))); the label's probabilities are a
    convex mix of softmax(t_face) and softmax(t_context). In training a video loses one modality
    with probability `modality_dropout`.

    Source: [22]; the tree's details are from memory, hence our choice.
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        projection_size: int = 512,
        recurrent_size: int = 512,
        feature_size: int = 256,
        modality_dropout: float = 0.2,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, projection_size, recurrent_size, dropout, null_face)
        self.modality_dropout = modality_dropout
        self.score_face = nn.Linear(recurrent_size, sizes.num_emotions)
        self.score_context = nn.Linear(recurrent_size, sizes.num_emotions)
        joined_dim = recurrent_size + sizes.num_emotions
        self.join_face = _Join(joined_dim, feature_size, sizes.num_emotions)
        self.join_context = _Join(joined_dim, feature_size, sizes.num_emotions)
        self.mix_2 = nn.Parameter(torch.zeros(2))

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """Logarithm of the mixed probabilities."""
        face_BH, context_BH = self.dropout(embedding_BR).chunk(2, dim=-1)
        if self.training and self.modality_dropout > 0:
            drawn_B1 = torch.rand(len(face_BH), 1, device=face_BH.device)
            half = self.modality_dropout / 2
            face_BH = face_BH * (drawn_B1 >= half)
            context_BH = context_BH * (drawn_B1 < 1.0 - half)
        face_BK = torch.softmax(self.score_face(face_BH), dim=-1)
        context_BK = torch.softmax(self.score_context(context_BH), dim=-1)
        joined_2BK = torch.stack(
            [
                self.join_face(torch.cat([face_BH, context_BK], dim=-1)),
                self.join_context(torch.cat([context_BH, face_BK], dim=-1)),
            ]
        )
        return _log_mixture(joined_2BK, torch.softmax(self.mix_2, dim=0))


class _Join(nn.Sequential):
    """Feature and the other modality's scores -> logits."""

    def __init__(self, dim: int, feature_size: int, num_emotions: int) -> None:
        super().__init__(
            nn.Linear(dim, feature_size), nn.ReLU(), nn.Linear(feature_size, num_emotions)
        )


def _log_mixture(logits_MBK: Tensor, shares_M: Tensor) -> Tensor:
    """Logarithm of the mean of softmaxes, weighted by shares that sum to 1: [B, K]."""
    logarithm_MBK = torch.log_softmax(logits_MBK.float(), dim=-1)
    return torch.logsumexp(logarithm_MBK + shares_M.log()[:, None, None], dim=0)
