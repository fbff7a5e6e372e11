"""Trials: the systems of the paper, each trained with every seed on every division of the videos.

A trial is finished when its files are in the output, so that an interrupted comparison resumes.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from caan import config, metrics, storage
from caan.errors import InputError
from caan.experiments.classical import CLASSICAL_MODELS, build_encoder
from caan.experiments.config import EncoderConfig
from caan.features.batches import check_classes
from caan.features.packed import PackedVideos
from caan.features.splits import split_validation
from caan.models.build import build_model
from caan.models.config import RULES, ModelConfig
from caan.training.config import fingerprint_values
from caan.training.loop import fit
from caan.training.predict import predict
from caan.training.recipes import RECIPES, Recipe

CLASSICAL_RULE = "svm"
"""The only prediction rule of the encoders of Table 6: the classifier's decision values."""

TRIALS = "trials"
"""Folder of the trials' files under the output."""


def _with_depth(name: str, depth: int) -> Recipe:
    found = RECIPES[name]
    return dataclasses.replace(found, model=dataclasses.replace(found.model, scorer_depth=depth))


SYSTEMS: dict[str, Recipe | str] = {
    **RECIPES,
    "caan_depth1": _with_depth("caan", 1),
    "caan_depth2": _with_depth("caan", 2),
    "caan_face_depth2": _with_depth("caan_face", 2),
    "caan_face_depth3": _with_depth("caan_face", 3),
    "caan_context_depth1": _with_depth("caan_context", 1),
    "caan_context_depth2": _with_depth("caan_context", 2),
    "pool5_face_depth2": _with_depth("pool5_face", 2),
    "pool5_face_depth3": _with_depth("pool5_face", 3),
    "pool5_context_depth1": _with_depth("pool5_context", 1),
    "pool5_context_depth2": _with_depth("pool5_context", 2),
    **{name: name for name in CLASSICAL_MODELS},
}
"""Every system of the tables: a head with its training, or the name of a classical encoder."""

FROM_POOL5: dict[str, str] = {
    name: recipe.model.modality
    for name, recipe in SYSTEMS.items()
    if isinstance(recipe, Recipe) and recipe.model.name == "pool5_attention"
}
"""The systems that need pool5 maps, and of which modality."""


