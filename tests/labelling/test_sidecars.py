"""Sidecars of a clip written here."""

import csv
import datetime
import io
import json
from pathlib import Path

import av
import numpy as np
import pytest

from caan.labelling import sidecars
from caan.labelling.config import SidecarConfig
from caan.labelling.sidecars import write_sidecars
from caan.report import label_run
from caan.schema import EMOTIONS, LABELS_SCHEMA, table_of

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(20):
            image = np.full((64, 96, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def label(person_id: str | None, name: str | None, is_main: bool = True) -> dict:
    return {
        "video_id": "v", "person_id": person_id, "is_main": is_main, "label": name,
        "confidence": 0.75 if name else None, "start_seconds": 0.0, "end_seconds": 1.5,
        "status": "ok", "probabilities": [(e, 0.75 if e == name else 0.0) for e in EMOTIONS],
    }  # fmt: skip


def manifest_row(path: Path) -> dict:
    return {
        "video_id": "v", "uri": str(path), "size_bytes": None, "duration_seconds": 2.0,
        "width": 96, "height": 64,
    }  # fmt: skip


SCORES = [
    {"video_id": "v", "person_id": person_id, "track_id": None, "pts_seconds": i / 2,
     "box": [10.0, 10.0, 40.0, 50.0], "emotion_score": 0.25, "probabilities": [("joy", 1.0)]}
    for person_id in ("p0", "p1") for i in range(4)
]  # fmt: skip

ALL = SidecarConfig(kinds=("vtt", "eaf", "preview", "strip"))


def test_all_sidecars_of_two_people_are_written_and_the_report_finds_the_preview(
    tmp_path: Path,
) -> None:
    write_clip(tmp_path / "v.mp4")
    failed = write_sidecars(
        str(tmp_path / "labels"),
        manifest_row(tmp_path / "v.mp4"),
        people=[label("p0", "joy"), label("p1", "fear", is_main=False)],
        windows=[],
        frame_scores=SCORES,
        emotions=EMOTIONS,
        written_at=NOW,
        config=ALL,
    )
    assert failed == {}
    found = {str(p.relative_to(tmp_path / "labels")) for p in tmp_path.rglob("labels/*/*")}
    assert found == {
        "timelines/v.vtt", "timelines/v.eaf", "previews/v.mp4", "strips/v.png", "strips/v-p1.png",
    }  # fmt: skip
    assert "p1: fear 0.75" in (tmp_path / "labels" / "timelines" / "v.vtt").read_text()
    run = label_run.LabelRun(
        labels=table_of([], LABELS_SCHEMA), run={}, folder=str(tmp_path / "labels")
    )
    assert run.previews(str(tmp_path / "report")) == {"v": "../labels/previews/v.mp4"}


def test_a_video_that_is_gone_fails_its_preview_only(tmp_path: Path) -> None:
    failed = write_sidecars(
        str(tmp_path),
        manifest_row(tmp_path / "gone.mp4"),
        people=[label("p0", "joy")],
        windows=[],
        frame_scores=SCORES,
        emotions=EMOTIONS,
        written_at=NOW,
        config=ALL,
    )
    assert list(failed) == ["preview"]
    assert (tmp_path / "timelines" / "v.vtt").exists()
    assert (tmp_path / "strips" / "v.png").exists()


def test_labels_are_the_same_in_csv_and_json_lines() -> None:
    table = table_of([label("p0", "joy"), label(None, None)], LABELS_SCHEMA)
    rows = list(csv.DictReader(io.StringIO(sidecars.labels_as_csv(table, EMOTIONS))))
    objects = [json.loads(line) for line in sidecars.labels_as_json_lines(table).splitlines()]
    assert [row["label"] for row in rows] == ["joy", ""]
    assert [row["label"] for row in objects] == ["joy", None]
    assert float(rows[0]["p_joy"]) == objects[0]["probabilities"]["joy"] == 0.75
    assert float(rows[0]["end_seconds"]) == pytest.approx(objects[0]["end_seconds"])
