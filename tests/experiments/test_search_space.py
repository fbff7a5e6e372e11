"""Search spaces: every shipped one fits the options, and mistakes are named."""

from pathlib import Path

import pytest

from caan.errors import InputError
from caan.experiments import search_space
from jobs import tune
from jobs.runtime import search_setup

SPACES = sorted((Path(__file__).resolve().parents[2] / "tune_spaces").glob("*.yaml"))
JOB = tune.Job(features=("features",), output="search", space="space.yaml")


def checked(text: str) -> tuple[search_space.Axis, ...]:
    axes = search_space.parse_space(text, "s.yaml")
    search_space.check_space(axes, lambda settings: search_setup.try_head(JOB, settings), "s.yaml")
    return axes


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_fits_the_options_and_opens_with_its_command(path: Path) -> None:
    text = path.read_text()
    assert checked(text)
    assert text.startswith("# python -m jobs.tune --features ")
    assert f"--space tune_spaces/{path.name}" in text.splitlines()[0]


def test_there_are_the_four_spaces_and_the_papers_is_table_2() -> None:
    assert [path.stem for path in SPACES] == ["backbone", "fusion", "losses", "paper"]
    paper = {axis.option: axis.values for axis in checked(SPACES[-1].read_text())}
    assert paper["model.scorer_depth"] == (1, 2, 3)
    assert set(paper["model.modality"]) == {"fusion", "face", "context"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.scorer_dept: [1]", "did you mean `model.scorer_depth`"),
        ("train.losses.triplet_wieght: {uniform: [0, 1]}", "`train.losses.triplet_weight`"),
        ("model.scorer_depth: [deep]", "takes int"),
        ("model.scorer_depth: [1, 9]", "scorer"),
        ("model.fusion: [concat, addition]", "addition"),
        ("train.optimizer: [adam, adamm]", "adamm"),
        ("train.epochs: {randint: [0, 5]}", "epochs"),
        ("model.num_clusters: [4]", "no effect on model `caan`"),
        ("train.learning_rate: {logunifrom: [1e-5, 1e-3]}", "did you mean `loguniform`"),
        ("train.learning_rate: {loguniform: [0, 1e-3]}", "above 0"),
        ("train.learning_rate: {uniform: [1, 0]}", "the lower first"),
        ("train.batch_videos: {randint: [1.5, 3]}", "two whole numbers"),
        ("train.learning_rate: 0.1", "give a list"),
        ("train.learning_rate: []", "takes a list"),
        ("- a", "must name options"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_are_refused_by_name(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=r"space `s\.yaml`") as caught:
        checked(text)
    assert expected in str(caught.value)


def test_numbers_without_a_point_are_numbers() -> None:
    (axis,) = checked("train.learning_rate: {loguniform: [1e-5, 1e-3]}")
    assert axis.values == (1e-5, 1e-3)
    assert checked("train.learning_rate: [1e-4]")[0].values == (1e-4,)


def test_a_grid_needs_lists_and_a_population_options_that_may_change() -> None:
    grid = checked("model.scorer_depth: [1, 2]\ntrain.seed: [0, 1, 2]")
    assert search_space.grid_size(grid) == 6
    with pytest.raises(InputError, match="scorer_depth"):
        search_space.check_population(grid)
    sampled = checked("train.learning_rate: {uniform: [0.1, 0.2]}")
    with pytest.raises(InputError, match="learning_rate"):
        search_space.grid_size(sampled)
    search_space.check_population(sampled)


def test_concurrency_follows_from_the_resources() -> None:
    def fitting(cpus: float, gpus: float, cpu: float, gpu: float) -> int:
        return search_space.max_concurrent(
            num_cpus=cpus, num_gpus=gpus, cpus_per_trial=cpu, gpus_per_trial=gpu
        )

    assert fitting(8, 0, 2, 0) == 4
    assert fitting(64, 2, 1, 0.25) == 8
    assert fitting(3, 8, 1, 1) == 3
    for impossible in ((2, 0, 4, 0), (8, 0, 1, 1), (8, 0, 0, 0)):
        with pytest.raises(InputError, match="a trial asks for"):
            fitting(*impossible)
