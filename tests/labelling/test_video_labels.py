"""Labels per person, windows and evidence, from rows of segment_scores; no Ray."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from caan.errors import InputError
from caan.labelling.config import PoolConfig
from caan.labelling.video_labels import pool_videos
from caan.models.build import build_model
from caan.models.checkpoint import LoadedModel, ModelInfo
from caan.models.config import ModelConfig
from caan.people.config import Mark, TrackConfig, with_person_distance
from caan.schema import EMOTIONS, WINDOWS_SCHEMA, segment_scores_schema, table_of

NUM_FRAMES, FPS = 60, 2.0
CUT = 31
ALL = PoolConfig(
    face_policy="all",
    tracks=with_person_distance(TrackConfig(), "dlib"),
    window_seconds=4.0,
    stride_seconds=2.0,
)


def model_of(name: str = "caan") -> LoadedModel:
    options = {
        "caan": {"projection_size": 16, "fusion_size": 16, "scorer_sizes": (8, 4)},
        "fan_lstm": {"recurrent_size": 8},
    }[name]
    if name == "caan":
        options |= {"feature_size": 16}
    config = ModelConfig(name=name, **options)
    torch.manual_seed(0)
    head = build_model(config, face_dim=12, context_dim=10, num_emotions=7, seed=3).eval()
    info = ModelInfo(model=config, label_set=EMOTIONS, face_dim=12, context_dim=10)
    return LoadedModel(head=head, info=info, centroids_KR=None, metrics={}, model_id="m")


def segments_of(num_segments: int, size: int = 16) -> pa.Table:
    """Two people throughout 30 seconds with a cut after which they have changed places."""
    rng = np.random.default_rng(5)
    numbers = rng.normal(size=(NUM_FRAMES, 2, size + 8)).astype(np.float16)
    faces, frames = [], []
    for k in range(NUM_FRAMES):
        frames.append(
            {
                "frame_index": k,
                "pts_seconds": k / FPS,
                "histogram": [255 * (n == (k >= CUT)) for n in range(64)],
            }
        )
        for person in range(2):
            x, side = 100.0 + 200.0 * (person ^ (k >= CUT)), 40.0 + 20.0 * person
            mine = numbers[k, person]
            faces.append(
                {
                    "frame_index": k,
                    "box": [x, 50.0, x + side, 50.0 + side],
                    "score": 0.9,
                    "raw_score": float(mine[0]),
                    "logits": mine[1:8].astype(float).tolist(),
                    "feature_vector": mine[8:],
                    "appearance_vector": [float(n == person) for n in range(128)],
                }
            )
    edges = np.linspace(0, NUM_FRAMES, num_segments + 1).astype(int)
    rows = [
        {
            "segment_id": f"v-{start:08d}",
            "video_id": "v",
            "status": "ok",
            "frames": frames[start:end],
            "faces": faces[2 * start : 2 * end],
        }
        for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    order = rng.permutation(num_segments)
    return table_of([rows[n] for n in order], segment_scores_schema(size, 7, 128))


@pytest.mark.parametrize("name", ["caan", "fan_lstm"])
def test_one_and_twelve_segments_give_the_same_people_labels_and_windows(name: str) -> None:
    model = model_of(name)
    size = model.head.feature_dim
    one, twelve = (pool_videos(segments_of(n, size), model, ALL) for n in (1, 12))
    for table in ("labels", "windows", "frame_scores"):
        a, b = (getattr(pooled, table).to_pylist() for pooled in (one, twelve))
        assert len(a) == len(b) > 0
        for row, other in zip(a, b, strict=True):
            for key, value in row.items():
                if key == "probabilities":
                    value, other[key] = dict(value), dict(other[key])
                is_number = isinstance(value, float | dict)
                assert other[key] == (pytest.approx(value, abs=1e-4) if is_number else value), key


def test_everybody_has_a_row_and_windows_and_the_evidence_adds_up() -> None:
    pooled = pool_videos(segments_of(3), model_of(), ALL)
    labels = pooled.labels.to_pylist()
    assert [(row["person_id"], row["is_main"]) for row in labels] == [("0", True), ("1", False)]
    assert labels[0]["probabilities"] != labels[1]["probabilities"]
    assert {row["num_faces"] for row in labels} == {NUM_FRAMES}
    scores = pooled.frame_scores.to_pandas()
    assert (scores.groupby("person_id")["emotion_score"].sum() - 1).abs().max() < 1e-4
    assert (scores.groupby("person_id")["track_id"].nunique() == 2).all()
    assert scores.groupby(["person_id", "frame_index"]).size().max() == 1
    larger = scores[scores["person_id"] == "0"]["box"].map(lambda box: box[2] - box[0])
    assert (larger == 60.0).all()
    assert pooled.windows.schema == WINDOWS_SCHEMA
    windows = [row for row in pooled.windows.to_pylist() if row["person_id"] == "1"]
    assert [row["window_index"] for row in windows] == list(range(15))
    assert [row["start_seconds"] for row in windows] == [2.0 * n for n in range(15)]
    assert [row["num_faces"] for row in windows] == [8] * 14 + [4]
    assert len({row["confidence"] for row in windows}) == 15


def test_a_window_as_long_as_the_video_says_what_the_label_says() -> None:
    config = PoolConfig(face_policy="all", tracks=ALL.tracks, window_seconds=30.0)
    pooled = pool_videos(segments_of(1), model_of(), config)
    for label, window in zip(pooled.labels.to_pylist(), pooled.windows.to_pylist(), strict=True):
        expected = dict(label["probabilities"])
        assert dict(window["probabilities"]) == pytest.approx(expected, abs=1e-5)


def test_main_and_marked_give_one_person_each_and_no_windows_unless_asked() -> None:
    model, tracks = model_of(), ALL.tracks
    main = pool_videos(segments_of(2), model, PoolConfig(tracks=tracks))
    assert main.labels["person_id"].to_pylist() == ["0"]
    assert set(main.frame_scores["person_id"].to_pylist()) == {"0"}
    assert main.windows.num_rows == 0
    everybody = pool_videos(segments_of(2), model, ALL).labels.to_pylist()
    marked = PoolConfig(face_policy="marked", tracks=tracks)
    mark = Mark(box=(105.0, 55.0, 135.0, 85.0), pts_seconds=1.0)
    (row,) = pool_videos(segments_of(2), model, marked, {"v": mark}).labels.to_pylist()
    assert (row["person_id"], row["is_main"]) == ("1", True)
    assert row["probabilities"] == everybody[1]["probabilities"]
    away = Mark(box=(900.0, 55.0, 935.0, 85.0), pts_seconds=None)
    (row,) = pool_videos(segments_of(2), model, marked, {"v": away}).labels.to_pylist()
    assert (row["person_id"], row["label"], row["status"]) == (None, None, "no_face")


def test_windows_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="window-seconds"):
        PoolConfig(window_seconds=-1.0)
    with pytest.raises(InputError, match="needs --window-seconds"):
        PoolConfig(stride_seconds=1.0)
