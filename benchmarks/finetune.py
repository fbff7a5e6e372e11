"""Small backbones fine-tuned against the same frozen, on composed videos: benchmarks/finetune.json.

    python -m benchmarks.finetune --make-corpus make_corpus.py --faces fer2013.parquet --work work

Composes the corpus first, at 5 pictures per second (each photograph is shown in one of them; the
script's own 25 make it five times as slow and sampling at 1 frame per second sees no difference):
training videos from photographs of the split `val`, which the starter face network had not learned
from before it was refined (MODEL_CARD.md, "Weights before"), test videos from those of `test`. Then
every step is the job that a user runs: index, extract with the starter backbones as they are,
finetune of the face and of the context backbone, extract with each and with both, and heads as
jobs.train makes them, with several seeds. Steps whose output is there are not repeated. Test
accuracy is over all test videos, one without a face counting as wrong; the intervals are of paired
differences, over resampled videos and seeds.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from caan.experiments import trials
from caan.features.packed import PackedVideos, pack_features
from caan.models.build import build_model
from caan.outputs import layout
from caan.schema import label_set_of
from caan.training.loop import fit
from caan.training.predict import predict
from jobs import train

HEADS = ("caan", "ffaa", "caa", "faa")
"""Both streams with attention and averaged; context alone; face alone (averaged)."""
STREAMS = {"caan": ("face", "context"), "ffaa": ("face", "context"),
           "caa": ("context",), "faa": ("face",)}  # fmt: skip
TUNED: dict[str, tuple[str, ...]] = {
    "frozen": (),
    "face": ("face",),
    "context": ("context",),
    "both": ("face", "context"),
}
"""Which backbones are fine-tuned; each makes features of its own."""
BACKBONES = {"face": "starter_face", "context": "starter_context"}


def compose(script: Path, faces: Path, split: str, videos: int, seed: int, output: Path) -> None:
    """The corpus script's videos at 5 pictures per second; those that are there are kept."""
    spec = importlib.util.spec_from_file_location("make_corpus", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.FPS, module.HOLD = 5, 1
    photographs = module.load_faces(str(faces), split)
    for number in range(videos):
        label = module.EMOTIONS[number % len(module.EMOTIONS)]
        path = output / label / f"{seed:03d}_{number:05d}.mp4"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}")
            module.make_video(part, label, photographs, np.random.default_rng([seed, number]))
            part.replace(path)


def run(commands: list[str], done: Path, job: str, *arguments: object) -> None:
    """One job as a user runs it, unless `done` says that it was; notes its command in short."""
    words = ["-m", f"jobs.{job}", *map(str, arguments)]
    commands.append(" ".join(["python", *(Path(w).name if "/" in w else w for w in words)]))
    print(commands[-1], flush=True)
    if not (done.exists() and json.loads(done.read_text()).get("is_complete", True)):
        subprocess.run([sys.executable, *words], check=True)


def packed_of(features: Path) -> PackedVideos:
    """The features' videos."""
    manifest = pq.read_table(features / "manifest.parquet")
    columns = ["segment_id", "video_id", "attempt", "frames", "faces"]
    return pack_features(
        layout.latest_segments(str(features), "features", columns),
        manifest,
        label_set_of(manifest["label"].to_pylist()),
    )


def right_of(features: Path, head: str, seed: int, test: PackedVideos) -> np.ndarray:
    """Whether the label of each test video is right, bool [V], by a head as jobs.train makes it.

    In this process, as starting Ray for each of many small heads would take most of the time.
    """
    job = train.Job(
        features=str(features),
        output="",
        seed=seed,
        model=train.ModelConfig(name=head),
    )
    data = train.read_data(job)
    model, config = train.configs_of(job)
    network = build_model(
        model,
        face_dim=data.train.face_dim,
        context_dim=data.train.context_dim,
        num_emotions=len(data.train.label_set),
        seed=seed,
    )
    assert data.train.label_set == test.label_set
    result = fit(network, data.train, data.validation, config)
    found = predict(network, test, centroids_KR=result.centroids_KR)
    return (found.evidence_VK[config.rule].argmax(1) == test.labels_V) & (test.counts_V > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make-corpus", type=Path, required=True)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/finetune.json"))
    parser.add_argument("--train-videos", type=int, default=420)
    parser.add_argument("--test-videos", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--only-compose", action="store_true")
    options = parser.parse_args()
    work: Path = options.work
    corpus = work / "corpus"
    for split, photographs, videos, seed in (
        ("train", "val", options.train_videos, 3),
        ("test", "test", options.test_videos, 2),
    ):
        compose(options.make_corpus, options.faces, photographs, videos, seed, corpus / split)
    if options.only_compose:
        return
    commands: list[str] = []
    manifest = work / "manifest.parquet"
    if not manifest.exists():
        run(commands, work / "none.json", "index", "--input", corpus, "--output", manifest)
    shown: list[object] = ["--detector", "libfacedetection", "--fps", 1]
    for kind, name in BACKBONES.items():
        shown += [f"--{kind}-backbone", name]
    for kind in BACKBONES:
        run(
            commands, work / f"{kind}_backbone" / "run.json", "finetune", "--manifest", manifest,
            "--output", work / f"{kind}_backbone", "--modality", kind, *shown,
            "--train.epochs", options.epochs, "--train.patience-epochs", 0,
        )  # fmt: skip
    accuracy: dict[str, dict[str, Any]] = {head: {} for head in options.heads}
    right: dict[tuple[str, str], np.ndarray] = {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    heads = [head for head in HEADS if head in options.heads]
    for tuned, kinds in TUNED.items():
        features = work / f"features_{tuned}"
        own = [item for kind in kinds for item in (f"--{kind}-weights", work / f"{kind}_backbone")]
        run(
            commands, features / "run.json", "extract", "--manifest", manifest,
            "--output", features, *shown, *own,
        )  # fmt: skip
        test = packed_of(features).split("test")
        for head in heads:
            if not set(kinds) <= set(STREAMS[head]):
                continue
            rows = []
            for seed in range(options.seeds):
                kept = work / f"right_{tuned}_{head}_{seed}.npy"
                if not kept.exists():
                    np.save(kept, right_of(features, head, seed, test))
                rows.append(np.load(kept))
            right[tuned, head] = np.stack(rows).astype(float)
            means = right[tuned, head].mean(1)
            accuracy[head][tuned] = {
                "mean": float(means.mean()),
                "seeds": means.round(4).tolist(),
            }
            print(tuned, head, accuracy[head][tuned], flush=True)
    differences: dict[str, dict[str, Any]] = {head: {} for head in options.heads}
    for (tuned, head), of_seed in right.items():
        if tuned != "frozen":
            gain_SV = of_seed - right["frozen", head]
            differences[head][tuned] = {
                "mean": float(gain_SV.mean()),
                "interval_95": trials.bootstrap(gain_SV),
            }
    record = {
        kind: json.loads((work / f"{kind}_backbone" / name).read_text())
        for kind in BACKBONES
        for name in ("run.json",)
    }
    result = {
        "accuracy": accuracy,
        "fine_tuned_minus_frozen": differences,
        "num_test": len(test),
        "test_videos_without_a_face": int((test.counts_V == 0).sum()),
        "mean_frames_with_a_face": float(test.counts_V.mean()),
        "finetuning": {
            kind: {name: found[name] for name in found if name.startswith("num_")}
            | json.loads((work / f"{kind}_backbone" / "metrics.json").read_text())
            for kind, found in record.items()
        },
        "commands": commands,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({"accuracy": accuracy, "differences": differences}, indent=2))


if __name__ == "__main__":
    main()
