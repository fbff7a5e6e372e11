"""CAAN, the paper's context-aware attention network. Shape legend in `head.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caan.errors import InputError
from caan.models.config import Activation, FusionName, Modality, ScoreFunction, ScoreInput
from caan.models.head import (
    EncodedFrames,
    FrameBatch,
    Head,
    HeadSizes,
    modalities_of,
    weighted_sum,
)

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "none": nn.Identity,
}

RAW_FLOOR = 1e-3
"""Smallest absolute value of the denominator of eq. 4 in its raw form (our choice)."""


def normalize_scores(
    s_BT: Tensor, mask_BT: Tensor, score_fn: ScoreFunction, temperature: float = 1.0
) -> Tensor:
    """Emotion scores as weights [B, T] that sum to 1 over a video's frames; 0 on padding.

    `sigmoid` and `softplus` make the scores positive and divide by their sum; `softmax`
    exponentiates them. All three are computed as a softmax of logarithms, so that scores of any
    size give finite weights. `raw` divides by the plain sum, as eq. 4 is printed: weights can be
    negative, and huge where the sum is near 0. RAW_FLOOR keeps the sum away from 0, with its sign.

    Source: paper eq. 4; the positive forms are our choice (as in QAN and Emotion-FAN).
    """
    s_BT = s_BT.float()
    if score_fn == "raw":
        s_BT = s_BT * mask_BT
        total_B1 = s_BT.sum(dim=1, keepdim=True)
        sign_B1 = torch.where(total_B1 < 0, -1.0, 1.0)
        guarded_B1 = torch.where(total_B1.abs() < RAW_FLOOR, sign_B1 * RAW_FLOOR, total_B1)
        return s_BT / guarded_B1
    if score_fn == "sigmoid":
        logarithm_BT = F.logsigmoid(s_BT)
    elif score_fn == "softplus":
        # log(softplus(s)) is s itself far below 0, where softplus underflows.
        above_BT = F.softplus(s_BT.clamp(min=-15.0)).log()
        logarithm_BT = torch.where(s_BT < -15.0, s_BT, above_BT)
    else:
        logarithm_BT = s_BT / temperature
    lowest = torch.finfo(logarithm_BT.dtype).min
    weights_BT = torch.softmax(logarithm_BT.masked_fill(~mask_BT, lowest), dim=1)
    return weights_BT * mask_BT


def weighted_mean(
    g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor, score_fn: ScoreFunction, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Paper eq. 4: the mean of a video's features [B, F], and the weight [B, T] of each frame."""
    scores_BT = normalize_scores(s_BT, mask_BT, score_fn, temperature)
    return weighted_sum(g_BTF.float(), scores_BT), scores_BT


class Scorer(nn.Sequential):
    """Raw emotion score of each frame: 1, 2 or 3 fully connected layers, the last with one cell.

    Source: paper eq. 3 and Section 5.1 (1FC, 2FC, 3FC); widths are our choice.
    """

    def __init__(
        self, dim: int, depth: int, sizes: tuple[int, ...], activation: Activation
    ) -> None:
        if not 1 <= depth <= len(sizes) + 1:
            raise InputError(
                f"option `scorer_depth` is {depth}; with {len(sizes)} hidden sizes in "
                f"`scorer_sizes` it can be 1 to {len(sizes) + 1}"
            )
        layers: list[nn.Module] = []
        for size in sizes[: depth - 1]:
            layers += [nn.Linear(dim, size), ACTIVATIONS[activation]()]
            dim = size
        super().__init__(*layers, nn.Linear(dim, 1))


