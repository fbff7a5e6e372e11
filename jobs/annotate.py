"""Make a labelled data set: cut clips of people, collect votes on them, and merge the votes.

python -m jobs.annotate clip --input people.csv --output clips/
python -m jobs.annotate page --manifest clips/manifest.parquet --votes votes.csv --annotator anna
python -m jobs.annotate votes --manifest clips/manifest.parquet --votes votes.csv --output m.parquet

`clip` cuts each range of a list out of its long video, and writes a manifest. `page` shows one
video after the other on a page of this machine only and takes one vote for each by keyboard;
started again, it goes on where it stopped. `votes` gives every video its majority label, soft label
(`votes`) and split, and writes agreement and statistics beside the manifest.
"""

import csv
import io
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import tyro

from caan import storage
from caan.annotation import agreement
from caan.annotation.agreement import TieRule, Vote
from caan.annotation.clips import Clip, cut
from caan.annotation.server import serve
from caan.datasets.folder import read_list
from caan.errors import InputError, VideoError, redact
from caan.extraction.probe import IndexProber
from caan.media.sandbox import Sandbox
from caan.schema import LABEL_SETS, MANIFEST_SCHEMA, canonical_emotion, check_table, table_of
from jobs.runtime import cli

logger = logging.getLogger(__name__)

SOURCE = "source_uri"
"""Column of a manifest of clips, beside the manifest's own: the long video of each clip."""

CLIP_BYTES = 3 << 30
"""Memory limit of the child that cuts clips."""


@dataclass(frozen=True, kw_only=True)
class ClipJob:
    """Options of jobs.annotate clip."""

    input: str
    """CSV or Parquet list: uri or path, start_seconds, end_seconds, and maybe face_box,
    face_pts_seconds (in the long video), gender, age_range, video_id."""
    output: str
    """Folder for the clips and manifest.parquet; local or s3://."""
    time_limit_seconds: float = 600.0
    """Longest time for one clip."""


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
    """The labelled manifest to write: a .parquet file; statistics go to the same name as .json and
    .md."""
    label_set: str = "heiv7"
    """heiv7, ekman6 or plutchik8."""
    tie_rule: TieRule = "drop"
    """Label of a tied video: none (drop), the one voted first, or the first of the label set."""
    test_share: float = 0.4
    """Share of each emotion that goes to the test split; no source video is in both."""
    seed: int = 0
    """Of the split."""


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


def cut_clips(job: ClipJob) -> list[dict[str, Any]]:
    """Cut what is not there yet; the manifest's rows, each with its `source_uri`, not probed yet.

    Raises:
        InputError: a bad list, or a row without a time range.
    """
    rows = list(read_list(job.input, "", 1))
    for number, row in enumerate(rows, start=1):
        if row.get("end_seconds") is None and row.get("status") is None:
            raise InputError(f"row {number} of the list `{job.input}` has no end_seconds.")
    cut_rows = []
    limit = job.time_limit_seconds
    with Sandbox(time_limit_seconds=limit, memory_limit_bytes=CLIP_BYTES) as sandbox:
        for number, row in enumerate(rows, start=1):
            done, how = _cut(row, job.output, sandbox)
            cut_rows.append(done)
            logger.info("%d/%d %s: %s", number, len(rows), done["video_id"], how)
    return cut_rows


def _cut(row: dict[str, Any], output: str, sandbox: Sandbox) -> tuple[dict[str, Any], str]:
    source, start = row["uri"], row.get("start_seconds", 0.0)
    target = storage.join(output, "clips", f"{row['video_id']}.mp4")
    keep = ("video_id", "label", "split", "gender", "age_range", "face_box")
    done = {name: row[name] for name in keep if name in row}
    done |= {"uri": storage.normalise(target), SOURCE: source}
    if "face_pts_seconds" in row:
        done["face_pts_seconds"] = max(0.0, row["face_pts_seconds"] - start)
    if row.get("status"):
        return done | {name: row[name] for name in ("status", "error")}, row["status"]
    how = "is there already"
    if not storage.exists(target):
        try:
            with tempfile.TemporaryDirectory(prefix="caan-clip-") as folder:
                path = str(Path(folder) / "clip.mp4")
                clip = Clip(
                    source=source, start_seconds=start, end_seconds=row["end_seconds"], target=path
                )
                how = sandbox.run(cut, clip)
                storage.write_bytes(target, Path(path).read_bytes())
        except VideoError as error:
            text = redact(str(error))[:500]
            return done | {"status": error.status, "error": text}, f"{error.status}: {text}"
    file = storage.stat(target)
    return done | {"size_bytes": file.size_bytes, "etag": file.etag}, how


