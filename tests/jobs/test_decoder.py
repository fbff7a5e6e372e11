"""The option --decoder of extract and label."""

import pytest
import ray

from caan.errors import InputError
from jobs import extract, label


@pytest.mark.parametrize("job", [extract, label])
def test_a_missing_decord_ends_the_job_before_ray_starts(job, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    was_running = ray.is_initialized()
    options = job.Job(manifest="m.parquet", output=str(tmp_path / "out"), decoder="decord")
    with pytest.raises(InputError, match="--decoder decord needs the package decord"):
        job.main(options)
    assert ray.is_initialized() == was_running
    assert not (tmp_path / "out").exists()
