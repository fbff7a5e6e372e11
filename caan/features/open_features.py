"""Open the features of a finished jobs.extract: its record, manifest and files, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from caan import storage
from caan.datasets.registry import face_crops_of
from caan.errors import InputError
from caan.faces.detection import NoFace
from caan.features import leakage
from caan.features.packed import PackedVideos
from caan.features.packing import add_maps, pack_features
from caan.outputs import layout
from caan.outputs.plan import check_manifest
from caan.schema import label_set_of

COLUMNS = ("segment_id", "video_id", "frames", "faces")
"""Columns of the features that packing reads."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of one finished run of jobs.extract with the labels of one or more manifests."""

    uri: str
    """Output folder of jobs.extract."""
    record: dict[str, Any]
    """Its run.json; `face_crops` names the data set of cut-out faces, empty if there is none."""
    manifest_uris: tuple[str, ...]
    """Where the manifests lie."""
    manifests: tuple[pa.Table, ...]
    """MANIFEST_SCHEMA: the features' own manifest, or those that were named."""
    label_set: tuple[str, ...]
    """Emotions of the first manifest."""

    def honest_manifest(self, number: int, split: str) -> pa.Table:
        """A manifest whose `split` lacks what fine-tuned backbones held out.

        Raises:
            InputError: the backbones have seen videos that are to be judged.
        """
        seen = leakage.read_beside(self.uri)
        return leakage.honest_splits(self.manifests[number], seen, split)

    def pack(
        self, manifest: pa.Table, *, no_face: NoFace = "drop", folder: Path | None = None
    ) -> PackedVideos:
        """The manifest's videos as `pack_features` gives them, mapped from `folder` if given."""
        tables = layout.read_rows(self.uri, "features", list(COLUMNS))
        return pack_features(tables, manifest, self.label_set, no_face=no_face, folder=folder)

    def map_shapes(self) -> dict[str, list[int]]:
        """Channels, height and width of the pool5 maps that were extracted, by modality."""
        identity = self.record.get("identity", {})
        shapes = {name: identity.get(f"{name}_pool5_shape") for name in ("face", "context")}
        return {name: shape for name, shape in shapes.items() if shape}

    def with_maps(
        self,
        videos: PackedVideos,
        modalities: Sequence[str],
        *,
        max_gib: float,
        folder: Path | None = None,
    ) -> PackedVideos:
        """The packed videos with the pool5 maps of these modalities, which must be there.

        Raises:
            InputError: the maps would take more than `max_gib` of memory.
        """
        shapes = self.map_shapes()
        columns = [*COLUMNS, *(f"{name}_pool5" for name in modalities)]
        return add_maps(
            videos,
            layout.read_rows(self.uri, "features", columns),
            {name: shapes[name] for name in modalities},
            max_bytes=int(max_gib * 2**30),
            folder=folder,
        )


def open_features(features: str, manifests: Sequence[str] = ()) -> Features:
    """Open the output folder of jobs.extract; without `manifests` with its own manifest.

    Raises:
        InputError: no features, an unfinished extraction, or a manifest without labels.
    """
    run_file = storage.join(features, "run.json")
    if not storage.exists(run_file):
        raise InputError(f"`{features}` holds no features: it has no run.json.")
    record = storage.read_json(run_file)
    if not record.get("is_complete") or record.get("job") != "extract":
        raise InputError(
            f"the features in `{features}` are not finished: run the same jobs.extract again."
        )
    layout.check_format(features, record)
    uris = tuple(manifests) or (storage.join(features, "manifest.parquet"),)
    tables = [storage.read_table(uri) for uri in uris]
    record["face_crops"] = record.get("face_crops") or face_crops_of(tables[0])
    checked = tuple(check_manifest(table, uri) for table, uri in zip(tables, uris, strict=True))
    labels = [label for label in checked[0]["label"].to_pylist() if label]
    if not labels:
        raise InputError(
            f"manifest `{uris[0]}` has no labels: put videos into folders named after their "
            "emotions, or give a list with a column `label`."
        )
    return Features(
        uri=features,
        record=record,
        manifest_uris=uris,
        manifests=checked,
        label_set=label_set_of(labels),
    )
