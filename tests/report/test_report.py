"""Reports from small tables and clips written here."""

import csv
import io
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from caan import storage
from caan.errors import InputError
from caan.report import evaluation, label_run, plots, report
from caan.report.config import ReportConfig, StripConfig
from caan.report.strips import StripFrame, StripMaker
from caan.schema import (
    EMOTIONS,
    FRAME_SCORES_SCHEMA,
    LABELS_SCHEMA,
    MANIFEST_SCHEMA,
    table_of,
)


def write_clip(path: Path, num_frames: int = 20) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(num_frames):
            image = np.full((64, 96, 3), 12 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def label_row(video_id: str, label: str | None, **changes: object) -> dict:
    row = {"video_id": video_id, "person_id": "p0" if label else None, "is_main": True}
    row |= {"label": label, "confidence": 0.8, "status": "ok" if label else "no_face"}
    row["probabilities"] = [(name, 0.8 if name == label else 0.03) for name in EMOTIONS]
    return row | changes


def frame_row(video_id: str, person_id: str, i: int, score: float, box: list[float]) -> dict:
    return {
        "video_id": video_id, "person_id": person_id, "track_id": "t0", "frame_index": i,
        "pts_seconds": i / 4, "box": box, "emotion_score": score,
        "probabilities": [("joy", 0.7), ("fear", 0.3)],
    }  # fmt: skip


BOX = [20.0, 10.0, 60.0, 50.0]


@pytest.fixture
def label_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = write_run(tmp_path_factory.mktemp("built"))
    return folder / "report", build(folder)


def write_run(tmp_path: Path) -> Path:
    """Six manifest rows: right, wrong, uncertain, no face, broken file, never labelled."""
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no video at all")
    names = ("a", "b", "c", "d", "e", "f")
    truths = ("joy", "joy", "fear", "anger", "anger", "anger")
    manifest = [
        {"video_id": name, "uri": str(tmp_path / f"{name}.mp4"), "label": truth, "width": 96,
         "height": 64, "split": "train" if name == "a" else "test"}
        for name, truth in zip(names, truths, strict=True)
    ]  # fmt: skip
    storage.write_table(table_of(manifest, MANIFEST_SCHEMA), tmp_path / "manifest.parquet")
    labels = [
        label_row("a", "joy", label_without_context="fear", context_effect=0.25),
        label_row("b", "fear"),
        label_row("c", "uncertain", confidence=0.3),
        label_row("d", None),
        label_row("e", None, status="unreadable", error="broken"),
    ]
    folder = tmp_path / "run"
    storage.write_table(table_of(labels[:2], LABELS_SCHEMA), folder / "labels" / "part-0.parquet")
    storage.write_table(table_of(labels[2:], LABELS_SCHEMA), folder / "labels" / "part-1.parquet")
    frames = [frame_row(v, "p0", i, 0.1 + 0.1 * (i == 5), BOX) for v in "ab" for i in range(8)]
    storage.write_table(
        table_of(frames, FRAME_SCORES_SCHEMA), folder / "frame_scores" / "part-0.parquet"
    )
    storage.write_json(
        folder / "run.json", {"face_backbone": "vggface:random:0", "is_complete": False}
    )
    return tmp_path


def build(folder: Path, config: ReportConfig | None = None) -> dict:
    config = config or ReportConfig(num_strips=3, strips=StripConfig(num_frames=3))
    return report.write_report(
        str(folder / "report"),
        label_run.read_manifest(str(folder / "manifest.parquet"), config.split),
        label_run.read_label_run(str(folder / "run")),
        config,
    )


def test_every_manifest_row_is_accounted_for_and_missing_labels_count_both_ways(
    built: tuple[Path, dict],
) -> None:
    _, figures = built
    assert figures["statuses"] == {"ok": 3, "no_face": 1, "unreadable": 1, "not_labelled": 1}
    assert sum(figures["labels"].values()) == 6
    assert (figures["labels"]["no label"], figures["labels"]["uncertain"]) == (3, 1)
    assert (figures["all_videos"]["num_right"], figures["all_videos"]["num_videos"]) == (1, 6)
    predicted = figures["predicted_videos"]
    assert (predicted["num_right"], predicted["num_videos"]) == (1, 2)
    assert figures["slices"]["split"]["train"]["accuracy"] == 1.0
    assert figures["label_set"] == list(EMOTIONS)


def test_withheld_labels_count_for_coverage_and_calibration_but_not_as_decided(
    built: tuple[Path, dict],
) -> None:
    folder, figures = built
    assert figures["coverage"] == pytest.approx(2 / 6)
    # joy 0.8 right, fear 0.8 wrong, and the withheld one: 0.3, its most probable emotion wrong
    bins = {part["lower"]: part for part in figures["reliability"] if part["num_videos"]}
    assert {lower: part["num_videos"] for lower, part in bins.items()} == {0.3: 1, 0.8: 2}
    assert figures["expected_calibration_error"] == pytest.approx((0.3 + 2 * 0.3) / 3, abs=1e-6)
    of_limit = {row["abstain_below"]: row for row in figures["abstaining"]}
    assert of_limit[0.3]["coverage"] == pytest.approx(3 / 6)
    assert of_limit[0.5] == {"abstain_below": 0.5, "coverage": 2 / 6, "accuracy": 0.5}
    assert of_limit[0.95]["accuracy"] is None
    assert "| 0.35 | 33.33% | 50.00% |" in (folder / "report.md").read_text()


def test_the_report_folder_is_whole_and_names_random_weights(built: tuple[Path, dict]) -> None:
    folder, figures = built
    assert storage.read_json(folder / "metrics.json") == figures
    text = (folder / "report.md").read_text()
    assert "vggface:random:0" in text
    assert "**Unfinished**" in text
    assert "a.mp4 · joy 0.80 (true: joy) · without context: fear (joy -25 points)" in text
    assert "| **sum** | **6** |" in text
    for name in [*figures["pictures"], "strips/a.png", "strips/b.png"]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert name in text
    rows = list(csv.DictReader(io.StringIO((folder / "labels.csv").read_text())))
    assert [row["video_id"] for row in rows] == list("abcdef")
    assert rows[0]["right"] == "True"
    assert float(rows[0]["p_joy"]) == pytest.approx(0.8)
    assert rows[5]["status"] == "not_labelled"


def test_a_strip_holds_the_frame_of_the_highest_score_in_time_order(label_folder: Path) -> None:
    run = label_run.read_label_run(str(label_folder / "run"))
    manifest = label_run.read_manifest(str(label_folder / "manifest.parquet"))
    video = evaluation.join_labels(manifest, run.labels, run.frame_scores([]), EMOTIONS)[0]
    scores = run.frame_scores(["a"]).to_pylist()
    with StripMaker(StripConfig(num_frames=3)) as maker:
        frames = maker.frames(video.row, scores)
    assert [frame.pts_seconds for frame in frames] == [0.0, 1.25, 1.75]
    assert max(frames, key=lambda frame: frame.emotion_score).pts_seconds == 1.25
    assert frames[0].box == pytest.approx((20 / 96, 10 / 64, 60 / 96, 50 / 64))
    brightness = [float(frame.image.mean()) for frame in frames if frame.image is not None]
    assert brightness == pytest.approx([0, 144, 204], abs=6)


def test_a_video_that_cannot_be_read_any_more_keeps_its_strip(tmp_path: Path) -> None:
    row = {"uri": str(tmp_path / "gone.mp4"), "size_bytes": 1}
    with StripMaker(StripConfig()) as maker:
        assert maker.images(row, [0.0, 1.0]) == [None, None]
    frame = StripFrame(image=None, pts_seconds=0.0, emotion_score=0.0, label="", box=None)
    assert plots.strip_plot([frame], "a $title$ with [marks]").startswith(b"\x89PNG")


def test_without_true_labels_there_is_a_report_without_accuracy(label_folder: Path) -> None:
    path = label_folder / "manifest.parquet"
    manifest = storage.read_table(path)
    index = manifest.column_names.index("label")
    bare = manifest.set_column(index, "label", pa.nulls(manifest.num_rows, pa.string()))
    storage.write_table(bare, path)
    figures = build(label_folder)
    assert "all_videos" not in figures
    assert figures["confidence"]["median"] == pytest.approx(0.8)
    assert "no labels" in (label_folder / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("marked_box", "at_seconds", "expected"),
    [(None, None, "p0"), (BOX, 0.0, "p1"), (BOX, None, "p1"), ([80.0, 0.0, 96.0, 9.0], 0.0, "p0")],
)
def test_of_several_people_the_marked_one_is_scored_else_the_main_one(
    marked_box: list[float] | None, at_seconds: float | None, expected: str
) -> None:
    row = {"video_id": "v", "uri": "v", "face_box": marked_box, "face_pts_seconds": at_seconds}
    labels = [label_row("v", "joy"), label_row("v", "fear", person_id="p1", is_main=False)]
    scores = [
        frame_row("v", "p0", 0, 0.5, [0.0, 0.0, 25.0, 15.0]),
        frame_row("v", "p1", 0, 0.5, BOX),
    ]
    video = evaluation.join_labels(
        table_of([row], MANIFEST_SCHEMA),
        table_of(labels, LABELS_SCHEMA),
        table_of(scores, FRAME_SCORES_SCHEMA),
        EMOTIONS,
    )[0]
    assert video.scored is not None
    assert video.scored["person_id"] == expected


def joined(labels: list[dict], truth: str = "joy") -> None:
    manifest = table_of([{"video_id": "v", "uri": "v", "label": truth}], MANIFEST_SCHEMA)
    table = table_of(labels, LABELS_SCHEMA)
    emotions = evaluation.label_set(table, {}, evaluation.true_labels(manifest))
    evaluation.join_labels(manifest, table, table_of([], FRAME_SCORES_SCHEMA), emotions)


@pytest.mark.parametrize(
    ("labels", "truth", "sentence"),
    [
        ([label_row("v", "joy"), label_row("v", "joy")], "joy", "2 rows for `v p0`"),
        ([label_row("w", "joy")], "joy", "none of the 1 labelled videos"),
        ([label_row("v", "joy")], "trust", "the label `trust`"),
        ([label_row("v", "boredom")], "joy", "`boredom`"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(
    labels: list[dict], truth: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        joined(labels, truth)


def test_true_labels_of_other_data_sets_are_read_in_our_words() -> None:
    joined([label_row("v", "joy")], "Happiness")


def test_strips_show_the_surest_video_of_each_emotion_first() -> None:
    rows = [("a", "joy", 0.9), ("b", "joy", 0.95), ("c", "fear", 0.2), ("d", None, 0.0)]
    manifest = table_of([{"video_id": v, "uri": v} for v, _, _ in rows], MANIFEST_SCHEMA)
    labels = table_of(
        [label_row(v, label, confidence=sure) for v, label, sure in rows], LABELS_SCHEMA
    )
    videos = evaluation.join_labels(manifest, labels, table_of([], FRAME_SCORES_SCHEMA), EMOTIONS)
    chosen = report.choose_videos(videos, EMOTIONS, 3)
    assert [video.row["video_id"] for video in chosen] == ["c", "b", "a"]
