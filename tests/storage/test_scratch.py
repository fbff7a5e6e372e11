"""Temporary files of processes that are killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

from caan.storage.scratch import MIN_AGE_SECONDS, PREFIX, scratch_file, sweep

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from caan.storage.scratch import scratch_file
with scratch_file(sys.argv[1]) as path:
    print(path, flush=True)
    time.sleep(60)
"""


def age(path: str) -> None:
    long_ago = time.time() - 2 * MIN_AGE_SECONDS
    os.utime(path, (long_ago, long_ago))


def test_a_scratch_file_is_gone_at_the_end(tmp_path: Path) -> None:
    with scratch_file(str(tmp_path), ".mp4") as path:
        assert path.endswith(".mp4")
        assert Path(path).exists()
    assert os.listdir(tmp_path) == []


def test_only_files_of_killed_processes_are_swept(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("mine")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    path = holder.stdout.readline().strip()
    age(path)
    assert sweep(str(tmp_path)) == 0
    holder.kill()
    holder.wait()
    assert Path(path).exists()
    fresh = tmp_path / f"{PREFIX}fresh"
    fresh.write_text("its lock may come in a moment")
    assert sweep(str(tmp_path)) == 1
    assert sorted(os.listdir(tmp_path)) == sorted(["letter", fresh.name])
