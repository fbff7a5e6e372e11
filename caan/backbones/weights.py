"""Find a backbone's weight file, download it if needed, and convert it once per node.

A local path, an s3:// or http(s) URL, or nothing (the official file) names a weight file. The
result is a safetensors file with torchvision's tensor names. Its metadata gives the colour order
that the first convolution expects.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from caan import storage
from caan.backbones.download import download, locked, sha256_of
from caan.backbones.weight_formats import read_weights, to_state_dict
from caan.errors import InputError, redact

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "CAAN_CACHE"
"""Environment variable that names the cache folder of a node (default ~/.cache/caan)."""

SEEN_VIDEOS = "seen_videos"
"""Entry of a fine-tuned file's metadata: which videos it has seen, as JSON."""

_METADATA_KEY = "caan"
_CONVERTER_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """The published weight file of a backbone."""

    file_name: str
    """Name of the file in the cache folder, also if it is put there by hand."""
    url: str
    """Address of the download."""
    sha256_prefix: str
    """First digits of its sha256; "" where no trustworthy one is known."""
    licence: str
    """What the licence allows, in one sentence."""
    role: str
    """`face` or `context`: which options name it."""
    num_classes: int
    """Outputs of its last layer, which tell a VGG-Face from an ImageNet VGG16."""


OFFICIAL_FILES = {
    "vggface": OfficialFile(
        file_name="vgg_face_dag.pth",
        url="https://www.robots.ox.ac.uk/~albanie/models/pytorch-mcn/vgg_face_dag.pth",
        sha256_prefix="",
        licence="VGG-Face weights are for non-commercial research only (Parkhi et al. 2015).",
        role="face",
        num_classes=2622,
    ),
    "vgg16": OfficialFile(
        file_name="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256_prefix="397923af",
        licence="ImageNet VGG16 weights are CC BY 4.0 (Simonyan and Zisserman 2015).",
        role="context",
        num_classes=1000,
    ),
}
"""The official weight file of each backbone that has one to download."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A converted safetensors file, ready to load."""

    path: Path
    """Local path; tensors carry torchvision's names."""
    sha256: str
    """Hash of the whole file, 64 hex digits."""
    metadata: dict[str, str]
    """`backbone`, `channel_order` (RGB or BGR) and whatever its maker noted."""


def cache_folder() -> Path:
    """The folder of this node that keeps downloaded and converted weights; created on demand.

    Raises:
        InputError: it cannot be created.
    """
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "caan")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache folder `{folder}` cannot be made ({error.strerror}): set {CACHE_VARIABLE}"
        ) from error
    return folder


def ready_weights(backbone: str, weights: str = "") -> WeightFile:
    """Find, check and convert a backbone's weights; a second call only checks them.

    `weights` is a local file, a folder with one .safetensors file (as jobs.finetune writes), an
    s3:// or http(s) URL, or "" for the official file of `vggface` or `vgg16`. The starters take
    files of jobs.finetune only.

    Raises:
        InputError: no such file, no network, a damaged file, or weights of another network.
    """
    source = find_weights(backbone, weights)
    metadata = read_metadata(source) if source.suffix == ".safetensors" else {}
    if not metadata and backbone not in OFFICIAL_FILES:
        raise InputError(
            f"`{source}` was not written by jobs.finetune, and `{backbone}` takes no other weights "
            "than its own: leave them out, or fine-tune it"
        )
    if not metadata:
        state = source.stat()
        key = f"{_CONVERTER_VERSION}|{source.resolve()}|{state.st_size}|{state.st_mtime_ns}"
        name = f"{backbone}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        target = cache_folder() / "converted" / name
        with locked(target):
            if not target.exists():
                _convert(source, target, backbone)
                logger.warning("%s", OFFICIAL_FILES[backbone].licence)
        source, metadata = target, read_metadata(target)
    if metadata["backbone"] != backbone:
        raise InputError(
            f"`{source}` holds weights of `{metadata['backbone']}`, and `{backbone}` was asked for"
        )
    return WeightFile(path=source, sha256=sha256_of(source), metadata=metadata)


def finetuned_weights(backbone: str, weights: str) -> WeightFile | None:
    """The weight file if it is one of jobs.finetune's, else None.

    Raises:
        InputError: as `ready_weights`.
    """
    if weights in ("", "random"):
        return None
    is_address = weights.startswith(("http://", "https://"))
    is_file = weights.partition("?")[0].endswith(".safetensors")
    if not is_file and (is_address or not storage.is_folder(weights)):
        return None
    found = ready_weights(backbone, weights)
    return found if SEEN_VIDEOS in found.metadata else None


def finetuned_of(record: Mapping[str, Any]) -> dict[str, WeightFile]:
    """The fine-tuned weights that made features, by modality, as the features' run.json has them.

    Raises:
        InputError: a file is no longer where it was, or is another one now.
    """
    found: dict[str, WeightFile] = {}
    for kind in record.get("finetuned", {}):
        backbone, weights = (record["config"][f"{kind}_{part}"] for part in ("backbone", "weights"))
        file = ready_weights(backbone, weights)
        if not record["identity"][f"{kind}_backbone"].startswith(
            f"{backbone}:sha256:{file.sha256}"
        ):
            raise InputError(
                f"the {kind} weights of these features, `{weights}`, are others now: put the old "
                "ones back, or extract again with the new ones."
            )
        found[kind] = file
    return found


