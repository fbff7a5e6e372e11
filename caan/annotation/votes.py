"""A CSV file of votes and a manifest -> a labelled manifest, agreement and statistics."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from caan import storage
from caan.annotation import agreement
from caan.annotation.agreement import Vote
from caan.annotation.clip_list import SOURCE
from caan.annotation.config import VotesConfig
from caan.errors import InputError
from caan.schema import LABEL_SETS, MANIFEST_SCHEMA, canonical_emotion, check_table

logger = logging.getLogger(__name__)


def label_manifest(
    manifest_uri: str,
    votes_uri: str,
    output: str,
    config: VotesConfig,
) -> None:
    """Write the labelled manifest to `output`, the statistics to the same name as .json and .md.

    Raises:
        InputError: no .parquet name, no votes, or a vote that does not fit the manifest.
    """
    if not output.endswith(".parquet"):
        raise InputError(f"--output `{output}` must name a .parquet file.")
    votes = read_votes(votes_uri, LABEL_SETS[config.label_set])
    if not votes:
        raise InputError(f"there are no votes in `{votes_uri}`.")
    given = storage.read_table(manifest_uri)
    rows = check_table(given, MANIFEST_SCHEMA, "the manifest").to_pylist()
    sources = given[SOURCE] if SOURCE in given.column_names else None
    if sources is not None:
        rows = [row | {SOURCE: uri.as_py()} for row, uri in zip(rows, sources, strict=True)]
    statistics = merge(rows, votes, config)
    labelled = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    if sources is not None:
        labelled = labelled.append_column(SOURCE, sources)
    name = output.removesuffix(".parquet")
    storage.write_table(labelled.replace_schema_metadata(given.schema.metadata), output)
    storage.write_json(f"{name}.json", statistics)
    storage.write_bytes(f"{name}.md", agreement.describe(statistics).encode())
    logger.info(
        "%s: %d of %d videos labelled, %d tied, Krippendorff's alpha %.3f",
        output,
        statistics["videos_with_label"],
        statistics["videos"],
        statistics["tied_without_label"],
        statistics["krippendorff_alpha"],
    )


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


def merge(rows: list[dict[str, Any]], votes: list[Vote], config: VotesConfig) -> dict[str, Any]:
    """Give `rows` of the manifest label, votes, gender, age range and split; return statistics.

    Raises:
        InputError: votes on videos that the manifest does not have.
    """
    emotions = LABEL_SETS[config.label_set]
    cast = agreement.by_video(votes)
    if strange := sorted(set(cast) - {row["video_id"] for row in rows}):
        raise InputError(
            f"{len(strange)} videos of the votes are not in the manifest, such as `{strange[0]}`."
        )
    named = {video: [vote.label for vote in found] for video, found in cast.items()}
    labels = {v: agreement.majority(found, config.tie_rule, emotions) for v, found in named.items()}
    known = {video: label for video, label in labels.items() if label}
    sources = {row["video_id"]: row.get(SOURCE) or row["uri"] for row in rows}
    splits = agreement.stratified_split(
        known, sources, test_share=config.test_share, seed=config.seed
    )
    for row in rows:
        found = cast.get(row["video_id"], [])
        row["label"], row["split"] = known.get(row["video_id"]), splits.get(row["video_id"])
        row["votes"] = list(Counter(vote.label for vote in found).items())
        for key in ("gender", "age_range"):
            said = [getattr(vote, key) for vote in found if getattr(vote, key)]
            row[key] = agreement.majority(said, "first_vote", ()) or row[key]
    counts = agreement.count_matrix(named.values(), emotions)
    even = len({len(found) for found in named.values()}) == 1 and len(counts[0]) and len(votes) > 1
    even = bool(even and counts.sum(axis=1).min() >= 2)
    confusion = agreement.annotator_confusion(cast, known, emotions)
    return {
        "label_set": emotions,
        "tie_rule": config.tie_rule,
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
