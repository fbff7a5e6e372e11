"""Three kills of real jobs on a local cluster of three raylets, by the script that records more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = ("raylet/extract/any", "driver/extract/uncommitted", "machine/extract/commit")


@pytest.mark.ray
@pytest.mark.slow
def test_tables_after_kills_equal_undisturbed_ones(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability", "--record", str(record), "kills",
         "--kills", *KILLS],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    runs = json.loads(record.read_text())["kills"]["runs"]
    assert len(runs) == len(KILLS)
    for run in runs:
        assert (run["lost"], run["doubled"], run["verified"]) == (0, 0, "whole"), run
        assert run["rows"] > 20
