"""Prove that an output is whole: every video and segment once, readable, and as run.json says.

python -m jobs.verify --output features/

Takes the folder of jobs.extract or jobs.label, or a manifest (.parquet), local or s3://. Prints
what is wrong, a line each, and exits with 1 if anything is.
"""

import sys
from dataclasses import dataclass

from caan.outputs.verify import verify
from jobs.runtime import cli


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.verify."""

    output: str
    """Folder of jobs.extract or jobs.label, or a manifest; local or s3://."""


def main(job: Job) -> int:
    """Verify; gives the exit code."""
    findings = verify(job.output)
    for problem in findings.problems:
        print(problem)
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(findings.statuses.items()))
    print(
        f"{'NOT WHOLE' if findings.problems else 'whole'}: {findings.num_videos} videos "
        f"({statuses or 'no statuses'}), {findings.num_segments} segments, "
        f"{findings.num_files} Parquet files read"
    )
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