class Fusion(nn.Module):
    """Fusion function of face and context: two [.., P] -> [.., `dim`].

    `concat` [x; c]; `concat_fc` FC([x; c]); `sum_fc` FC(x + c); `product` x * c; `gated`
    z * x + (1 - z) * c with z = sigmoid(FC([x; c])).

    Source: paper eq. 1 ("a fusion layer with 2048 neurons"); which function is open there.
    """

    def __init__(
        self, kind: FusionName, projection_size: int, fusion_size: int, activation: Activation
    ) -> None:
        super().__init__()
        self.kind = kind
        self.dim = fusion_size
        if kind == "concat_fc":
            self.layer = nn.Linear(2 * projection_size, fusion_size)
        elif kind == "sum_fc":
            self.layer = nn.Linear(projection_size, fusion_size)
        elif kind == "gated":
            self.layer = nn.Linear(2 * projection_size, projection_size)
            self.dim = projection_size
        else:
            self.dim = projection_size * (2 if kind == "concat" else 1)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, face_BTP: Tensor, context_BTP: Tensor) -> Tensor:
        """The fusion feature r of each frame."""
        if self.kind == "product":
            return face_BTP * context_BTP
        if self.kind == "sum_fc":
            return self.activation(self.layer(face_BTP + context_BTP))
        both_BTQ = torch.cat([face_BTP, context_BTP], dim=-1)
        if self.kind == "concat":
            return both_BTQ
        if self.kind == "gated":
            gate_BTP = torch.sigmoid(self.layer(both_BTQ))
            return gate_BTP * face_BTP + (1 - gate_BTP) * context_BTP
        return self.activation(self.layer(both_BTQ))


class CAAN(Head):
    """Context-aware attention network: fused frames, weighted by their emotion scores.

    x, c -> 1024 each -> r (fusion) -> g; score s from g; R = sum of normalised scores times g; one
    linear layer gives the emotions of each frame from g, and of the video from R.

    Source: paper Section 4.2, eqs. 1-4; where the paper is silent, our choice. With `modality`
    face or context only, scores come from fc6 (the paper starts that branch at pool5:
    `PoolFiveAttention`).
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        modality: Modality = "fusion",
        projection_size: int = 1024,
        fusion: FusionName = "concat_fc",
        fusion_size: int = 2048,
        feature_size: int = 1024,
        scorer_depth: int = 3,
        scorer_sizes: tuple[int, ...] = (256, 128),
        score_fn: ScoreFunction = "sigmoid",
        score_temperature: float = 1.0,
        score_input: ScoreInput = "g",
        activation: Activation = "relu",
        dropout: float = 0.0,
        null_face: bool = False,
    ) -> None:
        self.modalities = modalities_of(modality)
        super().__init__(sizes, feature_size, dropout, null_face)
        self.score_fn = score_fn
        self.score_input = score_input
        self.score_temperature = score_temperature
        self.activation = ACTIVATIONS[activation]()
        fusion_dim = projection_size
        if "face" in self.modalities:
            self.project_face = nn.Linear(sizes.face_dim, projection_size)
        if "context" in self.modalities:
            self.project_context = nn.Linear(sizes.context_dim, projection_size)
        if modality == "fusion":
            self.fusion = Fusion(fusion, projection_size, fusion_size, activation)
            fusion_dim = self.fusion.dim
        self.frame_feature = nn.Linear(fusion_dim, feature_size)
        scorer_dim = feature_size if score_input == "g" else fusion_dim
        self.scorer = Scorer(scorer_dim, scorer_depth, scorer_sizes, activation)
        self.classifier = nn.Linear(feature_size, sizes.num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Eqs. 1-3 and the frame branch's emotion prediction."""
        parts = []
        if "face" in self.modalities:
            face_BTD = self.dropout(self.face_vectors(frames))
            parts.append(self.activation(self.project_face(face_BTD)))
        if "context" in self.modalities:
            context_BTE = self.dropout(self.context_vectors(frames))
            parts.append(self.activation(self.project_context(context_BTE)))
        r_BTQ = self.dropout(self.fusion(*parts) if len(parts) == 2 else parts[0])
        g_BTF = self.activation(self.frame_feature(r_BTQ))
        s_BT = self.scorer(g_BTF if self.score_input == "g" else r_BTQ).squeeze(-1)
        return EncodedFrames(g_BTF, s_BT, self.classifier(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 4."""
        return weighted_mean(g_BTF, s_BT, mask_BT, self.score_fn, self.score_temperature)

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """The frame branch's layer, applied to R (our choice: the paper names no video layer)."""
        return self.classifier(embedding_BR)
