"""dlib's face recognition network in NumPy: aligned faces -> vectors of 128 numbers.

dlib's own code, as compiled in its wheels, takes about seven times as long on a CPU.
Source: dlib's examples/dnn_face_recognition_ex.cpp (the network) and dnn/layers.h (its padding).
"""

from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from caan.errors import InputError

CHIP_PIXELS = 150
"""Side of an aligned face."""

_MEAN_COLOUR = np.array([122.782, 117.001, 104.298], np.float32)

_LEVELS = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
"""Channels, number of residual blocks, and whether the first block halves the image; from the
input on."""

Layer = tuple[np.ndarray, np.ndarray]
"""Weights [rows x columns x channels in, channels out] and bias of a convolution."""


class DlibResNet:
    """The residual network of 29 convolutions, for inference only."""

    def __init__(self, path: str | Path) -> None:
        """`path`: dlib_face_recognition_resnet_model_v1.dat.

        Raises:
            InputError: the file holds another network.
        """
        tensors = _tensors(Path(path).read_bytes())
        sizes = [(3, 7, 32)]
        channels = 32
        for width, num_blocks, _ in _LEVELS:
            for _ in range(num_blocks):
                sizes += [(channels, 3, width), (width, 3, width)]
                channels = width
        wanted = [n for c, side, k in sizes for n in (k * (c * side**2 + 1), 2 * k)]
        if [len(tensor) for tensor in tensors] != [*wanted, channels * 128]:
            raise InputError(
                f"`{path}` is not dlib's face recognition network: reinstall "
                "face_recognition_models."
            )
        pairs = zip(tensors[0:-1:2], tensors[1:-1:2], sizes, strict=True)
        self._layers = [_layer(conv, affine, *size) for conv, affine, size in pairs]
        self._last = tensors[-1].reshape(channels, 128)

    def __call__(self, chips: np.ndarray) -> np.ndarray:
        """Vectors float32 [N, 128] of aligned faces uint8 [N, 150, 150, 3] RGB."""
        x = (chips.astype(np.float32) - _MEAN_COLOUR) / 256
        layers = iter(self._layers)
        x = np.maximum(_convolve(x, next(layers), 7, 2), 0)
        x = sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(-1, -2))
        for _, num_blocks, halves in _LEVELS:
            for number in range(num_blocks):
                stride = 2 if halves and number == 0 else 1
                inner = np.maximum(_convolve(x, next(layers), 3, stride), 0)
                x = np.maximum(_sum(_convolve(inner, next(layers), 3), _halved(x, stride)), 0)
        return x.mean(axis=(1, 2)) @ self._last


def _tensors(data: bytes) -> list[np.ndarray]:
    """The flat float32 tensors of a serialised dlib network, in order."""
    found: list[np.ndarray] = []
    at = 0
    while (at := data.find(b"\x01\x02", at)) >= 0:  # a tensor begins with its version, 2
        place, size = at + 2, 1
        for _ in range(4):  # samples, channels, rows, columns: a length, then that many bytes
            length = data[place] if place < len(data) else 0
            size *= int.from_bytes(data[place + 1 : place + 1 + length], "little")
            place += 1 + length
        # Other byte pairs look like a version too; only real layers are this large and finite.
        if 32 <= size <= (len(data) - place) // 4:
            values = np.frombuffer(data, "<f4", size, place)
            if np.isfinite(values).all() and np.abs(values).max() < 1e4:
                found.append(values)
                at = place + 4 * size
                continue
        at += 1
    return found


def _layer(conv: np.ndarray, affine: np.ndarray, channels: int, side: int, width: int) -> Layer:
    """Fold the affine layer that follows a convolution into it."""
    weights = conv[:-width].reshape(width, channels, side, side).transpose(2, 3, 1, 0)
    gamma, beta = affine.reshape(2, width)
    flat = np.ascontiguousarray(weights.reshape(-1, width) * gamma)
    return flat, conv[-width:] * gamma + beta


def _convolve(x: np.ndarray, layer: Layer, side: int, stride: int = 1) -> np.ndarray:
    """[N, H, W, C] -> [N, h, w, K]; padded only if the stride is 1, as in dlib."""
    weights, bias = layer
    if stride == 1:
        pad = side // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = sliding_window_view(x, (side, side), axis=(1, 2))[:, ::stride, ::stride]
    shape = windows.shape[:3]
    flat = windows.transpose(0, 1, 2, 4, 5, 3).reshape(int(np.prod(shape)), len(weights))
    return (flat @ weights + bias).reshape(*shape, weights.shape[1])


def _halved(x: np.ndarray, stride: int) -> np.ndarray:
    """Shortcut of a residual block: 2 x 2 means if the block halves the image, else `x`."""
    if stride == 1:
        return x
    height, width = x.shape[1] // 2, x.shape[2] // 2
    x = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, x.shape[3])
    return x.mean(axis=(2, 4))


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of two arrays; the smaller one is padded with zeros."""
    if a.shape == b.shape:
        return a + b
    total = np.zeros([max(m, n) for m, n in zip(a.shape, b.shape, strict=True)], np.float32)
    for part in (a, b):
        total[tuple(slice(0, n) for n in part.shape)] += part
    return total
