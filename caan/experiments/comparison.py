"""The data that the systems of the paper are compared on: packed features and their divisions."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from caan import storage
from caan.datasets.registry import face_crops_of, require_context
from caan.errors import InputError
from caan.experiments.trials import FROM_POOL5, SYSTEMS, apply_splits, modalities_of
from caan.features import leakage
from caan.features.packed import PackedVideos, add_maps, pack_features
from caan.outputs import layout
from caan.outputs.plan import check_manifest
from caan.schema import label_set_of


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
    run_file = storage.join(features, "run.json")
    if not storage.exists(run_file):
        raise InputError(f"`{features}` holds no features: it has no run.json.")
    record = storage.read_json(run_file)
    if not record.get("is_complete") or record.get("job") != "extract":
        raise InputError(
            f"the features in `{features}` are not finished: run the same jobs.extract again."
        )
    uris = manifests or (storage.join(features, "manifest.parquet"),)
    read = [storage.read_table(uri) for uri in uris]
    checked = [check_manifest(table, uri) for table, uri in zip(read, uris, strict=True)]
    face_crops = record.get("face_crops") or face_crops_of(read[0])
    for name in systems or SYSTEMS:
        require_context(face_crops, modalities_of(name))
    labels = [label for label in checked[0]["label"].to_pylist() if label]
    if not labels:
        raise InputError(f"manifest `{uris[0]}` has no labels: there is nothing to compare.")
    columns = ["segment_id", "video_id", "attempt", "frames", "faces"]
    labelled = checked[0].filter(pc.is_valid(checked[0]["label"]))
    packed = pack_features(
        layout.latest_segments(features, "features", columns), labelled, label_set_of(labels)
    )
    shapes = {
        name: shape
        for name in ("face", "context")
        if (shape := record.get("identity", {}).get(f"{name}_pool5_shape"))
    }
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
        columns += [f"{name}_pool5" for name in sorted(needed)]
        packed = add_maps(
            packed,
            layout.latest_segments(features, "features", columns),
            {name: shapes[name] for name in sorted(needed)},
            max_bytes=int(pool5_gib * 2**30),
        )
    seen = leakage.read_beside(features)
    splits_DV = {}
    for number, (uri, manifest) in enumerate(zip(uris, checked, strict=True)):
        honest = leakage.honest_splits(manifest, seen, train_split)
        splits_DV[f"split{number}"] = apply_splits(packed, honest, uri).splits_V
    return ComparisonData(
        videos=packed,
        splits_DV=splits_DV,
        systems=chosen,
        fingerprint=record["fingerprint"],
    )
