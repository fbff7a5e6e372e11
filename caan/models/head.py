"""The interface of a head: its input, its output, and the parts that every head shares.

Shape legend of `caan.models`: B videos, T frames (padded), D face vector, E context vector,
F frame feature g (paper eq. 2), R video feature (paper eq. 4), K emotions, C H W pool5 maps.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from caan.errors import InputError
from caan.models.config import Modality


class HeadSizes(NamedTuple):
    """The sizes that the data decide: those of the vectors, and the number of emotions."""

    face_dim: int
    """Numbers per face vector, D."""
    context_dim: int
    """Numbers per context vector, E."""
    num_emotions: int
    """Emotions, K."""

    def vector_dim(self, modalities: Sequence[str]) -> int:
        """Numbers per frame of the vectors of these modalities, side by side."""
        dims = {"face": self.face_dim, "context": self.context_dim}
        return sum(dims[modality] for modality in modalities)


class FrameBatch(NamedTuple):
    """Ragged frames of B videos, padded to the T of the longest; float16 or float32 vectors."""

    face_BTD: Tensor | None
    """Face vectors; None for heads that only look at the context."""
    context_BTE: Tensor | None
    """Context vectors (the whole frame); None for heads that only look at the face."""
    mask_BT: Tensor
    """True where there is a frame; values elsewhere are padding and never change a result."""
    has_face_BT: Tensor | None = None
    """False where a frame has no face (`no_face=context_only`); None: every frame has one."""
    face_pool5_BTCHW: Tensor | None = None
    """pool5 maps of the face backbone, for the heads of the paper's Section 5.1 only."""
    context_pool5_BTCHW: Tensor | None = None
    """pool5 maps of the context backbone, likewise."""


class EncodedFrames(NamedTuple):
    """The frame part of a head; each frame is encoded on its own."""

    g_BTF: Tensor
    """Frame features (paper eq. 2)."""
    s_BT: Tensor
    """Raw emotion scores (paper eq. 3); zeros for heads without attention."""
    frame_logits_BTK: Tensor
    """Emotion prediction of each frame alone."""


class HeadOutput(NamedTuple):
    """The predictions of a head for B videos, and the evidence for them."""

    video_logits_BK: Tensor
    frame_logits_BTK: Tensor
    scores_BT: Tensor
    """Emotion scores: weights that sum to 1 over a video's frames and are 0 on padding."""
    raw_scores_BT: Tensor
    """Emotion scores as paper eq. 3 has them, before normalisation; 0 on padding."""
    embedding_BR: Tensor
    """The video feature R (paper eq. 4)."""


class Standardize(nn.Module):
    """Vectors shifted and scaled to mean 0 and deviation 1 per dimension; identity until set.

    Source: our choice; scales differ between backbones, and fc6 after its ReLU is sparse.
    """

    shift_D: Tensor
    scale_D: Tensor
    mean_D: Tensor
    """Mean of the training frames; zeros until set."""
    is_fixed = False
    """Whether `caan.models.net2net` has copied the statistics, so that training keeps them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("shift_D", torch.zeros(dim))
        self.register_buffer("scale_D", torch.ones(dim))
        self.register_buffer("mean_D", torch.zeros(dim))

    def set(self, mean_D: Tensor, std_D: Tensor) -> None:
        """Set the mean and deviation of the training frames.

        The deviation of a dimension is at least a tenth of the mean over dimensions. Otherwise a
        dimension that is constant in training gives huge values on the first video that uses it.
        """
        floor = max(0.1 * float(std_D.mean()), 1e-6)
        scale_D = 1.0 / std_D.clamp(min=floor)
        self.scale_D.copy_(scale_D)
        self.shift_D.copy_(-mean_D * scale_D)
        self.mean_D.copy_(mean_D)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        if f"{prefix}mean_D" not in state and f"{prefix}shift_D" in state:
            # Older weight files hold no mean.
            state[f"{prefix}mean_D"] = -state[f"{prefix}shift_D"] / state[f"{prefix}scale_D"]
        super()._load_from_state_dict(state, prefix, *others)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[..., D] of any float type -> float32 [..., D]."""
        return torch.addcmul(self.shift_D, x_BTD.float(), self.scale_D)


