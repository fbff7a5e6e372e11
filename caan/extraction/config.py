"""What is read from each video, and the limits on reading it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from caan.backbones.config import BackboneConfig
from caan.faces.detection import DetectorConfig
from caan.people.config import FaceEmbeddingConfig


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """What is cut from a segment."""

    fps: float
    """Sampled frames per second."""
    detector: DetectorConfig | None
    """Face detector of the child; None where a detector on a GPU comes in a later stage."""
    detect_size_pixels: int
    """Longest side of frames that are handed on whole."""
    face_policy: Literal["main", "marked", "all"]
    """Which faces of a frame are kept."""
    max_faces_per_frame: int
    """Most faces kept of one frame."""
    no_face: Literal["drop", "context_only"]
    """Whether a frame without a face is shown to the context network."""
    crop_expand: float
    """Side of the face crop over the longer side of the box."""
    look_detector: DetectorConfig | None = None
    """Face detector that looks at key frames first (`extraction.keyframes`); None: sample all."""
    identity: FaceEmbeddingConfig | None = None
    """Which faces get a vector that tells people apart; None: none."""


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

    def cut_config(
        self, *, detect_here: bool, identity: FaceEmbeddingConfig | None = None
    ) -> CutConfig:
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
