"""docs/results.md is what the records in benchmarks/results give."""

import subprocess
import sys
from pathlib import Path


def test_the_page_of_results_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", "--check"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
