"""How faces are followed and told apart: options without SciPy."""

from dataclasses import dataclass, replace
from typing import Literal

from caan.errors import InputError

Metric = Literal["cosine", "euclidean"]

IDENTITY_DISTANCES: dict[str, tuple[Metric, float]] = {
    "dlib": ("euclidean", 0.4),
    "vggface": ("cosine", 0.5),
}
"""Metric and `person_distance` of means over a track, per vector that tells people apart. dlib: on
14 people of real clips the means of a clip's two halves were at most 0.28 apart, those of two
people at least 0.44. vggface (fc6 after the ReLU): our choice, not yet measured."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """How faces are followed and joined to people."""

    max_gap_seconds: float = 2.0
    """A track survives this long without a detection."""
    max_speed: float = 3.0
    """Fastest motion of a face between two sampled frames, in face sizes per second (plus half a
    size of jitter)."""
    max_growth: float = 2.0
    """Largest factor between a face's sizes in two sampled frames."""
    cut_distance: float = 0.4
    """Total variation, 0..1, of two neighbouring frames' colour histograms from which there is a
    cut between them; above 1: never. On 25 real clips at 1 to 5 frames per second neighbours
    within a shot were at most 0.20 apart, those across the two true cuts at least 0.79."""
    min_track_faces: int = 2
    """Shorter tracks are dropped as false; 1: none. A track that fills its whole shot stays, and
    so does everything if no track is long enough."""
    metric: Metric = "cosine"
    """How appearance vectors compare: `cosine` (0..2) or `euclidean`."""
    person_distance: float | None = None
    """Tracks nearer than this on average are one person; none: appearance tells nobody apart (a
    vector of expression, a random network), so every track is a person of its own; it then only
    helps to follow a face from frame to frame."""

    def __post_init__(self) -> None:
        if self.metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric `{self.metric}` is unknown: give cosine or euclidean")
        if self.max_gap_seconds < 0 or self.max_speed <= 0 or self.max_growth < 1:
            raise ValueError(
                f"max_gap_seconds {self.max_gap_seconds} must be at least 0, max_speed "
                f"{self.max_speed} above 0, max_growth {self.max_growth} at least 1"
            )


def with_identity(config: TrackConfig, vector: str) -> TrackConfig:
    """`config` with the metric and distance of `IDENTITY_DISTANCES`, unless it has its own."""
    if config.person_distance is not None or vector not in IDENTITY_DISTANCES:
        return config
    metric, distance = IDENTITY_DISTANCES[vector]
    return replace(config, metric=metric, person_distance=distance)


DLIB_DIM = 128
"""Numbers of a dlib vector."""

VGGFACE_DIM = 256
"""Numbers that are kept of VGG-Face's fc6; cosines then err by about 0.06 (1 / sqrt(256))."""


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """Which faces get a vector that tells people apart."""

    name: Literal["dlib", "vggface", "none"] = "dlib"
    """`dlib` (its network, on the CPU, while decoding), `vggface` (the face backbone's own fc6, at
    no cost), or `none`: people are not told apart."""
    every_seconds: float = 1.0
    """dlib looks at one sampled frame in this time (20 ms a face), as a track needs few vectors.
    Which frames depends on the sampling grid alone."""
    min_face_pixels: float = 24.0
    """Smaller faces get no vector: they look alike to dlib."""

    def frame_step(self, fps: float) -> int:
        """Frames that dlib looks at: those whose grid index is a multiple of this."""
        return max(1, round(self.every_seconds * fps))


def identity_name(wanted: str, face_backbone: str, *, is_random: bool) -> str:
    """The vector that `auto` means for a backbone; every other name is itself.

    Raises:
        InputError: vggface is asked for, and the backbone is another or has random weights.
    """
    has_own = face_backbone == "vggface" and not is_random
    if wanted == "vggface" and not has_own:
        raise InputError(
            f"--identity vggface needs the face backbone vggface with its own weights, and here it "
            f"is {face_backbone}{' with random ones' if is_random else ''}: give dlib or none"
        )
    if wanted != "auto":
        return wanted
    return "vggface" if has_own else "dlib"
