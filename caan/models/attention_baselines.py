"""Other heads that weight frames or modalities: QAN, Emotion-FAN, attention clusters, CAER-Net.

Shape legend in `head.py`; N attention units, M modalities.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caan.models.caan import normalize_scores, weighted_mean
from caan.models.config import Modality
from caan.models.head import (
    EncodedFrames,
    FrameBatch,
    Head,
    HeadSizes,
    masked_mean,
    modalities_of,
    weighted_sum,
)
from caan.models.two_streams import TwoStreams


class _SingleStream(Head):
    """One modality's vectors through one layer: what QAN and Emotion-FAN start from."""

    def __init__(
        self,
        sizes: HeadSizes,
        modality: Modality,
        feature_size: int,
        dropout: float,
        null_face: bool,
    ) -> None:
        self.modalities = modalities_of(modality)
        super().__init__(sizes, feature_size, dropout, null_face)
        self.input_dim = sizes.vector_dim(self.modalities)
        self.first = nn.Linear(self.input_dim, feature_size)

    def inputs(self, frames: FrameBatch) -> Tensor:
        """The standardised vectors; face and context side by side where both are used."""
        return torch.cat(self.vectors(frames), dim=-1)


class QAN(_SingleStream):
    """Quality-aware network: frames weighted by a sigmoid quality, divided by its sum.

    f = ReLU(FC(c)); q = sigmoid(FC(c)); R = sum of q f over sum of q, normalised in the losses:
    softmax on frames, triplet and contrastive on R.

    Source: [8] and its published network; its images are whole frames here, as the paper's Table 4
    has the context branch's figure for QAN. The original takes q from a middle layer of the CNN.
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        modality: Modality = "context",
        feature_size: int = 1024,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, modality, feature_size, dropout, null_face)
        self.quality = nn.Linear(self.input_dim, 1)
        self.classifier = nn.Linear(feature_size, sizes.num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Feature, quality and emotion of each frame."""
        x_BTD = self.inputs(frames)
        g_BTF = F.relu(self.first(self.dropout(x_BTD)))
        logits_BTK = self.classifier(self.dropout(g_BTF))
        return EncodedFrames(g_BTF, self.quality(x_BTD).squeeze(-1), logits_BTK)

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the features, weighted by quality."""
        return weighted_mean(g_BTF, s_BT, mask_BT, "sigmoid")

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """The frames' classifier on R."""
        return self.classifier(embedding_BR)


