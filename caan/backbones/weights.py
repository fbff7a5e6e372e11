"""Find a backbone's weight file, download it if needed, and convert it once per node.

A weight file is a local path, an s3:// or http(s) URL, or the official file of its backbone. It is
converted to a safetensors file with torchvision's tensor names, whose metadata gives the colour
order that the first convolution expects.
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
"""Environment variable with the cache folder of the node; default ~/.cache/caan."""

SEEN_VIDEOS = "seen_videos"
"""Metadata key of a fine-tuned file: the videos it was trained on, as JSON."""

_METADATA_KEY = "caan"
_CONVERTER_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """The published weight file of a backbone."""

    file_name: str
    """Name of the file in the cache folder, downloaded or put there by hand."""
    url: str
    """Address of the download."""
    sha256_prefix: str
    """First hex digits of its sha256; "": no published hash can be trusted."""
    licence: str
    """Sentence on what the licence allows; logged at the conversion."""
    role: str
    """`face` or `context`: the branch whose options name it."""
    num_classes: int
    """Outputs of its last layer; they tell VGG-Face from ImageNet's VGG16."""


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
"""Official weight file by backbone."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A converted safetensors file, ready to load."""

    path: Path
    """Local path; the tensors have torchvision's names."""
    sha256: str
    """Hash of the whole file, 64 hex digits."""
    metadata: dict[str, str]
    """`backbone`, `channel_order` (`RGB` or `BGR`), and entries of whoever wrote the file."""


def cache_folder() -> Path:
    """Return the folder of downloaded and converted weights on this node; create it if absent.

    Raises:
        InputError: it cannot be created.
    """
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "caan")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache folder `{folder}` cannot be created ({error.strerror}): set "
            f"{CACHE_VARIABLE} to a folder that can be written."
        ) from error
    return folder


def ready_weights(backbone: str, weights: str = "") -> WeightFile:
    """Find, check and convert the weights of a backbone; a converted file is only checked again.

    Args:
        backbone: name of the backbone. The starters take files of jobs.finetune only.
        weights: a local or s3:// file, a folder with one .safetensors file (as jobs.finetune
            writes), an http(s) URL, or "" for the official file of `vggface` or `vgg16`.

    Raises:
        InputError: the file is absent, out of reach, damaged, or holds another network's weights.
    """
    source = find_weights(backbone, weights)
    metadata = read_metadata(source) if source.suffix == ".safetensors" else {}
    if not metadata and backbone not in OFFICIAL_FILES:
        raise InputError(
            f"`{source}` was not written by jobs.finetune, and `{backbone}` takes only its own or "
            "fine-tuned weights: leave the option out, or run jobs.finetune."
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
            f"`{source}` holds weights of `{metadata['backbone']}`, not of `{backbone}`: give a "
            f"file of `{backbone}`."
        )
    return WeightFile(path=source, sha256=sha256_of(source), metadata=metadata)


def finetuned_weights(backbone: str, weights: str) -> WeightFile | None:
    """Return the weight file that `weights` names if jobs.finetune wrote it, else None.

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
    """Find the fine-tuned weights that features were made with; give them by modality.

    `record` is the run.json of the features.

    Raises:
        InputError: a file is gone, or its content is not the one of the features.
    """
    found: dict[str, WeightFile] = {}
    for kind in record.get("finetuned", {}):
        backbone, weights = (record["config"][f"{kind}_{part}"] for part in ("backbone", "weights"))
        file = ready_weights(backbone, weights)
        if not record["identity"][f"{kind}_backbone"].startswith(
            f"{backbone}:sha256:{file.sha256}"
        ):
            raise InputError(
                f"the {kind} weights `{weights}` are not those that these features were made "
                "with: put the original file back, or extract again."
            )
        found[kind] = file
    return found


def find_weights(backbone: str, weights: str = "") -> Path:
    """Return the local file of the weights, as `ready_weights` takes them; download it if absent.

    Raises:
        InputError: the file is absent or out of reach.
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
                f"the URL `{redact(weights)}` has a user name: download the file and give its "
                "path, or give a signed URL."
            )
        digest = hashlib.sha256(weights.encode()).hexdigest()[:8]
        target = cache_folder() / f"{digest}-{weights.partition('?')[0].rpartition('/')[2]}"
        if not target.exists():
            try:
                download(weights, target)
            except OSError as error:
                raise InputError(
                    f"the weights `{redact(weights)}` cannot be fetched ({redact(str(error))}): "
                    "check the URL, or give a path."
                ) from error
        return target
    if storage.is_folder(weights):
        weights = _only_safetensors(weights)
    try:
        return storage.fetch(weights, cache_folder())
    except FileNotFoundError as error:
        raise InputError(
            f"there is no weight file `{weights}` for the backbone `{backbone}`: give a path, an "
            "s3:// or https:// address, or `random`."
        ) from error


