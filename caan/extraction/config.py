"""Options of reading videos, and the limits on decoding them."""

from dataclasses import dataclass
from typing import Literal

from caan.backbones.config import BackboneConfig, Precision
from caan.faces.detection import DetectorConfig, DetectorName, NoFace, Policy
from caan.media.config import Decoder
from caan.people.config import FaceEmbeddingConfig


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How the decoding child reads one segment."""

    fps: float
    """Sampled frames per second."""
    segment_frames: int
    """Most sampled frames of a segment."""
    detector: DetectorConfig | None
    """Face detector of the child; None where a later stage detects faces on a GPU."""
    detect_size_pixels: int
    """Longest side of the frames that are handed to that stage."""
    face_policy: Policy
    """Faces of a frame that are kept."""
    max_faces_per_frame: int
    """Most faces kept per frame."""
    no_face: NoFace
    """Whether the context network sees frames without a face."""
    crop_expand: float
    """Side of the face crop over the longer side of the box."""
    look_detector: DetectorConfig | None = None
    """Face detector for the key frames of the cascade (`caan.extraction.keyframes`); None: every
    frame is sampled."""
    face_embedding: FaceEmbeddingConfig | None = None
    """Faces that get an appearance vector, which tells people apart; None: no face."""
    decoder: Decoder = "pyav"
    """Library that decodes the files it can; PyAV decodes the others."""


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """What is read from each video. Every field enters the fingerprint of the features."""

    fps: float = 2.0
    """Sampled frames per second."""
    detector: DetectorName = "retinaface"
    """Face detector; faster_rcnn is the paper's and is trained by jobs.finetune."""
    detector_weights: str = ""
    """Weights of the detector: a local path or s3://; empty: the detector's default file."""
    min_face_score: float | None = None
    """Lowest score of a face, 0 to 1; empty: the detector's default."""
    detect_size_pixels: int = 640
    """Longest side of the images that the detector sees."""
    face_backbone: str = "vggface"
    """Network for faces: vggface, starter_face, vgg16, ..."""
    face_weights: str = ""
    """Weights of the face backbone: a path, s3:// or `random`; empty: the official ones."""
    context_backbone: str = "vgg16"
    """Network for whole frames: vgg16, starter_context, ..."""
    context_weights: str = ""
    """Weights of the context backbone: a path, s3:// or `random`; empty: the official ones."""
    face_policy: Policy = "main"
    """Faces that are kept: the main one of a frame, the one marked in the manifest, or all."""
    no_face: NoFace = "drop"
    """Frames without a face: dropped (paper 4.1), or seen by the context network alone."""
    crop_expand: float = 1.2
    """Side of the square face crop over the longer side of the box."""
    max_faces_per_frame: int = 4
    """Most faces kept per frame under face policy `all`."""
    segment_frames: int = 128
    """Most sampled frames of one segment. A segment is the unit of work and of resume."""
    cascade: bool = False
    """Search key frames for faces first, and sample only around those with a face or where key
    frames are rare. For archives that mostly show nobody. Misses a face that appears only between
    two key frames without one."""
    precision: Precision = "auto"
    """Arithmetic of the networks; auto: the fast one of the device."""
    seed: int = 0
    """Seed of `random` weights."""

    def detector_config(self) -> DetectorConfig:
        """Options of the detector."""
        return DetectorConfig(
            name=self.detector,
            weights=self.detector_weights,
            min_score=self.min_face_score,
            detect_size_pixels=self.detect_size_pixels,
        )

    def backbone_config(self, kind: Literal["face", "context"]) -> BackboneConfig:
        """Options of one backbone."""
        is_face = kind == "face"
        return BackboneConfig(
            name=self.face_backbone if is_face else self.context_backbone,
            weights=self.face_weights if is_face else self.context_weights,
            seed=self.seed,
            precision=self.precision,
        )

    def segment_config(
        self,
        *,
        detect_here: bool,
        face_embedding: FaceEmbeddingConfig | None = None,
        decoder: Decoder = "pyav",
    ) -> SegmentConfig:
        """Options of the decoding child. `detect_here=False`: a later stage detects on a GPU."""
        return SegmentConfig(
            fps=self.fps,
            segment_frames=self.segment_frames,
            detector=self.detector_config() if detect_here else None,
            detect_size_pixels=self.detect_size_pixels,
            face_policy=self.face_policy,
            max_faces_per_frame=self.max_faces_per_frame,
            no_face=self.no_face,
            crop_expand=self.crop_expand,
            look_detector=self.detector_config() if self.cascade else None,
            face_embedding=face_embedding,
            decoder=decoder,
        )


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """Limits on the decoding of one segment."""

    time_limit_seconds: float = 300.0
    """Wall-clock limit of one try at one segment."""
    memory_limit_mb: int = 2500
    """Limit on the resident memory of the decoding child, in MiB."""
    spool_mb: int = 2048
    """S3 objects up to this size in MiB that one worker reads whole are copied to local disk first.
    Of others the worker reads the ranges that it needs."""
    spool_dir: str = ""
    """Folder of these copies on every node; empty: the local disk with the most free space among
    the temporary folder and the NVMe disks that are mounted."""
    max_attempts: int = 3
    """Most times that the decoding child may die (crash, time or memory limit) on one video. After
    them the rest of the video gets that status."""