class EmotionFAN(_SingleStream):
    """Frame attention network: self-attention, then attention to the video's first mean.

    alpha = sigmoid(FC(f)); v = sum of alpha f over sum of alpha; beta = sigmoid(FC([f; v]));
    R = sum of alpha beta [f; v] over sum of alpha beta.

    Source: Meng et al., ICIP 2019, by its published code; f here is a layer on the face vector.
    """

    trains_frames = False

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        modality: Modality = "face",
        feature_size: int = 512,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, modality, feature_size, dropout, null_face)
        self.self_attention = nn.Linear(feature_size, 1)
        self.relation_attention = nn.Linear(2 * feature_size, 1)
        self.classifier = nn.Linear(2 * feature_size, sizes.num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Feature and first attention of each frame."""
        g_BTF = F.relu(self.first(self.dropout(self.inputs(frames))))
        s_BT = self.self_attention(g_BTF).squeeze(-1)
        return EncodedFrames(g_BTF, s_BT, self.frames_alone(g_BTF, s_BT))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Both attentions; [B, 2F]."""
        first_BF = weighted_sum(g_BTF, normalize_scores(s_BT, mask_BT, "sigmoid"))
        pairs_BTQ = torch.cat([g_BTF, first_BF[:, None].expand_as(g_BTF)], dim=-1)
        relation_BT = self.relation_attention(pairs_BTQ).squeeze(-1)
        logarithm_BT = F.logsigmoid(s_BT) + F.logsigmoid(relation_BT)
        scores_BT = normalize_scores(logarithm_BT, mask_BT, "softmax")
        return torch.cat([weighted_sum(g_BTF, scores_BT), first_BF], dim=-1), scores_BT

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """One layer."""
        return self.classifier(self.dropout(embedding_BR))


class AttentionClusters(TwoStreams):
    """Attention clusters with the shifting operation: N attentions over each modality's frames.

    a_k = softmax over frames of FC(x); v_k = w_k sum(a_k x) + b_k, scaled to length 1/sqrt(N); R =
    all v_k of both modalities. Emotion scores are the mean of all attentions.

    Source: [9] with its authors' code; the projection before it is our choice, as 4096 numbers
    times all units are too many.
    """

    trains_frames = False
    drops_inputs = False

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        projection_size: int = 512,
        num_clusters: int = 8,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, projection_size, 2 * projection_size, dropout, null_face)
        self.num_clusters = num_clusters
        self.attend = nn.ModuleList(nn.Linear(projection_size, num_clusters) for _ in range(2))
        glorot = math.sqrt(2.0 / (1 + num_clusters))
        self.scale_MN = nn.Parameter(glorot * torch.randn(2, num_clusters))
        self.shift_MN = nn.Parameter(glorot * torch.randn(2, num_clusters))
        self.classifier = nn.Linear(2 * num_clusters * projection_size, sizes.num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Both projections of each frame, side by side."""
        g_BTF = torch.cat(self.projected(frames), dim=-1)
        return EncodedFrames(g_BTF, torch.zeros_like(g_BTF[..., 0]), self.frames_alone(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """All units' outputs [B, 2 N P] and the mean of their attentions."""
        outputs, attentions = [], []
        for modality, x_BTP in enumerate(g_BTF.chunk(2, dim=-1)):
            logits_BTN = self.attend[modality](x_BTP).float()
            lowest = torch.finfo(logits_BTN.dtype).min
            logits_BTN = logits_BTN.masked_fill(~mask_BT[..., None], lowest)
            attention_BTN = torch.softmax(logits_BTN, dim=1) * mask_BT[..., None]
            sums_BNP = attention_BTN.transpose(1, 2) @ x_BTP.float()
            shifted_BNP = self.scale_MN[modality, :, None] * sums_BNP
            shifted_BNP = shifted_BNP + self.shift_MN[modality, :, None]
            outputs.append(F.normalize(shifted_BNP, dim=-1) / math.sqrt(self.num_clusters))
            attentions.append(attention_BTN.mean(dim=-1))
        return torch.cat(outputs, dim=1).flatten(1), torch.stack(attentions).mean(dim=0)

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """One layer."""
        return self.classifier(self.dropout(embedding_BR))


class AdaptiveFusion(TwoStreams):
    """CAER-Net's adaptive fusion: a softmax weights face against context in each frame.

    lambda = softmax([FC(ReLU(FC 128(x))), FC(ReLU(FC 128(c)))]) in each frame;
    g = ReLU(FC([lambda_face x; lambda_context c])); frames are averaged. The original paints the
    face black in the context picture; here the context includes it, as in the paper.

    Source: Lee et al., ICCV 2019, by its published code; averaging frames is our choice.
    """

    drops_inputs = False

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        projection_size: int = 1024,
        feature_size: int = 1024,
        dropout: float = 0.5,
        null_face: bool = False,
    ) -> None:
        super().__init__(sizes, projection_size, feature_size, dropout, null_face)
        self.weigh = nn.ModuleList(
            nn.Sequential(nn.Linear(projection_size, 128), nn.ReLU(), nn.Linear(128, 1))
            for _ in range(2)
        )
        self.hidden = nn.Linear(2 * projection_size, feature_size)
        self.classifier = nn.Linear(feature_size, sizes.num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Fused feature of each frame."""
        face_BTP, context_BTP = self.projected(frames)
        weights_BT2 = torch.softmax(
            torch.cat([self.weigh[0](face_BTP), self.weigh[1](context_BTP)], dim=-1), dim=-1
        )
        fused_BTQ = torch.cat(
            [weights_BT2[..., :1] * face_BTP, weights_BT2[..., 1:] * context_BTP], dim=-1
        )
        g_BTF = F.relu(self.hidden(self.dropout(fused_BTQ)))
        return EncodedFrames(g_BTF, torch.zeros_like(g_BTF[..., 0]), self.classify(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over frames."""
        return masked_mean(g_BTF, mask_BT)

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """One layer."""
        return self.classifier(self.dropout(embedding_BR))
