"""Previews, decoded again."""

from pathlib import Path

import av
import numpy as np
import pytest

from caan.labelling.config import PreviewConfig
from caan.labelling.previews import _free_place, _overlap, write_preview
from caan.labelling.timelines import Span

SIZE = 201, 121  # odd sides


def write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for _ in range(40):
            image = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def score(i: int, x: float) -> dict:
    return {
        "person_id": "p0", "track_id": "t0", "pts_seconds": i / 2, "emotion_score": 0.5,
        "box": [x, 50.0, x + 40, 90.0], "probabilities": [],
    }  # fmt: skip


def test_a_preview_shows_the_box_where_the_face_is_and_only_while_it_is_there(
    tmp_path: Path,
) -> None:
    write_clip(tmp_path / "in.avi")
    scores = [score(0, 20.0), score(1, 40.0), score(2, 60.0)]
    span = Span(person_id="p0", start_seconds=0, end_seconds=2, label="joy", confidence=0.9)
    target = tmp_path / "out.mp4"
    count = write_preview(
        str(tmp_path / "in.avi"),
        target,
        scores,
        [span],
        PreviewConfig(max_fps=4, quality=12, min_side_pixels=0),
    )
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.duration * stream.time_base) == pytest.approx(4.0, abs=0.3)
    assert count == len(images) == 16
    assert images[0].shape == (120, 200, 3)
    left_edges = []
    for image in images:
        yellow = image[70].astype(int)
        marked = np.flatnonzero((yellow[:, 0] - yellow[:, 2]) > 60)
        left_edges.append(int(marked[0]) if len(marked) else None)
    # the box moves evenly between two sampled frames, and goes 0.75 s after the last face
    assert left_edges[:5] == pytest.approx([20, 30, 40, 50, 60], abs=2)
    assert left_edges[8:] == [None] * 8


def test_a_preview_is_scaled_with_its_boxes(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.avi")
    config = PreviewConfig(max_side_pixels=100, min_side_pixels=0, max_fps=2, quality=8)
    write_preview(str(tmp_path / "in.avi"), tmp_path / "out.mp4", [score(0, 100.0)], [], config)
    with av.open(str(tmp_path / "out.mp4")) as container:
        image = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert image.shape == (60, 100, 3)
    changed = np.flatnonzero(np.abs(image[35] - 128).max(axis=1) > 25)
    assert changed.min() == pytest.approx(50, abs=2)
    assert changed.max() == pytest.approx(70, abs=2)


def test_a_preview_plays_in_browsers_and_starts_before_it_is_loaded(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.avi")
    target = tmp_path / "out.mp4"
    write_preview(str(tmp_path / "in.avi"), target, [score(0, 20.0)], [], PreviewConfig(max_fps=2))
    content = target.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    with av.open(str(target)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height) == (480, 288)  # enlarged, so that words can be read


def test_labels_cover_neither_faces_nor_each_other() -> None:
    taken = [(10.0, 30.0, 50.0, 70.0), (60.0, 20.0, 90.0, 60.0)]
    for box in list(taken):
        place = _free_place(box, (60.0, 12.0), (200, 100), taken)
        assert not any(_overlap(place, other) for other in taken)
        taken.append(place)
    # where there is no room it stays inside the image
    assert _free_place((0.0, 0.0, 30.0, 30.0), (60.0, 12.0), (40, 30), []) == (0, 0, 60, 12)
