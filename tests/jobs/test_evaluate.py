"""jobs.evaluate as a program, on tables by hand."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from caan import storage
from caan.schema import MANIFEST_SCHEMA, table_of
from jobs import evaluate
from jobs.runtime import cli


def write_tables(folder: Path) -> tuple[str, str]:
    """A manifest and labels with the fewest columns that a user may write by hand."""
    rows = [
        {"video_id": str(i), "uri": f"{i}.mp4", "label": "joy", "split": "test" if i else "train"}
        for i in range(4)
    ]
    storage.write_table(table_of(rows, MANIFEST_SCHEMA), folder / "manifest.parquet")
    labels = pa.table({"video_id": ["0", "1", "2"], "label": ["joy", "happiness", "fear"]})
    storage.write_table(labels, folder / "labels.parquet")
    return str(folder / "labels.parquet"), str(folder / "manifest.parquet")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.evaluate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_labels_by_hand_give_a_report_of_one_split(tmp_path: Path) -> None:
    labels, manifest = write_tables(tmp_path)
    output = str(tmp_path / "report")
    done = run("--labels", labels, "--manifest", manifest, "--output", output, "--split", "test")
    assert done.returncode == 0, done.stderr
    figures = storage.read_json(f"{output}/metrics.json")
    assert "happiness" not in figures["label_set"]
    assert figures["all_videos"]["accuracy"] == pytest.approx(1 / 3)
    assert figures["predicted_videos"]["accuracy"] == pytest.approx(1 / 2)
    assert storage.read_json(f"{output}/run.json")["config"]["split"] == "test"
    assert f"{output}/report.html" in done.stderr + done.stdout


def test_a_split_that_is_not_there_ends_with_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, manifest = write_tables(tmp_path)
    output = str(tmp_path / "report")
    options = ["--labels", labels, "--manifest", manifest, "--output", output, "--split", "dev"]
    assert cli.run_job(evaluate.Job, evaluate.main, options) == 2
    assert capsys.readouterr().err == (
        "error: no manifest row has the split `dev`; there are test, train.\n"
    )
    assert not Path(output, "metrics.json").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": "nowhere"}, "nothing is at"),
        ({"manifest": "nowhere.parquet"}, "no manifest is at"),
        ({"labels": "manifest.parquet", "manifest": "labels.parquet"}, "no column `uri`"),
        ({"num_strips": -1}, "--num-strips -1"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, changes: dict, sentence: str) -> None:
    write_tables(tmp_path)
    options = {"labels": "labels.parquet", "manifest": "manifest.parquet", "output": "report"}
    paths = {name: str(tmp_path / name_of) for name, name_of in options.items()}
    for name, value in changes.items():
        paths[name] = value if isinstance(value, int) else str(tmp_path / value)
    with pytest.raises(ValueError, match=sentence):
        evaluate.main(evaluate.Job(**paths))
