"""Which videos train a model and which are held out to choose its best epoch."""

from dataclasses import dataclass

import numpy as np

from caan.datasets.splits import num_held_out
from caan.errors import InputError
from caan.features.packed import PackedVideos


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which videos train a model and which are held out."""

    split: str = "train"
    """Split of the manifest to train on; where it names none, all labelled videos."""
    fraction: float = 0.15
    """Share of them held out, unless the manifest has a split `val`."""
    seed: int = 0
    """Seed of the part that is held out."""


def divided(videos: PackedVideos, division: Division) -> tuple[PackedVideos, PackedVideos]:
    """Training and validation videos, the usable ones.

    Raises:
        InputError: nothing to train on.
    """
    train = videos.split(division.split) if (videos.splits_V != "").any() else videos
    if (videos.splits_V == "val").any() and division.split != "val":
        validation = videos.split("val").usable()
        train = train.usable()
    else:
        train, validation = split_validation(train, fraction=division.fraction, seed=division.seed)
    if not len(train):
        raise InputError(
            f"no video of split `{division.split}` has both a label and a face: there is nothing "
            "to train on."
        )
    return train, validation


def split_validation(
    videos: PackedVideos, *, fraction: float = 0.15, seed: int = 0
) -> tuple[PackedVideos, PackedVideos]:
    """Training and validation part of the usable videos, the same share of every class.

    Each class keeps at least one training video and, with two or more, gives at least one.

    Raises:
        InputError: a fraction outside 0 to 1.
    """
    videos = videos.usable()
    rng = np.random.default_rng(seed)
    in_validation = np.zeros(len(videos), dtype=bool)
    for label in np.unique(videos.labels_V):
        members = rng.permutation(np.flatnonzero(videos.labels_V == label))
        in_validation[members[: num_held_out(len(members), fraction)]] = True
    return videos.select(~in_validation), videos.select(in_validation)
