"""Videos -> a backbone that knows their emotions: fine-tune one frame by frame with Ray Train.

python -m jobs.finetune --manifest manifest.parquet --output backbone/ --modality face
python -m jobs.finetune --wider-face WIDER/ --output detector/

The first command fine-tunes the face or the context backbone on the faces or frames of the training
split, with the video's label. jobs.extract takes the result as --face-weights backbone/ or
--context-weights backbone/. The second trains the paper's face detector, which jobs.extract takes
as --detector faster_rcnn --detector-weights detector/. Run the same command again after an
interruption.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from caan import config
from caan.backbones.config import RANDOM
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig
from caan.training.config import FinetuneConfig
from jobs.runtime import cli
from jobs.runtime.options import Limits, Resources

FIRST = ("output", "manifest", "modality", "wider_face", "face_backbone", "context_backbone",
         "split", "num_workers", "train.epochs", "train.batch_pictures")  # fmt: skip
"""Options that `--help` shows."""


@dataclass(frozen=True, kw_only=True)
class Job(ExtractionConfig):
    """Options of jobs.finetune."""

    output: str
    """Folder of the weights; local (shared by all nodes) or s3://."""
    manifest: str = ""
    """Manifest of labelled videos: fine-tunes the backbone of `modality`."""
    wider_face: str = ""
    """Folder of WIDER FACE as published: trains the detector faster_rcnn."""
    modality: Literal["face", "context"] = "face"
    """Which of the two backbones is fine-tuned: on faces, or on whole frames."""
    split: str = "train"
    """Split to learn from; where the manifest names no splits, all labelled videos."""
    validation_fraction: float = 0.15
    """Share of its videos held out to choose the epoch; a split `val` is used instead."""
    split_seed: int = 0
    """Seed of that choice: give both backbones the same."""
    num_workers: int = 1
    """Worker processes."""
    max_failures: int = 3
    """Lost workers that a run survives; -1: any number."""
    detector_network: Literal["resnet50", "mobilenet"] = "resnet50"
    """Network of the detector: the paper's, or one of a sixth of its work."""
    detector_base: str = ""
    """File of torchvision's ImageNet weights for it; empty: mobilenet's own, resnet50's none."""
    keep_pictures: bool = False
    """Keep the decoded pictures after the end."""
    min_ok: float = 0.0
    """Lowest accepted share of videos that are ok, partial or no_face; below it the exit is 1."""
    train: FinetuneConfig = field(default_factory=FinetuneConfig)
    """The fine-tuning."""
    limits: Limits = field(default_factory=Limits)
    """Limits on the decoding of one segment."""
    resources: Resources = field(default_factory=Resources)
    """How the cluster is used while it decodes."""


def main(job: Job) -> int:
    """Fine-tune; give the exit code."""
    from caan import storage
    from jobs.runtime.finetune import FinetuneRun
    from jobs.runtime.finetune_backbone import BackboneTraining, finetune_backbone
    from jobs.runtime.finetune_detector import DetectorTraining, train_detector

    if job.num_workers < 1:
        raise InputError(f"--num-workers {job.num_workers}: at least 1.")
    if bool(job.manifest) == bool(job.wider_face):
        raise InputError(
            "give either --manifest (fine-tunes a backbone) or --wider-face (trains a detector)."
        )
    storage.check_writable(job.output)
    # Ray Train's workers run in another folder, where relative paths name nothing.
    names = ("face_weights", "context_weights", "detector_base", "wider_face")
    absolute: dict[str, Any] = {name: _absolute(getattr(job, name)) for name in names}
    job = dataclasses.replace(job, **absolute)
    run = config.part(FinetuneRun, job, options=config.to_dict(job))
    if job.wider_face:
        return train_detector(
            run,
            config.part(
                DetectorTraining, job, network=job.detector_network, base=job.detector_base
            ),
        )
    extraction = config.part(ExtractionConfig, job)
    return finetune_backbone(run, config.part(BackboneTraining, job, extraction=extraction))


def _absolute(path: str) -> str:
    from caan import storage

    is_local = path and path != RANDOM and "://" not in path
    return storage.normalise(path) if is_local else path


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main, first=FIRST))
