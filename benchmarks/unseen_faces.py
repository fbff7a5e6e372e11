"""Why attention loses to averaging on composed videos: writes benchmarks/unseen_faces.json.

    python -m benchmarks.unseen_faces --faces fer2013.parquet --make-corpus make_corpus.py \
        --work work --learn-from unseen --variants faa caan_face

Pictures as make_corpus.py composes them (scenes, kinds of frames, ways to spoil a face), but given
to the starter's backbones without a video or a detector between; spoiled faces are left out more
often than others, as a detector does. Nothing here touches the faces of FER2013's test split:
`seen` learns from faces that the starter's face network was trained on, `unseen` from half of the
validation split's, and both are scored on videos of other validation faces. The features stay in
the work folder; a variant that is in the JSON is not run again. With the starter's weights before
their refining, which has learned the validation split too: MODEL_CARD.md, "Weights before".
"""

import argparse
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.attention import areas
from caan.backbones.backbone import embed_pictures
from caan.backbones.build import load_backbone
from caan.backbones.config import BackboneConfig
from caan.features.packed import PackedVideos
from caan.features.splits import split_validation
from caan.models.build import build_model
from caan.schema import EMOTIONS
from caan.training.loop import fit
from caan.training.predict import predict
from caan.training.recipes import RECIPES, Recipe

RESULT = Path(__file__).with_suffix(".json")

CORPORA = {
    "seen": ("train", 1, 700, None),
    "unseen": ("val", 3, 700, 0),
    "held": ("val", 13, 1050, 1),
}
"""Split of FER2013, seed, number of videos, and which half of the split's faces (None: all)."""

HELD_OUT = {"seen": "unseen", "unseen": "held"}
"""What the heads are scored on; one never sees a face of the other."""

PHOTOGRAPHS = 9
"""Frames of a video before some are missed: 3 s at 3 frames per second."""

MISSED = (0.2, 0.2, 0.6)
"""Share of informative, neutral and spoiled faces that no detector finds."""


def _changed(name: str, dropout: float, losses: dict[str, Any]) -> Recipe:
    recipe = RECIPES[name]
    train = replace(recipe.train, losses=replace(recipe.train.losses, **losses))
    return Recipe(model=replace(recipe.model, dropout=dropout), train=train)


VARIANTS = {
    "faa": RECIPES["faa"],
    "ffaa": RECIPES["ffaa"],
    **{
        f"{name}{title}": _changed(name, dropout, losses)
        for name in ("caan_face", "caan")
        for title, dropout, losses in (
            ("", 0.0, {"frame_weight": 1.0}),
            (" frame 0.3", 0.0, {"frame_weight": 0.3}),
            (" frame 0", 0.0, {"frame_weight": 0.0}),
            (" triplet 0", 0.0, {"frame_weight": 1.0, "triplet_weight": 0.0}),
            (" dropout", 0.5, {"frame_weight": 1.0}),
            (" frame 0.3 dropout", 0.5, {"frame_weight": 0.3}),
            (" frame 0 dropout", 0.5, {"frame_weight": 0.0}),
            (" video only dropout", 0.5, {"frame_weight": 0.0, "triplet_weight": 0.0}),
        )
    },
}
"""The averages, and CAAN by its losses' weights and its dropout (0.5 where it says so)."""


def compose(tool: ModuleType, parquet: Path, corpus: str, output: Path) -> None:
    """Vectors, kinds of frames, counts and labels of a corpus, as .npz."""
    split, seed, num_videos, half = CORPORA[corpus]
    faces = tool.load_faces(str(parquet), split)
    if half is not None:
        faces = {emotion: pictures[half::2] for emotion, pictures in faces.items()}
    face_network = load_backbone(BackboneConfig(name="starter_face"))
    context_network = load_backbone(BackboneConfig(name="starter_context"))
    face_ND, context_NE, kinds, counts, labels = [], [], [], [], []
    for number in range(num_videos):
        rng = np.random.default_rng([seed, number])
        label = number % len(EMOTIONS)
        scene_index = label if rng.random() < 0.5 else int(rng.integers(0, 7))
        scene = tool.draw_scene(scene_index, rng)
        size = int(rng.integers(110, 190))
        mat, grey = int(size * 0.3), int(rng.integers(60, 200))
        x = int(rng.integers(mat, tool.WIDTH - size - mat))
        y = int(rng.integers(mat, tool.HEIGHT - size - mat))
        crops, large = [], np.zeros((size, size), np.uint8)
        informative_share = rng.uniform(0.25, 0.7)
        for _ in range(PHOTOGRAPHS):
            informative = rng.random() < informative_share
            clear = EMOTIONS[label] != "neutral" and rng.random() < 0.5
            source = "neutral" if not informative and clear else EMOTIONS[label]
            face = tool.decode(faces[source][int(rng.integers(0, len(faces[source])))])
            kind = 0 if informative else 1
            if not informative and source == EMOTIONS[label]:
                face, kind = tool.spoil(face, rng), 2
            if rng.random() < MISSED[kind]:
                continue
            large = cv2.resize(face, (size, size), interpolation=cv2.INTER_CUBIC)
            crops.append(_crop(large, mat, grey, rng))
            kinds.append(kind)
        counts.append(len(crops))
        labels.append(label)
        if not crops:
            continue
        image = scene.copy()
        image[y - mat : y + size + mat, x - mat : x + size + mat] = grey
        image[y : y + size, x : x + size] = large[..., None]
        image = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
        context, _ = embed_pictures(context_network, cv2.resize(image, (224, 224))[None], 1)
        vectors, _ = embed_pictures(face_network, np.stack(crops), len(crops))
        face_ND.append(vectors)
        # One scene vector per video, a little different in each frame, as compression makes it.
        spread = 1 + 0.02 * rng.normal(size=(len(vectors), context.shape[1]))
        context_NE.append((np.repeat(context, len(vectors), 0) * spread).astype(np.float16))
    np.savez(
        output,
        face=np.concatenate(face_ND),
        ctx=np.concatenate(context_NE),
        kinds=np.array(kinds),
        counts=np.array(counts),
        labels=np.array(labels),
    )


