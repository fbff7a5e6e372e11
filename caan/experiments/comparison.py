"""The data that the systems of the paper are compared on: packed features and their divisions."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from caan.datasets.registry import require_context
from caan.errors import InputError
from caan.experiments.trials import FROM_POOL5, SYSTEMS, apply_splits, modalities_of
from caan.features.open_features import open_features
from caan.features.packed import PackedVideos


@dataclass(frozen=True, kw_only=True)
class ComparisonData:
    """What the systems are compared on."""

    videos: PackedVideos
    """All labelled videos, packed once, with the splits of the first division."""
    splits_DV: dict[str, np.ndarray]
    """The videos' splits by the name of the division."""
    systems: tuple[str, ...]
    """The systems to compare."""
    fingerprint: str
    """Fingerprint of the features' run."""

    def of_division(self, division: str) -> PackedVideos:
        """The videos with the splits of a division."""
        return dataclasses.replace(self.videos, splits_V=self.splits_DV[division])


def read_comparison(
    features: str,
    manifests: Sequence[str] = (),
    systems: Sequence[str] = (),
    *,
    train_split: str = "train",
    pool5_gib: float = 8.0,
) -> ComparisonData:
    """Read the videos with the splits of each manifest, and pool5 maps where a system needs them.

    Without `manifests` the features' own is read; without `systems` all are compared that these
    features allow. `pool5_gib` is the most memory for the maps.

    Raises:
        InputError: no finished features, no labels, manifests that disagree, or no pool5 maps for
            a system that was asked for.
    """
    opened = open_features(features, manifests)
    for name in systems or SYSTEMS:
        require_context(opened.record["face_crops"], modalities_of(name))
    labelled = opened.manifests[0].filter(pc.is_valid(opened.manifests[0]["label"]))
    packed = opened.pack(labelled)
    shapes = opened.map_shapes()
    chosen = tuple(systems) or tuple(
        name for name in SYSTEMS if FROM_POOL5.get(name, "") in ("", *shapes)
    )
    needed = {FROM_POOL5[name] for name in chosen if name in FROM_POOL5}
    if missing := sorted(needed - shapes.keys()):
        raise InputError(
            f"the systems {', '.join(n for n in chosen if FROM_POOL5.get(n) in missing)} need "
            f"pool5 maps of the {' and the '.join(missing)}, and the features in `{features}` "
            "have none: extract with `--pool5 both`, or leave these systems out."
        )
    if needed:
        packed = opened.with_maps(packed, sorted(needed), max_gib=pool5_gib)
    splits_DV = {}
    for number, uri in enumerate(opened.manifest_uris):
        honest = opened.honest_manifest(number, train_split)
        splits_DV[f"split{number}"] = apply_splits(packed, honest, uri).splits_V
    return ComparisonData(
        videos=packed,
        splits_DV=splits_DV,
        systems=chosen,
        fingerprint=opened.record["fingerprint"],
    )
