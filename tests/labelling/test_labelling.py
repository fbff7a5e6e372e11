"""Labels do not depend on how a video was cut, ordered or batched."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from caan.labelling.config import PoolConfig
from caan.labelling.frame_scores import FrameScorer
from caan.labelling.video_labels import pool_videos
from caan.models.build import build_model
from caan.models.checkpoint import LoadedModel, ModelInfo
from caan.models.config import ModelConfig
from caan.models.head import FrameBatch
from caan.schema import (
    EMOTIONS,
    FRAME_SCORES_SCHEMA,
    LABELS_SCHEMA,
    features_schema,
    segment_id_of,
    segment_scores_schema,
    table_of,
)

FACE_DIM, CONTEXT_DIM, FEATURE_SIZE = 12, 10, 16
NUM_FRAMES = 30


def model_of(name="caan", no_face="drop", rule="head", **options):
    torch.manual_seed(0)
    sizes = {"projection_size": 16, "fusion_size": 16, "scorer_sizes": (8, 4)}
    if name == "caan":
        options |= sizes | {"feature_size": FEATURE_SIZE}
    config = ModelConfig(name=name, **options)
    head = build_model(config, face_dim=FACE_DIM, context_dim=CONTEXT_DIM, num_emotions=7, seed=3)
    info = ModelInfo(
        model=config,
        label_set=EMOTIONS,
        face_dim=FACE_DIM,
        context_dim=CONTEXT_DIM,
        no_face=no_face,
        rule=rule,
        temperature=0.7,
    )
    centroids_KR = torch.randn(7, FEATURE_SIZE) if rule == "centroids" else None
    return LoadedModel(
        head=head.eval(), info=info, centroids_KR=centroids_KR, metrics={}, model_id="m"
    )


def box_of(k):
    return [10.0 + k, 10.0, 50.0 + k, 60.0]


def features_of(video_id, segment_frames, face_every=2, seed=0, context_only=False):
    """A video of 30 frames cut into segments; every n-th frame has a face, 0: none has."""
    rng = np.random.default_rng(seed)
    face = rng.normal(size=(NUM_FRAMES, FACE_DIM)).astype(np.float16)
    context = rng.normal(size=(NUM_FRAMES, CONTEXT_DIM)).astype(np.float16)
    rows = []
    for start in range(0, NUM_FRAMES, segment_frames):
        indices = range(start, min(start + segment_frames, NUM_FRAMES))
        shown = [k for k in indices if face_every and k % face_every == 0]
        rows.append(
            {
                "segment_id": segment_id_of(video_id, start),
                "video_id": video_id,
                "status": "ok" if shown else "no_face",
                "frames": [
                    {
                        "frame_index": k,
                        "pts_seconds": k / 2,
                        "context_vector": context[k] if k in shown or context_only else None,
                    }
                    for k in indices
                ],
                "faces": [
                    {"frame_index": k, "box": box_of(k), "score": 0.9, "face_vector": face[k]}
                    for k in shown
                ],
            }
        )
    return table_of(rows, features_schema(FACE_DIM, CONTEXT_DIM))


def pooled(features, model):
    return pool_videos(FrameScorer(model, "cpu")(features), model)


def assert_same(got, expected):
    """Equal tables, floats within 1e-4."""
    assert got.schema == expected.schema
    for a, b in zip(got.to_pylist(), expected.to_pylist(), strict=True):
        for name in a:
            x, y = a[name], b[name]
            if name == "probabilities" and x is not None:
                assert [k for k, _ in x] == [k for k, _ in y]
                x, y = [v for _, v in x], [v for _, v in y]
            assert x == (pytest.approx(y, abs=1e-4) if not isinstance(y, str | None) else y), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "frames"},
        {"rule": "centroids", "score_fn": "softmax"},
        {"no_face": "context_only"},
        {"name": "faa"},
        {"name": "fan_lstm", "recurrent_size": 8},
    ],
    ids=str,
)
def test_cutting_a_video_into_segments_changes_no_label(options):
    model = model_of(**options)
    shown = {"context_only": model.info.no_face == "context_only"}
    whole = pooled(features_of("v", NUM_FRAMES, **shown), model)
    for segment_frames in (10, 7, 1):
        parts = pooled(features_of("v", segment_frames, **shown), model)
        assert_same(parts.labels, whole.labels)
        assert_same(parts.frame_scores, whole.frame_scores)


def test_a_segment_has_the_same_bits_alone_and_among_others():
    model = model_of()
    rows = features_of("v", 7)
    together = FrameScorer(model, "cpu")(rows)
    for number in range(rows.num_rows):
        assert FrameScorer(model, "cpu")(rows.slice(number, 1)).equals(together.slice(number, 1))


def test_tables_have_their_schemas_and_the_evidence_adds_up():
    model = model_of()
    scores = FrameScorer(model, "cpu")(features_of("v", 10))
    assert scores.schema == segment_scores_schema(FEATURE_SIZE, 7, 1)
    scores.validate(full=True)
    result = pool_videos(scores, model)
    assert result.labels.schema == LABELS_SCHEMA
    assert result.frame_scores.schema == FRAME_SCORES_SCHEMA
    (label,) = result.labels.to_pylist()
    assert (label["num_frames"], label["num_faces"], label["status"]) == (30, 15, "ok")
    assert (label["start_seconds"], label["end_seconds"]) == (0.0, 14.0)
    probabilities = dict(label["probabilities"])
    assert list(probabilities) == list(EMOTIONS)
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert label["label"] == max(probabilities, key=probabilities.get)
    assert label["confidence"] == probabilities[label["label"]]
    rows = result.frame_scores.to_pylist()
    assert [row["frame_index"] for row in rows] == list(range(0, 30, 2))
    assert {(row["person_id"], row["track_id"]) for row in rows} == {("0", "0")}
    assert [row["pts_seconds"] for row in rows] == [k / 2 for k in range(0, 30, 2)]
    assert [row["box"] for row in rows] == [box_of(k) for k in range(0, 30, 2)]
    assert sum(row["emotion_score"] for row in rows) == pytest.approx(1, abs=1e-5)


def test_the_order_of_rows_and_the_videos_beside_it_change_no_label():
    model = model_of()
    videos = [features_of(f"v{n}", 10, seed=n, face_every=n) for n in range(4)]
    together = pooled(pa.concat_tables(videos), model)
    order = np.random.default_rng(1).permutation(12)
    shuffled = pooled(pa.concat_tables(videos).take(pa.array(order)), model)
    alone = [pooled(video, model) for video in videos]
    assert_same(shuffled.labels, together.labels)
    assert_same(shuffled.frame_scores, together.frame_scores)
    assert_same(pa.concat_tables(result.labels for result in alone), together.labels)
    assert_same(pa.concat_tables(result.frame_scores for result in alone), together.frame_scores)
    assert len(set(together.labels["confidence"].to_pylist())) == 4


def test_videos_without_a_label_keep_one_row_with_their_status():
    model = model_of()
    faceless = features_of("a", 10, face_every=0)
    gone = table_of(
        [
            {
                "segment_id": segment_id_of("b", 0),
                "video_id": "b",
                "status": "missing",
                "error": "there is no file",
                "frames": [],
                "faces": [],
            }
        ],
        faceless.schema,
    )
    half = features_of("c", 15)
    half = pa.concat_tables([half.slice(0, 1), failed(half.slice(1))])
    result = pooled(pa.concat_tables([gone, half, faceless]), model)
    a, b, c = result.labels.to_pylist()
    assert (a["video_id"], a["status"], a["person_id"], a["label"]) == ("a", "no_face", None, None)
    assert (a["num_frames"], a["num_faces"], a["probabilities"]) == (30, 0, None)
    assert (b["status"], b["error"], b["num_frames"]) == ("missing", "there is no file", 0)
    assert (b["start_seconds"], b["label"], b["model_id"]) == (None, None, "m")
    assert (c["status"], c["error"], c["num_faces"]) == ("partial", "too slow", 8)
    assert c["label"] in EMOTIONS
    assert set(result.frame_scores["video_id"].to_pylist()) == {"c"}
    nobody = pooled(faceless, model)
    assert nobody.labels.to_pylist() == [a]
    assert nobody.frame_scores.num_rows == 0


@pytest.mark.parametrize("segment_frames", [4, 30])
def test_a_lone_face_of_low_score_is_taken_for_false(segment_frames):
    model = model_of()
    lone = features_of("a", segment_frames, face_every=20)  # frames 0 and 20: 10 seconds apart

    def scored(*scores):
        rows, left = lone.to_pylist(), iter(scores)
        for row in rows:
            for face in row["faces"]:
                face["score"] = next(left)
        (label,) = pooled(table_of(rows, lone.schema), model).labels.to_pylist()
        return label["status"], label["num_faces"], label["label"] is not None

    model = replace(model, info=replace(model.info, detector="libfacedetection"))
    assert scored(0.81, 0.82) == ("no_face", 0, False)
    assert scored(0.81, 0.95) == ("ok", 1, True)
    model = replace(model, info=replace(model.info, detector="retinaface"))
    assert scored(0.81, 0.82) == ("ok", 2, True)


def failed(segment):
    (row,) = segment.to_pylist()
    row |= {"status": "timed_out", "error": "too slow", "frames": [], "faces": []}
    return table_of([row], segment.schema)


def test_frames_without_a_face_count_for_a_model_that_looks_at_the_scene():
    model = model_of(no_face="context_only")
    faceless = features_of("a", 10, face_every=0, context_only=True)
    result = pooled(faceless, model)
    (label,) = result.labels.to_pylist()
    assert (label["status"], label["num_faces"], label["person_id"]) == ("ok", 0, "0")
    assert label["label"] in EMOTIONS
    assert result.frame_scores.num_rows == NUM_FRAMES
    assert result.frame_scores["box"].null_count == NUM_FRAMES
    dropping = replace(model, info=replace(model.info, no_face="drop"))
    assert pooled(faceless, dropping).labels["label"].to_pylist() == [None]


def test_a_label_says_what_it_would_be_without_the_context():
    model = model_of()
    mean_D = torch.linspace(-1, 1, CONTEXT_DIM)
    model.head.standardize_context.set(mean_D, torch.full((CONTEXT_DIM,), 0.5))
    features = features_of("v", 7)
    (label,) = pooled(features, model).labels.to_pylist()
    rows = features.to_pylist()
    face = torch.tensor([f["face_vector"] for r in rows for f in r["faces"]])
    batch = FrameBatch(face[None], mean_D.expand(1, 15, -1), torch.ones(1, 15, dtype=bool))
    with torch.inference_mode():
        blind = torch.softmax(model.head(batch).video_logits_BK / 0.7, dim=1)[0]
    assert label["label_without_context"] == EMOTIONS[int(blind.argmax())]
    number = EMOTIONS.index(label["label"])
    expected = label["confidence"] - float(blind[number])
    assert abs(expected) > 1e-2
    assert label["context_effect"] == pytest.approx(expected, abs=1e-3)


def test_a_model_of_one_modality_says_nothing_of_the_context():
    (label,) = pooled(features_of("v", 10), model_of(modality="face")).labels.to_pylist()
    assert label["label"] in EMOTIONS
    assert (label["label_without_context"], label["context_effect"]) == (None, None)


@pytest.mark.parametrize("modality", ["face", "context"])
def test_a_model_that_scores_from_pool5_labels_with_its_maps(modality):
    sizes = {"modality": modality, "feature_size": FEATURE_SIZE, "pool5_shape": (2, 2, 2)}
    model = model_of(name="pool5_attention", **sizes)
    plain = features_of("v", 7)
    rng, rows, maps = np.random.default_rng(5), plain.to_pylist(), []
    for row in rows:
        items = row["faces"] if modality == "face" else row["frames"]
        given = [item.get("context_vector", 1) is not None for item in items]
        row[f"{modality}_pool5"] = [rng.normal(size=8) if there else None for there in given]
        maps += [m for m in row[f"{modality}_pool5"] if m is not None]
    features = table_of(rows, features_schema(FACE_DIM, CONTEXT_DIM, **{f"{modality}_pool5": 8}))
    (label,) = pooled(features, model).labels.to_pylist()
    face = [f["face_vector"] for r in rows for f in r["faces"]]
    context = [f["context_vector"] for r in rows for f in r["frames"] if f["context_vector"]]
    maps_BTCHW = torch.from_numpy(np.array(maps)).half().reshape(1, 15, 2, 2, 2)
    batch = FrameBatch(
        torch.tensor(face)[None],
        torch.tensor(context)[None],
        torch.ones(1, 15, dtype=bool),
        **{f"{modality}_pool5_BTCHW": maps_BTCHW},
    )
    with torch.inference_mode():
        expected = torch.softmax(model.head(batch).video_logits_BK / 0.7, dim=1)[0]
    got = [value for _, value in label["probabilities"]]
    assert got == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_label_equals_the_head_on_all_frames_at_once():
    model = model_of()
    features = features_of("v", 7)
    (label,) = pooled(features, model).labels.to_pylist()
    rows = features.to_pylist()
    face = torch.tensor([f["face_vector"] for r in rows for f in r["faces"]])
    context = [f["context_vector"] for r in rows for f in r["frames"] if f["context_vector"]]
    batch = FrameBatch(face[None], torch.tensor(context)[None], torch.ones(1, 15, dtype=bool))
    with torch.inference_mode():
        expected = torch.softmax(model.head(batch).video_logits_BK / 0.7, dim=1)[0]
    got = [value for _, value in label["probabilities"]]
    assert got == pytest.approx(expected.tolist(), abs=1e-3)  # g travels as float16


def test_a_label_below_the_limit_is_uncertain_and_keeps_its_probabilities():
    model = model_of()
    scores = FrameScorer(model, "cpu")(features_of("v", 7))
    (label,) = pool_videos(scores, model).labels.to_pylist()
    for limit, expected in ((0.0, label["label"]), (label["confidence"] + 1e-4, "uncertain")):
        config = PoolConfig(abstain_below=limit)
        (got,) = pool_videos(scores, model, config).labels.to_pylist()
        assert got == label | {"label": expected}
