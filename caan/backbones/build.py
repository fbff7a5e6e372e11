"""BACKBONES: every backbone by name, and how it is loaded.

To add a backbone: write its network in a file of its own, a `_load_...` function here that returns
a `Backbone`, and its entry in BACKBONES. If its weights are downloaded, add them to
`caan.backbones.weights.OFFICIAL_FILES`.

Legend: B images, H and W image sides, C channels, D features.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from caan.backbones.backbone import Backbone, choose_precision
from caan.backbones.config import RANDOM, BackboneConfig, Precision
from caan.backbones.starter_face import StarterFace
from caan.backbones.vgg import FACE_COLOURS, IMAGENET_COLOURS, random_vgg, vgg_of
from caan.backbones.weight_formats import LAYERS, TORCHVISION_NAMES
from caan.backbones.weights import OFFICIAL_FILES, WeightFile, load_state, ready_weights
from caan.config import check_choice
from caan.errors import InputError

logger = logging.getLogger(__name__)

IMAGENET_MOBILENET = Path(__file__).parents[1] / "starter" / "starter_context.safetensors"
"""Convolutions of torchvision's ImageNet MobileNetV2, unchanged (BSD 3-clause). The metadata names
the file that they were taken from."""


def load_backbone(config: BackboneConfig, device: str | torch.device = "cpu") -> Backbone:
    """Load the backbone that `config` names: frozen, in evaluation mode, on `device`.

    Raises:
        InputError: an unknown name or precision, or weights that are missing or damaged.
    """
    if config.name not in BACKBONES:
        raise InputError(f"unknown backbone `{config.name}`; there are {', '.join(BACKBONES)}")
    check_choice("precision", config.precision, Precision)
    device = torch.device(device)
    backbone = BACKBONES[config.name](config, device)
    if backbone.is_random:
        logger.warning(
            "the backbone %s has random weights (seed %d): its vectors mean nothing",
            config.name,
            config.seed,
        )
    logger.info("backbone %s: %s", backbone.identity, backbone.licence)
    backbone.network.to(memory_format=torch.channels_last)
    backbone.network.to(dtype=backbone.dtype)  # once; autocast would convert at every batch
    return backbone.to(device=device).eval().requires_grad_(False)


# Loaders -------------------------------------------------------------------------------------


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
    return Backbone(
        network,
        name=config.name,
        dim=network.num_features,
        identity=identity,
        licence="Random weights: nobody's." if is_random else official.licence,
        is_random=is_random,
        colours=colours,
        size_pixels=32 * network.grid,
        rectify=True,
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
        found = ready_weights(config.name, str(IMAGENET_MOBILENET))
        network.features.load_state_dict(_features_of(found, network.features))
        identity = f"{config.name}:sha256:{found.metadata['source_sha256']}"
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
    """The tensors `features.*` of a weight file, checked against the shapes of `layers`."""
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


BACKBONES: dict[str, Callable[[BackboneConfig, torch.device], Backbone]] = {
    "vggface": _load_vgg,
    "vgg16": _load_vgg,
    "starter_face": _load_starter_face,
    "starter_context": _load_starter_context,
}
"""The loader of each backbone, by name."""
