"""An output folder of each kind of storage."""

from pathlib import Path

import pytest

from caan import storage


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an output folder that is not there yet."""
    if request.param == "local":
        return str(tmp_path / "out")
    return storage.join(request.getfixturevalue("s3_bucket"), "out")
