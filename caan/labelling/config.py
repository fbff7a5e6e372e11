"""How people, windows and files are made from scored frames: options without torch."""

from dataclasses import dataclass, field
from typing import Literal

from caan.errors import InputError
from caan.faces.detection import Policy
from caan.people.config import TrackConfig
from caan.report.config import StripConfig


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
