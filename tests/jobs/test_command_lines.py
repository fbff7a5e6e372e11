"""The command lines: help of every job, without the modules that take seconds to import."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest

from caan.datasets.registry import DATASETS
from caan.schema import LABEL_SETS
from jobs import annotate, index
from jobs.runtime import cli

ROOT = Path(__file__).resolve().parents[2]

JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))

HEAVY = ("cv2", "matplotlib", "pandas", "ray", "scipy", "sklearn", "torch", "torchvision")

HELP = """
import atexit, runpy, sys
sys.argv = ["job", "--help"]
atexit.register(lambda: print("LOADED", *sys.modules))
runpy.run_module("jobs.{job}", run_name="__main__", alter_sys=True)
"""


def run_python(code: str) -> str:
    """What a new Python prints that runs `code`."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("job", JOBS)
def test_help_of_every_job_is_light_and_gives_an_example(job: str) -> None:
    page, _, modules = run_python(HELP.format(job=job)).partition("LOADED")
    assert page.startswith(f"usage: python -m jobs.{job} ")
    assert page.count(f"python -m jobs.{job}") > 1
    assert not set(HEAVY) & set(modules.split())


@pytest.mark.parametrize(
    "module",
    ["caan.media.sandbox", "caan.extraction.segment", "caan.outputs.layout"],
)
def test_a_decoding_child_and_a_writer_of_rows_are_light(module: str) -> None:
    modules = run_python(f"import sys, {module}\nprint(*sys.modules)").split()
    assert not set(HEAVY) - {"cv2"} & set(modules)


def test_what_an_actor_of_a_dataset_is_unpickled_from_is_light() -> None:
    modules = run_python("import sys, jobs.runtime.stages\nprint(*sys.modules)").split()
    assert not set(HEAVY) - {"ray"} & set(modules)


def test_choices_are_those_that_the_library_knows() -> None:
    assert get_args(index.Layout) == tuple(DATASETS)
    assert get_args(annotate.LabelSet) == tuple(LABEL_SETS)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Options inside."""

    depth: int = 1
    """Depth."""
    width: int = 2
    """Width."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of a job of this test."""

    rare: int = 0
    """Rare."""
    output: str
    """Output."""
    inner: Inner = field(default_factory=Inner)
    """Inner options."""


def test_help_shows_the_first_options_in_order_and_help_all_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def page(option: str) -> str:
        with pytest.raises(SystemExit):
            cli.run_job(Job, lambda job: 0, [option], first=("output", "inner.width"))
        return capsys.readouterr().out

    short, whole = page("--help"), page("--help-all")
    assert short.index("--output") < short.index("--inner.width")
    assert not [o for o in ("--rare", "--inner.depth") if o in short]
    assert "--help-all" in short
    assert all(o in whole for o in ("--rare", "--output", "--inner.depth", "--inner.width"))


def test_options_that_help_hides_are_valid() -> None:
    def main(job: Job) -> int:
        return 10 * job.rare + job.inner.depth

    arguments = ["--rare", "3", "--output", "o", "--inner.depth", "4"]
    assert cli.run_job(Job, main, arguments, first=("output",)) == 34
