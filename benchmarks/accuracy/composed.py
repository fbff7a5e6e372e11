"""The whole chain on a composed corpus with seeded random VGGs.

Compose the two halves first (faces of the splits apart), then run:

    python make_corpus.py --faces fer2013.parquet --split train --videos 700 --seed 1 --output corpus/train
    python make_corpus.py --faces fer2013.parquet --split test --videos 700 --seed 2 --output corpus/test
    python -m benchmarks.accuracy.composed --corpus corpus --work work --fps 1

Every step is the job that a user runs; those whose output is there are not repeated. CAAN learns
with several seeds, and from the same features the face and the context alone, and CAAN and the face
with shuffled labels (the controls). Their test accuracy is over all test videos, one without a face counting as wrong. The
main model then labels `--label-videos` test videos from the files themselves by jobs.label, and
those labels are compared with the ones that the stored features gave.
"""  # noqa: E501

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import RESULTS, write_record
from caan import metrics
from caan.features.packed import PackedVideos
from caan.features.packing import pack_features
from caan.models import checkpoint
from caan.outputs import layout
from caan.training.predict import predict

HEADS = {
    "caan": [],
    "context_only": ["--model.modality", "context"],
    "face_only": ["--model.modality", "face"],
    "face_only_shuffled_labels": ["--model.modality", "face", "--shuffle-labels"],
    "caan_shuffled_labels": ["--shuffle-labels"],
}
RANDOM_VGGS = ["--face-weights", "random", "--context-weights", "random"]


def run(commands: list[str], done: Path, job: str, *arguments: object) -> None:
    """One job as a user runs it unless `done` is there; its command is recorded in short."""
    words = ["-m", f"jobs.{job}", *map(str, arguments)]
    commands.append(" ".join(["python", *(Path(w).name if "/" in w else w for w in words)]))
    print(commands[-1], flush=True)
    if not done.exists():
        subprocess.run([sys.executable, *words], check=True)


def score(model: Path, videos: PackedVideos, ids: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Figures on these videos, and the label of each ("" without a face)."""
    loaded = checkpoint.load_model(model)
    probabilities_VK = predict(loaded.head, videos, centroids_KR=loaded.centroids_KR).probabilities(
        loaded.info.rule, loaded.info.temperature
    )
    chosen_V = np.where(videos.counts_V > 0, probabilities_VK.argmax(1), metrics.NO_PREDICTION)
    found = metrics.summarise(
        metrics.confusion_matrix(
            videos.labels_V.tolist(), chosen_V.tolist(), len(videos.label_set)
        ),
        videos.label_set,
    )
    kept = ("num_videos", "num_right", "accuracy", "accuracy_interval_95", "uar", "macro_f1")
    labels = [videos.label_set[k] if k >= 0 else "" for k in chosen_V]
    assert len(labels) == len(ids)
    return {name: found[name] for name in kept if name in found}, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS / "composed.json")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--label-videos", type=int, default=70)
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    manifest_path, features = work / "manifest.parquet", work / "features"
    commands: list[str] = []
    run(commands, manifest_path, "index", "--input", options.corpus, "--output", manifest_path)
    run(
        commands,
        features / "run.json",
        "extract",
        "--manifest",
        manifest_path,
        "--output",
        features,
        "--detector",
        "libfacedetection",
        *RANDOM_VGGS,
        "--fps",
        options.fps,
    )
    manifest = pq.read_table(manifest_path)
    packed = pack_features(
        layout.read_rows(str(features), "features", ["segment_id", "video_id", "frames", "faces"]),
        manifest,
        sorted(set(manifest["label"].to_pylist())),
    )
    test = packed.split("test")
    rows = manifest.filter(pa.compute.equal(manifest["split"], "test"))
    ids = rows["video_id"].to_pylist()
    assert list(test.video_ids_V) == ids
    heads, labels = {}, {}
    seeds = {f"caan_seed{seed}": ["--seed", str(seed)] for seed in range(1, options.seeds)}
    for name, changes in (HEADS | seeds).items():
        run(
            commands,
            work / name / "metrics.json",
            "train",
            "--features",
            features,
            "--output",
            work / name,
            *changes,
        )
        heads[name], labels[name] = score(work / name, test, ids)
        print(name, heads[name], flush=True)
    accuracies = [heads[name]["accuracy"] for name in ("caan", *seeds)]
    part = rows.take(np.linspace(0, len(ids) - 1, options.label_videos).astype(int))
    pq.write_table(part, work / "part.parquet")
    run(
        commands,
        work / "labels" / "run.json",
        "label",
        "--manifest",
        work / "part.parquet",
        "--model",
        work / "caan",
        "--output",
        work / "labels",
    )
    run(
        commands,
        work / "report" / "metrics.json",
        "evaluate",
        "--labels",
        work / "labels",
        "--manifest",
        work / "part.parquet",
        "--output",
        work / "report",
    )
    named = dict(zip(ids, labels["caan"], strict=True))
    table = pq.read_table(work / "labels" / "labels")
    pairs = zip(table["video_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    same = [named[video_id] == (label or "") for video_id, label in pairs]
    record = json.loads((features / "run.json").read_text())
    kept = ("network_share", "batch_fill", "frames_per_second", "seconds", "statuses", "versions")
    result = {
        "commands": commands,
        "num_train": int((packed.splits_V == "train").sum()),
        "num_test": len(ids),
        "test_videos_with_a_face": int((test.counts_V > 0).sum()),
        "mean_frames_with_a_face": float(test.counts_V.mean()),
        "caan_accuracy": {
            "seeds": len(accuracies),
            "mean": float(np.mean(accuracies)),
            "deviation": float(np.std(accuracies, ddof=1)) if seeds else None,
        },
        "test": heads,
        "extraction": {name: record[name] for name in kept},
        "labelled_from_the_files": {"videos": len(same), "same_label_as_features": sum(same)},
        "report": json.loads((work / "report" / "metrics.json").read_text())["all_videos"][
            "accuracy"
        ],
    }
    write_record(options.output, result)


if __name__ == "__main__":
    main()
