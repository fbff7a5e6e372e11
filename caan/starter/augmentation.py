"""Augment the grey faces of FER2013 so that they resemble face crops of real videos.

Functions take and return float32 [B, 1, H, W] in 0..255 on the device of the faces, and draw from
torch's global generators.

Source: our choice, unless a function names one.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def _uniform(faces: Tensor, low: float, high: float) -> Tensor:
    return torch.rand(len(faces), device=faces.device) * (high - low) + low


def _normal(faces: Tensor) -> Tensor:
    return torch.randn(len(faces), device=faces.device)


def _chosen(faces: Tensor, share: float) -> Tensor:
    return torch.rand(len(faces), device=faces.device) < share


def _between(low: float, high: float) -> float:
    # Drawn on the CPU: reading a value back from a GPU would stall it.
    return float(torch.rand(())) * (high - low) + low


def warp(faces_B1HW: Tensor, size_pixels: int, strength: float) -> Tensor:
    """Resample faces: scaled, shifted, rotated, mirrored and tilted in depth.

    Scales are 0.8 to 1.5 at strength 1, because a detector's box, enlarged 1.2 times and made
    square, has 0.85 to 1.45 times the side of a FER2013 image. The area outside an image repeats
    its edge, is one grey, or is a part of another face.

    Args:
        faces_B1HW: faces of at least 24x24 pixels.
        size_pixels: side of the images returned.
        strength: factor on the ranges; mirroring and filling do not depend on it.
    """
    scale = torch.exp(_uniform(faces_B1HW, math.log(0.8), math.log(1.5)) * strength)
    stretch = torch.exp(_normal(faces_B1HW) * 0.06 * strength)
    turn = _normal(faces_B1HW).clamp(-3, 3) * math.radians(12) * strength
    mirror = torch.where(_chosen(faces_B1HW, 0.5), -1.0, 1.0)
    line = (torch.arange(size_pixels, device=faces_B1HW.device) + 0.5) / size_pixels * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    x, y = x[None], y[None]
    tilt_x, tilt_y, bend, shift_x, shift_y = (
        _normal(faces_B1HW)[:, None, None] * strength for _ in range(5)
    )
    depth = (1 + 0.10 * (tilt_x * x + tilt_y * y)).clamp(0.5)
    x, y = (x + 0.08 * bend * (1 - x * x)) / depth, y / depth
    cos, sin = (turn.cos() * scale)[:, None, None], (turn.sin() * scale)[:, None, None]
    most = 2.5 * strength
    across = (cos * x - sin * y) * (stretch * mirror)[:, None, None]
    across = across + 0.07 * shift_x.clamp(-most, most)
    down = (sin * x + cos * y) / stretch[:, None, None] + 0.07 * shift_y.clamp(-most, most)
    grid = torch.stack([across, down], dim=3)
    warped = functional.grid_sample(faces_B1HW, grid, padding_mode="border", align_corners=False)
    outside = (grid.abs() > 1).any(3)[:, None]
    flat = _uniform(faces_B1HW, 0, 255)[:, None, None, None].expand_as(warped)
    other = functional.interpolate(
        faces_B1HW.roll(1, 0)[:, :, 8:24, 8:24], size=(size_pixels, size_pixels), mode="bilinear"
    )
    kind = _uniform(faces_B1HW, 0, 1)[:, None, None, None]
    warped = torch.where(outside & (kind < 0.25), flat, warped)
    return torch.where(outside & (kind > 0.7), other, warped)


def lose_detail(faces_B1HW: Tensor) -> Tensor:
    """Lower the resolution of 2 eighths of the faces, blur 1 and sharpen 2.

    Sharpening is there because real crops are sharper than images of 48 pixels.
    """
    side = faces_B1HW.shape[-1]
    order = torch.randperm(len(faces_B1HW), device=faces_B1HW.device).chunk(8)
    faces = faces_B1HW.clone()
    for part in order[:2]:
        small = int(_between(14, 40))
        low = functional.interpolate(
            faces[part], size=(small, small), mode="bilinear", antialias=True
        )
        mode = "bilinear" if _between(0, 1) < 0.5 else "bicubic"
        faces[part] = functional.interpolate(low, size=(side, side), mode=mode).clamp(0, 255)
    faces[order[2]] = blur(faces[order[2]], _between(0.5, 2.5) * side / 48)
    for part in order[3:5]:
        soft = blur(faces[part], 1.0 * side / 48)
        amount = _uniform(part, 0.3, 2.0)[:, None, None, None]
        faces[part] = (faces[part] + amount * (faces[part] - soft)).clamp(0, 255)
    return faces


def blur(faces_B1HW: Tensor, sigma_pixels: float) -> Tensor:
    """Blur faces with a Gaussian of standard deviation `sigma_pixels`."""
    radius = max(1, round(2.5 * sigma_pixels))
    line = torch.arange(-radius, radius + 1, device=faces_B1HW.device)
    kernel = torch.exp(-0.5 * (line / sigma_pixels) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(faces_B1HW, (radius,) * 4, mode="replicate")
    return functional.conv2d(
        functional.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None]
    )


def relight(faces_B1HW: Tensor) -> Tensor:
    """Change gamma, contrast and brightness; light some faces from a side, and darken some."""
    side = faces_B1HW.shape[-1]
    gamma = torch.exp(_normal(faces_B1HW) * 0.35)[:, None, None, None]
    faces = (faces_B1HW / 255).clamp(1e-4) ** gamma
    contrast = torch.exp(_normal(faces_B1HW) * 0.25)[:, None, None, None]
    offset = (_normal(faces_B1HW) * 0.12)[:, None, None, None]
    faces = ((faces - 0.5) * contrast + 0.5 + offset).clamp(0, 1)
    line = torch.linspace(-1, 1, side, device=faces_B1HW.device)
    angle = _uniform(faces_B1HW, 0, 2 * math.pi)[:, None, None]
    slope = (_uniform(faces_B1HW, 0, 0.7) * _chosen(faces_B1HW, 0.4))[:, None, None]
    ramp = 1 + slope * (angle.cos() * line[None, None] + angle.sin() * line[None, :, None])
    faces = (faces * ramp[:, None]).clamp(0, 1)
    dim = torch.where(_chosen(faces_B1HW, 0.25), _uniform(faces_B1HW, 0.12, 0.7), 1.0)
    return faces * dim[:, None, None, None] * 255


def compress(faces_B1HW: Tensor) -> Tensor:
    """Add noise to half of the faces and the artefacts of a codec to a quarter.

    The artefacts are DCT coefficients of 8x8 blocks in coarse steps; H = W, a multiple of 8.
    """
    count, _, side, _ = faces_B1HW.shape
    device = faces_B1HW.device
    level = _uniform(faces_B1HW, 0, 6) * _chosen(faces_B1HW, 0.5)
    faces = faces_B1HW + torch.randn_like(faces_B1HW) * level[:, None, None, None]
    part = torch.randperm(count, device=device)[: count // 4]
    line = torch.arange(8, device=device)
    basis = torch.cos((2 * line[None] + 1) * line[:, None] * math.pi / 16) * 0.5
    basis[0] /= math.sqrt(2)
    blocks = faces[part].unfold(2, 8, 8).unfold(3, 8, 8)
    step = (4 + 3 * (line[:, None] + line[None])) * _uniform(part, 0.5, 4)[:, None, None]
    step = step[:, None, None, None]
    coded = ((basis @ blocks @ basis.T) / step).round() * step
    back = (basis.T @ coded @ basis).permute(0, 1, 2, 4, 3, 5).reshape(len(part), 1, side, side)
    faces[part] = back
    return faces.clamp(0, 255)


def cover(faces_B1HW: Tensor, share: float) -> Tensor:
    """Cover a rectangle of a share (0..1) of the faces with grey, noise or another face."""
    side = faces_B1HW.shape[-1]
    line = torch.arange(side, device=faces_B1HW.device)
    width = _uniform(faces_B1HW, 0.12, 0.5) * side
    height = _uniform(faces_B1HW, 0.12, 0.45) * side
    left = _uniform(faces_B1HW, 0, 1) * (side - width)
    top = _uniform(faces_B1HW, 0, 1) * (side - height)
    columns = (line >= left[:, None]) & (line < (left + width)[:, None])
    rows = (line >= top[:, None]) & (line < (top + height)[:, None])
    inside = (rows[:, :, None] & columns[:, None])[:, None]
    inside = inside & _chosen(faces_B1HW, share)[:, None, None, None]
    grey = _uniform(faces_B1HW, 0, 255)[:, None, None, None].expand_as(faces_B1HW)
    kind = _uniform(faces_B1HW, 0, 1)[:, None, None, None]
    filling = torch.where(kind < 0.6, grey, faces_B1HW.roll(1, 0).flip(2))
    filling = torch.where(kind > 0.85, torch.rand_like(faces_B1HW) * 255, filling)
    return torch.where(inside, filling, faces_B1HW)


def augment(faces_B1HW: Tensor, size_pixels: int, strength: float = 1.0) -> Tensor:
    """Augment a batch of faces [B, 1, 48, 48] to training images [B, 1, size, size].

    The first third is only warped, at 0.35 of `strength`; the rest gets every change.

    Args:
        faces_B1HW: faces of FER2013.
        size_pixels: side of the images returned; a multiple of 8.
        strength: factor on the ranges of `warp` and on the share of covered faces.
    """
    count = len(faces_B1HW)
    plain = count // 3
    easy = warp(faces_B1HW[:plain], size_pixels, 0.35 * strength)
    hard = warp(faces_B1HW[plain:], size_pixels, strength)
    hard = compress(cover(relight(lose_detail(hard)), 0.3 * strength))
    return torch.cat([easy, hard])


def blend(faces_B1HW: Tensor, chosen_share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Blend a share of the faces, `chosen_share` in 0..1, with another face of the batch (mixup).

    Returns:
        The faces; the weight [B] of each face itself, 0.55 to 1; the index [B] of the other face.

    Source: Zhang et al. 2018, mixup; the range of the weight is our choice.
    """
    partner = torch.randperm(len(faces_B1HW), device=faces_B1HW.device)
    share = torch.where(_chosen(faces_B1HW, chosen_share), _uniform(faces_B1HW, 0.55, 1.0), 1.0)
    part = share[:, None, None, None]
    return faces_B1HW[partner].lerp(faces_B1HW, part), share, partner
