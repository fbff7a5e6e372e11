"""Fixtures of the tests of opening and sampling."""

from pathlib import Path

import pytest

from tests.support.videos import FORMATS, compose


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One video of 5 seconds in every container."""
    folder = tmp_path_factory.mktemp("videos")
    for suffix, (codec, options) in FORMATS.items():
        compose(folder / f"video.{suffix}", codec, options)
    return {suffix: folder / f"video.{suffix}" for suffix in FORMATS}
