"""The stages of extraction, each `pa.Table -> pa.Table`: segments -> pictures -> features.

`SegmentDecoder` drives the sandboxed child (`caan.cutting`), `FaceCutter` detects on a GPU,
`SegmentEmbedder` runs the two networks. None of them knows Ray.
"""

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
import tyro

from caan import storage
from caan.arrow import flat_list, picture_stack, vector_array
from caan.attempts import AttemptLog
from caan.backbones.backbone import Backbone, BackboneConfig, embed_pictures, keep_freed_memory
from caan.backbones.build import load_backbone
from caan.cutting import (
    PICTURE_SIZE,
    CutConfig,
    cut_segment,
    face_row,
    scratch_folder,
    status_row,
    warm_up,
)
from caan.errors import Crashed, OutOfMemory, TimedOut, VideoError, redact
from caan.faces.build import load_detector
from caan.faces.crops import resize_context
from caan.faces.detection import Box, DetectorConfig, select_faces
from caan.media.sandbox import Sandbox
from caan.people.face_embedding import IdentityConfig, identify
from caan.schema import PICTURES_SCHEMA, features_schema, table_of
from caan.storage.scratch import scratch_file, sweep


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """What is read from each video; the features depend on all of it."""

    fps: float = 2.0
    """Sampled frames per second."""
    detector: Literal["retinaface", "libfacedetection", "faster_rcnn"] = "retinaface"
    """Face detector; faster_rcnn is the paper's, which jobs.finetune trains."""
    detector_weights: str = ""
    """Its weights: a local path or s3://; empty: the detector's own place for them."""
    min_face_score: float | None = None
    """Lowest score of a face, 0 to 1; empty: the detector's own default."""
    detect_size_pixels: int = 640
    """Longest side of the pictures that the detector sees."""
    face_backbone: str = "vggface"
    """Network for faces: vggface, starter_face, vgg16, ..."""
    face_weights: str = ""
    """Its weights: a path, s3://, `random`; empty: the official ones."""
    context_backbone: str = "vgg16"
    """Network for whole frames: vgg16, starter_context, ..."""
    context_weights: str = ""
    """Its weights, likewise."""
    face_policy: Literal["main", "marked", "all"] = "main"
    """Which faces: the main one of a frame, the one the manifest marks, or all."""
    no_face: Literal["drop", "context_only"] = "drop"
    """Frames without a face: left out (paper 4.1), or seen by the context network alone."""
    crop_expand: float = 1.2
    """Side of the square face crop over the longer side of the box."""
    max_faces_per_frame: int = 4
    """Most faces kept of one frame under face policy `all`."""
    segment_frames: int = 128
    """Most sampled frames of one segment, the unit of work and of resume."""
    cascade: bool = False
    """Look at key frames first and sample only where one shows a face, or where they are rare: for
    archives that mostly show nobody. A face between two key frames without one is missed."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the networks; auto: what is fast on the device."""
    seed: int = 0
    """Seed of weights that are `random`."""

    def detector_config(self) -> DetectorConfig:
        """The detector's own options."""
        return DetectorConfig(
            name=self.detector,
            weights=self.detector_weights,
            min_score=self.min_face_score,
            detect_size_pixels=self.detect_size_pixels,
        )

    def backbone_config(self, kind: Literal["face", "context"]) -> BackboneConfig:
        """One backbone's own options."""
        is_face = kind == "face"
        return BackboneConfig(
            name=self.face_backbone if is_face else self.context_backbone,
            weights=self.face_weights if is_face else self.context_weights,
            seed=self.seed,
            precision=self.precision,
        )

    def cut_config(self, *, detect_here: bool, identity: IdentityConfig | None = None) -> CutConfig:
        """What the decoding child needs; without a detector where one on a GPU comes later."""
        return CutConfig(
            fps=self.fps,
            detector=self.detector_config() if detect_here else None,
            detect_size_pixels=self.detect_size_pixels,
            face_policy=self.face_policy,
            max_faces_per_frame=self.max_faces_per_frame,
            no_face=self.no_face,
            crop_expand=self.crop_expand,
            look_detector=self.detector_config() if self.cascade else None,
            identity=identity,
        )


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """Limits on the decoding of one segment."""

    time_limit_seconds: float = 300.0
    """Wall-clock time of one try at one segment."""
    memory_limit_mb: int = 2500
    """Resident memory of the decoding child, in MiB."""
    spool_mb: int = 512
    """S3 objects up to this size are copied to local disk first; larger ones are read by ranges."""
    max_attempts: Annotated[int, tyro.conf.arg(aliases=("--max-attempts",))] = 3
    """Tries at one segment that cost its worker, or at one video that cost the decoding child
    (crash, time or memory limit), over resumes; then it is given up with that status."""