def find_weights(backbone: str, weights: str = "") -> Path:
    """The local file that `weights` names (see `ready_weights`), downloaded if need be.

    Raises:
        InputError: no such file, or out of reach; says where to put it and what else can be done.
    """
    if not weights:
        official = OFFICIAL_FILES[backbone]
        target = cache_folder() / official.file_name
        if not target.exists():
            try:
                download(official.url, target, sha256_prefix=official.sha256_prefix)
            except OSError as error:
                raise InputError(_absent(backbone, target, error)) from error
        return target
    if weights.startswith(("http://", "https://")):
        if "@" in weights.split("/")[2]:
            raise InputError(
                f"`{redact(weights)}` was given with a user name: fetch it by hand and "
                "name the file, or use a signed URL."
            )
        digest = hashlib.sha256(weights.encode()).hexdigest()[:8]
        target = cache_folder() / f"{digest}-{weights.partition('?')[0].rpartition('/')[2]}"
        if not target.exists():
            try:
                download(weights, target)
            except OSError as error:
                raise InputError(
                    f"the weights `{redact(weights)}` cannot be fetched: {redact(str(error))}"
                ) from error
        return target
    if storage.is_folder(weights):
        weights = _only_safetensors(weights)
    try:
        return storage.fetch(weights, cache_folder())
    except FileNotFoundError as error:
        raise InputError(
            f"there is no weight file `{weights}` for the backbone `{backbone}` (a path, s3://, "
            "https://, or `random`)"
        ) from error


def _absent(backbone: str, target: Path, error: OSError) -> str:
    official = OFFICIAL_FILES[backbone]
    option = f"--{official.role}-weights"
    reason = redact(str(error))
    return (
        f"the backbone `{backbone}` has no weights here: `{official.file_name}` is not in "
        f"`{target.parent}`, and {official.url} cannot be fetched ({reason}). Download it where "
        f"there is a network and put it at `{target}`, or name a file (`{option} PATH`, also "
        f"s3://), or take random weights to try things out (`{option} random`), or the starter "
        f"backbone, which needs no download (`--{official.role}-backbone "
        f"starter_{official.role}`)"
    )


def _only_safetensors(folder: str) -> str:
    found = [file.uri for file in storage.list_files(folder) if file.uri.endswith(".safetensors")]
    if len(found) != 1:
        raise InputError(f"`{folder}` holds {len(found)} .safetensors files; one is needed")
    return found[0]


# Conversion ----------------------------------------------------------------------------------


def _convert(source: Path, target: Path, backbone: str) -> None:
    digest = sha256_of(source)
    official = OFFICIAL_FILES[backbone]
    if source.name == official.file_name and not digest.startswith(official.sha256_prefix):
        raise InputError(
            f"`{source}` is damaged: its sha256 is {digest}, not {official.sha256_prefix}..."
        )
    weights = read_weights(source)
    if backbone == "vgg16" and weights.format != "torchvision":
        raise InputError(
            f"`{source}` is a {weights.format} file; `vgg16` takes torchvision's naming and scale"
        )
    if backbone == "vggface" and weights.format == "torchvision":
        logger.warning("%s does not tell its colour order: taken as RGB", source)
    state = to_state_dict(weights)
    check_shapes(state, str(source))
    num_classes = len(state["classifier.6.bias"]) if "classifier.6.bias" in state else 0
    for other, other_file in OFFICIAL_FILES.items():
        if other != backbone and num_classes == other_file.num_classes:
            raise InputError(f"`{source}` has {num_classes} classes: these are weights of {other}")
    metadata = {
        "backbone": backbone,
        "channel_order": weights.channel_order,
        "format": weights.format,
        "source_sha256": digest,
    }
    save_weights(state, target, metadata)
    logger.info("converted %s (%s) to %s", source, weights.format, target)


def save_weights(state: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors under torchvision's names to a safetensors file that `ready_weights` takes.

    `metadata` needs `backbone` and `channel_order`; fine-tuning adds the split that it has seen.
    The same content always gives the same bytes.
    """
    assert {"backbone", "channel_order"} <= metadata.keys()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    contiguous = {name: state[name].contiguous() for name in sorted(state)}
    save_file(contiguous, temporary, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    temporary.replace(path)


def read_metadata(path: Path) -> dict[str, str]:
    """What `save_weights` noted in a safetensors file; empty if another program wrote it.

    Raises:
        InputError: damaged, or no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"`{path}` is no whole safetensors file: {error}") from error
    return {"channel_order": "RGB", **metadata} if "backbone" in metadata else {}


def load_state(weights: WeightFile, names: list[str]) -> dict[str, torch.Tensor]:
    """The named tensors of a weight file, with the first convolution turned to expect RGB.

    Raises:
        InputError: a tensor is missing, or the shapes do not fit each other.
    """
    with safe_open(weights.path, "pt") as file:
        missing = set(names) - set(file.keys())
        if missing:
            raise InputError(f"`{weights.path}` lacks {', '.join(sorted(missing))}")
        state = {name: file.get_tensor(name) for name in names}
    if weights.metadata["channel_order"] == "BGR":
        state["features.0.weight"] = state["features.0.weight"].flip(1).contiguous()
    check_shapes(state, str(weights.path))
    return state


def check_shapes(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Check that the layers of a VGG of any widths fit each other.

    Raises:
        InputError: naming the first layer that does not fit.
    """
    num_inputs = 3
    for name, weight in state.items():
        if not name.endswith(".weight"):
            continue
        bias = state[name.removesuffix("weight") + "bias"]
        fits = weight.shape[1] == num_inputs and len(bias) == len(weight)
        if name.startswith("features."):
            fits = fits and weight.shape[2:] == (3, 3)
        elif name == "classifier.0.weight":
            grid = round((weight.shape[1] / num_inputs) ** 0.5)
            fits = weight.shape[1] == num_inputs * grid**2 and len(bias) == len(weight)
        if not fits:
            raise InputError(
                f"`{source}`: {name} has shape {tuple(weight.shape)} and does not fit "
                f"{num_inputs} inputs"
            )
        num_inputs = len(weight)