def modalities_of(name: str) -> tuple[str, ...]:
    """What a system looks at: face, context or both; nothing for an unknown system."""
    found = SYSTEMS.get(name)
    if isinstance(found, Recipe):
        return build_model(found.model, face_dim=4, context_dim=4, num_emotions=2).modalities
    return ("face", "context") if found else ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One system trained once."""

    system: str
    """One of SYSTEMS."""
    seed: int
    """Decides initial weights, batches and the validation part."""
    split: str
    """Name of the division into training and test videos: `split0`, `split1`, ..."""
    recipe: Recipe | str
    """What is trained."""
    train_split: str = "train"
    """Split that is learned from."""
    test_split: str = "test"
    """Split that is scored, and never learned from."""
    validation_fraction: float = 0.15
    """Share of the training videos held out, where the manifest has no split `val`."""
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    """Options of a classical encoder."""

    @property
    def name(self) -> str:
        """Name of the trial's files."""
        return f"{self.split}-{self.system}-seed{self.seed}"

    def fingerprint(self, data: str) -> str:
        """Fingerprint of everything that can change the result; `data`: that of the videos."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        encoders = own.pop("encoders")
        options: Any = [self.recipe, config.to_dict(encoders)]
        if not isinstance(self.recipe, str):
            options = config.to_dict(self.recipe)
            options["train"] = fingerprint_values(self.recipe.train)
        return config.fingerprint({**own, "recipe": options, "data": data})


def grid(
    systems: Sequence[str],
    seeds: Sequence[int],
    splits: Iterable[str],
    *,
    train_split: str = "train",
    test_split: str = "test",
    validation_fraction: float = 0.15,
    epochs: int = 0,
    encoders: EncoderConfig | None = None,
) -> list[Trial]:
    """List all trials; `epochs` above 0 replaces the recipes' most epochs.

    Raises:
        InputError: an unknown system, a repeated seed or none.
    """
    if unknown := [name for name in systems if name not in SYSTEMS]:
        raise InputError(f"unknown system `{unknown[0]}`; there are {', '.join(SYSTEMS)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"option `seeds` is {list(seeds)}; give at least one, each once")
    trials = []
    for split in splits:
        for seed in seeds:
            for system in dict.fromkeys(systems):
                found = SYSTEMS[system]
                if not isinstance(found, str):
                    train = dataclasses.replace(found.train, seed=seed)
                    if epochs > 0:
                        train = dataclasses.replace(train, epochs=epochs)
                    found = dataclasses.replace(found, train=train)
                trials.append(
                    Trial(
                        system=system,
                        seed=seed,
                        split=split,
                        recipe=found,
                        train_split=train_split,
                        test_split=test_split,
                        validation_fraction=validation_fraction,
                        encoders=encoders or EncoderConfig(),
                    )
                )
    return trials


def divide_videos(
    videos: PackedVideos, trial: Trial
) -> tuple[PackedVideos, PackedVideos, PackedVideos]:
    """Give the training, validation and test videos of a trial.

    The test videos include labelled ones without frames.

    Raises:
        InputError: a split is missing or without labels, an emotion has no training video.
    """
    train = videos.split(trial.train_split)
    test = videos.split(trial.test_split)
    test = test.select(test.labels_V >= 0)
    if not len(test):
        raise InputError(f"no video of split `{trial.test_split}` has a label")
    if (videos.splits_V == "val").any() and trial.test_split != "val":
        train, validation = train.usable(), videos.split("val").usable()
    else:
        train, validation = split_validation(
            train, fraction=trial.validation_fraction, seed=trial.seed
        )
    check_classes(np.bincount(train.labels_V, minlength=len(train.label_set)), train.label_set)
    return train, validation, test


def apply_splits(videos: PackedVideos, manifest: pa.Table, uri: str) -> PackedVideos:
    """The videos with the splits of another manifest; a video that it does not name has none.

    Raises:
        InputError: the manifest gives a video another label.
    """
    rows = {
        row["video_id"]: row for row in manifest.select(["video_id", "label", "split"]).to_pylist()
    }
    splits = []
    for video_id, number in zip(videos.video_ids_V, videos.labels_V, strict=True):
        row = rows.get(str(video_id), {"label": None, "split": ""})
        label = videos.label_set[number] if number >= 0 else None
        if str(video_id) in rows and row["label"] != label:
            raise InputError(
                f"manifest `{uri}` labels video {video_id} `{row['label']}`, the first manifest "
                f"`{label}`: the manifests of one comparison differ in their splits only"
            )
        splits.append(row["split"] or "")
    return dataclasses.replace(videos, splits_V=np.array(splits, dtype=np.str_))


def match_pool5_shape(model: ModelConfig, videos: PackedVideos) -> ModelConfig:
    """Set `pool5_shape` to the shape of the videos' maps, if the model reads maps.

    Raises:
        InputError: the model reads maps, and the videos have none.
    """
    if model.name != "pool5_attention":
        return model
    if model.modality not in videos.maps:
        raise InputError(
            f"model `pool5_attention` needs pool5 maps of the {model.modality}, and these features "
            f"have none: extract them with `--pool5 {model.modality}`, or leave that model out"
        )
    _, channels, height, width = videos.maps[model.modality].shape
    return dataclasses.replace(model, pool5_shape=(channels, height, width))


def run_trial(trial: Trial, videos: PackedVideos) -> tuple[dict[str, Any], pa.Table]:
    """Train and score one system; give its figures and a row per test video.

    A row has the label by each rule, -1 for a video without frames. `without_context` is the label
    with the context replaced by its training mean, null for a system that does not look at both
    face and context.

    Raises:
        InputError: as `divide_videos` and `fit`.
    """
    started = time.perf_counter()
    train, validation, test = divide_videos(videos, trial)
    seen = test.counts_V > 0
    record: dict[str, Any] = {"epochs_run": 0, "best_epoch": 0, "context_changed_labels": None}
    evidence: dict[str, np.ndarray] = {}
    without_context = pa.nulls(len(test), pa.int64())
    if isinstance(trial.recipe, str):
        # An encoder selects nothing on validation videos.
        model = build_encoder(trial.recipe, trial.encoders, seed=trial.seed).fit(train)
        evidence[CLASSICAL_RULE] = model.evidence(test)
        main = CLASSICAL_RULE
    else:
        head = build_model(
            match_pool5_shape(trial.recipe.model, videos),
            face_dim=videos.face_dim,
            context_dim=videos.context_dim,
            num_emotions=len(videos.label_set),
            seed=trial.seed,
        )
        result = fit(head, train, validation, trial.recipe.train)
        found = predict(head, test, centroids_KR=result.centroids_KR)
        evidence.update({rule: found.evidence_VK[rule] for rule in RULES})
        main = trial.recipe.train.rule
        record["epochs_run"] = len(result.history)
        record["best_epoch"] = result.best_epoch + 1
        record["validation"] = result.metrics
        if head.modalities == ("face", "context") and seen.any():
            blind = predict(head, test, centroids_KR=result.centroids_KR, without="context")
            blind_V = blind.evidence_VK[main].argmax(1)
            changed = blind_V != evidence[main].argmax(1)
            record["context_changed_labels"] = float(changed[seen].mean())
            without_context = pa.array(np.where(seen, blind_V, -1), pa.int64())
    labels = {rule: np.where(seen, e.argmax(axis=1), -1) for rule, e in evidence.items()}
    rules = {}
    for rule, predicted_V in labels.items():
        matrix = metrics.confusion_matrix(test.labels_V, predicted_V, len(test.label_set))
        rules[rule] = {
            "accuracy": metrics.accuracy(matrix),
            "uar": metrics.uar(matrix),
            "confusion_matrix": matrix.tolist(),
        }
    record |= {
        "system": trial.system,
        "seed": trial.seed,
        "split": trial.split,
        "rule": main,
        "rules": rules,
        "num_train": len(train),
        "num_validation": len(validation),
        "num_test": len(test),
        "num_test_without_frames": int((~seen).sum()),
        "seconds": round(time.perf_counter() - started, 3),
    }
    table = pa.table(
        {
            "video_id": pa.array(test.video_ids_V.tolist(), pa.string()),
            "truth": pa.array(test.labels_V, pa.int64()),
            **{rule: pa.array(numbers, pa.int64()) for rule, numbers in labels.items()},
            "without_context": without_context,
        }
    )
    return record, table


def write_trial(
    output: str, trial: Trial, data: str, record: Mapping[str, Any], predictions: pa.Table
) -> None:
    """Write the predictions, then the record: a trial with a record is finished."""
    storage.write_table(predictions, storage.join(output, TRIALS, f"{trial.name}.parquet"))
    storage.write_json(
        storage.join(output, TRIALS, f"{trial.name}.json"),
        {**record, "fingerprint": trial.fingerprint(data)},
    )


def is_done(output: str, trial: Trial, data: str) -> bool:
    """Whether an earlier run has finished this trial with the same data and options."""
    path = storage.join(output, TRIALS, f"{trial.name}.json")
    if not storage.exists(path):
        return False
    return storage.read_json(path).get("fingerprint") == trial.fingerprint(data)


def unfinished_trials(
    output: str, trials: Sequence[Trial], data: Mapping[str, str], *, recompute: bool
) -> list[Trial]:
    """The trials that are left to do; `data`: the `data_fingerprint` of each division.

    Raises:
        InputError: without `recompute`, a trial in the output has other data or options.
    """
    left, others = [], []
    for trial in trials:
        if is_done(output, trial, data[trial.split]):
            continue
        left.append(trial)
        if storage.exists(storage.join(output, TRIALS, f"{trial.name}.json")):
            others.append(trial.name)
    if others and not recompute:
        raise InputError(
            f"`{output}` holds {len(others)} of these {len(trials)} trials from other features, "
            f"labels, splits or options (the first is {others[0]}): choose another --output, or "
            "replace them with `--on-change recompute`."
        )
    return left


def data_fingerprint(videos: PackedVideos, features: str) -> str:
    """Fingerprint of the features (given as their run's own) with the videos, labels and splits."""
    return config.fingerprint(
        {
            "features": features,
            "ids": videos.video_ids_V.tolist(),
            "labels": videos.labels_V.tolist(),
            "splits": videos.splits_V.tolist(),
            "counts": videos.counts_V.tolist(),
            "label_set": list(videos.label_set),
        }
    )