def write_clips(job: ClipJob) -> int:
    """Cut the clips and write their manifest; the exit code."""
    storage.check_writable(job.output)
    rows = cut_clips(job)
    sources = pa.array([row.pop(SOURCE) for row in rows], pa.string())
    prober = IndexProber()
    table = prober(table_of(rows, MANIFEST_SCHEMA))
    prober.sandbox.close()
    output = storage.join(job.output, "manifest.parquet")
    storage.write_table(table.append_column(SOURCE, sources), output)
    bad = table.num_rows - table["status"].to_pylist().count("ok")
    logger.info("%s: %d clips, %d could not be cut", output, table.num_rows - bad, bad)
    return 1 if bad == table.num_rows else 0


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
    cast = agreement.by_video(votes)
    if strange := sorted(set(cast) - {row["video_id"] for row in rows}):
        raise InputError(
            f"{len(strange)} videos of the votes are not in the manifest, such as `{strange[0]}`."
        )
    named = {video: [vote.label for vote in found] for video, found in cast.items()}
    labels = {v: agreement.majority(found, job.tie_rule, label_set) for v, found in named.items()}
    known = {video: label for video, label in labels.items() if label}
    sources = {row["video_id"]: row.get(SOURCE) or row["uri"] for row in rows}
    splits = agreement.stratified_split(known, sources, test_share=job.test_share, seed=job.seed)
    for row in rows:
        found = cast.get(row["video_id"], [])
        row["label"], row["split"] = known.get(row["video_id"]), splits.get(row["video_id"])
        row["votes"] = list(Counter(vote.label for vote in found).items())
        for key in ("gender", "age_range"):
            said = [getattr(vote, key) for vote in found if getattr(vote, key)]
            row[key] = agreement.majority(said, "first_vote", ()) or row[key]
    counts = agreement.count_matrix(named.values(), label_set)
    even = len({len(found) for found in named.values()}) == 1 and len(counts[0]) and len(votes) > 1
    even = bool(even and counts.sum(axis=1).min() >= 2)
    confusion = agreement.annotator_confusion(cast, known, label_set)
    return {
        "label_set": label_set,
        "tie_rule": job.tie_rule,
        "videos": len(rows),
        "videos_with_votes": len(cast),
        "votes": sum(len(found) for found in cast.values()),
        "annotators": len({vote.annotator for vote in votes}),
        "videos_with_label": len(known),
        "tied_without_label": len(cast) - len(known),
        "fleiss_kappa": agreement.fleiss_kappa(counts) if even else None,
        "krippendorff_alpha": agreement.krippendorff_alpha(counts),
        "annotator_confusion": {who: matrix.tolist() for who, matrix in confusion.items()},
        "label_counts": agreement.label_counts(known, splits),
        "genders": agreement.shares(row["gender"] for row in rows if row["gender"]),
        "age_ranges": agreement.shares(row["age_range"] for row in rows if row["age_range"]),
    }


def main(job: Job) -> int:
    """Serve the page until it is stopped, or write the labelled manifest; gives the exit code."""
    command = job.command
    if isinstance(command, ClipJob):
        return write_clips(command)
    if command.label_set not in LABEL_SETS:
        raise InputError(
            f"option `label_set` is `{command.label_set}`; choose one of {', '.join(LABEL_SETS)}"
        )
    given = storage.read_table(command.manifest)
    table = check_table(given, MANIFEST_SCHEMA, "the manifest")
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
    sources = given[SOURCE] if SOURCE in given.column_names else None
    if sources is not None:
        rows = [row | {SOURCE: uri.as_py()} for row, uri in zip(rows, sources, strict=True)]
    statistics = merge(rows, votes, command)
    labelled = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    if sources is not None:
        labelled = labelled.append_column(SOURCE, sources)
    name = command.output.removesuffix(".parquet")
    storage.write_table(labelled.replace_schema_metadata(given.schema.metadata), command.output)
    storage.write_json(f"{name}.json", statistics)
    storage.write_bytes(f"{name}.md", agreement.describe(statistics).encode())
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
    sys.exit(cli.run_job(Job, main))
