"""Features -> a model: train a head with Ray Train on one or more workers.

python -m jobs.train --features features/ --output model/

Trains on the manifest's `train` split (all labelled videos where no split is given), holds a part
of it out for validation, and writes a complete model folder that jobs.label takes. With
--storage-path the training state is kept there: a killed worker is replaced and goes on from the
last state, and the same command continues a run whose driver died.
"""

import logging
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from caan import config
from caan.errors import InputError
from caan.models.config import ModelConfig
from caan.training import recipes
from caan.training.config import TrainConfig
from jobs.runtime import cli
from jobs.runtime.train_options import LearnedData, TrainPlace

logger = logging.getLogger(__name__)

FIRST = ("features", "output", "manifest", "preset", "num_workers", "storage_path", "seed",
         "model.name", "model.modality", "train.epochs")  # fmt: skip
"""Options that `--help` shows."""


@dataclass(frozen=True, kw_only=True)
class Job(TrainPlace, LearnedData):
    """Options of jobs.train."""

    preset: Literal["default", "paper"] = "default"
    """Of model caan. paper: raw scores, frame softmax and triplet only. Other options change it."""
    init: str = ""
    """Model `caan` to start from: `starter`, or a model folder; the head says the same at first."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The head."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Its training."""

    def configs(self) -> tuple[ModelConfig, TrainConfig]:
        """The preset with the options that the user changed, seeded."""
        return recipes.configure(self.preset, self.model, self.train, seed=self.seed)


def main(job: Job) -> int:
    """Train; give the exit code."""
    from caan import storage
    from jobs.runtime import cluster
    from jobs.runtime import train as training
    from jobs.runtime.training_data import DataOptions, check_context, read_data

    run = config.part(training.TrainRun, job, options=config.to_dict(job))
    training.check_workers(run)
    storage.check_writable(job.output)
    if storage.is_s3(job.tensorboard):
        raise InputError(f"--tensorboard `{job.tensorboard}`: a local folder, not one on S3.")
    if job.storage_path:
        storage.check_writable(job.storage_path)
    model, train = job.configs()
    maps = model.modality if model.name == "pool5_attention" else ""
    with tempfile.TemporaryDirectory(prefix="caan-features-") as scratch:
        data = read_data(config.part(DataOptions, job, maps=maps), Path(scratch))
        check_context(data, model)
        model = training.adapt_model(model, data)
        logger.info(
            "%d training and %d validation videos of %s; face %d-d, context %d-d",
            len(data.train),
            len(data.validation),
            ", ".join(data.train.label_set),
            data.train.face_dim,
            data.train.context_dim,
        )
        init = training.read_init(job.init, data, model) if job.init else None
        if training.is_trained(run, training.run_name(data, model, train, init)):
            logger.info("%s holds the model of this run: nothing to do", job.output)
            return 0
        cluster.start()
        training.train_model(run, data, model, train, vectors=Path(scratch), init=init)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main, first=FIRST))
