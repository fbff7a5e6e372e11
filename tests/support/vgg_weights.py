"""Weights of a narrow VGG, as its files and as torchvision names them."""

from pathlib import Path

import torch

from caan.backbones.weight_formats import TORCHVISION_NAMES


def expected_state(layers: dict) -> dict[str, torch.Tensor]:
    return {
        f"{TORCHVISION_NAMES[name]}.{part}": torch.from_numpy(value)
        for name, values in layers.items()
        for part, value in zip(("weight", "bias"), values, strict=True)
    }


def save_pth(path: Path, layers: dict, naming: str) -> Path:
    names = {
        "torchvision": TORCHVISION_NAMES,
        "albanie": {name: name for name in layers},
        "prlz77": {name: name.replace("conv", "conv_") for name in layers},
        "PyVGGFace": {
            name: "features." + name.replace("conv", "conv_") if "conv" in name else "fc." + name
            for name in layers
        },
    }[naming]
    state = {
        f"{names[name]}.{part}": torch.from_numpy(value)
        for name, values in layers.items()
        for part, value in zip(("weight", "bias"), values, strict=True)
    }
    torch.save(state, path)
    return path
