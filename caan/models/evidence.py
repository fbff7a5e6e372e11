"""Turn the output of a head into the logits, probabilities and label of a video."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caan.errors import InputError
from caan.models.config import Rule
from caan.models.head import FrameBatch, Head, HeadOutput
from caan.schema import UNCERTAIN

CENTROID_SHARPNESS = 10.0


def probabilities_of(evidence_BK: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax of evidence over temperature: [B, K]."""
    return torch.softmax(evidence_BK.float() / temperature, dim=-1)


def label_of(emotions: Sequence[str], probabilities_K: np.ndarray, abstain_below: float) -> str:
    """The most probable emotion, or `uncertain` where its probability is below the limit."""
    best = int(probabilities_K.argmax())
    return UNCERTAIN if probabilities_K[best] < abstain_below else emotions[best]


def video_evidence(output: HeadOutput, rule: Rule, centroids_KR: Tensor | None = None) -> Tensor:
    """Logits of each video by a prediction rule: [B, K].

    Raises:
        InputError: `centroids` for a model that has none.
    """
    if rule == "head":
        return output.video_logits_BK.float()
    if rule == "frames":
        # Weights of score_fn=raw can be negative; a mean of probabilities needs positive ones.
        weights_BT = output.scores_BT.clamp(min=0.0)
        weights_BT = weights_BT / weights_BT.sum(dim=1, keepdim=True).clamp(min=1e-9)
        frames_BTK = torch.softmax(output.frame_logits_BTK.float(), dim=-1)
        mean_BK = torch.bmm(weights_BT[:, None, :], frames_BTK).squeeze(1)
        return mean_BK.clamp(min=1e-9).log()
    if centroids_KR is None:
        raise InputError("option `rule` is `centroids`, and this model has no centroids")
    unit_BR = F.normalize(output.embedding_BR.float(), dim=1)
    return CENTROID_SHARPNESS * (2.0 * unit_BR @ centroids_KR.T - 1.0)


def blinded(model: Head, frames: FrameBatch, modality: str) -> FrameBatch:
    """The same frames with one modality's vectors replaced by the mean of the training frames.

    Raises:
        InputError: the head does not look at that modality.
    """
    if modality not in model.modalities:
        raise InputError(f"this head looks at {', '.join(model.modalities)}, not at `{modality}`")
    if modality == "face":
        mean_D = model.standardize_face.mean_D
        return frames._replace(face_BTD=mean_D.expand(*frames.mask_BT.shape, -1))
    mean_D = model.standardize_context.mean_D
    return frames._replace(context_BTE=mean_D.expand(*frames.mask_BT.shape, -1))


class VectorSizes(Protocol):
    """The sizes of the vectors and maps that some features hold."""

    @property
    def face_dim(self) -> int:
        """Numbers per face vector."""
        ...

    @property
    def context_dim(self) -> int:
        """Numbers per context vector."""
        ...

    @property
    def maps(self) -> Mapping[str, np.ndarray]:
        """pool5 maps [N, C, H, W] by modality."""
        ...


def check_dimensions(model: Head, videos: VectorSizes) -> None:
    """Check that a head fits the features.

    Raises:
        InputError: the vectors or maps have another size than the head was made for.
    """
    for modality in model.modalities:
        wanted = getattr(model, f"standardize_{modality}").scale_D.numel()
        found = videos.face_dim if modality == "face" else videos.context_dim
        if wanted != found:
            raise InputError(
                f"the model takes {modality} vectors of {wanted} numbers, and these features have "
                f"{found}: they come from another backbone"
            )
    for modality, shape in model.map_shapes.items():
        if modality not in videos.maps:
            raise InputError(
                f"the model reads pool5 maps of the {modality}, and these features have none: "
                f"extract them with `--pool5 {modality}`, or take a model that scores from fc6"
            )
        if (found_shape := videos.maps[modality].shape[1:]) != tuple(shape):
            raise InputError(
                f"the model takes pool5 maps of {shape}, and these features have {found_shape}: "
                "they come from another backbone"
            )


def frames_to(frames: FrameBatch, device: torch.device | str) -> FrameBatch:
    """The same frames on a device."""
    moved = {
        name: part.to(device, non_blocking=True)
        for name, part in frames._asdict().items()
        if part is not None
    }
    return frames._replace(**moved)


def calibrated_temperature(evidence_VK: np.ndarray, labels_V: np.ndarray) -> float:
    """The temperature (0.05 to 20) under which these labels are most likely; 1 without labels."""
    if len(labels_V) == 0:
        return 1.0
    evidence = torch.from_numpy(evidence_VK).float()
    labels = torch.from_numpy(labels_V)
    candidates = torch.logspace(np.log10(0.05), np.log10(20.0), 241)
    losses = torch.stack([F.cross_entropy(evidence / value, labels) for value in candidates])
    return round(float(candidates[losses.argmin()]), 4)
