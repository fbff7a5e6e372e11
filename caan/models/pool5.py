"""A head for one modality with attention from pool5 maps (the paper's Tables 2 and 3)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from caan.errors import InputError
from caan.models.caan import weighted_mean
from caan.models.config import ScoreFunction
from caan.models.head import EncodedFrames, FrameBatch, Head, HeadSizes

CHANNELS = (128, 64, 32)
"""Output channels of the score branch's convolutions (our choice)."""


class PoolFiveAttention(Head):
    """fc6 vectors of one modality, weighted by a score that convolutions compute from pool5 maps.

    g = ReLU(FC(x)); s = FC with one cell on 1, 2 or 3 convolutions (3x3, ReLU) over pool5; R as in
    eq. 4. Maps are normalised per frame first. Needs `face_pool5_BTCHW` or `context_pool5_BTCHW`:
    25,088 numbers per frame for VGG, six times its fc6.

    Source: paper Section 5.1; channels, normalisation and the layer on fc6 are our choice.
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        modality: Literal["face", "context"] = "face",
        feature_size: int = 1024,
        scorer_depth: int = 1,
        score_fn: ScoreFunction = "sigmoid",
        score_temperature: float = 1.0,
        dropout: float = 0.0,
        pool5_shape: tuple[int, int, int] = (512, 7, 7),
    ) -> None:
        self.modalities = (modality,)
        super().__init__(sizes, feature_size, dropout)
        if not 1 <= scorer_depth <= len(CHANNELS):
            raise InputError(f"option `scorer_depth` is {scorer_depth}; it can be 1 to 3")
        self.score_fn = score_fn
        self.score_temperature = score_temperature
        self.map_shapes = {modality: pool5_shape}
        channels, height, width = pool5_shape
        layers: list[nn.Module] = [nn.GroupNorm(1, channels)]
        for size in CHANNELS[:scorer_depth]:
            layers += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU()]
            channels = size
        self.scorer = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, 1))
        self.first = nn.Linear(sizes.vector_dim(self.modalities), feature_size)
        self.classifier = nn.Linear(feature_size, sizes.num_emotions)

    def encode(self, frames: FrameBatch) -> EncodedFrames:
        """Feature from fc6 and score from pool5 of each frame."""
        if self.modalities == ("face",):
            x_BTD, maps_BTCHW = self.face_vectors(frames), frames.face_pool5_BTCHW
        else:
            x_BTD, maps_BTCHW = self.context_vectors(frames), frames.context_pool5_BTCHW
        if maps_BTCHW is None:
            raise InputError(
                f"this head needs pool5 maps of the {self.modalities[0]}, and the features have "
                "none; take `caan` with that modality, which scores fc6"
            )
        g_BTF = F.relu(self.first(self.dropout(x_BTD)))
        s_BT = self.scorer(maps_BTCHW.flatten(0, 1).float()).view(g_BTF.shape[:2])
        return EncodedFrames(g_BTF, s_BT, self.classifier(g_BTF))

    def pool(self, g_BTF: Tensor, s_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 4."""
        return weighted_mean(g_BTF, s_BT, mask_BT, self.score_fn, self.score_temperature)

    def classify(self, embedding_BR: Tensor) -> Tensor:
        """The frames' classifier on R."""
        return self.classifier(embedding_BR)
