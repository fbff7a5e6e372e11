"""Options of the report and of strips."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StripConfig:
    """Options of strips of frames."""

    num_frames: int = 8
    """Frames per strip."""
    picture_pixels: int = 320
    """Longer side of the images."""
    time_limit_seconds: float = 60.0
    """Time limit for decoding the images of one video."""
    spool_bytes: int = 256 << 20
    """S3 videos up to this size are copied to local disk. Larger ones are read in ranges."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Options of a report."""

    split: str = ""
    """Report only the manifest rows of this split; empty: all."""
    num_strips: int = 12
    """Number of videos shown as strips of frames, spread over the predicted emotions."""
    strips: StripConfig = field(default_factory=StripConfig)
    """Options of the strips."""
    num_timelines: int = 500
    """Number of videos with a timeline on the HTML page; chosen in the same way as strips."""
