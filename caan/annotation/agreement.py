"""Votes of several annotators -> one label per video, agreement, and statistics of a data set.

A vote has `video_id`, `annotator`, `label`, and optionally `gender` and `age_range`. If an
annotator votes several times on one video, the last vote counts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import krippendorff
import numpy as np

from caan.annotation.config import TieRule
from caan.errors import InputError

HEIV_TABLE_1 = {
    "anger": 103,
    "disgust": 105,
    "fear": 121,
    "joy": 207,
    "neutral": 125,
    "sadness": 158,
    "surprise": 197,
}
"""Videos per emotion of HEIV (paper Table 1). Their sum is 1,016; the paper's text says 1,012."""

HEIV_SHARES = {"male": 64, "female": 36, "child": 10, "teenager": 11, "adult": 79}
"""Percent of HEIV's videos by gender and age range (paper Section 3.2)."""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One annotator's vote on one video."""

    video_id: str
    """The video."""
    annotator: str
    """The annotator."""
    label: str
    """The emotion."""
    gender: str = ""
    """Gender of the marked person; empty: not given."""
    age_range: str = ""
    """Age range of the marked person; empty: not given."""


def by_video(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    """Group votes by video, in order of first appearance; only each annotator's last vote stays."""
    found: dict[str, dict[str, Vote]] = defaultdict(dict)
    for vote in votes:
        found[vote.video_id][vote.annotator] = vote
    return {video_id: list(latest.values()) for video_id, latest in found.items()}


def majority(labels: Sequence[str], tie_rule: TieRule, label_set: Sequence[str]) -> str | None:
    """The most frequent label; None if a tie drops the video.

    | tie rule | a tie gives |
    |---|---|
    | `drop` | None |
    | `first_vote` | the tied label that was voted first |
    | `label_order` | the tied label that comes first in `label_set` |

    Source: paper Section 3 (majority voting); the tie rule is our choice, the paper has none.
    """
    counts = Counter(labels)
    most = max(counts.values(), default=0)
    tied = [label for label in dict.fromkeys(labels) if counts[label] == most]
    if len(tied) == 1 or (tied and tie_rule == "first_vote"):
        return tied[0]
    if tie_rule == "drop" or not tied:
        return None
    return min(tied, key=list(label_set).index)


def count_matrix(labels: Iterable[Sequence[str]], label_set: Sequence[str]) -> np.ndarray:
    """Number of votes per video and emotion: int64 [V, K]."""
    rows = [[Counter(voted)[emotion] for emotion in label_set] for voted in labels]
    return np.array(rows, dtype=np.int64).reshape(-1, len(label_set))


def fleiss_kappa(counts_VK: np.ndarray) -> float:
    """Agreement beyond chance, at most 1; NaN if all votes are for one emotion.

    Raises:
        InputError: the videos have different numbers of votes, or fewer than two each.
    Source: Fleiss 1971, equations 3 to 7.
    """
    raters = set(counts_VK.sum(axis=1).tolist())
    if len(raters) != 1 or min(raters) < 2:
        raise InputError(
            "Fleiss' kappa needs the same number of votes, two or more, on every video: use "
            "Krippendorff's alpha."
        )
    (n,) = raters
    observed = ((counts_VK**2).sum(axis=1) - n).mean() / (n * (n - 1))
    expected = float(((counts_VK.sum(axis=0) / counts_VK.sum()) ** 2).sum())
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def krippendorff_alpha(counts_VK: np.ndarray) -> float:
    """Nominal agreement beyond chance, at most 1, for any number of votes on each video.

    Videos with one vote are left out. NaN if all other votes are for one emotion.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C.
    """
    counts_VK = counts_VK[counts_VK.sum(axis=1) >= 2]
    if (counts_VK.sum(axis=0) > 0).sum() < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=counts_VK, level_of_measurement="nominal"))


def annotator_confusion(
    votes: Mapping[str, Sequence[Vote]], truth: Mapping[str, str], label_set: Sequence[str]
) -> dict[str, np.ndarray]:
    """Counts int64 [K, K] per annotator: row is the video's label, column the annotator's vote."""
    place = {emotion: number for number, emotion in enumerate(label_set)}
    size = (len(label_set), len(label_set))
    found: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(size, dtype=np.int64))
    for video_id, cast in votes.items():
        for vote in cast:
            if video_id in truth:
                found[vote.annotator][place[truth[video_id]], place[vote.label]] += 1
    return dict(found)


