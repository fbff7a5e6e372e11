"""Delete single videos from an output: their rows from every table, their previews and timelines.

python -m jobs.forget --output labels/ --video-ids 1f0c3a5be8d24c77 9a...

Run the same command again after an interruption. No other job may write to the folder meanwhile.
Delete the videos from your own manifest too, or the next run makes their rows again. Reports that
name them are listed: write them again with jobs.evaluate. Models trained on them do not change.
"""

import logging
import sys
from dataclasses import dataclass

from jobs.runtime import cli

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.forget."""

    output: str
    """Folder written by a job, such as jobs.extract or jobs.label; local or s3://."""
    video_ids: tuple[str, ...]
    """Ids of the videos, as in the manifest."""


def main(job: Job) -> int:
    """Forget; give the exit code: 1 if a file that cannot be edited still names a video."""
    from caan.outputs.forget import forget

    done = forget(job.output, job.video_ids)
    for name in done.files:
        logger.info("deleted %s", name)
    for name in done.mentions:
        logger.error("%s still names one of the videos: write it again or delete it", name)
    logger.info("%s: %d rows and %d files deleted", job.output, done.num_rows, len(done.files))
    return 1 if done.mentions else 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
