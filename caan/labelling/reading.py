"""How videos are read so that a model can label them: as its training videos were read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from caan import config, storage
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig
from caan.labelling.config import ReadingOptions
from caan.models.checkpoint import BACKBONE_FILE, ModelInfo
from caan.people.config import FaceEmbeddingConfig, face_embedding_name
from caan.people.face_embedding import dlib_embedder

SEGMENT_IMAGES = 640
"""Most images of 224x224 in one row between the stages (96 MB)."""


def extraction_of(options: ReadingOptions, info: ModelInfo, folder: str) -> ExtractionConfig:
    """How the model's training videos were read, with the options that a run may change.

    `folder` is the model folder. Fine-tuned backbones in it are used where the options name no
    other weights.

    Raises:
        InputError: an option is out of range, or names another detector or backbone than the
            model's.
    """
    for name in ("detector", "face_backbone", "context_backbone"):
        given, own = getattr(options, name), getattr(info, name)
        if given is not None and given != own:
            raise InputError(
                f"--{name.replace('_', '-')} {given}: the model was trained with {own}; leave it "
                "out, or train a model with it."
            )
    values: dict[str, Any] = dict(info.extraction)
    values |= {
        "detector": info.detector,
        "face_backbone": info.face_backbone,
        "context_backbone": info.context_backbone,
        "fps": info.fps,
        "face_policy": "all",  # the second phase chooses whose labels are given
        "no_face": info.no_face,
        "cascade": options.cascade,
    }
    changeable = (
        "fps", "detector_weights", "face_weights", "context_weights", "min_face_score",
        "max_faces_per_frame",
    )  # fmt: skip
    values |= {name: v for name in changeable if (v := getattr(options, name)) is not None}
    for kind in ("face", "context"):
        path = storage.join(folder, BACKBONE_FILE.format(kind))
        if getattr(options, f"{kind}_weights") is None and storage.exists(path):
            values[f"{kind}_weights"] = path
    found = config.from_dict(ExtractionConfig, values)
    if found.fps <= 0:
        raise InputError(f"--fps {found.fps} must be above 0.")
    if found.max_faces_per_frame < 1:
        raise InputError(f"--max-faces-per-frame {found.max_faces_per_frame} must be at least 1.")
    # Labels do not depend on the segments' length; rows of images must stay small.
    most = max(1, SEGMENT_IMAGES // (1 + found.max_faces_per_frame))
    return dataclasses.replace(found, segment_frames=min(found.segment_frames, most))


def check_weights(networks: Mapping[str, Any], info: ModelInfo) -> None:
    """Check that detector and backbones have the weights that the model was trained with.

    `networks` is what `caan.extraction.embed.describe_networks` gives.

    Raises:
        InputError: one of them has other weights.
    """
    for name, own in (
        ("face_backbone", info.face_backbone_identity),
        ("context_backbone", info.context_backbone_identity),
        ("detector", info.detector_identity),
    ):
        if own and name in networks and networks[name] != own:
            raise InputError(
                f"the model was trained with {name} `{own}`, and here it is `{networks[name]}`: "
                f"give its weights with --{name.replace('_backbone', '')}-weights."
            )


def people_of(
    options: ReadingOptions,
    extraction: ExtractionConfig,
    modalities: Sequence[str],
    networks: Mapping[str, Any],
) -> FaceEmbeddingConfig:
    """Faces that get an appearance vector, and which vector it is.

    Raises:
        InputError: an option is out of range, or the vector's network is not available.
    """
    if options.identity_seconds <= 0:
        raise InputError(f"--identity-seconds {options.identity_seconds} must be above 0.")
    name = face_embedding_name(
        options.identity,
        extraction.face_backbone if "face" in modalities else "",
        is_random=bool(networks.get("face_is_random")),
    )
    if name == "dlib":
        dlib_embedder()  # a missing package ends the job before it starts
    return FaceEmbeddingConfig(name=name, every_seconds=options.identity_seconds)  # type: ignore[arg-type]
