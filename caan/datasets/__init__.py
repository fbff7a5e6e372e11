"""Readers of data sets: what lies somewhere -> manifest rows, by name."""

from collections.abc import Callable, Iterable
from typing import Any

from caan.datasets.folder import read_folder

DATASETS: dict[str, Callable[[str], Iterable[dict[str, Any]]]] = {
    "folder": read_folder,
}

__all__ = ["DATASETS"]
