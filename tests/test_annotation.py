import numpy as np
import pytest

from caan import annotation
from caan.annotation import Vote
from caan.errors import InputError

SET = ("anger", "joy", "sadness")


def test_majority_and_each_tie_rule():
    assert annotation.majority(["joy", "anger", "joy"], "drop", SET) == "joy"
    tied = ["joy", "anger"]
    assert annotation.majority(tied, "drop", SET) is None
    assert annotation.majority(tied, "first_vote", SET) == "joy"
    assert annotation.majority(tied, "label_order", SET) == "anger"
    assert annotation.majority([], "first_vote", SET) is None
    with pytest.raises(InputError, match="choose one of drop, first_vote, label_order"):
        annotation.majority(tied, "coin", SET)


def test_the_last_vote_of_an_annotator_counts_and_shares_sum_to_one():
    votes = [
        Vote(video_id="a", annotator="x", label="joy"),
        Vote(video_id="a", annotator="y", label="joy"),
        Vote(video_id="a", annotator="x", label="anger"),
    ]
    (cast,) = annotation.by_video(votes).values()
    assert [vote.label for vote in cast] == ["anger", "joy"]
    assert annotation.soft_label(["anger", "joy"], SET) == {"anger": 0.5, "joy": 0.5, "sadness": 0}
    confusion = annotation.annotator_confusion({"a": cast}, {"a": "joy"}, SET)
    assert confusion["x"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert confusion["y"][1, 1] == 1


def test_fleiss_kappa_of_the_textbook_table():
    rows = "0000E 02642 00356 03920 22811 77000 32630 25322 65210 02237"
    counts = np.array([[int(mark, 16) for mark in row] for row in rows.split()])
    assert annotation.fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    with pytest.raises(InputError, match="same number of votes"):
        annotation.fleiss_kappa(np.array([[1, 1], [3, 0]]))


def test_krippendorff_alpha_of_his_example_with_missing_votes():
    votes = [
        *("1 2 3 3 2 1 4 1 2 * * *", "1 2 3 3 2 2 4 1 2 5 * 3"),
        *("* 3 3 3 2 3 4 2 2 5 1 *", "1 2 3 3 2 4 4 1 2 5 1 *"),
    ]
    videos = zip(*(line.split() for line in votes), strict=True)
    labels = [[vote for vote in video if vote != "*"] for video in videos]
    counts = annotation.count_matrix(labels, "12345")
    assert annotation.krippendorff_alpha(counts) == pytest.approx(0.743, abs=5e-4)
    assert np.isnan(annotation.krippendorff_alpha(np.array([[2, 0], [3, 0]])))


def test_split_keeps_shares_of_every_emotion_and_parts_no_source():
    generator = np.random.default_rng(1)
    labels = {f"v{n}": SET[n % 3] for n in range(600)}
    sources = {video: f"s{generator.integers(150)}" for video in labels}
    splits = annotation.stratified_split(labels, sources, test_share=0.4)
    assert splits == annotation.stratified_split(labels, sources, test_share=0.4)
    sides = {side: {sources[v] for v in splits if splits[v] == side} for side in ("train", "test")}
    assert not sides["train"] & sides["test"]
    counts = annotation.label_counts(labels, splits)
    for emotion in SET:
        assert counts["test"][emotion] == pytest.approx(80, abs=4)
