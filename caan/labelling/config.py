"""How people, windows and files are made from scored frames: options without torch."""

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
    """What the second phase makes of a video's faces; the first phase does not depend on it."""

    face_policy: Policy = "main"
    """Who gets labels: the main person, the marked one, or all."""
    tracks: TrackConfig = field(default_factory=TrackConfig)
    """How faces are followed and joined to people."""
    window_seconds: float = 0.0
    """Length of the sliding windows; 0: none."""
    stride_seconds: float = 0.0
    """Time from one window's start to the next one's; 0: the windows' length."""
    abstain_below: float = 0.0
    """Labels of lower confidence are `uncertain`; their probabilities stay."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.abstain_below <= 1.0:
            raise InputError(
                f"--abstain-below {self.abstain_below} must be a confidence from 0 to 1."
            )
        if self.window_seconds < 0 or self.stride_seconds < 0:
            raise InputError(
                f"--window-seconds {self.window_seconds} and --stride-seconds "
                f"{self.stride_seconds} must not be below 0."
            )
        if self.stride_seconds and not self.window_seconds:
            raise InputError("--stride-seconds needs --window-seconds: say how long windows are.")


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """How previews are made."""

    max_fps: float = 12.0
    """Pictures per second; a slower video keeps its own rate."""
    max_side_pixels: int = 640
    """Longer side of the picture."""
    min_side_pixels: int = 480
    """Smaller pictures are enlarged to this longer side, so that words can be read; 0: never."""
    quality: int = 26
    """x264's constant rate factor: lower is better and larger."""


Kind = Literal["csv", "jsonl", "vtt", "eaf", "preview", "strip"]


@dataclass(frozen=True, kw_only=True)
class SidecarConfig:
    """Which sidecars are written, and how."""

    kinds: tuple[Kind, ...] = ()
    """Per video: `vtt` and `eaf` timelines, `preview` video with what was found, `strip` of frames.
    Per run: `csv` and `jsonl` tables, which `write_sidecars` leaves to the job."""
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    """How previews are made."""
    strips: StripConfig = field(default_factory=StripConfig)
    """How strips are made."""
