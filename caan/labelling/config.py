"""Options of labelling: people, windows and sidecar files."""

from dataclasses import dataclass, field
from typing import Literal

from caan.errors import InputError
from caan.faces.detection import Policy
from caan.people.config import TrackConfig
from caan.report.config import StripConfig


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How jobs.label reads videos. Options that are not given are those of the model."""

    fps: float | None = None
    """Sampled frames per second."""
    detector: str | None = None
    """Face detector; another one than the model's is an error."""
    face_backbone: str | None = None
    """Face backbone; another one than the model's is an error."""
    context_backbone: str | None = None
    """Context backbone; another one than the model's is an error."""
    detector_weights: str | None = None
    """File of the detector's weights on this cluster; they must be the model's."""
    face_weights: str | None = None
    """File of the face backbone's weights on this cluster; they must be the model's."""
    context_weights: str | None = None
    """File of the context backbone's weights on this cluster; they must be the model's."""
    min_face_score: float | None = None
    """Lowest score of a face, 0 to 1."""
    max_faces_per_frame: int = 4
    """Most faces kept per frame, the largest first."""
    identity: Literal["auto", "dlib", "vggface", "none"] = "auto"
    """Vector that tells people apart; auto: vggface's if that is the face backbone, else dlib's."""
    identity_seconds: float = 1.0
    """dlib embeds the faces of one sampled frame per this time."""
    cascade: bool = False
    """Search key frames for faces first, and sample only around those with a face or where key
    frames are rare. For archives that mostly show nobody. Misses a face that appears only between
    two key frames without one."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Options of the second phase of labelling. The first phase does not depend on them."""

    face_policy: Policy = "main"
    """Who gets labels: the main person, the marked person, or all."""
    tracks: TrackConfig = field(default_factory=TrackConfig)
    """Options of face tracking."""
    window_seconds: float = 0.0
    """Length of the sliding windows; 0: no windows."""
    stride_seconds: float = 0.0
    """Time between the starts of two windows; 0: the windows' length."""
    abstain_below: float = 0.0
    """A label with lower confidence is replaced by `uncertain`; its probabilities stay."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.abstain_below <= 1.0:
            raise InputError(
                f"--abstain-below {self.abstain_below} must be a confidence from 0 to 1."
            )
        if self.window_seconds < 0 or self.stride_seconds < 0:
            raise InputError(
                f"--window-seconds {self.window_seconds} and --stride-seconds "
                f"{self.stride_seconds} must be 0 or more."
            )
        if self.stride_seconds and not self.window_seconds:
            raise InputError("--stride-seconds needs --window-seconds: give the windows' length.")


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Options of preview videos."""

    max_fps: float = 12.0
    """Frames per second; a slower video keeps its own rate."""
    max_side_pixels: int = 640
    """Longer side of the preview."""
    min_side_pixels: int = 480
    """Smaller frames are enlarged to this longer side, so that text can be read; 0: never."""
    quality: int = 26
    """x264's constant rate factor: lower is better and larger."""


Kind = Literal["csv", "jsonl", "vtt", "eaf", "preview", "strip"]


@dataclass(frozen=True, kw_only=True)
class SidecarConfig:
    """Which sidecar files are written, and their options."""

    kinds: tuple[Kind, ...] = ()
    """Per video: `vtt` and `eaf` timelines, `preview` video with boxes and labels, `strip` of
    frames. Per run: `csv` and `jsonl` tables, which the job writes, not `write_sidecars`."""
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    """Options of preview videos."""
    strips: StripConfig = field(default_factory=StripConfig)
    """Options of strips."""
