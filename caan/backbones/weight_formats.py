"""Read VGG16 weights in every published format; give them torchvision's names and layout.

No code of a file runs: pickles are read with `weights_only`, and the other formats are plain data.

Source: the definitions of the formats: caffe.proto, MatConvNet, Keras HDF5; Torch 7 in torch7.py.
"""

import math
import pickle
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from caan.backbones.torch7 import Torch7File
from caan.errors import InputError

CONVOLUTIONS = tuple(
    f"conv{block}_{index}"
    for block, count in enumerate((2, 2, 3, 3, 3), start=1)
    for index in range(1, count + 1)
)
"""The 13 convolutions of VGG16 in order."""

LAYERS = (*CONVOLUTIONS, "fc6", "fc7", "fc8")
"""The 16 layers with weights, in order."""

_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)

TORCHVISION_NAMES = {
    **{name: f"features.{at}" for name, at in zip(CONVOLUTIONS, _POSITIONS, strict=True)},
    "fc6": "classifier.0",
    "fc7": "classifier.3",
    "fc8": "classifier.6",
}
"""Torchvision's name of a layer, by its name in the papers."""

_FROM_TORCHVISION = {target: name for name, target in TORCHVISION_NAMES.items()}


@dataclass(frozen=True)
class SourceLayer:
    """Weights and bias of one layer, as stored; `name` is "" if the file has only an order."""

    name: str
    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class SourceWeights:
    """Layers of a weight file, before renaming and permuting."""

    format: str
    """Format or publisher of the file, such as `t7` or `albanie`."""
    channel_order: str
    """`RGB` or `BGR`: colour order that the first convolution expects."""
    is_channels_last: bool
    """Whether kernels are [H, W, in, out] and the rows of fc6 run over H, W, C, as in Keras."""
    layers: list[SourceLayer]