class SegmentDecoder:
    """Segments of the plan -> their pictures; every video error becomes the row's status."""

    def __init__(self, cut: CutConfig, limits: SandboxConfig, attempts_folder: str) -> None:
        self.cut = cut
        self.limits = limits
        self.attempts = AttemptLog(attempts_folder, limits.max_attempts)
        self.sandbox = Sandbox(
            initializer=functools.partial(warm_up, cut),
            time_limit_seconds=limits.time_limit_seconds,
            memory_limit_bytes=limits.memory_limit_mb << 20,
        )
        self.counts: dict[str, float] = {}
        for folder in {scratch_folder(), tempfile.gettempdir()}:
            sweep(folder)

    def take_counts(self) -> dict[str, float]:
        """Segments, videos and their bytes, failures and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """PLAN_SCHEMA -> PICTURES_SCHEMA, a row for a row."""
        return pa.concat_tables([self._decode(row) for row in table.to_pylist()])

    def _decode(self, request: dict[str, Any]) -> pa.Table:
        if request["known_status"]:
            result = status_row(request, request["known_status"], request["known_error"])
        else:
            result = self._try(request)
        status = result["status"][0].as_py()
        self._count("segments", 1)
        if self._is_first(request):
            self._count("videos", 1)
            self._count("bytes", request["size_bytes"] or 0)
        self._count("failed", status not in ("ok", "partial", "no_face"))
        self._count(f"status.{status}", 1)
        self._count("seconds_decode", result["seconds_decode"][0].as_py() or 0.0)
        self._count("seconds_detect", result["seconds_detect"][0].as_py() or 0.0)
        return result

    def _is_first(self, request: dict[str, Any]) -> bool:
        """Whether a video begins with this segment: it stands for the video in the counts."""
        return request["start_seconds"] - request["video_start_seconds"] < 1 / self.cut.fps

    def _count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value

    def _try(self, request: dict[str, Any]) -> pa.Table:
        try:
            self._check_unchanged(request)
            spool_bytes = self.limits.spool_mb << 20
            size_bytes = request["size_bytes"] or 0
            with storage.spooled(request["uri"], size_bytes, spool_bytes) as source:
                try:
                    # PyAV, not `auto`: on 720p H.264 with B-frames decord gave the same pictures
                    # for 1.4 (all of them) to 2.0 times (1 per second) the CPU time
                    # (benchmarks/decode.json), and it is the one that hangs (dmlc/decord 373, 375).
                    return self._cut(request | {"source": source}, "pyav")
                except (Crashed, TimedOut):
                    # In a fresh child, as what came before may have harmed the first.
                    return self._cut(request | {"source": source}, "pyav")
        except FileNotFoundError:
            return status_row(request, "missing", f"there is no file `{request['uri']}`")
        except VideoError as error:
            return status_row(request, error.status, redact(str(error))[:500])

    def _check_unchanged(self, request: dict[str, Any]) -> None:
        if request["etag"] is None:
            return
        found = storage.stat(request["uri"])
        if found.etag != request["etag"]:
            error = VideoError("the file changed after it was indexed: index and run again")
            error.status = "changed"
            raise error

    def _cut(self, request: dict[str, Any], decoder: str) -> pa.Table:
        attempt = self.attempts.begin(request["segment_id"])
        try:
            # Tries that came to their end are forgotten, whatever the end; lost ones stay.
            table = self._cut_in_child(request, decoder)
        except (Crashed, TimedOut, OutOfMemory) as error:
            self.attempts.fail(attempt, error)
            raise
        except VideoError:
            self.attempts.end(attempt)
            raise
        self.attempts.end(attempt)
        return table

    def _cut_in_child(self, request: dict[str, Any], decoder: str) -> pa.Table:
        with scratch_file(scratch_folder()) as path, storage.explained(path, "passing pictures by"):
            counts = self.sandbox.run(cut_segment, request, self.cut, decoder, path)
            for name, value in dataclasses.asdict(counts).items() if counts else ():
                self._count(name, value)
            with pa.memory_map(path) as file:  # keeps the pictures until the table is dropped
                return pa.ipc.open_file(file).read_all()


class FaceCutter:
    """Whole frames -> crops of faces and context, for a detector on a GPU."""

    def __init__(
        self, config: ExtractionConfig, device: str, identity: IdentityConfig | None = None
    ) -> None:
        self.config = config
        self.identity = identity
        self.detector = load_detector(config.detector_config(), device=device)
        self.counts: dict[str, float] = {}

    def take_counts(self) -> dict[str, float]:
        """Frames and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """PICTURES_SCHEMA with whole frames -> PICTURES_SCHEMA with crops."""
        start = time.perf_counter()
        rows = [self._cut(row) for row in table.to_pylist()]
        self.counts["seconds_detect"] = time.perf_counter() - start
        return table_of(rows, PICTURES_SCHEMA)

    def _cut(self, row: dict[str, Any]) -> dict[str, Any]:
        # a key frame of the cascade without a face comes without a picture, and stays so
        frames = [frame for frame in row["frames"] if frame["picture"] is not None]
        pictures = [
            np.frombuffer(f["picture"], np.uint8).reshape(f["height"], f["width"], 3)
            for f in frames
        ]
        found = self.detector.detect(pictures) if pictures else []
        faces: list[dict[str, Any]] = []
        for frame, picture, detected in zip(frames, pictures, found, strict=True):
            marked: Box | None = None
            if row["face_box"] is not None:
                x0, y0, x1, y1 = (value * frame["scale"] for value in row["face_box"])
                marked = x0, y0, x1, y1
            kept = select_faces(
                detected, self.config.face_policy, marked, self.config.max_faces_per_frame
            )
            index, config = frame["frame_index"], self.config
            vectors = identify(self.identity, config.fps, index, kept, picture)
            for face, vector in zip(kept, vectors, strict=True):
                full = tuple(value / frame["scale"] for value in face.box)
                cut = face_row(index, face, picture, config.crop_expand, vector)
                faces.append(cut | {"box": list(full)})
            is_seen = bool(kept) or self.config.no_face == "context_only"
            frame["picture"] = resize_context(picture).tobytes() if is_seen else None
            frame["height"] = frame["width"] = PICTURE_SIZE
        if row["status"] == "ok" and not faces:
            row["status"] = "no_face"
        return row | {"faces": faces}


