"""The report page, in a real browser where one is installed."""

import base64
import json
import re
from pathlib import Path

import av
import browser
import numpy as np
import pytest

from caan import html_report, label_run, report, storage
from caan.schema import (
    EMOTIONS,
    FRAME_SCORES_SCHEMA,
    LABELS_SCHEMA,
    MANIFEST_SCHEMA,
    WINDOWS_SCHEMA,
    table_of,
)

HOSTILE = "</script><img src=x onerror=alert(1)>.mp4"


def write_clip(path: Path, num_frames: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(num_frames):
            picture = np.full((64, 96, 3), 6 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
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
        report.ReportConfig(),
    )
    return folder / "report" / "report.html"


def test_the_page_holds_everything_and_names_no_address_outside(page: Path) -> None:
    text = page.read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG, never asked for
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.S)[0])
    assert [video["name"] for video in data["videos"]] == [
        "two.mp4",
        "one.mp4",
        HOSTILE.rpartition("/")[2],
    ]
    first = data["videos"][0]["people"][0]
    assert len(first["strip"]) == len(first["times"]) == 8
    assert first["context"] == "without context: fear (joy -30 points)"
    assert data["videos"][1]["people"][0]["context"] == ""
    assert first["windows"] == [[0.0, 2.0, "joy", 0.7], [2.0, 4.0, "surprise", 0.7]]


def test_a_long_timeline_keeps_its_highest_scores() -> None:
    rows = [{"emotion_score": float(i == 777)} for i in range(5000)]
    kept = html_report._thinned(rows)
    assert len(kept) == html_report.MAX_POINTS
    assert max(row["emotion_score"] for row in kept) == 1.0


@pytest.mark.skipif(browser.find_chromium() is None, reason="no Chromium or Chrome is installed")
def test_filters_strips_and_playback_work_in_a_browser(page: Path, tmp_path: Path) -> None:
    visible = "[...document.querySelectorAll('details.row')]"
    names = f"{visible}.map(row => row.dataset.video + row.dataset.person)"
    with browser.open_page() as tab:
        tab.resize(1200, 1000)
        tab.open(page.as_uri())
        assert tab.run(names) == ["twop0", "twop1", "onep0", "bad"]
        tab.click("[data-name=fear]")
        assert tab.run(names) == ["onep0"]
        tab.click("[data-name=anger]")
        assert tab.run(names) == ["twop1", "onep0"]
        tab.click("button[type=reset]")
        tab.wait(f"{visible}.length === 4")
        tab.type("#person", "p1")
        assert tab.run(names) == ["twop1"]
        tab.click("button[type=reset]")
        tab.wait(f"{visible}.length === 4")
        tab.type("#q", "ONE.MP4")
        assert tab.run(names) == ["onep0"]
        tab.click("button[type=reset]")
        tab.wait(f"{visible}.length === 4")
        tab.run("min.value = 0.5, min.dispatchEvent(new Event('input', {bubbles: true}))")
        assert tab.run(names) == ["twop0", "twop1"]
        tab.click("[data-name=unreadable]")
        assert tab.run(names) == []
        tab.click("button[type=reset]")
        tab.wait(f"{visible}.length === 4")
        tab.click("details.row summary")
        tab.wait("document.querySelectorAll('.detail .frame img').length === 8")
        assert "joy -30 points" in tab.run("document.querySelector('.context').textContent")
        assert tab.run("document.querySelectorAll('.timeline rect').length") == 8 + 2 + 1
        tab.wait("document.querySelector('video').readyState >= 1")
        assert tab.run("document.querySelector('video').duration") == pytest.approx(4.0, abs=0.2)
        tab.click(".frame:nth-child(5)")
        tab.wait("document.querySelector('video').currentTime === 2")
        tab.run("document.querySelector('video').play()")
        tab.wait("document.querySelector('video').currentTime > 2.3")
        (tmp_path / "page.png").write_bytes(base64.b64decode(tab.screenshot()))
        assert tab.problems == []
