"""Features in files say the same as in memory, each video once, and train as well."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from caan import storage
from caan.features import packed_files
from caan.features.batches import MemoryLoader
from caan.features.packed import PackedVideos, pack_features
from caan.features.packed_files import Buckets, PackedFiles
from caan.features.splits import Division, divided
from caan.features.streaming import FrameSampler, StreamLoader
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.outputs import layout
from caan.training.config import TrainConfig
from caan.training.loop import fit, fit_loader
from caan.training.validation import judge
from tests.support.feature_files import write_features

DIM, LABELS = 12, ("anger", "fear", "joy")
COLUMNS = ["segment_id", "video_id", "attempt", "frames", "faces"]


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little data still makes several row groups, and several tables of each bucket."""
    monkeypatch.setattr(packed_files, "ROW_GROUP_BYTES", 1500)
    monkeypatch.setattr(packed_files, "BUFFER_BYTES", 4000)


def both(
    features: str, scratch: Path, division: Division
) -> tuple[tuple[PackedVideos, PackedVideos], dict[str, PackedFiles]]:
    """The same features packed in memory and in files."""
    manifest = storage.read_table(f"{features}/manifest.parquet")
    whole = pack_features(layout.latest_segments(features, "features", COLUMNS), manifest, LABELS)
    buckets = Buckets(
        layout.latest_segments(features, "features", COLUMNS),
        manifest,
        LABELS,
        no_face="drop",
        wanted_V=np.ones(manifest.num_rows, bool),
        num_bytes=packed_files.vector_bytes(layout.part_files(features, "features")),
        folder=scratch / "buckets",
        seed=0,
    )
    train, validation = divided(buckets.outline, division)
    target = str(scratch / "packed")
    packed_files.write_record(
        target, buckets.write({"train": train, "validation": validation}, target)
    )
    read = packed_files.read_record(target)
    assert read is not None
    return divided(whole, division), read


def test_files_hold_what_memory_holds(tmp_path: Path, small_portions: None) -> None:
    options = {"num_videos": 60, "num_frames": 7, "segment_frames": 3, "files": 4}
    features = write_features(tmp_path / "f", LABELS, dim=DIM, **options)
    assert (
        packed_files.vector_bytes(layout.part_files(features, "features")) == 60 * 7 * 2 * DIM * 2
    )
    memory, files = both(features, tmp_path, Division())
    for whole, packed in zip(memory, files.values(), strict=True):
        assert len(packed) == len(whole)
        shares = [part for rank in (0, 1) for part in packed.shares(rank, 2)]
        if packed is files["train"]:
            assert len(shares) > len(packed.files), "several row groups in a file"
        found = {}
        for part in shares:
            for video, name in enumerate(part.video_ids_V.tolist()):
                assert name not in found, "once"
                found[name] = (part.labels_V[video], part.face_ND[part.rows_of(video)])
        assert set(found) == set(whole.video_ids_V.tolist())
        for video, name in enumerate(whole.video_ids_V.tolist()):
            label, vectors_ND = found[name]
            assert label == whole.labels_V[video]
            assert np.array_equal(vectors_ND, whole.face_ND[whole.rows_of(video)])
    loader = MemoryLoader(
        memory[0],
        modalities=("face",),
        batch_videos=8,
        num_frames=4,
        sampling="balanced",
        seed=0,
    )
    for one, other in zip(loader.moments("face"), files["train"].moments("face"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert not (tmp_path / "buckets").exists()
    order = files["train"].files, [p.video_ids_V[0] for p in files["train"].shares(0, 1)]
    assert order[1] != sorted(order[1]), "not in the manifest's order"


def test_an_epoch_takes_one_frame_of_each_segment_anew(tmp_path: Path) -> None:
    features = write_features(tmp_path / "f", LABELS, dim=DIM, num_videos=12, num_frames=40)
    _, files = both(features, tmp_path, Division())
    rows = pa.concat_tables([storage.read_table(file) for file in files["train"].files])
    sampler = FrameSampler(4, {"context": DIM})
    taken = [sampler(rows) for _ in range(2)]
    indices = [
        np.array([np.frombuffer(v.as_buffer(), np.int64) for v in t["frame_indices"]])
        for t in taken
    ]
    assert (indices[0] // 10 == np.arange(4)).all()
    assert not np.array_equal(*indices)
    assert "face" not in taken[0].column_names, "what the head does not look at stays"
    vectors = np.frombuffer(rows["context"][0].as_buffer(), np.float16).reshape(40, DIM)
    drawn = np.frombuffer(taken[0]["context"][0].as_buffer(), np.float16).reshape(4, DIM)
    assert np.array_equal(drawn, vectors[indices[0][0]])


def test_a_head_trained_from_files_is_as_good_as_one_from_memory(tmp_path: Path) -> None:
    options = {"num_videos": 240, "num_frames": 5, "signal": 0.5, "files": 3}
    features = write_features(
        tmp_path / "f", LABELS, dim=DIM, splits=("val", "train", "train", "train"), **options
    )
    (train, validation), files = both(features, tmp_path, Division())
    config = TrainConfig(epochs=20, batch_videos=16, num_frames=4, learning_rate=1e-2)
    small = ModelConfig(projection_size=16, fusion_size=24, feature_size=16, scorer_sizes=(4, 4))

    def head():
        return build_model(small, face_dim=DIM, context_dim=DIM, num_emotions=len(LABELS))

    whole = fit(head(), train, validation, config)
    sampler = FrameSampler(4, {"face": DIM, "context": DIM})

    def batches(epoch: int) -> list[pa.Table]:
        rows = pa.concat_tables([storage.read_table(file) for file in files["train"].files])
        order = np.random.default_rng(epoch).permutation(rows.num_rows)
        return [sampler(rows.take(order[i : i + 16])) for i in range(0, rows.num_rows, 16)]

    streamed = head()
    modalities, sampling = streamed.modalities, config.sampling
    loader = StreamLoader(files["train"], batches, modalities=modalities, sampling=sampling)
    result = fit_loader(streamed, loader, files["train"], files["validation"], config)
    assert result.metrics["validation_videos"] == len(validation)
    for rule in ("head", "frames", "centroids"):
        name = f"validation_accuracy_{rule}"
        assert result.metrics[name] == pytest.approx(whole.metrics[name], abs=0.05)
    again = judge(streamed, validation)
    assert again.accuracy_and_uar("head")[0] == result.metrics["validation_accuracy_head"]


def test_balance_is_a_weight_where_batches_come_as_they_are() -> None:
    videos = PackedFiles(
        files=(),
        video_ids_V=np.array(["a", "b", "c", "d"]),
        labels_V=np.array([0, 1, 1, 1]),
        label_set=("anger", "joy"),
        face_dim=1,
        context_dim=1,
        sums={},
        has_all_faces=True,
    )
    options = {"modalities": ("face",), "batches": lambda epoch: []}
    balanced = StreamLoader(videos, sampling="balanced", **options)
    assert balanced.class_weights_K[0] == pytest.approx(3 * balanced.class_weights_K[1])
    assert StreamLoader(videos, sampling="shuffled", **options).class_weights_K.tolist() == [1, 1]
