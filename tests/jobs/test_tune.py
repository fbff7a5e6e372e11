"""A search as a user runs it, and what it refuses."""

import dataclasses
import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest
import ray

from caan import storage
from caan.errors import InputError
from caan.experiments import search_report, search_space
from caan.experiments.search_report import SearchTrial
from caan.models.checkpoint import load_model
from caan.models.config import ModelConfig
from caan.training.config import TrainConfig
from jobs import reproduce, train, tune
from jobs.runtime.search import callbacks_of, search
from jobs.runtime.search_setup import check_options, read_features
from jobs.tune import Job
from tests.support.feature_files import write_features

DIM, LABELS = 12, ("anger", "joy")
SMALL = ModelConfig(projection_size=8, fusion_size=16, feature_size=8, scorer_sizes=(4, 4))
METRIC = "validation_uar"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty videos of three frames whose vectors tell two emotions."""
    return write_features(tmp_path_factory.mktemp("features"), LABELS, dim=DIM)


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


@pytest.mark.ray
@pytest.mark.slow
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
    assert len(list(tmp_path.glob("search/trials/*/events.out.tfevents*"))) == 2, "TensorBoard"
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


@pytest.mark.ray
@pytest.mark.slow
def test_optuna_draws_the_trials_and_goes_on_where_it_was(
    features: str, running_ray: None, tmp_path: Path
) -> None:
    space = "train.learning_rate: {loguniform: [1.0e-4, 1.0e-1]}\nmodel.scorer_depth: [1, 2]\n"
    job = job_of(features, tmp_path, space, searcher="optuna", num_trials=3)
    assert tune.main(job) == 0
    table = storage.read_table(tmp_path / "search/trials.parquet")
    assert table["status"].to_pylist() == ["ok"] * 3
    assert len(set(table["train.learning_rate"].to_pylist())) == 3
    assert tune.main(dataclasses.replace(job, resume=True)) == 0
    again = storage.read_table(tmp_path / "search/trials.parquet")
    columns = ["trial_id", "train.learning_rate", METRIC]
    assert again.select(columns).sort_by("trial_id") == table.select(columns).sort_by("trial_id")


@pytest.mark.ray
@pytest.mark.slow
def test_a_population_copies_weights_and_ends_in_a_model(
    features: str, running_ray: None, tmp_path: Path
) -> None:
    space = "train.learning_rate: {loguniform: [1.0e-6, 1.0e-1]}\n"
    job = job_of(features, tmp_path, space, scheduler="pbt", num_trials=4, perturbation_epochs=1)
    assert tune.main(job) == 0
    table = storage.read_table(tmp_path / "search/trials.parquet")
    assert table["status"].to_pylist() == ["ok"] * 4
    best = max(table[METRIC].to_pylist())
    assert load_model(tmp_path / "search/model").metrics["validation"][METRIC] >= best - 0.2


@pytest.mark.ray
@pytest.mark.slow
def test_trials_of_several_workers_run_ray_train_inside(
    features: str, running_ray: None, tmp_path: Path
) -> None:
    space = "model.scorer_depth: [2]\n"
    job = job_of(
        features, tmp_path, space, searcher="grid", workers_per_trial=2, cpus_per_trial=0.5
    )
    assert tune.main(job) == 0
    table = storage.read_table(tmp_path / "search/trials.parquet")
    assert table["status"].to_pylist() == ["ok"]
    assert table["num_epochs"].to_pylist() == [4]
    assert load_model(tmp_path / "search/model").metrics["validation"][METRIC] > 0.5


@pytest.mark.ray
@pytest.mark.slow
def test_the_object_store_does_not_fill_with_the_number_of_trials(
    features: str, running_ray: None, tmp_path: Path
) -> None:
    job = job_of(features, tmp_path, "train.seed: [0, 1, 2, 3]\n")
    (data,) = read_features(job, check_options(job)).values()
    padding = np.zeros((20_000_000 // DIM, DIM), np.float16)
    face_ND = np.concatenate([data.train.face_ND, padding])
    large = dataclasses.replace(data, train=dataclasses.replace(data.train, face_ND=face_ND))
    most = {}
    for num_trials in (2, 4):
        one = dataclasses.replace(
            job, num_trials=num_trials, output=str(tmp_path / str(num_trials))
        )
        axes = search_space.parse_space((tmp_path / "space.yaml").read_text(), "s")
        with Watcher() as watcher:
            results = search(one, axes, {features: large}, num_parallel=2, gpus=0.0)
        assert len(results) == num_trials
        most[num_trials] = watcher.most - watcher.least
    # Ray's count of used memory lags, so that a short search may show less than its features.
    assert max(most.values()) < 1.5 * padding.nbytes, "the features are there once at most"


class Watcher:
    """Greatest and least use of the object store, in bytes, while it watches."""

    def __enter__(self) -> "Watcher":
        self.most, self.least = 0.0, float("inf")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        name = "object_store_memory"
        while not self._over.wait(0.05):
            used = ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0)
            self.most, self.least = max(self.most, used), min(self.least, used)


@pytest.mark.ray
def test_more_than_the_cluster_has_is_refused(
    features: str, running_ray: None, tmp_path: Path
) -> None:
    job = job_of(features, tmp_path, "model.scorer_depth: [1]\n", cpus_per_trial=1000.0)
    with pytest.raises(InputError, match=r"a trial asks for 1000 CPUs.*lower --cpus-per-trial"):
        tune.main(job)


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


def test_mlflow_gets_the_trials_or_is_said_to_be_missing(features: str, tmp_path: Path) -> None:
    job = job_of(features, tmp_path, "train.seed: [1, 2]", mlflow=f"file:{tmp_path}/mlruns")
    if importlib.util.find_spec("mlflow") is None:
        with pytest.raises(InputError, match="needs the package `mlflow`"):
            check_options(job)
        return
    _, callback = callbacks_of(job, METRIC)
    callback.setup()  # type: ignore[attr-defined]
    assert (tmp_path / "mlruns").exists()
