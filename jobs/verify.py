"""Check that an output is complete: every video and segment once, readable, as in run.json.

python -m jobs.verify --output features/

Reads the folder of jobs.extract or jobs.label, or a manifest (.parquet), local or s3://. Prints one
line per problem and exits with 1 if there is any. With --clean row files that killed runs left
behind are deleted.
"""

import sys
from dataclasses import dataclass

from jobs.runtime import cli


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.verify."""

    output: str
    """Folder of jobs.extract or jobs.label, or a manifest; local or s3://."""
    clean: bool = False
    """Delete row files that no commit names. No other job may write to the folder meanwhile."""


def main(job: Job) -> int:
    """Verify; give the exit code."""
    from caan.outputs.verify import clean, verify

    if job.clean:
        print(f"{clean(job.output)} files of killed runs deleted")
    findings = verify(job.output)
    for problem in findings.problems:
        print(problem)
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(findings.statuses.items()))
    print(
        f"{'NOT WHOLE' if findings.problems else 'whole'}: {findings.num_videos} videos "
        f"({statuses or 'no statuses'}), {findings.num_segments} segments, "
        f"{findings.num_files} Parquet files read"
        + (f", {findings.num_garbage} of killed runs: see --clean" if findings.num_garbage else "")
    )
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
