"""Compare labels with the manifest: a report folder with figures, plots and strips of frames.

python -m jobs.evaluate --labels labels/ --manifest manifest.parquet --output report/
"""

import dataclasses
import logging
import sys
import time

from caan import config
from caan.errors import InputError
from caan.report.config import ReportConfig, StripConfig
from jobs.runtime import cli

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.evaluate."""

    labels: str
    """Output folder of jobs.label, or one Parquet file of labels; local or s3://."""
    manifest: str
    """The manifest that was labelled; local or s3://. Without labels the report has no accuracy."""
    output: str
    """Folder of the report; local or s3://."""
    split: str = ""
    """Only the manifest rows of this split, such as test; empty: all."""
    num_strips: int = 12
    """Videos shown as strips of frames with their emotion scores."""
    strip_frames: int = 8
    """Frames per strip."""


def main(job: Job) -> int:
    """Write the report and say where it is; give the exit code."""
    from caan import storage
    from caan.report import label_run, report

    start_seconds = time.perf_counter()
    for name in ("num_strips", "strip_frames"):
        if getattr(job, name) < (name == "strip_frames"):
            raise InputError(f"--{name.replace('_', '-')} {getattr(job, name)} is too small.")
    options = ReportConfig(
        split=job.split,
        num_strips=job.num_strips,
        strips=StripConfig(num_frames=job.strip_frames),
    )
    run = label_run.read_label_run(job.labels)
    manifest = label_run.read_manifest(job.manifest, job.split)
    storage.check_writable(job.output)
    figures = report.write_report(job.output, manifest, run, options)
    storage.write_json(
        storage.join(job.output, "run.json"),
        {
            "job": "evaluate",
            "config": config.to_dict(job),
            "fingerprint": config.fingerprint(config.to_dict(job)),
            "labels_run": run.run,
            "num_videos": figures["num_videos"],
            "statuses": figures["statuses"],
            "seconds": round(time.perf_counter() - start_seconds, 3),
        },
    )
    logger.info("%s", report.summary_line(figures))
    logger.info("report: %s", storage.join(job.output, "report.html"))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
