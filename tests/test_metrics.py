"""Figures against the paper's Table 5, scikit-learn and scipy."""

import math

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
)

from caan import metrics
from caan.schema import EMOTIONS

TABLE_5 = np.array(
    [
        [16, 4, 6, 2, 7, 2, 5],
        [1, 24, 5, 2, 1, 7, 3],
        [1, 2, 27, 1, 4, 9, 3],
        [1, 0, 7, 40, 8, 3, 26],
        [6, 4, 3, 9, 21, 0, 6],
        [1, 7, 9, 5, 1, 33, 5],
        [1, 1, 7, 7, 7, 6, 49],
    ]
)
"""The paper's Table 5 as counts of its 405 test videos, in the order of EMOTIONS."""

TABLE_5_PRINTED = """
38.10 9.52 14.29 4.76 16.67 4.76 11.90
2.33 55.81 11.63 4.65 2.33 16.28 6.98
2.13 4.26 57.45 2.13 8.51 19.15 6.38
1.18 0.00 8.24 47.06 9.41 3.53 30.59
12.24 8.16 6.12 18.37 42.86 0.00 12.24
1.64 11.48 14.75 8.20 1.64 54.10 8.20
1.28 1.28 8.97 8.97 8.97 7.69 62.82
"""


def labels_of(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = np.indices(matrix.shape)
    return np.repeat(truth, matrix.ravel()), np.repeat(predicted, matrix.ravel())


def test_table_5_of_the_paper_gives_its_accuracy_and_uar() -> None:
    matrix = metrics.confusion_matrix(*labels_of(TABLE_5), len(EMOTIONS))
    np.testing.assert_array_equal(matrix[:, :-1], TABLE_5)
    summary = metrics.summarise(matrix, EMOTIONS)
    assert summary["num_videos"] == 405
    assert summary["num_right"] == 210
    assert f"{100 * summary['accuracy']:.2f}" == "51.85"
    assert f"{100 * summary['uar']:.2f}" == "51.17"
    assert [round(100 * bound, 1) for bound in summary["accuracy_interval_95"]] == [47.0, 56.7]


def test_table_5_of_the_paper_gives_its_printed_percentages() -> None:
    printed = np.array([row.split() for row in TABLE_5_PRINTED.split("\n") if row], float)
    shares = 100 * TABLE_5 / TABLE_5.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, printed, atol=0.005001)


def test_figures_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    matrix = metrics.confusion_matrix(truth, predicted, 5)
    np.testing.assert_allclose(metrics.recall(matrix), recall_score(truth, predicted, average=None))
    np.testing.assert_allclose(
        metrics.precision(matrix), precision_score(truth, predicted, average=None)
    )
    assert metrics.uar(matrix) == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert metrics.macro_f1(matrix) == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_a_video_without_prediction_counts_as_wrong_unless_it_is_left_out() -> None:
    matrix = metrics.confusion_matrix([0, 0, 1], [0, metrics.NO_PREDICTION, 1], 2)
    assert metrics.accuracy(matrix) == pytest.approx(2 / 3)
    assert metrics.recall(matrix).tolist() == [0.5, 1.0]
    assert metrics.accuracy(matrix[:, :2]) == 1.0


def test_an_emotion_that_never_occurs_is_undefined_and_does_not_lower_the_means() -> None:
    summary = metrics.summarise(metrics.confusion_matrix([0, 1], [0, 1], 3), ("a", "b", "c"))
    assert summary["per_emotion"]["c"] == {
        "num_videos": 0, "recall": None, "precision": None, "f1": None,
    }  # fmt: skip
    assert summary["uar"] == summary["macro_f1"] == 1.0


def test_no_videos_give_undefined_figures() -> None:
    summary = metrics.summarise(metrics.confusion_matrix([], [], 2), ("a", "b"))
    assert summary["accuracy"] is None
    assert summary["accuracy_interval_95"] == [0.0, 1.0]


def test_wilson_interval_of_published_examples() -> None:
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert metrics.wilson_interval(0, 20)[0] == pytest.approx(0.0, abs=1e-12)
    assert metrics.wilson_interval(0, 20)[1] == pytest.approx(0.1611, abs=1e-4)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    confidence = np.array([0.95] * 10 + [0.55] * 10)
    right = np.array([True] * 9 + [False] + [True] * 3 + [False] * 7)
    assert metrics.expected_calibration_error(confidence, right) == pytest.approx((0.05 + 0.25) / 2)
    assert math.isnan(metrics.expected_calibration_error([], []))
    assert metrics.reliability([1.0, 0.0], [True, False])[-1].num_videos == 1


def test_mcnemar_counts_only_the_videos_on_which_two_runs_differ() -> None:
    a = np.array([True] * 8 + [False] * 2 + [True] * 50)
    b = np.array([False] * 8 + [True] * 2 + [True] * 50)
    expected = 2 * (1 + 10 + 45) / 2**10
    assert metrics.mcnemar_exact(a, b) == pytest.approx(expected)
    assert metrics.mcnemar_exact(a, a) == 1.0
