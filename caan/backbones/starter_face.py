"""The starter's face network: a small residual network that reads emotions from grey face crops.

Legend: B faces, H and W image sides, D features, K emotions.
"""

import hashlib
import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from caan.schema import EMOTIONS

WEIGHTS = Path(__file__).parents[1] / "starter" / "starter_face.safetensors"
"""The trained weights, float16 (see caan/starter/MODEL_CARD.md)."""

INPUT_SIZE_PIXELS = 48
"""Side to which every crop is resized, as in training."""

NUM_EMBEDDED = 256
"""Learned features per face."""

QUALITIES = ("brightness", "contrast", "sharpness", "noise")
"""The last features, each about 0..2: what standardising removes from the image."""

_LUMA = (0.299, 0.587, 0.114)


def fold_batch_norms(module: nn.Module) -> None:
    """Replace every convolution and its batch norm by one convolution with a bias, in place.

    Source: our choice; on one AVX2 core training runs 1.7 times as fast, inference 1.4 times.
    """
    for child in module.children():
        fold_batch_norms(child)
    names = list(module._modules)
    for name, next_name in itertools.pairwise(names):
        conv, norm = module._modules[name], module._modules[next_name]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
            conv.weight = nn.Parameter(weight.detach())
            conv.bias = nn.Parameter(bias.detach())
            module._modules[next_name] = nn.Identity()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: maps [B, C, H, W] -> [B, C', H/stride, W/stride].

    Source: He et al. 2016; the averaging shortcut as in He et al. 2019, "Bag of Tricks".
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """The map after both convolutions, added to the shortcut."""
        deep = functional.relu(self.norm1(self.conv1(map_BCHW)), inplace=True)
        deep = self.norm2(self.conv2(deep))
        return functional.relu(deep + self.shortcut(map_BCHW), inplace=True)


BLOCKS = ((32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (NUM_EMBEDDED, 2), (NUM_EMBEDDED, 1))
"""Channels and stride of each block: 48 pixels end in a 3x3 map."""


def build_trunk(width: int = 1) -> nn.Sequential:
    """The layers up to the last map, with batch norms and random weights, for grey images.

    `width` times as many channels as the starter has: the recipe's teachers are wider.
    Source: our choice; dense 3x3 convolutions at few pixels, which a CPU runs at full speed.
    """
    channels = 16 * width
    layers: list[nn.Module] = [
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]
    for out_channels, stride in BLOCKS:
        layers.append(ResidualBlock(channels, out_channels * width, stride))
        channels = out_channels * width
    return nn.Sequential(*layers)


def to_grey(images: Tensor) -> Tensor:
    """Luma of RGB images: uint8 [B, H, W, 3] -> float32 [B, 1, H, W] in 0..255."""
    weights = torch.tensor(_LUMA, device=images.device)
    return (images.float() @ weights)[:, None]


def standardise(grey_B1HW: Tensor) -> Tensor:
    """Grey images (0..255), each scaled to mean 0 and deviation 1 against exposure."""
    mean = grey_B1HW.mean((2, 3), keepdim=True)
    deviation = grey_B1HW.std((2, 3), keepdim=True)
    return (grey_B1HW - mean) / (deviation + 3.0)


def measure_qualities(grey_B1HW: Tensor) -> Tensor:
    """Brightness, contrast, sharpness and noise of grey images (0..255): float [B, 4]."""
    detail = grey_B1HW - functional.avg_pool2d(grey_B1HW, 3, 1, 1, count_include_pad=False)
    coarse = functional.avg_pool2d(grey_B1HW, 4)
    coarse = coarse - functional.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
    contrast = grey_B1HW.std((1, 2, 3))
    return torch.stack(
        [
            grey_B1HW.mean((1, 2, 3)) / 128,
            contrast / 64,
            4 * coarse.std((1, 2, 3)) / (contrast + 3),
            8 * detail.abs().mean((1, 2, 3)) / (contrast + 3),
        ],
        dim=1,
    )


def _resize(grey_B1HW: Tensor) -> Tensor:
    return functional.interpolate(
        grey_B1HW,
        size=(INPUT_SIZE_PIXELS, INPUT_SIZE_PIXELS),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )


class StarterFace(nn.Module):
    """Face crops to features and emotion logits; images need no preparation.

    Source: our choice; see MODEL_CARD.md.
    """

    temperature: Tensor
    """Divides the logits; calibrated on validation faces."""

    def __init__(self, weights: Path | None = WEIGHTS) -> None:
        super().__init__()
        trunk = build_trunk()
        fold_batch_norms(trunk)
        self.trunk = trunk
        self.classifier = nn.Linear(NUM_EMBEDDED, len(EMOTIONS))
        self.register_buffer("temperature", torch.ones(()))
        self.dim = NUM_EMBEDDED + len(QUALITIES)
        """Features per face, D."""
        self.identity = "starter_face:untrained"
        """Name and hash of the weights."""
        if weights is not None:
            state = {name: value.float() for name, value in load_file(weights).items()}
            self.load_state_dict(state)
            self.identity = (
                f"starter_face:sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
            )
            self.eval()
        self.to(memory_format=torch.channels_last)

    def embed(self, standard_B1HW: Tensor) -> Tensor:
        """Learned features [B, 256] of standardised grey images."""
        map_BCHW = self.trunk(standard_B1HW.contiguous(memory_format=torch.channels_last))
        return map_BCHW.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 [B, D] of RGB crops uint8 [B, H, W, 3] of any size.

        The features are the mean over four views, followed by the four QUALITIES. The views are
        the crop and its middle 0.8, each as it is and mirrored. Detectors give crops that are 1.2,
        and some 1.5, times as wide as FER2013's. Of middles from 0.75 to 0.95, 0.8 was best on
        validation faces of that width. In training mode only the crop itself is embedded, because
        the augmented images replace the views.
        """
        grey = to_grey(images)
        height, width = grey.shape[2:]
        top, left = round(0.1 * height), round(0.1 * width)
        whole = _resize(grey)
        if self.training:
            return torch.cat([self.embed(standardise(whole)), measure_qualities(whole)], dim=1)
        middle = _resize(grey[:, :, top : height - top, left : width - left])
        standard = torch.cat([standardise(whole), standardise(middle)])
        embedded = self.embed(torch.cat([standard, standard.flip(3)]))
        embedded = embedded.unflatten(0, (4, -1)).mean(0)
        return torch.cat([embedded, measure_qualities(whole)], dim=1)

    def classify(self, features_BD: Tensor) -> Tensor:
        """Calibrated logits float [B, K] (order of EMOTIONS) of features from `forward`."""
        return self.classifier(features_BD[:, :NUM_EMBEDDED]) / self.temperature

    def logits(self, images: Tensor) -> Tensor:
        """Calibrated logits float [B, K] (order of EMOTIONS) of RGB crops uint8 [B, H, W, 3]."""
        return self.classify(self(images))
