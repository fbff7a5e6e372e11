"""The report page, in a real browser where one is installed."""

import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from caan import storage
from caan.report import config, label_run, report
from caan.report import page as html_report
from caan.report.evaluation import EvaluatedVideo
from caan.schema import (
    EMOTIONS,
    FRAME_SCORES_SCHEMA,
    LABELS_SCHEMA,
    MANIFEST_SCHEMA,
    WINDOWS_SCHEMA,
    table_of,
)
from tests.support import browser

HOSTILE = "</script><img src=x onerror=alert(1)>.mp4"


def write_clip(path: Path, num_frames: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(num_frames):
            image = np.full((64, 96, 3), 6 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three videos: two people, one person, and none in a file with a hostile name."""
    folder = tmp_path_factory.mktemp("page")
    write_clip(folder / "two.mp4")
    write_clip(folder / "run" / "previews" / "two.mp4")
    manifest = [
        {"video_id": "two", "uri": str(folder / "two.mp4"), "label": "joy", "width": 96,
         "height": 64, "duration_seconds": 4.0},
        {"video_id": "one", "uri": str(folder / "one.mp4"), "label": "joy"},
        {"video_id": "bad", "uri": f"s3://bucket/{HOSTILE}", "label": "fear"},
    ]  # fmt: skip
    people = [("two", "p0", "joy", 0.9), ("two", "p1", "anger", 0.6), ("one", "p0", "fear", 0.4)]
    labels = [
        {"video_id": v, "person_id": p, "is_main": p == "p0", "label": label, "confidence": sure,
         "probabilities": [(e, sure if e == label else 0.01) for e in EMOTIONS], "status": "ok",
         "start_seconds": 0.0, "end_seconds": 4.0,
         "label_without_context": "fear" if v == "two" else None,
         "context_effect": 0.3 if v == "two" else None}
        for v, p, label, sure in people
    ]  # fmt: skip
    labels.append({"video_id": "bad", "status": "unreadable", "error": HOSTILE})
    frames = [
        {"video_id": "two", "person_id": p, "track_id": "t", "frame_index": i, "pts_seconds": i / 2,
         "box": [20.0, 10.0, 60.0, 50.0], "emotion_score": 0.1 * (i + 1),
         "probabilities": [("joy", 0.9)]}
        for p in ("p0", "p1") for i in range(8)
    ]  # fmt: skip
    windows = [
        {"video_id": "two", "person_id": "p0", "window_index": i, "label": label,
         "confidence": 0.7, "start_seconds": 2.0 * i, "end_seconds": 2.0 * i + 2}
        for i, label in enumerate(("joy", "surprise"))
    ]  # fmt: skip
    for name, rows, schema in (
        ("labels", labels, LABELS_SCHEMA),
        ("frame_scores", frames, FRAME_SCORES_SCHEMA),
        ("windows", windows, WINDOWS_SCHEMA),
    ):
        storage.write_table(table_of(rows, schema), folder / "run" / name / "part-0.parquet")
    report.write_report(
        str(folder / "report"),
        table_of(manifest, MANIFEST_SCHEMA),
        label_run.read_label_run(str(folder / "run")),
        config.ReportConfig(),
    )
    return folder / "report" / "report.html"


def block(page: Path, name: str) -> dict:
    text = re.findall(rf'id="{name}">(.*?)</script>', page.read_text(), re.S)[0]
    return json.loads(text)


def test_the_page_holds_everything_and_names_no_address_outside(page: Path) -> None:
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page.read_text()))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG, never asked for
    data, details = block(page, "data"), block(page, "details")
    assert [video[2] for video in data["videos"]] == [
        "two.mp4",
        "one.mp4",
        HOSTILE.rpartition("/")[2],
    ]
    labels = data["labels"]
    assert [(p[0], p[1], labels[p[2]], p[3]) for p in data["people"]] == [
        (0, "p0", "joy", 900),
        (0, "p1", "anger", 600),
        (1, "p0", "fear", 400),
        (2, None, "no label", None),
    ]
    assert [p[4] for p in data["people"]] == [1, None, 0, None]  # right, of scored people only
    assert data["contexts"]["0"] == "without context: fear (joy -30 points)"
    assert set(data["contexts"]) == {"0", "1"}
    joy, surprise = labels.index("joy"), labels.index("surprise")
    assert data["windows"] == {"0": [[0.0, 2.0, joy, 700], [2.0, 4.0, surprise, 700]]}
    assert sorted(details) == ["0", "1"]
    assert details["0"]["times"] == [50 * i for i in range(8)]
    assert details["0"]["scores"] == [125 * (i + 1) for i in range(8)]
    assert details["0"]["labels"] == str(joy) * 8
    assert len(details["0"]["strip"]) == 8
    assert "strip" not in details["1"]


def test_a_long_timeline_keeps_its_highest_scores() -> None:
    rows = [{"emotion_score": float(i == 777)} for i in range(5000)]
    kept = html_report._thinned(rows)
    assert len(kept) == html_report.MAX_POINTS
    assert max(row["emotion_score"] for row in kept) == 1.0


needs_browser = pytest.mark.skipif(
    browser.find_chromium() is None, reason="no Chromium or Chrome is installed"
)
NAMES = "[...document.querySelectorAll('details.row')].map(row => row.dataset.video)"


@needs_browser
def test_filters_find_videos_by_their_people(page: Path) -> None:
    with browser.open_page() as tab:
        tab.resize(1200, 1000)
        tab.open(page.as_uri())
        assert tab.run(NAMES) == ["two", "one", "bad"]

        def after(action: str, expected: list[str]) -> None:
            tab.run(action)
            tab.wait(f"{NAMES}.join() === {','.join(expected)!r}")
            tab.click("#clear")
            tab.wait(f"{NAMES}.length === 3")

        def put(field: str, value: str) -> str:
            event = "new Event('input', {bubbles: true})"
            return f"{field}.value = {value}, {field}.dispatchEvent({event})"

        tab.click("[data-name=fear]")
        after("0", ["one"])
        tab.click("[data-name=anger]")
        tab.wait(f"{NAMES}.join() === 'two'")
        # of the video's people, the one that was not asked for is faded
        faded = "[...document.querySelectorAll('.chip.other')].map(chip => chip.dataset.person)"
        assert tab.run(faded) == ["p0"]
        assert tab.run("document.activeElement.dataset.name") == "anger"
        tab.click("[data-name=anger]")
        tab.wait(f"{NAMES}.length === 3")
        tab.type("#person", "p1")
        after("0", ["two"])
        tab.type("#q", "ONE.MP4")
        after("0", ["one"])
        after(put("min", "0.5"), ["two"])
        after(put("max", "0.5"), ["one"])
        after(put("outcome", "'0'"), ["one"])
        tab.click("[data-name=unreadable]")
        after("0", ["bad"])
        tab.type("#q", "nowhere")
        tab.wait("!none.hidden")
        after("0", [])
        assert tab.run("count.textContent") == "3 videos"
        after(put("sort", "'low'"), ["one", "two", "bad"])
        tab.run("document.activeElement.blur()")
        tab.press("/")
        assert tab.run("document.activeElement.id") == "q"
        assert tab.problems == []


@needs_browser
def test_a_video_plays_and_moves_with_its_timelines_and_strips(page: Path) -> None:
    with browser.open_page() as tab:
        tab.resize(1200, 1000)
        tab.open(page.as_uri())
        tab.click("details.row summary")
        tab.wait("document.querySelectorAll('.detail .frame img').length === 8")
        assert "joy -30 points" in tab.run("document.querySelector('.context').textContent")
        assert tab.run("document.querySelectorAll('.timeline').length") == 2
        assert tab.run("document.querySelectorAll('.timeline .window').length") == 2
        tab.wait("document.querySelector('video').readyState >= 1")
        assert tab.run("document.querySelector('video').duration") == pytest.approx(4.0, abs=0.2)
        tab.click(".frame:nth-child(5)")
        tab.wait("document.querySelector('video').currentTime === 2")
        tab.wait("document.querySelector('.now').style.left === '50%'")
        tab.click(".lane:nth-of-type(2) .timeline")
        tab.press("ArrowLeft")
        tab.wait("Math.abs(document.querySelector('video').currentTime - 1) < 0.1")
        tab.run("document.querySelector('video').play()")
        tab.wait("document.querySelector('video').currentTime > 1.3")
        assert tab.problems == []


@needs_browser
def test_the_page_fits_a_narrow_window(page: Path) -> None:
    with browser.open_page() as tab:
        tab.resize(360, 700)
        tab.open(page.as_uri())
        tab.click("details.row summary")
        tab.wait("document.querySelectorAll('.detail .frame img').length === 8")
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.problems == []


def write_archive(path: Path, num_videos: int, num_timelines: int = 500) -> int:
    """A page of this many videos with two people each, some with timelines; gives its bytes."""
    figures: dict[str, Any] = {
        "label_set": list(EMOTIONS), "num_videos": num_videos, "num_people": 2 * num_videos,
        "labels": dict.fromkeys((*EMOTIONS, "uncertain", "no label"), 0), "confidence": None,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    videos, frames, windows = [], [], []
    for i in range(num_videos):
        video_id = f"{i:016x}"
        shares = rng.dirichlet(np.full(len(EMOTIONS), 0.4), 2)
        people = tuple(
            {"video_id": video_id, "person_id": str(p), "is_main": p == 0, "status": "ok",
             "label": EMOTIONS[int(share.argmax())], "confidence": float(share.max()),
             "probabilities": dict(zip(EMOTIONS, share.tolist(), strict=True)), "num_frames": 60,
             "num_faces": 58, "start_seconds": 0.0, "end_seconds": 30.0, "model_id": "m"}
            for p, share in enumerate(shares)
        )  # fmt: skip
        row = {"video_id": video_id, "uri": f"/archive/{i % 97:03d}/recording-{i:06d}.mp4",
               "duration_seconds": 30.0, "split": None}  # fmt: skip
        videos.append(
            EvaluatedVideo(
                row=row, truth=None, people=people, scored=people[0], predicted=people[0]["label"]
            )
        )
        if i < num_timelines:
            frames += [
                {"video_id": video_id, "person_id": str(p), "frame_index": k,
                 "pts_seconds": k / 20, "emotion_score": float(rng.random()),
                 "probabilities": [("joy", 0.9)]}
                for p in range(2) for k in range(600)
            ]  # fmt: skip
            windows += [
                {"video_id": video_id, "person_id": str(p), "window_index": k, "label": "joy",
                 "confidence": 0.7, "start_seconds": 5.0 * k, "end_seconds": 5.0 * k + 5}
                for p in range(2) for k in range(6)
            ]  # fmt: skip
    figures["statuses"] = {"ok": num_videos}
    text = html_report.build_page(
        videos,
        figures,
        frame_scores=table_of(frames, FRAME_SCORES_SCHEMA),
        windows=table_of(windows, WINDOWS_SCHEMA),
        strips={},
        previews={},
    )
    path.write_text(text)
    return len(text)


@needs_browser
def test_ten_thousand_videos_stay_small_and_quick(tmp_path: Path) -> None:
    size = write_archive(tmp_path / "report.html", 10_000, num_timelines=20)
    assert size < 3_500_000
    with browser.open_page() as tab:
        tab.resize(1200, 1000)
        tab.open((tmp_path / "report.html").as_uri())
        assert tab.run("document.documentElement.dataset.ready") is not None
        assert tab.run("count.textContent") == "10,000 videos"
        assert tab.run("document.querySelectorAll('details.row').length") <= 180
        tab.run("q.value = 'recording-009999', update()")
        assert tab.run(NAMES) == ["000000000000270f"]
        # generous: one update takes about 60 ms on an idle core
        took = tab.run(
            "(() => { const t = performance.now(); update(); return performance.now() - t })()"
        )
        assert took < 2000
        assert tab.problems == []
