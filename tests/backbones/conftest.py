"""Fixtures of the tests of weight files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from caan.backbones.vgg import Vgg
from caan.backbones.weight_formats import TORCHVISION_NAMES

WIDTHS = (4, 4, 4, 6, 8)
NUM_FEATURES = 10


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def layers() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random weights of a narrow VGG with a 2x2 last map, by the papers' layer names."""
    torch.manual_seed(0)
    network = Vgg(WIDTHS, grid=2, num_features=NUM_FEATURES)
    state = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    generator = np.random.default_rng(0)
    state["classifier.3.weight"] = generator.normal(size=(9, NUM_FEATURES)).astype(np.float32)
    state["classifier.3.bias"] = generator.normal(size=9).astype(np.float32)
    state["classifier.6.weight"] = generator.normal(size=(7, 9)).astype(np.float32)
    state["classifier.6.bias"] = generator.normal(size=7).astype(np.float32)
    return {
        name: (state[f"{target}.weight"], state[f"{target}.bias"])
        for name, target in TORCHVISION_NAMES.items()
    }
