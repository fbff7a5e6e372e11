"""What a report and its strips show."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StripConfig:
    """How strips are made."""

    num_frames: int = 8
    """Frames per strip."""
    picture_pixels: int = 320
    """Longer side of the pictures."""
    time_limit_seconds: float = 60.0
    """Longest time that decoding one video's pictures may take."""
    spool_bytes: int = 256 << 20
    """S3 videos up to this size are copied to local disk; larger ones are read by ranges."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report shows."""

    split: str = ""
    """Only the manifest rows of this split; empty: all."""
    num_strips: int = 12
    """Videos shown as strips of frames, spread over the predicted emotions."""
    strips: StripConfig = field(default_factory=StripConfig)
    """How the strips are made."""
    num_timelines: int = 500
    """Videos with a timeline on the HTML page, chosen as the strips are."""
