"""Collect and merge votes of several annotators on the videos of a manifest.

python -m jobs.annotate page --manifest manifest.parquet --votes votes.csv --annotator anna
python -m jobs.annotate votes --manifest manifest.parquet --votes votes.csv --output out.parquet

`page` shows one video after the other on a page of this machine only and takes one vote for each by
keyboard; started again, it goes on where it stopped. `votes` gives every video its majority label,
soft label (`votes`) and split, and writes agreement and statistics beside the manifest.
"""

import csv
import io
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
import tyro

from caan import annotation, on_ray, storage
from caan.annotation import Vote
from caan.errors import InputError
from caan.schema import LABEL_SETS, MANIFEST_SCHEMA, canonical_emotion, check_table
from caan.voting_page import serve

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PageJob:
    """Options of jobs.annotate page."""

    manifest: str
    """Manifest of the videos, local files."""
    votes: str
    """CSV that every vote is appended to; local."""
    annotator: str
    """Who votes."""
    label_set: str = "heiv7"
    """heiv7, ekman6 or plutchik8."""
    port: int = 8321
    """Port on 127.0.0.1."""


@dataclass(frozen=True, kw_only=True)
class VotesJob:
    """Options of jobs.annotate votes."""

    manifest: str
    """Manifest of the videos."""
    votes: str
    """CSV with video_id, annotator, label, and maybe gender and age_range."""
    output: str
    """The labelled manifest to write: a .parquet file; statistics go to the same name .json."""
    label_set: str = "heiv7"
    """heiv7, ekman6 or plutchik8."""
    tie_rule: str = "drop"
    """Tied videos: drop (no label), first_vote, label_order."""
    test_share: float = 0.4
    """Share of each emotion that goes to the test split; no file is in both."""
    seed: int = 0
    """Of the split."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of jobs.annotate."""

    command: tyro.conf.OmitSubcommandPrefixes[
        tyro.conf.OmitArgPrefixes[
            Annotated[PageJob, tyro.conf.subcommand("page")]
            | Annotated[VotesJob, tyro.conf.subcommand("votes")]
        ]
    ]
    """page or votes."""


def read_votes(path: str, label_set: Sequence[str]) -> list[Vote]:
    """Votes of a CSV file in its order.

    Raises:
        InputError: no such file, a column is missing, or a row has no or a foreign label.
    """
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"there are no votes at `{path}`: check the path.") from error
    votes = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=1):
        values = {name: (row.get(name) or "").strip() for name in Vote.__dataclass_fields__}
        if empty := [name for name in ("video_id", "annotator", "label") if not values[name]]:
            raise InputError(f"row {number} of the votes `{path}` has no {', '.join(empty)}.")
        values["label"] = canonical_emotion(values["label"])
        if values["label"] not in label_set:
            raise InputError(
                f"row {number} of the votes `{path}` names `{values['label']}`; choose one of "
                f"{', '.join(label_set)}, or another --label-set."
            )
        votes.append(Vote(**values))
    return votes


def merge(rows: list[dict[str, Any]], votes: list[Vote], job: VotesJob) -> dict[str, Any]:
    """Statistics; `rows` of the manifest get label, votes, gender, age range and split.

    Raises:
        InputError: votes on videos that the manifest does not have.
    """
    label_set = LABEL_SETS[job.label_set]
    cast = annotation.by_video(votes)
    if strange := sorted(set(cast) - {row["video_id"] for row in rows}):
        raise InputError(
            f"{len(strange)} videos of the votes are not in the manifest, such as `{strange[0]}`."
        )
    named = {video: [vote.label for vote in found] for video, found in cast.items()}
    labels = {v: annotation.majority(found, job.tie_rule, label_set) for v, found in named.items()}
    known = {video: label for video, label in labels.items() if label}
    sources = {row["video_id"]: row["uri"] for row in rows}
    splits = annotation.stratified_split(known, sources, test_share=job.test_share, seed=job.seed)
    for row in rows:
        found = cast.get(row["video_id"], [])
        row["label"], row["split"] = known.get(row["video_id"]), splits.get(row["video_id"])
        row["votes"] = list(Counter(vote.label for vote in found).items())
        for key in ("gender", "age_range"):
            said = [getattr(vote, key) for vote in found if getattr(vote, key)]
            row[key] = annotation.majority(said, "first_vote", ()) or row[key]
    counts = annotation.count_matrix(named.values(), label_set)
    even = len({len(found) for found in named.values()}) == 1 and len(counts[0]) and len(votes) > 1
    even = bool(even and counts.sum(axis=1).min() >= 2)
    confusion = annotation.annotator_confusion(cast, known, label_set)
    return {
        "label_set": label_set,
        "tie_rule": job.tie_rule,
        "videos": len(rows),
        "videos_with_votes": len(cast),
        "videos_with_label": len(known),
        "tied_without_label": len(cast) - len(known),
        "fleiss_kappa": annotation.fleiss_kappa(counts) if even else None,
        "krippendorff_alpha": annotation.krippendorff_alpha(counts),
        "annotator_confusion": {who: matrix.tolist() for who, matrix in confusion.items()},
        "label_counts": annotation.label_counts(known, splits),
        "genders": Counter(row["gender"] for row in rows if row["gender"]),
        "age_ranges": Counter(row["age_range"] for row in rows if row["age_range"]),
    }


def main(job: Job) -> int:
    """Serve the page until it is stopped, or write the labelled manifest; gives the exit code."""
    command = job.command
    if command.label_set not in LABEL_SETS:
        raise InputError(
            f"option `label_set` is `{command.label_set}`; choose one of {', '.join(LABEL_SETS)}"
        )
    table = check_table(storage.read_table(command.manifest), MANIFEST_SCHEMA, "the manifest")
    if isinstance(command, PageJob):
        emotions = LABEL_SETS[command.label_set]
        serve(table.to_pylist(), command.votes, command.annotator, emotions, command.port)
        return 0
    if not command.output.endswith(".parquet"):
        raise InputError(f"--output `{command.output}` must name a .parquet file.")
    votes = read_votes(command.votes, LABEL_SETS[command.label_set])
    if not votes:
        raise InputError(f"there are no votes in `{command.votes}`.")
    rows = table.to_pylist()
    statistics = merge(rows, votes, command)
    storage.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), command.output)
    storage.write_json(command.output.removesuffix(".parquet") + ".json", statistics)
    logger.info(
        "%s: %d of %d videos labelled, %d tied, Krippendorff's alpha %.3f",
        command.output,
        statistics["videos_with_label"],
        statistics["videos"],
        statistics["tied_without_label"],
        statistics["krippendorff_alpha"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(on_ray.run_job(Job, main))
