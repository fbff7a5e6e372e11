"""Options of face tracking and of the vectors that tell people apart."""

from dataclasses import dataclass, replace
from typing import Literal

from caan.errors import InputError
from caan.faces.detection import Box

Metric = Literal["cosine", "euclidean"]

PERSON_DISTANCES: dict[str, tuple[Metric, float]] = {
    "dlib": ("euclidean", 0.4),
    "vggface": ("cosine", 0.5),
}
"""Metric and `person_distance` of each face embedding, for means over a track.

dlib: measured on 14 people of real clips. The means of one clip's two halves are at most 0.28
apart. The means of two people are at least 0.44 apart. vggface (fc6 after the ReLU): our choice,
not measured."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """How faces are linked to tracks and tracks are joined to people."""

    max_gap_seconds: float = 2.0
    """A track ends after this time without a detection."""
    max_speed: float = 3.0
    """Highest speed of a face between two sampled frames, in face sizes per second. Half a face
    size is added for jitter."""
    max_growth: float = 2.0
    """Largest factor between a face's sizes in two sampled frames."""
    cut_distance: float = 0.4
    """Total variation, 0..1, between the colour histograms of two neighbouring frames from which
    there is a cut between them; above 1: never. Measured on 25 real clips at 1 to 5 frames per
    second: at most 0.20 within a shot, at least 0.79 across the two true cuts."""
    min_track_faces: int = 2
    """Tracks with fewer faces are dropped as false; 1: none. A track that fills its whole shot is
    kept. If no track is long enough, all are kept."""
    metric: Metric = "cosine"
    """Distance between appearance vectors: `cosine` (0..2) or `euclidean`."""
    person_distance: float | None = None
    """Tracks whose mean distance is below this are one person. None: the vectors do not tell people
    apart (a vector of expression, a random network), and every track is a person of its own. The
    vectors then only help to link a face from frame to frame."""

    def __post_init__(self) -> None:
        if self.max_gap_seconds < 0 or self.max_speed <= 0 or self.max_growth < 1:
            raise InputError(
                f"max_gap_seconds {self.max_gap_seconds} must be at least 0, max_speed "
                f"{self.max_speed} above 0, max_growth {self.max_growth} at least 1"
            )


def with_person_distance(config: TrackConfig, face_embedding: str) -> TrackConfig:
    """Fill in metric and distance from `PERSON_DISTANCES`; a distance that is set stays."""
    if config.person_distance is not None or face_embedding not in PERSON_DISTANCES:
        return config
    metric, distance = PERSON_DISTANCES[face_embedding]
    return replace(config, metric=metric, person_distance=distance)


DLIB_DIM = 128
"""Length of a dlib vector."""

VGGFACE_DIM = 256
"""Length of VGG-Face's fc6 after shortening. The error of a cosine is about 0.06
(1 / sqrt(256))."""


@dataclass(frozen=True, kw_only=True)
class FaceEmbeddingConfig:
    """Which faces get a vector that tells people apart (a face embedding)."""

    name: Literal["dlib", "vggface", "none"] = "dlib"
    """`dlib` (its network, on the CPU, while decoding), `vggface` (the face backbone's own fc6, at
    no cost), or `none` (people are not told apart)."""
    every_seconds: float = 1.0
    """dlib embeds the faces of one sampled frame per this time (20 ms a face): a track needs few
    vectors. The sampling grid alone decides which frames."""
    min_face_pixels: float = 24.0
    """Smaller faces get no vector: dlib cannot tell them apart."""

    def frame_step(self, fps: float) -> int:
        """Step between the frames that dlib embeds: grid indices that are multiples of this."""
        return max(1, round(self.every_seconds * fps))


def face_embedding_name(wanted: str, face_backbone: str, *, is_random: bool) -> str:
    """Resolve `auto`: vggface where the face backbone has it, else dlib. Other names stay.

    Raises:
        InputError: `wanted` is vggface, and the backbone is another one or has random weights.
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


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The marked person of a manifest row."""

    box: Box
    """`face_box`: x0, y0, x1, y1 in pixels of the full-size image."""
    pts_seconds: float | None
    """`face_pts_seconds`; None: not known."""
