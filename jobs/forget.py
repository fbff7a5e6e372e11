"""Delete single videos from an output: their rows from every table, their previews and timelines.

python -m jobs.forget --output labels/ --video-ids 1f0c3a5be8d24c77 9a...

Safe to run again after an interruption; no other job may write to the folder meanwhile. Take the
videos out of your own manifest too, or the next run makes their rows anew. Reports that name them
are listed, for jobs.evaluate to write again; models trained on them stay as they are.
"""

import logging
import sys
from dataclasses import dataclass

from caan.outputs.forget import forget
from jobs.runtime import cli

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.forget."""

    output: str
    """Folder that a job wrote, such as of jobs.extract or jobs.label; local or s3://."""
    video_ids: tuple[str, ...]
    """Ids of the videos, as in the manifest."""


def main(job: Job) -> int:
    """Forget; gives the exit code, 1 where a file that cannot be edited still names a video."""
    done = forget(job.output, job.video_ids)
    for name in done.files:
        logger.info("deleted %s", name)
    for name in done.mentions:
        logger.error("%s still names one of the videos: write it again or delete it", name)
    logger.info("%s: %d rows and %d files deleted", job.output, done.num_rows, len(done.files))
    return 1 if done.mentions else 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
