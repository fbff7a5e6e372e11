"""Augment the images of a backbone's fine-tuning: mirror, crop, rotate and relight them.

Legend: B images, H and W image sides in pixels, C colour channels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def _uniform(count: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(count, device=device) * (high - low) + low


def change_pictures(images: Tensor, strength: float = 1.0) -> Tensor:
    """Augment images at random; draws from torch's global generators.

    | change | range at strength 1 |
    |---|---|
    | mirror left to right | half of the images, at every strength above 0 |
    | side of the crop, as a share of the image | 0.7 to 1.05 |
    | rotation | up to 10 degrees either way |
    | brightness, contrast | up to 30% either way |
    | saturation | up to 50% either way |

    Hue stays: it tells scenes apart.

    Args:
        images: uint8 [B, H, W, C] in 0..255.
        strength: factor on the ranges; 0 changes nothing.

    Returns:
        float32 [B, H, W, C] in 0..255.

    Source: our choice; the paper names no augmentation.
    """
    count = len(images)
    x_BCHW = images.permute(0, 3, 1, 2).float()
    if strength <= 0 or not count:
        return x_BCHW.permute(0, 2, 3, 1)
    device = x_BCHW.device
    scale = 1 - _uniform(count, -0.05, 0.3, device) * strength
    turn = _uniform(count, -1, 1, device) * math.radians(10) * strength
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    room = (1 - scale).clamp(min=0.0)
    shift_x = _uniform(count, -1, 1, device) * room
    shift_y = _uniform(count, -1, 1, device) * room
    cos, sin = turn.cos() * scale, turn.sin() * scale
    rows = [
        torch.stack([cos * mirror, -sin, shift_x], dim=1),
        torch.stack([sin * mirror, cos, shift_y], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(x_BCHW.shape), align_corners=False)
    x_BCHW = functional.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)
    return _relit(x_BCHW, strength).permute(0, 2, 3, 1)


def _relit(x_BCHW: Tensor, strength: float) -> Tensor:
    count, device = len(x_BCHW), x_BCHW.device

    def factor(reach: float) -> Tensor:
        return 1 + _uniform(count, -reach, reach, device).view(-1, 1, 1, 1) * strength

    mean = x_BCHW.mean((1, 2, 3), keepdim=True)
    x_BCHW = (x_BCHW - mean) * factor(0.3) + mean * factor(0.3)
    grey = x_BCHW.mean(1, keepdim=True)
    return (grey + (x_BCHW - grey) * factor(0.5)).clamp(0, 255)