def _absent(backbone: str, target: Path, error: OSError) -> str:
    official = OFFICIAL_FILES[backbone]
    option = f"--{official.role}-weights"
    reason = redact(str(error))
    return (
        f"the weights of `{backbone}` are absent: `{official.file_name}` is not in "
        f"`{target.parent}`, and {official.url} cannot be fetched ({reason}). Download it "
        f"elsewhere and put it at `{target}`, or give a file (`{option} PATH`, also s3://), random "
        f"weights for a trial (`{option} random`), or the starter, which needs no download "
        f"(`--{official.role}-backbone starter_{official.role}`)."
    )


def _only_safetensors(folder: str) -> str:
    found = [file.uri for file in storage.list_files(folder) if file.uri.endswith(".safetensors")]
    if len(found) != 1:
        raise InputError(f"`{folder}` holds {len(found)} .safetensors files: give one file.")
    return found[0]


# Conversion ----------------------------------------------------------------------------------


def _convert(source: Path, target: Path, backbone: str) -> None:
    digest = sha256_of(source)
    official = OFFICIAL_FILES[backbone]
    if source.name == official.file_name and not digest.startswith(official.sha256_prefix):
        raise InputError(
            f"`{source}` is damaged: its sha256 is {digest}, not {official.sha256_prefix}...; "
            "delete it and start again."
        )
    weights = read_weights(source)
    if backbone == "vgg16" and weights.format != "torchvision":
        raise InputError(
            f"`{source}` is a {weights.format} file, and `vgg16` takes the names and colour scale "
            "of torchvision: give torchvision's file."
        )
    if backbone == "vggface" and weights.format == "torchvision":
        logger.warning("%s does not name its colour order; RGB is assumed", source)
    state = to_state_dict(weights)
    check_shapes(state, str(source))
    num_classes = len(state["classifier.6.bias"]) if "classifier.6.bias" in state else 0
    for other, other_file in OFFICIAL_FILES.items():
        if other != backbone and num_classes == other_file.num_classes:
            raise InputError(
                f"`{source}` has {num_classes} classes: these are weights of {other}, not of "
                f"{backbone}."
            )
    metadata = {
        "backbone": backbone,
        "channel_order": weights.channel_order,
        "format": weights.format,
        "source_sha256": digest,
    }
    save_weights(state, target, metadata)
    logger.info("converted the weights %s (%s) to %s", source, weights.format, target)


def save_weights(state: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors to a safetensors file that `ready_weights` takes; replace it atomically.

    The same content gives the same bytes.

    Args:
        state: tensors by torchvision's names.
        path: local file; its folder is created.
        metadata: `backbone`, `channel_order`, and the caller's own entries.
    """
    assert {"backbone", "channel_order"} <= metadata.keys()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    contiguous = {name: state[name].contiguous() for name in sorted(state)}
    save_file(contiguous, temporary, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    temporary.replace(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of `save_weights`; empty if another program wrote the file.

    Raises:
        InputError: the file is damaged or no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"`{path}` is damaged or no safetensors file: {error}") from error
    return {"channel_order": "RGB", **metadata} if "backbone" in metadata else {}


def load_state(weights: WeightFile, names: list[str]) -> dict[str, torch.Tensor]:
    """Load tensors of a weight file, on the CPU; the first convolution expects RGB.

    Raises:
        InputError: a tensor of `names` is missing, or the shapes do not fit each other.
    """
    with safe_open(weights.path, "pt") as file:
        missing = set(names) - set(file.keys())
        if missing:
            raise InputError(
                f"`{weights.path}` lacks the tensors {', '.join(sorted(missing))}: give the "
                "complete weights."
            )
        state = {name: file.get_tensor(name) for name in names}
    if weights.metadata["channel_order"] == "BGR":
        state["features.0.weight"] = state["features.0.weight"].flip(1).contiguous()
    check_shapes(state, str(weights.path))
    return state


def check_shapes(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Check that the layers of a VGG fit each other, whatever their widths.

    Raises:
        InputError: a layer does not fit the one before it; `source` is the file of the sentence.
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
                f"`{source}`: {name} has the shape {tuple(weight.shape)}, which does not fit "
                f"{num_inputs} inputs: give the weights of a VGG16."
            )
        num_inputs = len(weight)
