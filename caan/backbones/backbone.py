"""Run a frozen network over images: preprocessing, batches, precision, memory."""

import ctypes
import logging
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from caan.backbones.config import Precision
from caan.backbones.vgg import Colours

logger = logging.getLogger(__name__)

PRECISIONS: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Backbone(nn.Module):
    """A frozen network with its preprocessing: uint8 RGB images of any size to float vectors."""

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
        rectify: bool = False,
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
        """Notes in the weight file, such as the videos that fine-tuning has seen."""
        self.size_pixels = size_pixels
        self.rectify = rectify
        """Whether vectors go through a ReLU at the end: fc6 as Caffe and the paper count it."""
        self.dtype = dtype
        """Number type that the network computes in."""
        self.colours = colours
        if colours is not None:
            scale = torch.tensor(colours.deviation) * colours.scale
            shift = torch.tensor(colours.mean) / torch.tensor(colours.deviation)
            self.register_buffer("_scale", scale.view(3, 1, 1), persistent=False)
            self.register_buffer("_shift", shift.view(3, 1, 1), persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """Input of the network [B, C, size, size] from uint8 RGB images [B, H, W, 3].

        The whole image is stretched to the input size; nothing is cropped.
        """
        x_BCHW = images.permute(0, 3, 1, 2).float()
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

    def forward(self, images: Tensor) -> Tensor:
        """Vectors float32 [B, D] of uint8 RGB images [B, H, W, 3] of any size."""
        images = images.to(next(self.network.parameters()).device, non_blocking=True)
        if self.colours is None:
            return self.network(images)
        vectors_BD = self.network(self.prepare(images)).float()
        return vectors_BD.relu() if self.rectify else vectors_BD

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors as `forward` gives them, and the maps float32 [B, C, H, W] that they come from.

        | backbone | map | size |
        | --- | --- | --- |
        | VGG | pool5 | 512x7x7 |
        | starter_face | the last map before the mean | 256x3x3 |
        | starter_context | the map before the last 1x1 convolution | 320x7x7 |

        Source: paper Section 5.1 for pool5; our choice for the starters.
        """
        seen: list[Tensor] = []
        hook = self._map_layer[0].register_forward_hook(
            lambda layer, inputs, output: seen.append(output)
        )
        vectors_BD = self(images)
        hook.remove()
        # starter_face also embeds the middles and mirror images, after the images themselves.
        return vectors_BD, seen[0][: len(images)].float().contiguous()


def embed_images(
    backbone: Backbone,
    images: np.ndarray,
    batch_size: int,
    maps_NCHW: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
    """Vectors float16 [N, D] of uint8 RGB images [N, H, W, 3], and the number of batches.

    If `maps_NCHW` (float16) is given, it is filled with the pool5 maps. All batches but the last
    are full. Each vector depends on its own image only.

    Raises:
        ValueError: a vector does not fit into float16, which overflow in fp16 causes.
    """
    device = next(backbone.parameters()).device
    batches = []
    with torch.inference_mode():
        for first, batch in _batches_on(device, images, batch_size):
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
    device: torch.device, images: np.ndarray, batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    """The index of each batch's first image, and its images on the device.

    On a GPU, a batch is copied from page-locked memory while the batches before it are computed.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    for first in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(images[first : first + batch_size]))
        if copying is not None:
            with torch.cuda.stream(copying):
                batch = batch.pin_memory().to(device, non_blocking=True)
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(copying)
            batch.record_stream(computing)  # its memory is freed only after the computation
        yield first, batch


def keep_freed_memory() -> bool:
    """Make glibc keep the memory that CPU networks free; returns whether that worked.

    A layer of 16 images takes up to 200 MB. By default, glibc returns it to the system after each
    layer and requests it again for the next. These page faults took 10% of VGG16's time and 50% of
    MobileNetV2's. Call it in the main thread of a process that mostly runs networks: the heaps of
    other threads are too small for a layer. Other C libraries are not changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h: M_TRIM_..., M_MMAP_THRESHOLD
    return mallopt is not None and all(
        mallopt(name, 1 << 30) == 1 for name in (trim_threshold, mmap_threshold)
    )


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The number type of a VGG on `device`: as asked, or with `auto` the fastest.

    Measured on 2 cores, in ms per image; `auto` takes bf16 only on CPUs that have it in hardware:

    | CPU | bf16 | fp32 | fp32 without channels_last |
    | --- | --- | --- | --- |
    | AVX-512 with bf16 | 61 | 111 | |
    | AVX2 only | 3,300 | 190 | 250 |
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
