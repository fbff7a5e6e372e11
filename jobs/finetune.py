"""Videos -> a backbone that knows their emotions: fine-tune one frame by frame with Ray Train.

python -m jobs.finetune --manifest manifest.parquet --output backbone/ --modality face
python -m jobs.finetune --wider-face WIDER/ --output detector/

The first command fine-tunes the face or the context backbone on the faces or frames of the training
split, with the video's label. jobs.extract takes the result as --face-weights backbone/ or
--context-weights backbone/. The second trains the paper's face detector, which jobs.extract takes
as --detector faster_rcnn --detector-weights detector/. Run the same command again after an
interruption.
"""

import sys
from dataclasses import dataclass
from typing import Any

from caan import config
from caan.backbones.config import RANDOM
from caan.errors import InputError
from jobs.runtime import cli
from jobs.runtime.finetune_options import FinetuneOptions

FIRST = ("output", "manifest", "modality", "wider_face", "face_backbone", "context_backbone",
         "split", "num_workers", "train.epochs", "train.batch_pictures")  # fmt: skip
"""Options that `--help` shows."""


@dataclass(frozen=True, kw_only=True)
class Job(FinetuneOptions):
    """Options of jobs.finetune."""


def main(job: Job) -> int:
    """Fine-tune; give the exit code."""
    from caan import storage
    from jobs.runtime.finetune_backbone import finetune_backbone
    from jobs.runtime.finetune_detector import train_detector

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
    options = config.part(FinetuneOptions, job, **absolute)
    return train_detector(options) if options.wider_face else finetune_backbone(options)


def _absolute(path: str) -> str:
    from caan import storage

    is_local = path and path != RANDOM and "://" not in path
    return storage.normalise(path) if is_local else path


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main, first=FIRST))
