import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from browser import open_page

from caan import annotation, storage
from caan.annotation import Vote
from caan.errors import InputError
from caan.on_ray import run_job
from caan.schema import MANIFEST_SCHEMA, table_of
from caan.voting_page import make_server
from jobs.annotate import Job, main, read_votes

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


def rows_of(tmp_path, count):
    rows = [{"video_id": f"v{n}", "uri": f"{tmp_path}/{n}.mp4"} for n in range(count)]
    for row in rows:
        Path(row["uri"]).write_bytes(b"film")
    return table_of(rows, MANIFEST_SCHEMA).to_pylist()


def test_votes_become_labels_soft_labels_splits_and_statistics(tmp_path):
    manifest, votes, output = (str(tmp_path / n) for n in ("m.parquet", "v.csv", "o.parquet"))
    storage.write_table(table_of(rows_of(tmp_path, 4), MANIFEST_SCHEMA), manifest)
    lines = ["video_id,annotator,label,gender"]
    lines += [f"v{n},{who},happy,f" for n in range(2) for who in "xyz"]
    lines += ["v2,x,joy,", "v2,y,anger,", "v2,z,fear,m"]
    Path(votes).write_text("\n".join(lines))
    arguments = ["--manifest", manifest, "--votes", votes]
    assert run_job(Job, main, ["votes", *arguments, "--output", output]) == 0
    rows = storage.read_table(output).to_pylist()
    assert [row["label"] for row in rows] == ["joy", "joy", None, None]
    assert dict(rows[2]["votes"]) == {"joy": 1, "anger": 1, "fear": 1}
    assert [row["gender"] for row in rows] == ["f", "f", "m", None]
    statistics = storage.read_json(output.replace("parquet", "json"))
    assert (statistics["videos_with_label"], statistics["tied_without_label"]) == (2, 1)
    assert statistics["fleiss_kappa"] is not None
    Path(votes).write_text("video_id,annotator,label\nv0,x,bored\n")
    with pytest.raises(InputError, match=r"row 1 of .* names `bored`"):
        read_votes(votes, SET)


def test_votes_by_keyboard_are_saved_and_the_page_goes_on_where_it_stopped(tmp_path):
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium")
    rows, path = rows_of(tmp_path, 2), tmp_path / "votes.csv"
    for left, key in ((2, "2"), (1, "3")):
        server = make_server(rows, str(path), "anna", SET, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_page() as page:
            page.open(f"http://127.0.0.1:{server.server_port}/")
            page.wait(f"left.textContent === '{left} videos left'")
            page.run(f"dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
            page.wait(f"!left.textContent.startsWith('{left} videos')")
        server.shutdown()
        server.server_close()
    assert path.read_text().split() == [
        "video_id,annotator,label,gender,age_range",
        "v0,anna,joy,,",
        "v1,anna,sadness,,",
    ]
