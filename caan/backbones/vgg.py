"""VGG16 up to fc6, and the colour normalisation of VGG-Face and ImageNet weights.

Legend: B images, H and W image sides, C channels, D features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from caan.errors import InputError

VGG_WIDTHS = (64, 128, 256, 512, 512)
"""Channels of VGG16's five blocks."""

_BLOCK_DEPTHS = (2, 2, 3, 3, 3)
_FC6_GAIN = 0.5  # real faces and frames then leave fc6 with deviations 1.1 and 0.9


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Normalisation of an image: (value / scale - mean) / deviation, in the order R, G, B."""

    mean: tuple[float, float, float]
    """Mean colour."""
    deviation: tuple[float, float, float]
    """Deviation of each colour."""
    scale: float
    """Divides the values 0..255 first."""
    spread: float
    """Approximate deviation of the normalised values."""


FACE_COLOURS = Colours(
    mean=(129.1863, 104.7624, 93.5940), deviation=(1.0, 1.0, 1.0), scale=1.0, spread=60.0
)
"""VGG-Face's. Source: keras-vggface, `vgg_face_dag` meta; the means are in the order R, G, B."""

IMAGENET_COLOURS = Colours(
    mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225), scale=255.0, spread=1.0
)
"""Torchvision's for ImageNet."""


class Vgg(nn.Module):
    """VGG16 up to fc6, under torchvision's names; images of (32 x grid) pixels a side.

    Source: Simonyan and Zisserman 2015, configuration D.
    """

    def __init__(
        self, widths: tuple[int, ...] = VGG_WIDTHS, grid: int = 7, num_features: int = 4096
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        num_channels = 3
        for width, depth in zip(widths, _BLOCK_DEPTHS, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(num_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                num_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(num_channels * grid * grid, num_features))
        self.grid = grid
        self.num_channels = num_channels
        self.num_features = num_features

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Fc6 before its ReLU, [B, D]."""
        # In channels_last, flatten() copies to the order C, H, W that fc6 was trained on.
        return self.classifier(self.features(x_BCHW).flatten(1))


def vgg_of(state: dict[str, Tensor]) -> Vgg:
    """The VGG16 with these weights, given under torchvision's names.

    Raises:
        InputError: the tensors do not fit a VGG16.
    """
    widths = tuple(len(state[f"features.{last}.weight"]) for last in (2, 7, 14, 21, 28))
    num_features, num_inputs = state["classifier.0.weight"].shape
    with torch.device("meta"):
        network = Vgg(widths, math.isqrt(num_inputs // widths[-1]), num_features)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise InputError(f"these weights fit no VGG16: {error}") from error
    return network.float()


def random_vgg(
    seed: int,
    colours: Colours,
    widths: tuple[int, ...] = VGG_WIDTHS,
    grid: int = 7,
    num_features: int = 4096,
) -> Vgg:
    """An untrained VGG whose activations keep their scale; fc6 has a deviation of about 1.

    The initialisation is He's, and each filter after the first layer is shifted to sum to zero.
    Otherwise all filters respond to the mean of the ReLUs below, and any two faces become similar:

    | filters | cosine of two faces after 13 layers | linear readout, 7 emotions, 700 faces |
    | --- | --- | --- |
    | He | 0.90 | 0.29 |
    | centred | 0.47 | 0.33 |

    Source: He et al. 2015; centring is our choice.
    """
    with torch.device("meta"):
        network = Vgg(widths, grid, num_features)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            rows = layer.weight.flatten(1)
            rows.normal_(generator=generator)
            if layer is layers[0]:
                rows *= math.sqrt(1 / rows.shape[1]) / colours.spread
            else:
                rows -= rows.mean(1, keepdim=True)
                rows *= math.sqrt(2 / (1 - 1 / math.pi) / rows.shape[1])
            assert layer.bias is not None
            layer.bias.zero_()
        layers[-1].weight *= _FC6_GAIN
    return network
