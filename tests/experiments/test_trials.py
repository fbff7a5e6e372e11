"""The comparison of systems: trials learn, resume, and end in the paper's tables."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from caan import schema, storage
from caan.errors import InputError
from caan.experiments import results, tables
from caan.experiments import trials as comparison
from caan.experiments.comparison import read_comparison
from caan.experiments.trials import SYSTEMS, Trial
from caan.features.packed import PackedVideos
from jobs import reproduce
from tests.support.stored_features import segment_row, write_features

DIM, LABELS = 24, ("anger", "joy", "sadness")


@pytest.fixture(scope="module")
def videos() -> PackedVideos:
    rng = np.random.default_rng(0)
    labels_V = np.arange(90) % 3
    counts_V = np.full(90, 5)
    counts_V[89] = 0
    label_N = np.repeat(labels_V, counts_V)
    vectors_ND = np.random.default_rng(1).normal(size=(3, DIM))[label_N]
    face_ND = (vectors_ND + rng.normal(size=vectors_ND.shape)).astype(np.float16)
    return PackedVideos(
        face_ND=face_ND,
        context_NE=np.maximum(face_ND, 0),
        has_face_N=np.ones(len(label_N), bool),
        frame_indices_N=np.arange(len(label_N)),
        pts_seconds_N=np.zeros(len(label_N)),
        boxes_N4=np.zeros((len(label_N), 4), np.float32),
        starts_V=np.cumsum(counts_V) - counts_V,
        counts_V=counts_V,
        labels_V=labels_V,
        video_ids_V=np.array([f"v{number}" for number in range(90)]),
        splits_V=np.array(["train"] * 60 + ["test"] * 30),
        label_set=LABELS,
    )


def trials(systems: tuple[str, ...], seeds: tuple[int, ...] = (0, 1)) -> list[Trial]:
    return comparison.grid(systems, seeds, ["split0"], epochs=3)


def test_trials_resume_and_end_in_tables(videos: PackedVideos, tmp_path: Path) -> None:
    systems = ("caan", "faa", "transferred_encoding")
    todo = trials(systems)
    output, data = str(tmp_path), comparison.data_fingerprint(videos, "f")
    for trial in todo:
        assert not comparison.is_done(output, trial, data)
        record, predictions = comparison.run_trial(trial, videos)
        assert record["num_test"] == 30
        assert record["num_test_without_frames"] == 1
        blind = predictions["without_context"].to_pylist()
        assert blind == [None] * 30 if trial.system != "caan" else blind[-1] == -1 <= min(blind)
        comparison.write_trial(output, trial, data, record, predictions)
        assert comparison.is_done(output, trial, data)
    assert not comparison.is_done(output, todo[0], "other features")
    other = replace(todo[0], validation_fraction=0.3)
    assert not comparison.is_done(output, other, data)
    found = results.read_results(output, todo)
    assert set(found) == set(systems)
    assert found["caan"].right_SV.shape == (2, 30)
    assert found["caan"].figures()[0] == pytest.approx(found["caan"].right_SV.mean())
    assert found["caan"].figures()[0] > 0.6
    assert found["caan"].records[0]["epochs_run"] == 3
    tables.write_report(output, found, LABELS)
    report = storage.read_bytes(tmp_path / "report.md").decode()
    for heading in ("Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Prediction rules"):
        assert heading in report
    assert "51.85" in report
    for name in ("table2.csv", "table5.csv", "rules.csv", "confusion.png", "accuracy.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_every_line_of_the_tables_is_a_system() -> None:
    assert {line.system for table in tables.TABLES for line in table.lines} == set(SYSTEMS)


def test_bootstrap_covers_a_clear_difference_and_not_zero() -> None:
    rng = np.random.default_rng(0)
    difference_SV = (rng.random((5, 200)) < 0.3).astype(float)
    low, high = results.bootstrap(difference_SV)
    assert 0.2 < low < 0.3 < high < 0.4
    assert results.bootstrap(np.zeros((5, 20))) == (0.0, 0.0)


def test_bad_data_is_said_so(videos: PackedVideos) -> None:
    trial = trials(("faa",))[0]
    with pytest.raises(InputError, match="split `test`"):
        comparison.divide_videos(replace(videos, splits_V=np.array(["train"] * 90)), trial)
    lacking = replace(videos, labels_V=np.where(videos.labels_V == 2, -1, videos.labels_V))
    with pytest.raises(InputError, match="sadness"):
        comparison.divide_videos(lacking, trial)
    with pytest.raises(InputError, match="at least two emotions"):
        comparison.divide_videos(replace(videos, labels_V=np.zeros(90, np.int64)), trial)
    with pytest.raises(InputError, match="unknown system"):
        trials(("nobody",))


def test_other_manifests_may_change_splits_only(videos: PackedVideos) -> None:
    labels = [LABELS[number] for number in videos.labels_V]
    columns = {"video_id": videos.video_ids_V.tolist(), "label": labels, "split": ["test"] * 90}
    assert set(comparison.apply_splits(videos, pa.table(columns), "m").splits_V) == {"test"}
    columns["label"] = ["joy"] * 90
    with pytest.raises(InputError, match="differ in their splits only"):
        comparison.apply_splits(videos, pa.table(columns), "m")


@pytest.mark.ray
def test_the_job_compares_resumes_and_shares_features(
    videos: PackedVideos, running_ray: None, tmp_path: Path
) -> None:
    output, shape = tmp_path / "report", (3, 2, 2)
    rows, segments = [], []
    for number in range(len(videos)):
        name, span = f"v{number}", videos.rows_of(number)
        split, label = str(videos.splits_V[number]), LABELS[videos.labels_V[number]]
        rows.append({"video_id": name, "uri": f"{name}.mp4", "label": label, "split": split})
        face_ND = videos.face_ND[span]
        maps = {"face": face_ND[:, :12].reshape(-1, *shape)}
        segments.append(segment_row(name, face_ND, videos.context_NE[span], maps))
    features = write_features(
        tmp_path / "features",
        rows,
        segments,
        face_dim=DIM,
        context_dim=DIM,
        map_shapes={"face": shape},
    )
    systems = ("caan", "faa", "pool5_face")
    job = reproduce.Job(
        features=features, output=str(output), systems=systems, seeds=(0,), epochs=2
    )
    assert reproduce.main(job) == 0
    before = {file.uri: file.etag for file in storage.list_files(str(output / "trials"))}
    assert len(before) == 6
    assert "Face from pool5, 1CF" in (output / "table2.csv").read_text()
    assert reproduce.main(job) == 0
    assert {f.uri: f.etag for f in storage.list_files(str(output / "trials"))} == before
    with pytest.raises(InputError, match="nowhere"):
        reproduce.main(replace(job, test_split="nowhere"))
    fewer = replace(job, systems=("faa",), epochs=1)
    with pytest.raises(InputError, match="1 of these 1 trials from other features"):
        reproduce.main(fewer)
    assert reproduce.main(replace(fewer, on_change="recompute")) == 0
    turned = {"train": "test", "test": "train"}
    other = [row | {"split": turned[row["split"]]} for row in rows]
    other_uri = str(tmp_path / "other.parquet")
    storage.write_table(schema.table_of(other, schema.MANIFEST_SCHEMA), other_uri)
    two = (f"{features}/manifest.parquet", other_uri)
    divided = replace(fewer, output=str(tmp_path / "two"), manifest=two)
    assert reproduce.main(divided) == 0
    assert "2 division(s)" in (tmp_path / "two" / "report.md").read_text()
    tested = [storage.read_table(f.uri) for f in storage.list_files(f"{divided.output}/trials")
              if f.uri.endswith(".parquet")]  # fmt: skip
    assert sorted(table.num_rows for table in tested) == [30, 60]
    every = read_comparison(features).systems
    assert set(every) == {name for name in SYSTEMS if not name.startswith("pool5_context")}
