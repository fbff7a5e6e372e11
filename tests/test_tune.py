"""A search as a user runs it, and what it refuses."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from caan import on_ray, schema, search_report, storage
from caan.checkpoint import load_model
from caan.errors import InputError
from caan.models.build import ModelConfig
from caan.search_report import SearchTrial
from caan.training import TrainConfig
from jobs import reproduce, train, tune
from jobs.search import Job

DIM, LABELS = 12, ("anger", "joy")
SMALL = ModelConfig(projection_size=8, fusion_size=16, feature_size=8, scorer_sizes=(4, 4))
METRIC = "validation_uar"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty videos of three frames whose vectors tell two emotions, as jobs.extract writes them."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    rows, segments = [], []
    for number in range(40):
        name, label = f"v{number}", LABELS[number % 2]
        rows.append({"video_id": name, "uri": f"{name}.mp4", "label": label, "split": "train"})
        vectors_ND = rng.normal(size=(3, DIM)) + (2.0 if label == "joy" else 0.0)
        frames = [
            {"frame_index": i, "pts_seconds": i / 2, "context_vector": vector_D}
            for i, vector_D in enumerate(vectors_ND)
        ]
        faces = [
            {"frame_index": i, "box": [0, 0, 9, 9], "score": 1, "face_vector": vector_D}
            for i, vector_D in enumerate(vectors_ND)
        ]
        segment = {"segment_id": f"{name}-00000000", "video_id": name, "status": "ok"}
        segments.append({**segment, "attempt": 0, "frames": frames, "faces": faces})
    manifest = schema.table_of(rows, schema.MANIFEST_SCHEMA)
    storage.write_table(manifest, folder / "manifest.parquet")
    table = schema.table_of(segments, schema.features_schema(DIM, DIM))
    storage.write_table(table, folder / "features/shard=00000/attempt=0/part.parquet")
    options = {
        "no_face": "drop",
        "face_backbone": "vggface",
        "context_backbone": "vgg16",
        "detector": "retinaface",
        "fps": 2.0,
        "face_policy": "main",
    }
    names = ("face_backbone", "context_backbone", "detector")
    record = {"job": "extract", "is_complete": True, "fingerprint": "f", "config": options}
    record["identity"] = {name: options[name] for name in names}
    storage.write_json(folder / "run.json", record)
    return str(folder)


def job_of(features: str, folder: Path, axes: str, **options: object) -> Job:
    (folder / "space.yaml").write_text(axes)
    job = Job(
        features=(features,),
        output=str(folder / "search"),
        space=str(folder / "space.yaml"),
        model=SMALL,
        train=TrainConfig(epochs=4, batch_videos=8, learning_rate=1e-2, patience_epochs=0),
    )
    return dataclasses.replace(job, **options)


@pytest.fixture
def running_ray() -> Iterator[None]:
    was_there = ray.is_initialized()
    on_ray.start()
    yield
    if not was_there:
        ray.shutdown()


@pytest.mark.ray
def test_a_search_ends_in_a_table_a_report_and_a_complete_model(
    features: str, running_ray: None, tmp_path: Path
) -> None:
    space = "model.scorer_depth: [1, 2]\n"
    job = job_of(features, tmp_path, space, searcher="grid", scheduler="asha", grace_epochs=2)
    assert tune.main(job) == 0
    table = storage.read_table(tmp_path / "search/trials.parquet")
    assert set(table["status"].to_pylist()) == {"ok"}
    assert set(table["model.scorer_depth"].to_pylist()) == {1, 2}
    assert all(2 <= n <= 4 for n in table["num_epochs"].to_pylist()), "after the grace of asha"
    report = (tmp_path / "search/report.md").read_text()
    assert "Table 2" in report
    assert (tmp_path / "search/slices.png").stat().st_size > 0
    assert (tmp_path / "search/trials.csv").read_text().count("\n") == 3
    model = load_model(tmp_path / "search/model")
    best = max(table.to_pylist(), key=lambda row: (row[METRIC], -row["validation_loss"]))
    assert model.info.model.scorer_depth == best["model.scorer_depth"]
    assert model.metrics["validation"][METRIC] >= best[METRIC]

    with pytest.raises(InputError, match="--resume"):
        tune.main(job)
    with pytest.raises(InputError, match="another space"):
        tune.main(dataclasses.replace(job, seed=1, resume=True))
    assert tune.main(dataclasses.replace(job, resume=True)) == 0
    again = storage.read_table(tmp_path / "search/trials.parquet")
    seconds, seconds_again = (
        dict(zip(t["trial_id"].to_pylist(), t["seconds"].to_pylist(), strict=True))
        for t in (table, again)
    )
    assert seconds_again == seconds, "nothing is done twice"


def test_what_cannot_be_searched_is_refused_with_the_reason(features: str, tmp_path: Path) -> None:
    depths, rates = "model.scorer_depth: [1, 2]", "train.learning_rate: {uniform: [0.1, 0.2]}"
    cases: list[tuple[str, dict[str, object], str]] = [
        (depths, {"scheduler": "pbt"}, "copy each other's weights"),
        (rates, {"scheduler": "pbt", "workers_per_trial": 2}, "Ray Train"),
        (rates, {"scheduler": "pbt", "searcher": "optuna"}, "optuna|--searcher random"),
        (rates, {"searcher": "grid"}, "a grid needs lists"),
        (rates, {"num_trials": 0}, "--num-trials"),
        ("train.selection: [uar]", {}, "decides what is best"),
        (depths, {"space": str(tmp_path / "no.yaml")}, "there is no space"),
        (depths, {"validation_fraction": 0.0}, "between 0 and 1"),
        (depths, {"resume": True}, "holds no search"),
    ]
    was_there = ray.is_initialized()
    for axes, options, expected in cases:
        with pytest.raises(InputError, match=expected):
            tune.main(job_of(features, tmp_path, axes, **options))
    assert ray.is_initialized() == was_there, "bad input is refused before Ray starts"


def test_the_report_ranks_trials_and_names_those_that_failed() -> None:
    def trial(name: str, depth: int, uar: float, loss: float) -> SearchTrial:
        epoch = {"epoch": 0.0, METRIC: uar, "validation_loss": loss, "seconds": 1.0}
        return SearchTrial(
            trial_id=name,
            settings={"model.scorer_depth": depth, "model.scorer_sizes": [8, depth]},
            epochs=[epoch, {**epoch, "epoch": 1.0, METRIC: uar - 0.1}],
        )

    broken = SearchTrial(trial_id="broken", settings={"model.scorer_depth": 3}, error="diverged")
    trials = [trial("a", 1, 0.5, 2.0), trial("b", 2, 0.75, 2.0), trial("c", 2, 0.75, 1.0), broken]
    assert [t.trial_id for t in search_report.ranked(trials, METRIC)] == ["c", "b", "a"]
    table = search_report.trials_table(trials, METRIC).to_pylist()
    assert [row["status"] for row in table] == ["ok", "ok", "ok", "failed"]
    assert table[0]["best_epoch"] == 0
    assert table[0]["model.scorer_sizes"] == "[8, 1]"
    report = search_report.report_markdown(trials, METRIC, 9)
    assert "broken: diverged" in report
    assert "| all | 50.0 (1) | 75.0 (2) |" in report


def test_features_of_face_crops_are_refused_for_models_of_whole_frames(
    features: str, tmp_path: Path
) -> None:
    crops = str(tmp_path / "features")
    storage.copy_folder(features, crops)
    record = storage.read_json(f"{crops}/run.json")
    storage.write_json(f"{crops}/run.json", record | {"face_crops": "dfew"})
    whole = train.Job(features=crops, output=str(tmp_path / "model"), model=SMALL)
    some = reproduce.Job(features=crops, output=str(tmp_path / "r"), systems=("faa", "caa"))
    space = job_of(crops, tmp_path, "model.modality: [face, fusion]")
    for job, main in ((whole, train.main), (some, reproduce.main), (space, tune.main)):
        with pytest.raises(InputError, match="`dfew` holds cut-out faces only"):
            main(job)  # type: ignore[operator]
