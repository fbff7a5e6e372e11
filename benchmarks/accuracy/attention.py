"""What attention gains over averaging on composed videos, by the shipped starter head.

Compose the test half of the corpus as benchmarks/accuracy/composed.py says, then run:

    python -m jobs.index --input corpus --output manifest.parquet
    python -m jobs.extract --manifest manifest.parquet --output features --fps 3 \
        --detector libfacedetection --face-backbone starter_face --context-backbone starter_context
    python -m benchmarks.accuracy.attention --corpus corpus --features features

The starter head labels all test videos twice: as it is, and with equal emotion scores. A test
video without a detected face counts as wrong. `frames.csv` of the corpus says what each face shows
when, which gives the area under the curve of the emotion scores between kinds of frames.
`--more-heads` names further heads, made by `python -m caan.starter head --seed N --output DIR`.
Without it the record keeps what it says of them if the shipped head and the face network are
the same as then.
"""

import argparse
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.measuring import RESULTS, read_record, write_record
from caan.experiments.results import bootstrap
from caan.features.packed import PackedVideos
from caan.features.packing import pack_features
from caan.models import checkpoint
from caan.outputs import layout
from caan.starter.head_recipe import area_under_curve
from caan.training.predict import Predictions, predict

KINDS = ("informative", "neutral", "spoiled")


def frame_kinds(corpus: Path, split: str, uris: Sequence[str], test: PackedVideos) -> np.ndarray:
    """Number in KINDS of what the face of each of the test videos' frames shows; -1: not listed."""
    spans: dict[str, list[tuple[float, float, int]]] = {}
    with (corpus / split / "frames.csv").open() as file:
        for row in csv.DictReader(file):
            spans.setdefault(row["path"], []).append(
                (float(row["start_seconds"]), float(row["end_seconds"]), KINDS.index(row["kind"]))
            )
    kinds = []
    for video, uri in enumerate(uris):
        own = spans.get("/".join(uri.split("/")[-2:]), [(0.0, float("inf"), -1)])
        for seconds in test.pts_seconds_N[test.rows_of(video)]:
            # The presentation time of a frame is the start of what it shows.
            kinds.append(next((k for start, end, k in own if start <= seconds + 1e-3 < end), -1))
    return np.array(kinds)


def areas(scores_N: np.ndarray, kinds_N: np.ndarray, counts_V: np.ndarray) -> dict[str, float]:
    """AUC of emotion scores between kinds of frames; scores are compared over all videos.

    A score is relative to its video's mean score, so that short and long videos compare.
    """
    relative = scores_N * np.repeat(counts_V, counts_V)
    of = [torch.from_numpy(relative[kinds_N == k]) for k in range(3)]
    return {
        "informative_over_spoiled": area_under_curve(of[0], of[2]),
        "neutral_over_spoiled": area_under_curve(of[1], of[2]),
        "informative_over_neutral": area_under_curve(of[0], of[1]),
    }


def hits(found: Predictions, rule: str, test: PackedVideos) -> np.ndarray:
    """Whether each test video's label is right: bool [V]."""
    return (found.evidence_VK[rule].argmax(1) == test.labels_V) & (test.counts_V > 0)


def starter(model: Path, test: PackedVideos, kinds_N: np.ndarray) -> tuple[dict[str, Any], Any]:
    """A starter head on the test videos and with equal scores; attention's gain by video [V]."""
    loaded = checkpoint.load_model(model)
    found = predict(loaded.head, test, centroids_KR=loaded.centroids_KR)
    attention_V = hits(found, loaded.info.rule, test)
    starts_V = np.cumsum(test.counts_V) - test.counts_V
    usable_V = test.counts_V > 0
    sums_VK = np.add.reduceat(found.frame_logits_NK, starts_V[usable_V])
    average_V = np.zeros(len(test), bool)
    average_V[usable_V] = sums_VK.argmax(1) == test.labels_V[usable_V]
    difference = (attention_V.astype(float) - average_V)[None]
    result = {
        "attention": float(attention_V.mean()),
        "averaging": float(average_V.mean()),
        "difference": float(difference.mean()),
        "difference_interval_95": bootstrap(difference),
        "auc": areas(found.scores_N, kinds_N, test.counts_V),
    }
    return result, difference[0]


def starters(models: Sequence[Path], test: PackedVideos, kinds_N: np.ndarray) -> dict[str, Any]:
    """Starter heads of several seeds together: bootstrap over videos and seeds."""
    results, gains = zip(*(starter(model, test, kinds_N) for model in models), strict=True)
    gains_SV = np.stack(gains)
    return {
        "attention": [result["attention"] for result in results],
        "averaging": [result["averaging"] for result in results],
        "auc_informative_over_spoiled": [
            result["auc"]["informative_over_spoiled"] for result in results
        ],
        "difference": float(gains_SV.mean()),
        "difference_interval_95": bootstrap(gains_SV),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("caan/starter/model"))
    parser.add_argument("--more-heads", type=Path, nargs="*", default=[])
    parser.add_argument("--output", type=Path, default=RESULTS / "attention.json")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    manifest = pq.read_table(options.features / "manifest.parquet")
    record = json.loads((options.features / "run.json").read_text())
    packed = pack_features(
        layout.read_rows(
            str(options.features),
            "features",
            ["segment_id", "video_id", "frames", "faces"],
        ),
        manifest,
        sorted(set(manifest["label"].to_pylist())),
    )
    uris = dict(zip(manifest["video_id"].to_pylist(), manifest["uri"].to_pylist(), strict=True))
    test = packed.split("test")
    test = test.select(test.labels_V >= 0)
    kinds_N = frame_kinds(options.corpus, "test", [uris[str(i)] for i in test.video_ids_V], test)
    starter_result, _ = starter(options.model, test, kinds_N)
    starter_result["face_backbone"] = record["identity"]["face_backbone"]
    if options.more_heads:
        all_heads = [options.model, *options.more_heads]
        starter_result["with_more_seeds"] = starters(all_heads, test, kinds_N)
    elif options.output.exists():
        kept = read_record(options.output)["starter_head"]
        if all(kept[key] == starter_result[key] for key in ("attention", "face_backbone")):
            more = kept.get("with_more_seeds", {}) | {
                "run": "an earlier one, same videos and weights"
            }
            starter_result["with_more_seeds"] = more
    result = {
        "starter_head": starter_result,
        "num_test": len(test),
        "test_videos_without_a_face": int((test.counts_V == 0).sum()),
        "mean_frames_with_a_face": float(test.counts_V.mean()),
        "frames_of_no_listed_kind": int((kinds_N < 0).sum()),
        "frames_by_kind": {kind: int((kinds_N == k).sum()) for k, kind in enumerate(KINDS)},
    }
    write_record(options.output, result)


if __name__ == "__main__":
    main()
