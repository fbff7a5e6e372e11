"""Features mapped from files say the same as in memory, and take no memory to pack."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from caan.features import packing
from caan.features.open_features import open_features
from caan.features.packed import PackedVideos
from tests.support.feature_files import write_features

DIM, LABELS = 12, ("anger", "fear", "joy")
ARRAYS = ("face_ND", "context_NE", "has_face_N", "frame_indices_N", "starts_V", "counts_V")


def packed_both_ways(features: str, folder: Path) -> tuple[PackedVideos, PackedVideos]:
    folder.mkdir()
    opened = open_features(features)
    manifest = opened.manifests[0]
    return opened.pack(manifest), opened.pack(manifest, folder=folder)


@pytest.mark.parametrize("files", [1, 4], ids=["in order", "segments over files"])
def test_files_hold_what_memory_holds(
    tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "ORDERED_FRAMES", 10)
    options = {"num_videos": 20, "num_frames": 7, "segment_frames": 3, "files": files}
    features = write_features(tmp_path / "f", LABELS, dim=DIM, **options)
    plain, mapped = packed_both_ways(features, tmp_path / "packed")
    assert isinstance(mapped.face_ND, np.memmap)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(mapped, name), getattr(plain, name))
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        "context.f16",
        "face.f16",
    ]


def test_videos_travel_without_their_vectors(tmp_path: Path) -> None:
    features = write_features(tmp_path / "f", LABELS, dim=DIM)
    _, mapped = packed_both_ways(features, tmp_path / "packed")
    chosen = mapped.select([3, 1])
    light = chosen.without_vectors()
    assert light.num_bytes == 0
    assert (light.face_dim, light.context_dim) == (DIM, DIM)
    again = light.vectors_in(tmp_path / "packed")
    for video in range(2):
        rows = again.rows_of(video)
        np.testing.assert_array_equal(again.face_ND[rows], chosen.face_ND[rows])


def test_packing_to_files_holds_a_part_of_the_vectors_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "ORDERED_FRAMES", 128)
    options = {"num_videos": 64, "num_frames": 32, "files": 32}
    features = write_features(tmp_path / "f", LABELS, dim=1024, **options)
    vector_bytes = 64 * 32 * 2 * 1024 * 2
    (tmp_path / "packed").mkdir()
    opened = open_features(features)
    peaks = []
    for folder in (None, tmp_path / "packed"):
        tracemalloc.start()
        opened.pack(opened.manifests[0], folder=folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > vector_bytes, "the measure sees the vectors"
    assert peaks[1] < vector_bytes / 2
