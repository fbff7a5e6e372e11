"""Recipes: a head and its training for each system of the paper, by name."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from caan.errors import InputError
from caan.models.config import ModelConfig
from caan.training.config import LossConfig, TrainConfig

VIDEO_ONLY = LossConfig(frame_weight=0.0, triplet_weight=0.0)
"""Cross-entropy of the video's label alone: the loss of the averaging and fusion baselines."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A head with its training options."""

    model: ModelConfig
    """Options of the head."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Options of its training."""


_BASELINE = TrainConfig(losses=VIDEO_ONLY)
_PAPER = LossConfig(video_weight=0.0)

RECIPES: dict[str, Recipe] = {
    "caan": Recipe(model=ModelConfig()),
    "caan_face": Recipe(model=ModelConfig(modality="face", scorer_depth=1)),
    "caan_context": Recipe(model=ModelConfig(modality="context")),
    "caan_paper": Recipe(model=ModelConfig(score_fn="raw"), train=TrainConfig(losses=_PAPER)),
    "pool5_face": Recipe(
        model=ModelConfig(name="pool5_attention", modality="face", scorer_depth=1)
    ),
    "pool5_context": Recipe(model=ModelConfig(name="pool5_attention", modality="context")),
    "faa": Recipe(model=ModelConfig(name="faa"), train=_BASELINE),
    "caa": Recipe(model=ModelConfig(name="caa"), train=_BASELINE),
    "ffaa": Recipe(model=ModelConfig(name="ffaa"), train=_BASELINE),
    "qan": Recipe(
        model=ModelConfig(name="qan", modality="context"),
        train=TrainConfig(
            losses=LossConfig(
                video_weight=0.0,
                contrastive_weight=1.0,
                triplet_margin=1.8,
                triplet_mining="batch_all",
            ),
        ),
    ),
    "fan_lstm": Recipe(model=ModelConfig(name="fan_lstm", projection_size=512), train=_BASELINE),
    "vielzeuf": Recipe(
        model=ModelConfig(name="vielzeuf", projection_size=512, feature_size=256), train=_BASELINE
    ),
    "chen": Recipe(model=ModelConfig(name="chen"), train=_BASELINE),
    "kosti": Recipe(
        model=ModelConfig(name="kosti", feature_size=256),
        train=TrainConfig(losses=replace(VIDEO_ONLY, class_weights="log")),
    ),
    "attention_clusters": Recipe(
        model=ModelConfig(name="attention_clusters", projection_size=512),
        train=TrainConfig(losses=VIDEO_ONLY, learning_rate=1e-3),
    ),
    "emotion_fan": Recipe(
        model=ModelConfig(name="emotion_fan", modality="face", feature_size=512), train=_BASELINE
    ),
    "caer_net": Recipe(model=ModelConfig(name="caer_net"), train=_BASELINE),
}
"""Recipes by system. All share `TrainConfig`'s optimiser and schedule, and differ in their losses
(`attention_clusters` also in its learning rate).

`caan_paper` takes the paper's raw emotion scores with a guard against sums near zero, the losses on
frames and the triplet loss without the loss on the video, and labels R by the frame classifier.
`qan` does not take QAN's SGD settings (1e-3, 0.9, 2e-4): those fine-tune a whole network.
"""

PRESETS = {"default": "caan", "paper": "caan_paper", "pool5_attention": "pool5_face"}
"""Recipe of each preset of `--preset` and of each head without a recipe of its own name."""


def recipe(name: str, *, seed: int = 0) -> Recipe:
    """Return the recipe or preset `name` with its training seeded by `seed`.

    Raises:
        InputError: no recipe or preset has this name.
    """
    name = PRESETS.get(name, name)
    if name not in RECIPES:
        raise InputError(
            f"there is no recipe `{name}`: choose one of {', '.join([*PRESETS, *RECIPES])}"
        )
    found = RECIPES[name]
    return replace(found, train=replace(found.train, seed=seed))


def configure(
    preset: str, model: ModelConfig, train: TrainConfig, *, seed: int
) -> tuple[ModelConfig, TrainConfig]:
    """Apply the options that differ from their defaults to a recipe; return model and training.

    The recipe is `preset` for the model `caan`, and the one named like the model for other heads.

    Raises:
        InputError: the preset or the head has no recipe.
    """
    found = recipe(preset if model.name == "caan" else model.name, seed=seed)
    changed_train = _change(TrainConfig(), train, found.train)
    return _change(ModelConfig(), model, found.model), replace(changed_train, seed=seed)


def _change(default: Any, given: Any, preset: Any) -> Any:
    """Copy `preset`, with the values of `given` that differ from `default`; nested ones too."""
    changes: dict[str, Any] = {}
    for item in fields(given):
        value, before = getattr(given, item.name), getattr(default, item.name)
        if is_dataclass(value):
            changes[item.name] = _change(before, value, getattr(preset, item.name))
        elif value != before:
            changes[item.name] = value
    return replace(preset, **changes)
