"""The cascade on clips whose faces are a real man's, against sampling everything."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from caan.extraction import keyframes, segment
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.extraction.keyframes import GAP_SECONDS, LOOK_SECONDS
from caan.media.sampling import key_frames, sample_frames
from caan.outputs import verify
from caan.outputs.plan import plan, segments_of
from caan.schema import MANIFEST_SCHEMA, table_of
from jobs.runtime.run import cascade_line

CONFIG = ExtractionConfig(detector="libfacedetection", fps=2.0, face_policy="all", cascade=True)


def write_clip(path: Path, carphone: Path, shows: list[str], codec: str = "libx264") -> Path:
    """Four seconds at 10 images per second for each of `shows`, a key frame every two."""
    faces = [frame.image for frame in sample_frames(str(carphone), fps=10.0, num_frames=40)]
    noise = np.random.default_rng(0).integers(60, 110, faces[0].shape, np.uint8)
    with av.open(str(path), "w") as container:
        options = {"g": "20", "crf": "12", "sc_threshold": "0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height = 176, 144
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for show in shows:
            for i in range(40):
                image = faces[i] if show == "face" or (show == "late" and i >= 10) else noise
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return path


def cut(
    path: Path, config: ExtractionConfig, num_frames: int, segment_frames: int = 10_000
) -> tuple[list[dict], list[dict], list[keyframes.CascadeCounts | None]]:
    """Frames, faces and counts of a whole video, cut into segments."""
    frames, faces, counts = [], [], []
    target = path.with_suffix(".arrow")
    for first in range(0, num_frames, segment_frames):
        request = {
            "segment_id": "s", "video_id": "v", "start_seconds": 0.0, "end_seconds": 0.0,
            "face_box": None, "source": str(path), "first_index": first,
            "num_frames": min(segment_frames, num_frames - first),
            "is_last": first + segment_frames >= num_frames,
        }  # fmt: skip
        counts.append(
            segment.read_segment(request, config.segment_config(detect_here=True), str(target))
        )
        with pa.memory_map(str(target)) as file:
            row = pa.ipc.open_file(file).read_all().to_pylist()[0]
        frames += row["frames"]
        faces += row["faces"]
    return frames, faces, counts


def test_no_face_at_the_looks_is_lost_and_the_rest_is_not_decoded(
    tmp_path: Path, carphone: Path
) -> None:
    path = write_clip(tmp_path / "in.mp4", carphone, ["none"] * 3 + ["face"] + ["none"] * 3)
    all_frames, all_faces, _ = cut(path, dataclasses.replace(CONFIG, cascade=False), 56)
    frames, faces, (counts,) = cut(path, CONFIG, 56)
    assert counts is not None
    looks = {
        round(look.pts_seconds, 3)
        for look in key_frames(
            str(path), fps=2, start_seconds=0, end_seconds=99, cell_seconds=LOOK_SECONDS
        )
        if look.image is not None
    }
    assert len(looks) == counts.frames_looked == 14
    time_of = {frame["frame_index"]: frame["pts_seconds"] for frame in all_frames}
    at_looks = [face for face in all_faces if round(time_of[face["frame_index"]], 3) in looks]
    assert len(at_looks) == 2
    found = {(face["frame_index"], tuple(face["box"])) for face in faces}
    assert {(face["frame_index"], tuple(face["box"])) for face in at_looks} <= found
    # the stretch before the first face is sampled too: 10 to 16 s of 28
    assert counts.frames_sampled == 12
    assert counts.frames_skipped == 44
    assert [face["frame_index"] for face in faces] == [f["frame_index"] for f in all_faces]
    in_place = [frame for frame in frames if not 10 <= frame["pts_seconds"] < 16]
    assert [frame["pts_seconds"] for frame in in_place] == pytest.approx(
        [0, 2, 4, 6, 8, 16, 18, 20, 22, 24, 26]
    )
    assert all(frame["pts_seconds"] <= frame["frame_index"] / 2 for frame in frames)


def test_any_segmentation_gives_the_same_frames_and_faces(tmp_path: Path, carphone: Path) -> None:
    path = write_clip(tmp_path / "in.mp4", carphone, ["none", "late", "none", "none", "face"])
    whole = cut(path, CONFIG, 40)
    for segment_frames in (7, 16):
        parts = cut(path, CONFIG, 40, segment_frames)
        for one, other in zip(parts[:2], whole[:2], strict=True):
            assert one == other
    assert 0 < len(whole[1]) < 40


def test_a_video_without_a_face_keeps_the_frames_that_were_looked_at(
    tmp_path: Path, carphone: Path
) -> None:
    path = write_clip(tmp_path / "in.mp4", carphone, ["none"] * 4)
    frames, faces, (counts,) = cut(path, CONFIG, 32)
    assert counts is not None
    assert (faces, counts.frames_sampled, counts.frames_skipped) == ([], 0, 32)
    assert len(frames) == counts.frames_looked == 8
    assert counts.skipped_seconds == (32 - 8) / 2


def test_all_key_frames_are_looked_at_once_per_cell_and_gif_is_sampled_whole(
    tmp_path: Path, carphone: Path
) -> None:
    path = write_clip(tmp_path / "in.avi", carphone, ["none"] * 2, "mjpeg")
    _, _, (counts,) = cut(path, CONFIG, 16)
    assert counts is not None
    assert (counts.frames_looked, counts.frames_sampled) == (4, 0)
    gif = tmp_path / "in.gif"
    with av.open(str(gif), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "rgb8"
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((144, 176, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="rgb8")))
        container.mux(stream.encode())
    frames, _, (counts,) = cut(gif, CONFIG, 4)
    assert counts is not None
    assert (counts.frames_looked, counts.frames_sampled, len(frames)) == (0, 4, 4)


def test_stretches_are_wanted_beside_a_face_and_where_key_frames_are_rare() -> None:
    looks = np.array([1.0, 3.0, 5.0, 7.0, 7.0 + GAP_SECONDS + 1, 22.0])
    faces = np.array([False, False, True, False, False, False])
    grid = np.array([0.0, 1.0, 2.9, 3.0, 4.9, 5.0, 6.9, 7.0, 19.9, 20.0, 21.9, 22.0, 30.0])
    expected = [1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert keyframes.wanted(looks, faces, 30.0, grid).astype(int).tolist() == expected
    assert keyframes.wanted(looks, faces, np.inf, grid)[-1]
    assert keyframes.wanted(np.zeros(0), np.zeros(0, bool), np.inf, grid).all()
    runs = keyframes.ranges_of(np.array([1, 1, 0, 0, 1, 0, 1], bool), 10)
    assert runs == [(10, 2), (14, 1), (16, 1)]


def test_savings_are_the_skipped_frames_at_the_mean_cost_of_the_others() -> None:
    decode = {
        "frames_looked": 10.0, "frames_sampled": 20.0, "frames_skipped": 100.0,
        "seconds_decode": 5.0, "seconds_detect": 6.0,
        "seconds_look_decode": 1.0, "seconds_look_detect": 2.0,
    }  # fmt: skip
    saved = keyframes.estimated_savings(decode)
    assert saved is not None
    assert saved["saved_seconds_decode"] == pytest.approx(100 * 4 / 20 - 1)
    assert saved["saved_seconds_detect"] == pytest.approx(100 * 6 / 30 - 2)
    assert keyframes.estimated_savings({"seconds_decode": 5.0}) is None


def test_key_frames_of_other_codecs_equal_those_of_decoding_all(shared_clips: Path) -> None:
    for name in ("torchcodec_h265.mp4", "torchcodec_av1.mkv", "d3_vp8.webm", "liveportrait_d0.mp4"):
        path = str(shared_clips / name)
        looks = list(
            key_frames(path, fps=30, start_seconds=0, end_seconds=99, cell_seconds=LOOK_SECONDS)
        )
        assert looks[-1].image is None
        assert len(looks) > 1
        frames = {frame.pts_seconds: frame for frame in sample_frames(path, fps=60, decoder="pyav")}
        for look in looks[:-1]:
            assert look.image is not None
            nearest = min(frames, key=lambda pts: abs(pts - look.pts_seconds))
            assert nearest == pytest.approx(look.pts_seconds, abs=1e-6)
            assert np.array_equal(frames[nearest].image, look.image)


def test_the_stage_counts_what_it_spared_and_its_rows_are_on_the_grid(
    tmp_path: Path, carphone: Path
) -> None:
    path = write_clip(tmp_path / "in.mp4", carphone, ["none", "none", "none", "face"])
    manifest = [{"video_id": "v", "uri": str(path), "duration_seconds": 16.0}]
    planned = plan(table_of(manifest, MANIFEST_SCHEMA), fps=2.0, segment_frames=16)
    (unit,) = (units := planned.units(np.ones(2, bool), 2)).to_pylist()
    config = dataclasses.replace(CONFIG, segment_frames=16)
    decoder = SegmentDecoder(config.segment_config(detect_here=True), SandboxConfig())
    table = pa.concat_tables(decoder(units))
    decoder.sandbox.close()
    counts = decoder.take_counts()
    assert table["status"].to_pylist() == ["no_face", "ok"]
    assert (counts["frames_sampled"], counts["frames_skipped"]) == (12, 20)
    saved = keyframes.estimated_savings(counts)
    assert saved is not None
    assert saved["saved_seconds_detect"] is not None
    assert "20 frames skipped" in cascade_line(saved)
    for request, row in zip(segments_of(unit, 2.0, 16), table.to_pylist(), strict=True):
        row |= {name: np.array([f[name] for f in row["frames"]]) for name in ("frame_index",)}
        row |= {"pts": np.array([f["pts_seconds"] for f in row["frames"]]), "face_index": []}
        assert verify._is_on_grid(row, request, {"fps": 2.0, "cascade": True})
        assert not verify._is_on_grid(row, request, {"fps": 2.0, "cascade": False})
