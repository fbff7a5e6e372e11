"""Accuracy of labels, with confidence intervals, calibration and comparison of two models.

A confusion matrix here is int64 [K, K] or [K, K + 1]: rows are the true emotion, the first K
columns the predicted one, and the last column, where there is one, the videos without a prediction.
So `matrix[:, :K]` gives the same figures over the videos with a prediction only.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

NO_PREDICTION = -1
"""Stands for "no label" in arrays of predicted emotion indices."""

Interval = tuple[float, float]


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, num_emotions: int) -> np.ndarray:
    """Counts, int64 [K, K + 1], from emotion indices 0..K-1; `predicted` may be NO_PREDICTION."""
    truth, predicted = np.asarray(truth, np.int64), np.asarray(predicted, np.int64)
    matrix = np.zeros((num_emotions, num_emotions + 1), np.int64)
    columns = np.where(predicted == NO_PREDICTION, num_emotions, predicted)
    np.add.at(matrix, (truth, columns), 1)
    return matrix


def accuracy(matrix: np.ndarray) -> float:
    """Share of all videos on the diagonal, 0..1 (top-1 accuracy); nan without videos."""
    total = int(matrix.sum())
    return float(np.trace(matrix) / total) if total else float("nan")


def recall(matrix: np.ndarray) -> np.ndarray:
    """Float [K]: share of each true emotion that was found; nan where it does not occur."""
    return _share(np.diagonal(matrix), matrix.sum(axis=1))


def precision(matrix: np.ndarray) -> np.ndarray:
    """Float [K]: share of each predicted emotion that is right; nan where none was predicted."""
    return _share(np.diagonal(matrix), matrix.sum(axis=0)[: len(matrix)])


def f1(matrix: np.ndarray) -> np.ndarray:
    """Float [K]: harmonic mean of recall and precision; nan where an emotion occurs in neither."""
    occurrences = matrix.sum(axis=1) + matrix.sum(axis=0)[: len(matrix)]
    return _share(2 * np.diagonal(matrix), occurrences)


def uar(matrix: np.ndarray) -> float:
    """Unweighted average recall, 0..1, over the emotions that occur in the truth."""
    return _mean(recall(matrix))


def macro_f1(matrix: np.ndarray) -> float:
    """Mean F1, 0..1, over the emotions that occur in the truth or among the predictions."""
    return _mean(f1(matrix))


def wilson_interval(num_right: int, num_all: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share, 0..1; (0, 1) when there is nothing to count.

    Source: E. B. Wilson, 1927. Our choice: it stays within 0..1 and holds for small counts.
    """
    if num_all == 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    share = num_right / num_all
    centre = share + z * z / (2 * num_all)
    half = z * (share * (1 - share) / num_all + z * z / (4 * num_all**2)) ** 0.5
    scale = 1 + z * z / num_all
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The videos whose confidence lies in one bin: mean confidence and accuracy."""

    lower: float
    """Lower edge of the bin, 0..1; the upper edge is the next bin's lower edge, or 1."""
    num_videos: int
    """Videos in the bin."""
    mean_confidence: float
    """Mean confidence in the bin, 0..1; nan when it is empty."""
    accuracy: float
    """Share of right labels in the bin, 0..1; nan when it is empty."""


def reliability(
    confidence: ArrayLike, right: ArrayLike, num_bins: int = 10
) -> list[ReliabilityBin]:
    """Bins of equal width over 0..1 from each video's confidence and whether its label is right."""
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, bool)
    index = np.clip((confidence * num_bins).astype(np.int64), 0, num_bins - 1)
    bins = []
    for i in range(num_bins):
        inside = index == i
        bins.append(
            ReliabilityBin(
                lower=i / num_bins,
                num_videos=int(inside.sum()),
                mean_confidence=_mean(confidence[inside]),
                accuracy=_mean(right[inside].astype(np.float64)),
            )
        )
    return bins


def expected_calibration_error(
    confidence: ArrayLike, right: ArrayLike, num_bins: int = 10
) -> float:
    """Mean gap between confidence and accuracy, 0..1, weighted by the videos in each bin.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3.
    """
    bins = [b for b in reliability(confidence, right, num_bins) if b.num_videos]
    total = sum(b.num_videos for b in bins)
    if not total:
        return float("nan")
    return sum(b.num_videos * abs(b.accuracy - b.mean_confidence) for b in bins) / total


def decided_accuracy(confidence: ArrayLike, right: ArrayLike, limit: float) -> tuple[int, float]:
    """How many videos have at least this confidence, and the share of them that are right."""
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, bool)
    decided = confidence >= limit
    return int(decided.sum()), _mean(right[decided].astype(np.float64))


def mcnemar_exact(right_a: ArrayLike, right_b: ArrayLike) -> float:
    """Two-sided p-value that two sets of labels of the same videos differ in accuracy by chance.

    Both are bool [V], in the same order of videos. Source: McNemar, 1947, exact binomial form.
    """
    right_a, right_b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest  # takes a second, and most evaluations compare nothing

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def summarise(matrix: np.ndarray, emotions: Sequence[str]) -> dict[str, Any]:
    """All figures of a confusion matrix as plain JSON values; undefined figures are None."""
    num_right, num_all = int(np.trace(matrix)), int(matrix.sum())
    columns = (("recall", recall), ("precision", precision), ("f1", f1))
    per_emotion: dict[str, dict[str, float | int | None]] = {}
    for i, emotion in enumerate(emotions):
        per_emotion[emotion] = {"num_videos": int(matrix[i].sum())}
        for name, figure in columns:
            per_emotion[emotion][name] = plain(float(figure(matrix)[i]))
    return {
        "num_videos": num_all,
        "num_right": num_right,
        "accuracy": plain(accuracy(matrix)),
        "accuracy_interval_95": list(wilson_interval(num_right, num_all)),
        "uar": plain(uar(matrix)),
        "macro_f1": plain(macro_f1(matrix)),
        "per_emotion": per_emotion,
        "emotions": list(emotions),
        "confusion_matrix": matrix.tolist(),
    }


def plain(value: float) -> float | None:
    """`value`, or None for nan, which JSON cannot hold."""
    return None if np.isnan(value) else value


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