def label_counts(labels: Mapping[str, str], splits: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Number of videos per split and emotion, as in the paper's Table 1."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for video_id, label in labels.items():
        counts[splits.get(video_id, "all")][label] += 1
    return {split: dict(sorted(found.items())) for split, found in sorted(counts.items())}


def shares(values: Iterable[str]) -> dict[str, float]:
    """Percentage of each value, rounded to 0.1, the most frequent first."""
    counts = Counter(values)
    return {name: round(100 * n / counts.total(), 1) for name, n in counts.most_common()}


def describe(statistics: Mapping[str, Any]) -> str:
    """A data set's statistics as Markdown, next to those of HEIV where they can be compared.

    Source: paper Table 1 and Section 3.2.
    """
    counts: dict[str, dict[str, int]] = statistics["label_counts"]
    emotions = statistics["label_set"]
    rows = [[side, *(found.get(e, 0) for e in emotions)] for side, found in counts.items()]
    rows.append(["all", *(sum(found.get(e, 0) for found in counts.values()) for e in emotions)])
    if set(emotions) == set(HEIV_TABLE_1):
        rows.append(["HEIV (Table 1)", *(HEIV_TABLE_1[emotion] for emotion in emotions)])
    lines = [
        "# Annotation",
        f"{statistics['videos_with_label']} of {statistics['videos']} videos have a label "
        f"(tie rule `{statistics['tie_rule']}`; {statistics['tied_without_label']} tied without "
        f"one). {statistics['annotators']} annotators, {statistics['votes']} votes.",
        "",
        f"Krippendorff's alpha {_figure(statistics['krippendorff_alpha'])}, "
        f"Fleiss' kappa {_figure(statistics['fleiss_kappa'])}; 1 is perfect, 0 is chance.",
        "",
        *_markdown(["videos", *emotions, "sum"], [[*row, sum(row[1:])] for row in rows]),
    ]
    for title in ("genders", "age_ranges"):
        if found := statistics[title]:
            said = ", ".join(
                f"{name} {share}%"
                + (f" (HEIV {HEIV_SHARES[name]}%)" if name in HEIV_SHARES else "")
                for name, share in found.items()
            )
            lines += ["", f"{title.replace('_', ' ').capitalize()}: {said}."]
    lines += ["", "## Annotators", "`agree` counts the votes that are the video's label."]
    confusion = statistics["annotator_confusion"]
    table = []
    for who, matrix in sorted(confusion.items()):
        counts_KK = np.array(matrix)
        right = int(np.trace(counts_KK))
        wrong_KK = counts_KK - np.diag(np.diag(counts_KK))
        worst = np.unravel_index(int(wrong_KK.argmax()), wrong_KK.shape)
        often = f"{emotions[worst[0]]} named {emotions[worst[1]]}: {wrong_KK[worst]}"
        table.append([who, counts_KK.sum(), right, often if wrong_KK.any() else ""])
    lines += _markdown(["annotator", "votes", "agree", "most frequent difference"], table)
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "not defined" if value is None or np.isnan(value) else f"{value:.3f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def stratified_split(
    labels: Mapping[str, str], sources: Mapping[str, str], *, test_share: float, seed: int = 0
) -> dict[str, str]:
    """Split videos into `train` and `test`: about `test_share` of each emotion, no source in both.

    A source is the long video that clips were cut from. Sources are taken with the larger ones
    first, ties in seeded order. A source goes to `test` if that brings the emotion counts of `test`
    closer to `test_share`.

    Source: paper Section 3 (607 and 405 of 1,012 videos); the method is our choice.
    """
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for video_id, label in labels.items():
        groups[sources.get(video_id, video_id)][label] += 1
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    queue = sorted((names[i] for i in order), key=lambda name: -groups[name].total())
    wanted = {label: count * test_share for label, count in Counter(labels.values()).items()}
    held: Counter[str] = Counter()
    test = set()
    for name in queue:
        # Taking the group changes the sum of squared differences by this much.
        change = sum(n * (2 * (held[k] - wanted[k]) + n) for k, n in groups[name].items())
        if change < 0:
            held += groups[name]
            test.add(name)
    return {v: "test" if sources.get(v, v) in test else "train" for v in labels}
