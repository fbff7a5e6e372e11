import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from caan import storage
from caan.annotation import agreement
from caan.annotation.agreement import Vote
from caan.annotation.clips import Clip, cut
from caan.annotation.server import make_server
from caan.annotation.votes import read_votes
from caan.errors import DecodeFailed, InputError
from caan.schema import EMOTIONS, MANIFEST_SCHEMA, table_of
from jobs.annotate import Job, main
from jobs.runtime.cli import run_job
from tests.support.browser import find_chromium, open_page

SET = ("anger", "joy", "sadness")


def test_majority_and_each_tie_rule():
    assert agreement.majority(["joy", "anger", "joy"], "drop", SET) == "joy"
    tied = ["joy", "anger"]
    assert agreement.majority(tied, "drop", SET) is None
    assert agreement.majority(tied, "first_vote", SET) == "joy"
    assert agreement.majority(tied, "label_order", SET) == "anger"
    assert agreement.majority([], "first_vote", SET) is None


def test_the_last_vote_of_an_annotator_counts():
    votes = [
        Vote(video_id="a", annotator="x", label="joy"),
        Vote(video_id="a", annotator="y", label="joy"),
        Vote(video_id="a", annotator="x", label="anger"),
    ]
    (cast,) = agreement.by_video(votes).values()
    assert [vote.label for vote in cast] == ["anger", "joy"]

    confusion = agreement.annotator_confusion({"a": cast}, {"a": "joy"}, SET)
    assert confusion["x"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert confusion["y"][1, 1] == 1


def test_fleiss_kappa_of_the_textbook_table():
    rows = "0000E 02642 00356 03920 22811 77000 32630 25322 65210 02237"
    counts = np.array([[int(mark, 16) for mark in row] for row in rows.split()])
    assert agreement.fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    with pytest.raises(InputError, match="same number of votes"):
        agreement.fleiss_kappa(np.array([[1, 1], [3, 0]]))


def test_krippendorff_alpha_of_his_example_with_missing_votes():
    votes = [
        *("1 2 3 3 2 1 4 1 2 * * *", "1 2 3 3 2 2 4 1 2 5 * 3"),
        *("* 3 3 3 2 3 4 2 2 5 1 *", "1 2 3 3 2 4 4 1 2 5 1 *"),
    ]
    videos = zip(*(line.split() for line in votes), strict=True)
    labels = [[vote for vote in video if vote != "*"] for video in videos]
    counts = agreement.count_matrix(labels, "12345")
    assert agreement.krippendorff_alpha(counts) == pytest.approx(0.743, abs=5e-4)
    assert np.isnan(agreement.krippendorff_alpha(np.array([[2, 0], [3, 0]])))


def test_split_keeps_shares_of_every_emotion_and_parts_no_source():
    generator = np.random.default_rng(1)
    labels = {f"v{n}": SET[n % 3] for n in range(600)}
    sources = {video: f"s{generator.integers(150)}" for video in labels}
    splits = agreement.stratified_split(labels, sources, test_share=0.4)
    assert splits == agreement.stratified_split(labels, sources, test_share=0.4)
    sides = {side: {sources[v] for v in splits if splits[v] == side} for side in ("train", "test")}
    assert not sides["train"] & sides["test"]
    counts = agreement.label_counts(labels, splits)
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


@contextmanager
def served(rows, path):
    server = make_server(rows, str(path), "anna", SET, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_votes_by_keyboard_are_saved_and_the_page_goes_on_where_it_stopped(tmp_path, carphone):
    if find_chromium() is None:
        pytest.skip("no Chromium or Chrome is installed")
    rows, path = rows_of(tmp_path, 3), tmp_path / "votes.csv"
    for row in rows:
        Path(row["uri"]).write_bytes(carphone.read_bytes())
        row |= {
            "face_box": [44.0, 36.0, 88.0, 108.0],
            "face_pts_seconds": 2.0,
            "width": 176,
            "height": 144,
        }
    with served(rows, path) as address, open_page() as page:
        page.open(address)
        page.wait("left.textContent === 'anna: 3 of 3 videos left'")
        page.wait("still.currentTime === 2 && face.style.width")
        shares = page.run(
            "['Left', 'Top', 'Width', 'Height'].map((n, i) => face['offset' + n] /"
            "still['offset' + (i % 2 ? 'Height' : 'Width')])"
        )
        assert shares == pytest.approx([0.25, 0.25, 0.25, 0.5], abs=0.02)
        page.wait("!mark.hidden")  # the box is drawn when the film comes to its moment
        page.press("1", "2", "f", "a", "Enter")  # joy, after a change of mind
        page.wait("left.textContent === 'anna: 2 of 3 videos left'")
        page.press("Enter", "n")  # nothing to save yet; this video later
        page.wait("still.src.endsWith('/v2')")
        page.press("3", "Enter")
        page.wait("left.textContent === 'anna: 1 of 3 videos left'")
        page.press("Backspace")
        page.wait("said.textContent.startsWith('You voted')")
        page.press("2", "m", "m", "t", "Enter")
        page.wait("said.textContent === ''")
    with path.open("a") as file:
        file.write("v1,anna,jo")  # the machine went down in the middle of a line
    with served(rows, path) as address, open_page() as page:
        page.open(address)
        page.wait("left.textContent === 'anna: 1 of 3 videos left'")
        page.press("1", "Enter")
        page.wait("left.textContent === 'anna: all videos have your vote'")
    assert path.read_text().split() == [
        "video_id,annotator,label,gender,age_range",
        "v0,anna,joy,female,adult",
        "v2,anna,sadness,,",
        "v0,anna,joy,,teenager",
        "v1,anna,anger,,",
    ]
    assert [vote.label for vote in read_votes(str(path), SET)] == ["joy", "sadness", "joy", "anger"]


def post(address, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}vote", body, headers)
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_takes_one_vote_each_and_none_that_is_no_vote(tmp_path):
    vote = {"video_id": "v0", "label": "joy", "gender": "male", "age_range": ""}
    with served(rows_of(tmp_path, 1), tmp_path / "votes.csv") as address:
        for change in ({"label": "bored"}, {"video_id": "x"}, {"gender": "?"}, {"age_range": 7}):
            assert post(address, json.dumps(vote | change).encode()) == 400
        assert post(address, b"{") == 400
        assert post(address, b" " * 20_000) == 413
        assert post(address, json.dumps(vote).encode()) == 200
        assert post(address, json.dumps(vote).encode()) == 409
        assert post(address, json.dumps(vote | {"revise": True, "label": "anger"}).encode()) == 200
    (tmp_path / "other.csv").write_text("name,score\na,1\n")
    with pytest.raises(InputError, match="is not a file of votes"):
        make_server(rows_of(tmp_path, 1), str(tmp_path / "other.csv"), "anna", SET, 0)


def long_video(path, seconds=6, fps=10, gop=10):
    """A video whose frames have their number as grey value; a key frame each second, B-frames."""
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "crf": "1", "bf": "2", "flags": "+cgop", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(seconds * fps):
            image = np.full((48, 64, 3), 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def test_clips_are_copied_where_exact_and_encoded_elsewhere_with_the_same_times(tmp_path):
    long_video(tmp_path / "long.mp4")
    how = {}
    for name, start, end in (("key", 1.0, 3.0), ("between", 1.25, 2.05), ("all", 0.0, 9.0)):
        target = str(tmp_path / f"{name}.mp4")
        clip = Clip(
            source=f"{tmp_path}/long.mp4", start_seconds=start, end_seconds=end, target=target
        )
        how[name] = cut(clip)
    assert how == {"key": "copied", "between": "encoded", "all": "copied"}
    with av.open(str(tmp_path / "long.mp4")) as container:
        greys = [f.to_ndarray(format="gray").mean() for f in container.decode(video=0)]
    for name, first, count in (("key", 10, 20), ("between", 12, 9), ("all", 0, 60)):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            found = list(container.decode(video=0))
        assert len(found) == count, name
        grey = [f.to_ndarray(format="gray").mean() for f in found]
        assert np.abs(np.array(grey) - greys[first : first + count]).max() < 2.5, name
        times = [first / 10 + n / 10 for n in range(count)]
        start = {"key": 1.0, "between": 1.25, "all": 0.0}[name]
        expected = [max(0.0, time - start) for time in times]
        assert [float(f.time) for f in found] == pytest.approx(expected, abs=2e-3), name
    with pytest.raises(DecodeFailed, match="no frame is shown"):
        cut(
            Clip(
                source=f"{tmp_path}/long.mp4",
                start_seconds=20,
                end_seconds=21,
                target=f"{tmp_path}/x",
            )
        )
    assert not list(tmp_path.glob("*.part"))


def test_clips_of_a_list_are_cut_once_and_share_no_source_between_splits(tmp_path, carphone):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(carphone.read_bytes())
    lines = ["path,start_seconds,end_seconds,face_box,face_pts_seconds,video_id"]
    lines += [
        f"{'ab'[n % 2]}.mp4,{n / 4},{n / 4 + 1},40 30 90 100,{n / 4 + 0.5},c{n}" for n in range(8)
    ]
    lines += ["gone.mp4,0,1,,,c8", "a.mp4,90,91,,,c9"]
    (tmp_path / "people.csv").write_text("\n".join(lines))
    command = ["clip", "--input", f"{tmp_path}/people.csv", "--output", f"{tmp_path}/clips"]
    assert run_job(Job, main, command) == 0
    table = storage.read_table(tmp_path / "clips" / "manifest.parquet")
    rows = {row["video_id"]: row for row in table.to_pylist()}
    assert [rows[f"c{n}"]["status"] for n in range(10)] == ["ok"] * 8 + ["missing", "decode_failed"]
    assert rows["c3"]["duration_seconds"] == pytest.approx(1.0, abs=0.05)
    assert rows["c3"]["face_pts_seconds"] == 0.5
    assert rows["c3"]["source_uri"] == f"{tmp_path}/b.mp4"
    before = (tmp_path / "clips" / "clips" / "c3.mp4").stat().st_mtime_ns
    assert run_job(Job, main, command) == 0
    assert (tmp_path / "clips" / "clips" / "c3.mp4").stat().st_mtime_ns == before

    votes = [f"c{n},x,{('joy', 'anger')[n // 2 % 2]}" for n in range(8)]
    (tmp_path / "v.csv").write_text("\n".join(["video_id,annotator,label", *votes]))
    manifest = f"{tmp_path}/clips/manifest.parquet"
    arguments = ["--manifest", manifest, "--votes", f"{tmp_path}/v.csv"]
    assert run_job(Job, main, ["votes", *arguments, "--output", f"{tmp_path}/o.parquet"]) == 0
    labelled = storage.read_table(tmp_path / "o.parquet").to_pylist()
    sides = {row["source_uri"]: row["split"] for row in labelled if row["label"]}
    assert sorted(sides.values()) == ["test", "train"]
    for row in labelled:
        assert row["split"] in (None, sides.get(row["source_uri"]))


def test_statistics_stand_beside_those_of_heiv():
    statistics = {
        "label_set": EMOTIONS,
        "tie_rule": "drop",
        "videos": 3,
        "videos_with_label": 2,
        "tied_without_label": 1,
        "annotators": 2,
        "votes": 6,
        "krippendorff_alpha": 0.5,
        "fleiss_kappa": None,
        "label_counts": {"train": {"joy": 1}, "test": {"joy": 1}},
        "genders": {"female": 100.0},
        "age_ranges": {},
        "annotator_confusion": {"x": np.diag([0, 0, 1, 2, 0, 0, 0]), "y": np.eye(7, k=1)},
    }
    page = agreement.describe(statistics)
    assert "| HEIV (Table 1) | 103 | 105 | 121 | 207 | 125 | 158 | 197 | 1016 |" in page
    assert "| all | 0 | 0 | 0 | 2 | 0 | 0 | 0 | 2 |" in page
    assert "Genders: female 100.0% (HEIV 36%)." in page
    assert "Fleiss' kappa not defined" in page
