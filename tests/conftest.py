"""Fixtures shared by the tests: real material when it lies beside the checkout."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _beside(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs {path.name} in a folder `shared` beside the checkout")
    return path


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """Folder of real clips that are not part of the repository."""
    return _beside(SHARED / "clips")


@pytest.fixture(scope="session")
def fer2013() -> Path:
    """Parquet of labelled face photographs that is not part of the repository."""
    return _beside(SHARED / "data" / "fer2013.parquet")


@pytest.fixture(scope="session")
def make_corpus() -> Path:
    """Script that composes labelled videos; not part of the repository."""
    return _beside(SHARED / "tools" / "make_corpus.py")
