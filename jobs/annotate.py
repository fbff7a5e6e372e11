"""Make a labelled data set: cut clips of people, collect votes on them, and merge the votes.

python -m jobs.annotate clip --input people.csv --output clips/
python -m jobs.annotate page --manifest clips/manifest.parquet --votes votes.csv --annotator anna
python -m jobs.annotate votes --manifest clips/manifest.parquet --votes votes.csv --output m.parquet

`clip` cuts each range of a list out of its long video, and writes a manifest. `page` shows one
video after the other on a page that only this machine can open, and takes one vote for each by
keyboard; run it again to continue where it stopped. `votes` gives every video its majority label,
soft label (`votes`) and split, and writes agreement and statistics beside the manifest.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from caan import config
from caan.annotation.config import LabelSet, VotesConfig
from jobs.runtime import cli


@dataclass(frozen=True, kw_only=True)
class ClipJob:
    """Cut each range of a list out of its long video, and write a manifest."""

    input: str
    """CSV or Parquet list with uri or path, start_seconds, end_seconds, and optionally face_box,
    face_pts_seconds (in the long video), gender, age_range, video_id."""
    output: str
    """Folder for the clips and manifest.parquet; local or s3://."""
    time_limit_seconds: float = 600.0
    """Longest time for one clip."""


@dataclass(frozen=True, kw_only=True)
class PageJob:
    """Show the videos on a page of this machine and take one vote for each by keyboard."""

    manifest: str
    """Manifest of the videos; they are local files."""
    votes: str
    """Local CSV file that every vote is appended to."""
    annotator: str
    """Name of the person who votes."""
    label_set: LabelSet = "heiv7"
    """Emotions to choose from."""
    port: int = 8321
    """Port on 127.0.0.1."""


@dataclass(frozen=True, kw_only=True)
class VotesJob(VotesConfig):
    """Merge the votes: label, soft label and split of every video, and agreement."""

    manifest: str
    """Manifest of the videos."""
    votes: str
    """CSV with video_id, annotator, label, and optionally gender and age_range."""
    output: str
    """The labelled manifest to write: a .parquet file; statistics go to the same name as .json and
    .md."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.annotate."""

    command: tyro.conf.OmitSubcommandPrefixes[
        tyro.conf.OmitArgPrefixes[
            Annotated[ClipJob, tyro.conf.subcommand("clip")]
            | Annotated[PageJob, tyro.conf.subcommand("page")]
            | Annotated[VotesJob, tyro.conf.subcommand("votes")]
        ]
    ]
    """clip, page or votes."""


def main(job: Job) -> int:
    """Run the command; give the exit code."""
    if isinstance(job.command, ClipJob):
        return write_clips(job.command)
    if isinstance(job.command, PageJob):
        return show_page(job.command)
    return merge_votes(job.command)


def write_clips(job: ClipJob) -> int:
    """Cut the clips and write their manifest; the exit code is 1 if no clip could be cut."""
    from caan.annotation import clip_list

    limit = job.time_limit_seconds
    num_clips = clip_list.write_clips(job.input, job.output, time_limit_seconds=limit)
    return 0 if num_clips else 1


def show_page(job: PageJob) -> int:
    """Serve the page until Ctrl-C."""
    from caan import storage
    from caan.annotation.server import serve
    from caan.schema import LABEL_SETS, MANIFEST_SCHEMA, check_table

    rows = check_table(storage.read_table(job.manifest), MANIFEST_SCHEMA, "the manifest")
    serve(rows.to_pylist(), job.votes, job.annotator, LABEL_SETS[job.label_set], job.port)
    return 0


def merge_votes(job: VotesJob) -> int:
    """Write the labelled manifest and the statistics."""
    from caan.annotation.votes import label_manifest

    options = config.part(VotesConfig, job)
    label_manifest(job.manifest, job.votes, job.output, options)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_job(Job, main))
