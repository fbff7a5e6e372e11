"""Read and write a model folder: weights, config and metrics."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from caan import config as configs
from caan.errors import InputError
from caan.models.build import build_model
from caan.models.config import ModelConfig, Rule
from caan.models.head import Head

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
BACKBONE_FILE = "{}_backbone.safetensors"
"""Weights of a fine-tuned `face` or `context` backbone, stored with the model."""
CENTROIDS = "centroids_KR"
STARTER = Path(__file__).parents[1] / "starter" / "model"
"""The model folder that comes with the package."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The config of a model folder: the head, and how its input vectors are made."""

    model: ModelConfig
    """The head."""
    label_set: tuple[str, ...]
    """Its emotions, in the order of its outputs."""
    face_dim: int
    """Size of a face vector."""
    context_dim: int
    """Size of a context vector."""
    face_backbone: str = "vggface"
    """Name of the face backbone."""
    context_backbone: str = "vgg16"
    """Name of the context backbone."""
    face_backbone_identity: str = ""
    """The face backbone with its weights' hash, as extract wrote it."""
    context_backbone_identity: str = ""
    """The context backbone with its weights' hash."""
    detector: str = "retinaface"
    """Name of the face detector."""
    detector_identity: str = ""
    """The detector with its weights' hash."""
    fps: float = 2.0
    """Frames per second that it was trained on."""
    face_policy: str = "main"
    """Which faces: main, marked or all."""
    no_face: str = "drop"
    """What happens to frames without a face: drop or context_only."""
    rule: Rule = "head"
    """Prediction rule: head, frames or centroids."""
    temperature: float = 1.0
    """Divides the evidence before the softmax; calibrated on validation videos."""
    extraction: tuple[tuple[str, str], ...] = ()
    """Further options of the extraction, by name."""
    training: tuple[tuple[str, str], ...] = ()
    """How it was trained, for the record."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over everything here; the folder's `model_id` adds the weights."""
        return configs.fingerprint(configs.to_dict(self))


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A loaded model folder, ready to predict."""

    head: Head
    """The head with its weights, in evaluation mode."""
    info: ModelInfo
    """What it is."""
    centroids_KR: Tensor | None
    """Mean R of each class, if they were stored."""
    metrics: dict[str, Any]
    """Figures measured in training."""
    model_id: str
    """16 hex digits over config and weights."""


def save_model(
    folder: Path | str,
    head: Head,
    info: ModelInfo,
    *,
    metrics: dict[str, Any],
    centroids_KR: Tensor | None = None,
) -> str:
    """Write a model folder in one step, so that it is never half there; returns its `model_id`.

    An older model folder in the same place is replaced.

    Raises:
        InputError: the folder holds something else than a model.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).exists():
        raise InputError(f"{folder} is not empty and holds no model; choose another output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()
    }
    if centroids_KR is not None and centroids_KR.numel():
        tensors[CENTROIDS] = centroids_KR.detach().cpu().contiguous()
    save_file(tensors, temporary / WEIGHTS_FILE)
    model_id = _model_id(info, temporary / WEIGHTS_FILE)
    _write_json(
        temporary / CONFIG_FILE,
        {
            "format": FORMAT,
            "model_id": model_id,
            "fingerprint": info.fingerprint,
            **configs.to_dict(info),
        },
    )
    _write_json(temporary / METRICS_FILE, metrics)
    temporary.chmod(0o755)
    if folder.exists():
        old = temporary.with_name(temporary.name + "-old")
        os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old)
    else:
        os.replace(temporary, folder)
    return model_id


def load_model(
    folder: Path | str,
    *,
    label_set: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Read a model folder; with `label_set`, only a model of these emotions.

    Raises:
        InputError: no model there, a broken one, or one of another label set.
    """
    folder = Path(folder)
    info, stored_id = read_info(folder)
    if label_set is not None and tuple(label_set) != info.label_set:
        raise InputError(
            f"the model in {folder} knows {', '.join(info.label_set)}, and the data has "
            f"{', '.join(label_set)}: choose a model of the same label set"
        )
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise InputError(f"the weights in {folder / WEIGHTS_FILE} cannot be read") from error
    if stored_id != _model_id(info, folder / WEIGHTS_FILE):
        raise InputError(
            f"{folder} is damaged: its weights have changed since it was saved; take another copy"
        )
    centroids_KR = tensors.pop(CENTROIDS, None)
    head = build_model(
        info.model,
        face_dim=info.face_dim,
        context_dim=info.context_dim,
        num_emotions=len(info.label_set),
    )
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{folder / WEIGHTS_FILE} does not fit the model that {CONFIG_FILE} describes"
        ) from error
    head.to(device).eval()
    return LoadedModel(
        head=head,
        info=info,
        centroids_KR=None if centroids_KR is None else centroids_KR.to(device),
        metrics=_read_json(folder / METRICS_FILE),
        model_id=stored_id,
    )


def read_info(folder: Path | str) -> tuple[ModelInfo, str]:
    """Read the config and `model_id` of a model folder, without its weights.

    Raises:
        InputError: no model there, or one of an unknown format.
    """
    folder = Path(folder)
    values = _read_json(folder / CONFIG_FILE)
    if values.pop("format", None) != FORMAT:
        raise InputError(f"{folder / CONFIG_FILE} is no model config of format {FORMAT}")
    model_id = str(values.pop("model_id", ""))
    values.pop("fingerprint", None)
    for name in ("extraction", "training"):
        values[name] = [tuple(pair) for pair in values.get(name, [])]
    try:
        info = configs.from_dict(ModelInfo, values)
    except TypeError as error:
        raise InputError(
            f"{folder / CONFIG_FILE} lacks parts of a model config: {error}"
        ) from error
    return info, model_id


def _model_id(info: ModelInfo, weights_file: Path) -> str:
    """16 hex digits over config and weights."""
    with weights_file.open("rb") as stream:
        weights = hashlib.file_digest(stream, "sha256").hexdigest()
    return configs.fingerprint({"info": configs.to_dict(info), "weights": weights})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, default=float) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"{path.parent} holds no complete model: {path.name} is missing")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is no JSON object")
    return values