class SegmentEmbedder:
    """Pictures -> features: both networks over fixed-size micro-batches across segments."""

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
        """`modalities`: face, context or both; vectors of the other are null, of one number.

        `maps`: of which of them the pool5 maps are given as well.
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
        """Segments, frames, pictures, micro-batches and seconds since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """PICTURES_SCHEMA -> features, a row for a row."""
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
        self, kind: str, pictures: pa.Array
    ) -> tuple[pa.FixedSizeListArray, pa.FixedSizeListArray | None]:
        backbone: Backbone | None = getattr(self, kind)
        if backbone is None:
            none = np.zeros((len(pictures), 1), np.float16)
            return vector_array(none, np.ones(len(pictures), bool)), None
        given = pictures.is_valid().to_numpy(zero_copy_only=False)
        stack = picture_stack(pictures.drop_null(), PICTURE_SIZE)
        vectors = np.zeros((len(pictures), backbone.dim), np.float16)
        maps = None
        if kind in self.maps:
            maps = np.zeros((len(stack), *backbone.map_shape), np.float16)
        if len(stack):
            vectors[given], num_batches = embed_pictures(backbone, stack, self.batch_size, maps)
            self._count("pictures", len(stack))
            self._count("batch_places", num_batches * self.batch_size)
        if maps is None:
            return vector_array(vectors, ~given), None
        if not given.all():
            spread = np.zeros((len(pictures), *backbone.map_shape), np.float16)
            spread[given] = maps
            maps = spread
        flat = maps.reshape(len(maps), math.prod(backbone.map_shape))
        return vector_array(vectors, ~given), vector_array(flat, ~given)

    def _count(self, name: str, value: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + value


def identities(
    config: ExtractionConfig,
    modalities: Sequence[str] = ("face", "context"),
    *,
    maps: Sequence[str] = (),
) -> dict[str, Any]:
    """Names, weight hashes and dimensions of detector and backbones, for run.json.

    `maps` names the modalities whose pool5 maps are kept, and adds their shapes.

    Loads each once on the CPU, so that a missing weight file ends the job before it starts.
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