def read_weights(path: Path) -> SourceWeights:
    """Read the layers of a weight file; its first bytes and its keys tell the format.

    Raises:
        InputError: the file is damaged, no VGG16 of a known format, or a pickle with code.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    try:
        if head.startswith(b"\x89HDF"):
            return _read_keras(path)
        if head.startswith(b"MATLAB"):
            return _read_matconvnet(path)
        if head[8:9] == b"{":
            return _from_state_dict(load_file(path), path)
        if head.startswith((b"PK", b"\x80")):
            return _from_state_dict(_load_pickle(path), path)
        if head[:4] in (struct.pack("<i", 3), struct.pack("<i", 4)):
            return _read_t7(path)
        return _read_caffemodel(path)
    except (ValueError, KeyError, AttributeError, IndexError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"`{path}` is damaged or no weight file ({error}).") from error


def to_state_dict(source: SourceWeights) -> dict[str, torch.Tensor]:
    """Rename and permute the layers as torchvision has them.

    Returns:
        Float32 tensors by torchvision's names: kernels [O, I, H, W], weights of fc layers [O, I]
        with the columns of fc6 over C, H, W.

    Raises:
        InputError: a convolution or fc6 is missing, or a value is not finite.
    """
    layers = _named(source)
    num_channels = _out_channels(layers["conv5_3"], source)
    state: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        weight = layer.weight
        if source.is_channels_last:
            if name == "fc6" and weight.ndim == 2:
                grid = math.isqrt(weight.shape[0] // num_channels)
                weight = weight.reshape(grid, grid, num_channels, -1)
            weight = weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        if name.startswith("fc"):
            weight = weight.reshape(weight.shape[0], -1)
        target = TORCHVISION_NAMES[name]
        state[f"{target}.weight"] = _tensor(weight, name)
        state[f"{target}.bias"] = _tensor(layer.bias.reshape(-1), name)
    return state


def _named(source: SourceWeights) -> dict[str, SourceLayer]:
    layers = source.layers
    if all(not layer.name for layer in layers):
        if len(layers) not in (14, 15, 16):
            raise InputError(
                f"this {source.format} file has {len(layers)} layers with weights, and a VGG16 has "
                "13 convolutions and fc6 to fc8: give the file of a VGG16."
            )
        return dict(zip(LAYERS, layers, strict=False))
    named = {layer.name: layer for layer in layers if layer.name}
    missing = [name for name in LAYERS[:14] if name not in named]
    if missing:
        hint = " with its fully connected layers" if missing == ["fc6"] else ""
        raise InputError(
            f"this {source.format} file lacks {', '.join(missing)}: give the complete VGG16{hint}."
        )
    return {name: named[name] for name in LAYERS if name in named}


def _out_channels(layer: SourceLayer, source: SourceWeights) -> int:
    return layer.weight.shape[-1 if source.is_channels_last else 0]


def _tensor(values: np.ndarray, name: str) -> torch.Tensor:
    if not np.isfinite(values).all():
        raise InputError(
            f"the weights of {name} hold values that are no numbers: give another file."
        )
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32).copy())


# PyTorch -------------------------------------------------------------------------------------


def _load_pickle(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"`{path}` cannot be read as plain tensors (damaged, or a pickle that wants to run "
            f"code, which is refused): save its state_dict and give that file. {error}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InputError(
            f"`{path}` holds a {type(content).__name__}, not a state_dict: save its state_dict and "
            "give that file."
        )
    return content


def _from_state_dict(state: dict[str, Any], path: Path) -> SourceWeights:
    state = {key.removeprefix("module."): value for key, value in state.items()}
    kinds = {
        r"features\.0\.weight": ("torchvision", "RGB"),
        r"conv1_1\.weight": ("albanie", "RGB"),
        r"conv_1_1\.weight": ("prlz77", "BGR"),
        r"features\.conv_1_1\.weight": ("PyVGGFace", "BGR"),
    }
    found = [kind for key, kind in kinds.items() if any(re.fullmatch(key, name) for name in state)]
    if not found:
        raise InputError(
            f"`{path}` holds no VGG16 under a known naming (its first keys are "
            f"{', '.join(list(state)[:4])}): rename them as torchvision does."
        )
    layers = [
        SourceLayer(
            name=_vgg_name(key.removesuffix(".weight")),
            weight=value.float().numpy(),
            bias=state[key.removesuffix("weight") + "bias"].float().numpy(),
        )
        for key, value in state.items()
        if key.endswith(".weight") and _vgg_name(key.removesuffix(".weight"))
    ]
    return SourceWeights(*found[0], is_channels_last=False, layers=layers)


def _vgg_name(key: str) -> str:
    if key in _FROM_TORCHVISION:
        return _FROM_TORCHVISION[key]
    if match := re.search(r"(?:^|[./])conv_?(\d)_(\d)$", key):
        return f"conv{match[1]}_{match[2]}"
    if match := re.search(r"(?:^|[./])fc_?([678])$", key):
        return f"fc{match[1]}"
    return ""


# Keras and MatConvNet ------------------------------------------------------------------------


def _read_keras(path: Path) -> SourceWeights:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"`{path}` is an HDF5 file, which needs h5py: run `pip install h5py`, or give the .pth "
            "file."
        ) from error
    layers = []
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        for name in _texts(root.attrs["layer_names"]):
            group = root[name]
            values = [group[key][()] for key in _texts(group.attrs["weight_names"])]
            if len(values) == 2:
                layers.append(SourceLayer(_vgg_name(name), *values))
    if layers and layers[0].weight.shape[-1] == 3 != layers[0].weight.shape[0]:
        raise InputError(f"`{path}` has the kernel order of Theano: give the TensorFlow file.")
    return SourceWeights("keras", "BGR", is_channels_last=True, layers=layers)


def _texts(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _read_matconvnet(path: Path) -> SourceWeights:
    from scipy.io import loadmat

    try:
        content = loadmat(path, struct_as_record=False, squeeze_me=True)
    except NotImplementedError as error:
        raise InputError(f"`{path}` is a MATLAB 7.3 file: save it again with `-v7`.") from error
    net = content.get("net")
    layers = []
    for layer in np.atleast_1d(content["layers"] if net is None else net.layers):
        values = getattr(layer, "weights", None)
        if values is None and hasattr(layer, "filters"):
            values = (layer.filters, layer.biases)
        name = _vgg_name(str(layer.name))
        if name and values is not None and len(values) == 2:
            layers.append(SourceLayer(name, np.asarray(values[0]), np.asarray(values[1])))
    return SourceWeights("matconvnet", "RGB", is_channels_last=True, layers=layers)


# Torch 7 -------------------------------------------------------------------------------------


def _read_t7(path: Path) -> SourceWeights:
    root = Torch7File(np.memmap(path, np.uint8, "r")).value()
    layers: list[SourceLayer] = []
    for module in _t7_modules(root):
        weight, bias = module.get("weight"), module.get("bias")
        if not isinstance(weight, np.ndarray) or not isinstance(bias, np.ndarray):
            continue
        if "kH" in module and weight.ndim == 2:  # SpatialConvolutionMM stores its kernels flat
            planes, height, width = (int(module[key]) for key in ("nInputPlane", "kH", "kW"))
            weight = weight.reshape(-1, planes, height, width)
        layers.append(SourceLayer("", weight, bias))
    return SourceWeights("t7", "BGR", is_channels_last=False, layers=layers)


def _t7_modules(module: Any) -> Iterator[dict[Any, Any]]:
    if not isinstance(module, dict):
        return
    children = module.get("modules")
    if not isinstance(children, dict):
        yield module
        return
    for index in range(1, len(children) + 1):
        yield from _t7_modules(children.get(float(index)))


# Caffe ---------------------------------------------------------------------------------------


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value (int or memoryview) of each field of a protobuf message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        value: Any
        if wire == 0:
            value, at = _varint(content, at)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                size, at = _varint(content, at)
            if at + size > len(content):
                raise ValueError("ends within a protobuf field")
            value, at = content[at : at + size], at + size
        else:
            raise ValueError("is not a protobuf message")
        yield number, value


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("ends within a protobuf number")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("has a protobuf number that is too long")


def _read_caffemodel(path: Path) -> SourceWeights:
    layers = []
    for number, layer in _fields(np.memmap(path, np.uint8, "r").data):
        if number not in (2, 100) or not isinstance(layer, memoryview):
            continue
        name_field, blobs_field = (
            (1, 7) if number == 100 else (4, 6)
        )  # LayerParameter, V1LayerParameter
        fields = list(_fields(layer))
        names = [bytes(value).decode() for key, value in fields if key == name_field]
        blobs = [_blob(value) for key, value in fields if key == blobs_field]
        name = _vgg_name(names[0]) if names else ""
        if name and len(blobs) == 2:
            layers.append(SourceLayer(name, *blobs))
    if not layers:
        raise InputError(
            f"`{path}` is no weight file of a known format: give .pth, .safetensors, .t7, "
            ".caffemodel, .mat or .h5."
        )
    return SourceWeights("caffemodel", "BGR", is_channels_last=False, layers=layers)


def _blob(content: memoryview) -> np.ndarray:
    fields = dict(_fields(content))
    values = np.frombuffer(fields[5], "<f4")
    if 7 in fields:
        packed, at, shape = fields[7], 0, []
        dims = next(value for number, value in _fields(packed) if number == 1)
        while at < len(dims):
            size, at = _varint(dims, at)
            shape.append(size)
    else:
        shape = [fields.get(number, 1) for number in (1, 2, 3, 4)]
        if shape[:2] == [1, 1]:  # an inner product is [1, 1, out, in]
            shape = shape[2:]
    return values.reshape(shape)
