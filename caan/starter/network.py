"""The starter's face network: a grey MobileNetV2 that reads emotions from face crops.

Legend: B faces, H and W picture sides, D features, K emotions.
"""

import hashlib
import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models import mobilenet_v2

from caan.schema import EMOTIONS

WEIGHTS = Path(__file__).with_name("starter_face.safetensors")
"""The trained weights beside this file (float16; see MODEL_CARD.md)."""

INPUT_SIZE_PIXELS = 64
"""Side to which every crop is resized. 48 pixels of detail were all that training saw."""

NUM_EMBEDDED = 256
"""Learned features per face."""

QUALITIES = ("brightness", "contrast", "sharpness", "noise")
"""What the standardised picture no longer shows, kept as the last features, each about 0..2."""

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


def build_trunk() -> nn.Sequential:
    """MobileNetV2's layers with batch norms and random weights, for grey pictures.

    Its last halving is left out, so that a 64-pixel face ends in a 4x4 map.

    Source: Sandler et al. 2018, "MobileNetV2"; the grey stem and the stride are our choice.
    """
    trunk = mobilenet_v2(weights=None).features
    trunk[0][0] = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
    trunk[14].conv[1][0].stride = (1, 1)
    return trunk


def to_grey(pictures: Tensor) -> Tensor:
    """Luma of RGB pictures: uint8 [B, H, W, 3] -> float32 [B, 1, H, W] in 0..255."""
    weights = torch.tensor(_LUMA, device=pictures.device)
    return (pictures.float() @ weights)[:, None]


def standardise(grey_B1HW: Tensor) -> Tensor:
    """Grey pictures (0..255) with mean 0 and deviation 1 each, so that exposure hardly matters."""
    mean = grey_B1HW.mean((2, 3), keepdim=True)
    deviation = grey_B1HW.std((2, 3), keepdim=True)
    return (grey_B1HW - mean) / (deviation + 3.0)


def measure_qualities(grey_B1HW: Tensor) -> Tensor:
    """Brightness, contrast, sharpness and noise of grey pictures (0..255): float [B, 4]."""
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


class StarterFace(nn.Module):
    """Face crops to features and emotion logits; pictures need no preparation.

    Source: our choice; see MODEL_CARD.md.
    """

    temperature: Tensor
    """Logits are divided by this, so that the confidence is right on validation faces."""

    def __init__(self, weights: Path | None = WEIGHTS) -> None:
        super().__init__()
        trunk = build_trunk()
        fold_batch_norms(trunk)
        self.trunk = trunk
        self.embedding = nn.Linear(1280, NUM_EMBEDDED)
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
        """Learned features [B, 256] of standardised grey pictures."""
        map_BCHW = self.trunk(standard_B1HW.contiguous(memory_format=torch.channels_last))
        return functional.silu(self.embedding(map_BCHW.mean((2, 3))))

    def forward(self, pictures: Tensor) -> Tensor:
        """Features float32 [B, D] of RGB crops uint8 [B, H, W, 3] of any size.

        The mean over the picture and its mirror image, then the four QUALITIES.
        """
        grey = to_grey(pictures)
        grey = functional.interpolate(
            grey,
            size=(INPUT_SIZE_PIXELS, INPUT_SIZE_PIXELS),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        standard = standardise(grey)
        embedded = self.embed(torch.cat([standard, standard.flip(3)]))
        embedded = embedded.unflatten(0, (2, -1)).mean(0)
        return torch.cat([embedded, measure_qualities(grey)], dim=1)

    def classify(self, features_BD: Tensor) -> Tensor:
        """Calibrated logits float [B, K] (order of EMOTIONS) of features from `forward`."""
        return self.classifier(features_BD[:, :NUM_EMBEDDED]) / self.temperature

    def logits(self, pictures: Tensor) -> Tensor:
        """Calibrated logits float [B, K] (order of EMOTIONS) of RGB crops uint8 [B, H, W, 3]."""
        return self.classify(self(pictures))
