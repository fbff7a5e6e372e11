"""The embedding stage: images -> features, by both networks."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from caan.arrow import flat_list, image_stack, vector_array
from caan.backbones.backbone import Backbone, embed_images, keep_freed_memory
from caan.backbones.build import load_backbone
from caan.extraction.config import ExtractionConfig
from caan.extraction.images import IMAGE_SIZE
from caan.faces.build import load_detector
from caan.schema import features_schema


class SegmentEmbedder:
    """Images -> features: both networks over fixed-size micro-batches that cross segments."""

    def __init__(
        self,
        config: ExtractionConfig,
        modalities: Sequence[str],
        device: str,
        batch_size: int,
        num_threads: int,
        *,
        maps: Sequence[str] = (),
    ) -> None:
        """Load the backbones of `modalities` on `device`.

        Args:
            config: which backbones.
            modalities: face, context or both; vectors of the other are null, of length one.
            device: as torch names it.
            batch_size: images per pass of a network.
            num_threads: threads of torch in this process.
            maps: modalities whose pool5 maps are kept too.
        """
        torch.set_num_threads(num_threads)
        if device == "cpu":
            keep_freed_memory()
        self.maps = tuple(maps)
        self.face = self.context = None
        if "face" in modalities:
            self.face = load_backbone(config.backbone_config("face"), device)
        if "context" in modalities:
            self.context = load_backbone(config.backbone_config("context"), device)
        self.batch_size = batch_size
        self.fps = config.fps
        self.schema = features_schema(
            self.face.dim if self.face else 1,
            self.context.dim if self.context else 1,
            **{f"{name}_pool5": math.prod(getattr(self, name).map_shape) for name in self.maps},
        )
        self.counts: dict[str, float] = {}

    def take_counts(self) -> dict[str, float]:
        """Segments, frames, images, micro-batches and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """IMAGES_SCHEMA -> features, a row for a row."""
        frames, frame_offsets = flat_list(table["frames"])
        faces, face_offsets = flat_list(table["faces"])
        start = time.perf_counter()
        context_vectors, context_maps = self._embed("context", frames.field("picture"))
        face_vectors, face_maps = self._embed("face", faces.field("picture"))
        self.counts |= {
            "segments": table.num_rows,
            "frames": len(frames),
            "faces": len(faces),
            "video_seconds": len(frames) / self.fps,
            "seconds_networks": time.perf_counter() - start,
        }
        frame_rows = pa.StructArray.from_arrays(
            [frames.field("frame_index"), frames.field("pts_seconds"), context_vectors],
            fields=list(self.schema.field("frames").type.value_type),
        )
        face_rows = pa.StructArray.from_arrays(
            [*(faces.field(n) for n in ("frame_index", "box", "score")), face_vectors],
            fields=list(self.schema.field("faces").type.value_type),
        )
        columns = {name: table[name] for name in self.schema.names if name in table.column_names}
        columns["frames"] = pa.ListArray.from_arrays(frame_offsets, frame_rows)
        columns["faces"] = pa.ListArray.from_arrays(face_offsets, face_rows)
        if face_maps is not None:
            columns["face_pool5"] = pa.ListArray.from_arrays(face_offsets, face_maps)
        if context_maps is not None:
            columns["context_pool5"] = pa.ListArray.from_arrays(frame_offsets, context_maps)
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

    def _embed(
        self, kind: str, images: pa.Array
    ) -> tuple[pa.FixedSizeListArray, pa.FixedSizeListArray | None]:
        backbone: Backbone | None = getattr(self, kind)
        if backbone is None:
            none = np.zeros((len(images), 1), np.float16)
            return vector_array(none, np.ones(len(images), bool)), None
        given = images.is_valid().to_numpy(zero_copy_only=False)
        stack = image_stack(images.drop_null(), IMAGE_SIZE)
        vectors = np.zeros((len(images), backbone.dim), np.float16)
        maps = None
        if kind in self.maps:
            maps = np.zeros((len(stack), *backbone.map_shape), np.float16)
        if len(stack):
            vectors[given], num_batches = embed_images(backbone, stack, self.batch_size, maps)
            self._count("pictures", len(stack))
            self._count("batch_places", num_batches * self.batch_size)
        if maps is None:
            return vector_array(vectors, ~given), None
        if not given.all():
            spread = np.zeros((len(images), *backbone.map_shape), np.float16)
            spread[given] = maps
            maps = spread
        flat = maps.reshape(len(maps), math.prod(backbone.map_shape))
        return vector_array(vectors, ~given), vector_array(flat, ~given)

    def _count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value


def describe_networks(
    config: ExtractionConfig,
    modalities: Sequence[str] = ("face", "context"),
    *,
    maps: Sequence[str] = (),
) -> dict[str, Any]:
    """Names, weights fingerprints and dimensions of detector and backbones, for run.json.

    Loads each once on the CPU: a missing weight file then ends the job before it starts. `maps`
    names the modalities whose pool5 maps are kept; their shapes are added.
    """
    found: dict[str, Any] = {"detector": load_detector(config.detector_config()).identity}
    for kind in modalities:
        backbone = load_backbone(config.backbone_config(kind))  # type: ignore[arg-type]
        found[f"{kind}_backbone"] = backbone.identity
        found[f"{kind}_dim"] = backbone.dim
        found[f"{kind}_is_random"] = backbone.is_random
        if kind in maps:
            found[f"{kind}_pool5_shape"] = list(backbone.map_shape)
    return found


def bytes_per_frame(networks: dict[str, Any]) -> int:
    """Bytes of the features of a frame with one face, from `describe_networks`."""
    sizes = [networks.get(f"{kind}_dim", 0) for kind in ("face", "context")]
    maps = [networks.get(f"{kind}_pool5_shape", [0]) for kind in ("face", "context")]
    return 2 * (sum(sizes) + sum(math.prod(shape) for shape in maps))