def _crop(face: np.ndarray, mat: int, grey: int, rng: np.random.Generator) -> np.ndarray:
    """The photograph on its grey mat, cut out about as a detector's box does: RGB, 112x112."""
    size = len(face)
    canvas = np.full((size + 2 * mat, size + 2 * mat), grey, np.uint8)
    canvas[mat : mat + size, mat : mat + size] = face
    canvas = np.clip(canvas + rng.normal(0, 3, canvas.shape), 0, 255).astype(np.uint8)
    side = size * rng.uniform(0.95, 1.2)
    centre_x = mat + size / 2 + rng.normal(0, 0.03 * size)
    centre_y = mat + size / 2 + rng.normal(0, 0.03 * size)
    x0, y0 = int(max(0, centre_x - side / 2)), int(max(0, centre_y - side / 2))
    cut = canvas[y0 : y0 + int(side), x0 : x0 + int(side)]
    cut = cv2.resize(cut, (112, 112), interpolation=cv2.INTER_AREA)
    return np.repeat(cut[..., None], 3, 2)


def read(path: Path) -> tuple[PackedVideos, np.ndarray]:
    """The packed videos and the kinds of their frames."""
    stored = np.load(path)
    counts_V = stored["counts"]
    num_frames = int(counts_V.sum())
    videos = PackedVideos(
        face_ND=stored["face"],
        context_NE=stored["ctx"],
        has_face_N=np.ones(num_frames, bool),
        frame_indices_N=np.arange(num_frames),
        pts_seconds_N=np.zeros(num_frames),
        boxes_N4=np.zeros((num_frames, 4), np.float32),
        starts_V=np.cumsum(counts_V) - counts_V,
        counts_V=counts_V,
        labels_V=stored["labels"],
        video_ids_V=np.array([f"v{number}" for number in range(len(counts_V))]),
        splits_V=np.array(["train"] * len(counts_V)),
        label_set=EMOTIONS,
    )
    return videos, stored["kinds"]


def run(
    recipe: Recipe, learned: PackedVideos, held: PackedVideos, kinds_N: np.ndarray, num_seeds: int
) -> dict[str, Any]:
    """Mean figures of a variant over seeds."""
    rows = []
    for seed in range(num_seeds):
        train, validation = split_validation(learned, fraction=0.15, seed=seed)
        head = build_model(
            recipe.model,
            face_dim=learned.face_dim,
            context_dim=learned.context_dim,
            num_emotions=len(EMOTIONS),
            seed=seed,
        )
        result = fit(head, train, validation, replace(recipe.train, seed=seed))
        found = predict(head, held, centroids_KR=result.centroids_KR)
        hit = {name: e.argmax(1) == held.labels_V for name, e in found.evidence_VK.items()}
        rows.append(
            {
                "held_out": float(hit["head"].mean()),
                "held_out_by_centroids": float(hit["centroids"].mean()),
                "validation": result.metrics["validation_accuracy"],
                "epochs": float(len(result.history)),
                **areas(found.scores_N, kinds_N, held.counts_V),
            }
        )
    figures = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
    deviation = float(np.std([row["held_out"] for row in rows], ddof=1)) if num_seeds > 1 else 0.0
    return {**figures, "deviation": round(deviation, 3), "seeds": num_seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--make-corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--learn-from", choices=list(HELD_OUT), default="unseen")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("make_corpus", options.make_corpus)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    options.work.mkdir(parents=True, exist_ok=True)
    paths = {name: options.work / f"{name}.npz" for name in CORPORA}
    for name in (options.learn_from, HELD_OUT[options.learn_from]):
        if not paths[name].exists():
            compose(tool, options.faces, name, paths[name])
    learned, _ = read(paths[options.learn_from])
    held, kinds_N = read(paths[HELD_OUT[options.learn_from]])
    for name in options.variants:
        results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        of_corpus = results.setdefault(options.learn_from, {})
        if name in of_corpus:
            continue
        of_corpus[name] = run(VARIANTS[name], learned, held, kinds_N, options.seeds)
        print(options.learn_from, name, of_corpus[name], flush=True)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