class Head(nn.Module):
    """A model over the frames of a video: `encode` each frame, `pool` a video, `classify` it.

    `encode` takes each frame on its own and `pool` takes a whole video, so labels do not depend on
    how the video was cut into segments. `keeps_order` says whether the order of the frames matters.
    In a mask, the frames come first and the padding after them.
    """

    modalities: tuple[str, ...] = ("face", "context")
    keeps_order = False
    trains_frames = True
    """Whether the head has a frame branch that a frame loss can train."""
    map_shapes: Mapping[str, tuple[int, int, int]] = {}
    """Modalities whose pool5 maps the head reads, with channels, height and width."""

    def __init__(
        self, sizes: HeadSizes, feature_dim: int, dropout: float, null_face: bool = False
    ) -> None:
        """Make what every head has.

        `feature_dim` is the size F of g; `dropout` the share of inputs that `self.dropout` drops;
        `null_face` learns a vector for frames without one.
        """
        super().__init__()
        self.feature_dim = feature_dim
        self.num_emotions = sizes.num_emotions
        if "face" in self.modalities:
            self.standardize_face = Standardize(sizes.face_dim)
            if null_face:
                self.null_face_D = nn.Parameter(torch.zeros(sizes.face_dim))
        if "context" in self.modalities:
            self.standardize_context = Standardize(sizes.context_dim)
        self.dropout = nn.Dropout(dropout)

    def face_vectors(self, frames: FrameBatch) -> Tensor:
        """Standardised face vectors; the learned null vector where a frame has no face."""
        if frames.face_BTD is None:
            raise InputError("this head needs face vectors, and the features have none")
        face_BTD = self.standardize_face(frames.face_BTD)
        if frames.has_face_BT is not None and hasattr(self, "null_face_D"):
            return torch.where(frames.has_face_BT[..., None], face_BTD, self.null_face_D)
        return face_BTD

    def context_vectors(self, frames: FrameBatch) -> Tensor:
        """Standardised context vectors."""
        if frames.context_BTE is None:
            raise InputError("this head needs context vectors, and the features have none")
        return self.standardize_context(frames.context_BTE)

    def vectors(self, frames: FrameBatch) -> list[Tensor]:
        """The standardised vectors of each of this head's modalities."""
        both = {"face": self.face_vectors, "context": self.context_vectors}
        return [both[modality](frames) for modality in self.modalities]

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Frame features, raw emotion scores and frame logits, each frame on its own."""
        raise NotImplementedError

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Video feature R [B, R] and emotion scores [B, T] that sum to 1 over a video's frames."""
        raise NotImplementedError

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """Video logits [B, K] from the video feature."""
        raise NotImplementedError

    def frames_alone(self, g_BTF: Tensor, s_BT: Tensor | None = None) -> Tensor:
        """Frame logits of a head without a frame branch: each frame is scored as a whole video.

        In training they are zeros, because nothing reads them.
        """
        one_N1F = g_BTF.flatten(0, 1)[:, None]
        mask_N1 = torch.ones_like(one_N1F[..., 0], dtype=torch.bool)
        if self.training or not len(one_N1F):
            return g_BTF.new_zeros(*g_BTF.shape[:2], self.num_emotions)
        s_N1 = mask_N1.float() if s_BT is None else s_BT.flatten()[:, None]
        logits_NK = self.classify(self.pool(one_N1F, s_N1, mask_N1)[0])
        return logits_NK.view(*g_BTF.shape[:2], self.num_emotions)

    def forward(self, frames: FrameBatch) -> HeadOutput:
        """Predict the emotions of B videos from their frames."""
        encoded = self.encode(frames)
        embedding_BR, scores_BT = self.pool(encoded.g_BTF, encoded.s_BT, frames.mask_BT)
        return HeadOutput(
            self.classify(embedding_BR),
            encoded.frame_logits_BTK,
            scores_BT,
            encoded.s_BT.masked_fill(~frames.mask_BT, 0.0),
            embedding_BR,
        )


def masked_mean(x_BTF: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over a video's frames [B, F], and the weight [B, T] of each frame in it."""
    weights_BT = mask_BT.to(x_BTF.dtype)
    weights_BT = weights_BT / weights_BT.sum(dim=1, keepdim=True).clamp(min=1.0)
    return weighted_sum(x_BTF, weights_BT), weights_BT


def weighted_sum(x_BTF: Tensor, weights_BT: Tensor) -> Tensor:
    """Sum over frames of weight times feature: [B, F]; frames of weight 0 must be finite."""
    return torch.bmm(weights_BT[:, None, :], x_BTF).squeeze(1)


def modalities_of(modality: Modality) -> tuple[str, ...]:
    """What a head of this option looks at: face and context, or one of them."""
    return ("face", "context") if modality == "fusion" else (modality,)
