"""Follows faces through one video: detections -> tracks -> people, over the whole video in time.

A **track** is one face followed without a break: it ends at a cut or a gap. A **person** is the
tracks of one human, joined by appearance. Nothing here depends on how the video was cut into
segments, on chance, or on threads. Made for 1 to 5 sampled frames per second, where the boxes of a
moving face hardly overlap: position counts relative to the face's size, and appearance with it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from caan.faces import Box, Policy, iou

Metric = Literal["cosine", "euclidean"]

DROPPED = -1
"""Track and person of a face that belongs to none (a short false track)."""

IDENTITY_DISTANCES: dict[str, tuple[Metric, float]] = {
    "dlib": ("euclidean", 0.4),
    "vggface": ("cosine", 0.5),
}
"""Metric and `person_distance` of means over a track, per vector that tells people apart. dlib: on
14 people of real clips the means of a clip's two halves were at most 0.28 apart, those of two
people at least 0.44. vggface (fc6 after the ReLU): our choice, not yet measured."""


UNLIKE_LIMIT = 1.5
"""A face that is this many times `person_distance` from a track's appearance is another's, unless
it lies where the track was. For dlib that is 0.6, its author's limit for two single pictures of one
person; means over a track differ less."""


MIN_SPLIT_FACES = 3
"""Pictures of a face that show, before and after, that a track went over to somebody else."""


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


@dataclass(frozen=True, kw_only=True)
class Detections:
    """All faces of one video in time order."""

    frame_index: np.ndarray
    """Grid index of each face's frame: int64 [N], never falling."""
    pts_seconds: np.ndarray
    """Its time: float64 [N]."""
    boxes: np.ndarray
    """x0, y0, x1, y1 in pixels: float [N, 4]."""
    scores: np.ndarray
    """The detector's confidence, 0..1: float [N]."""
    appearance: np.ndarray | None = None
    """Appearance vectors: float [N, D]; NaN where a face has none."""

    def __post_init__(self) -> None:
        if np.any(np.diff(self.frame_index) < 0):
            raise ValueError("detections must come in the order of their frames")


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All sampled frames of one video in time order, those without a face too."""

    frame_index: np.ndarray
    """Grid index: int64 [F], rising."""
    histograms: np.ndarray | None = None
    """Colour histograms, each of any sum: float [F, B]."""


@dataclass(frozen=True)
class Tracking:
    """Who is who in one video."""

    track_ids: np.ndarray
    """Track of each face: int64 [N], 0, 1, ... by first appearance, or `DROPPED`."""
    person_ids: np.ndarray
    """Person of each face: int64 [N], 0, 1, ... by first appearance, or `DROPPED`."""
    cuts: np.ndarray
    """Grid indices of the frames that open a new shot, int64, without the first."""


def follow_faces(
    faces: Detections, frames: Frames | None = None, config: TrackConfig | None = None
) -> Tracking:
    """Tracks and people of one video; `frames` (none: no cuts known) tell where the cuts are."""
    config = config or TrackConfig()
    cuts = find_cuts(frames, config.cut_distance) if frames is not None else np.zeros(0, np.int64)
    track_ids = _split(faces, _link(faces, cuts, config), config)
    track_ids = _mend(faces, track_ids, cuts, config)
    track_ids = _drop_short(faces, track_ids, cuts, frames, config.min_track_faces)
    person_ids = _join(faces, track_ids, config)
    return Tracking(track_ids, person_ids, cuts)


def find_cuts(frames: Frames, cut_distance: float) -> np.ndarray:
    """Grid indices of the frames before which the picture changes as a whole, int64.

    Source: our choice; total variation between neighbouring frames' histograms.
    """
    if frames.histograms is None or len(frames.frame_index) < 2:
        return np.zeros(0, np.int64)
    shares = frames.histograms.astype(np.float64)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-12)
    distance = np.abs(np.diff(shares, axis=0)).sum(1) / 2
    return frames.frame_index[1:][distance >= cut_distance].astype(np.int64)


def _comparable(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    if metric == "cosine":
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _distances(a: np.ndarray, b: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances of vectors [N, D] and [M, D] made by `_comparable` (or means of those): [N, M]."""
    if metric == "cosine":
        lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
        return 1 - a @ b.T / np.maximum(lengths, 1e-12)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


@dataclass
class _Track:
    """A track while it grows."""

    id: int
    box: np.ndarray
    seconds: float
    appearance: np.ndarray | None
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    num_faces: int = 1

    def predicted(self, seconds: float) -> np.ndarray:
        """Where the box will be; after a second of absence it is thought to stand still."""
        return self.box + np.tile(self.velocity * min(seconds - self.seconds, 1.0), 2)

    def add(self, box: np.ndarray, seconds: float, appearance: np.ndarray | None) -> None:
        passed = max(seconds - self.seconds, 1e-6)
        velocity = (_centres(box[None])[0] - _centres(self.box[None])[0]) / passed
        self.velocity = velocity if self.num_faces == 1 else 0.5 * (self.velocity + velocity)
        if appearance is not None and self.appearance is not None and not np.isnan(appearance[0]):
            # The mean of the last few faces: a mean of all would not follow a turning head.
            is_first = np.isnan(self.appearance[0])
            self.appearance = appearance if is_first else 0.7 * self.appearance + 0.3 * appearance
        self.box, self.seconds, self.num_faces = box, seconds, self.num_faces + 1


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _sizes(boxes: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6))


def _link(faces: Detections, cuts: np.ndarray, config: TrackConfig) -> np.ndarray:
    """Track of each face, by one assignment per frame."""
    track_ids = np.full(len(faces.frame_index), DROPPED, np.int64)
    boxes = faces.boxes.astype(np.float64)
    unlike_distance = _unlike_distance(faces, config)
    appearance = None if unlike_distance is None else faces.appearance
    alive: list[_Track] = []
    shots = np.searchsorted(cuts, faces.frame_index, side="right")
    shot = -1
    num_tracks = 0
    starts = np.unique(faces.frame_index, return_index=True)[1]
    for start, end in zip(starts, np.append(starts, len(boxes))[1:], strict=True):
        seconds = float(faces.pts_seconds[start])
        if shots[start] != shot:
            alive, shot = [], shots[start]
        alive = [track for track in alive if seconds - track.seconds <= config.max_gap_seconds]
        here = slice(start, end)
        vectors = None if appearance is None else _comparable(appearance[here], config.metric)
        cost = _costs(alive, boxes[here], seconds, vectors, unlike_distance, config)
        rows, columns = linear_sum_assignment(np.minimum(cost, 1e3))
        taken = {c: alive[r] for r, c in zip(rows, columns, strict=True) if cost[r, c] <= 1}
        for column in range(end - start):
            vector = None if vectors is None else vectors[column]
            track = taken.get(column)
            if track is None:
                track = _Track(num_tracks, boxes[start + column], seconds, vector)
                alive.append(track)
                num_tracks += 1
            else:
                track.add(boxes[start + column], seconds, vector)
            track_ids[start + column] = track.id
    return track_ids


def _split(faces: Detections, track_ids: np.ndarray, config: TrackConfig) -> np.ndarray:
    """Track ids numbered anew, with tracks cut in two where they went over to another person.

    That happens where one face hides another, or at a cut between pictures of like colours, when
    both faces lie in one place. A single face unlike the others proves nothing, several do.

    Source: our choice; the change of mean that explains most of the variance (binary segmentation,
    Scott and Knott 1974), as long as the means look like two people.
    """
    if faces.appearance is None or config.person_distance is None:
        return track_ids
    known = ~np.isnan(faces.appearance[:, 0])
    parts: list[np.ndarray] = []
    order = np.argsort(track_ids, kind="stable")
    bounds = np.searchsorted(track_ids[order], np.arange(track_ids.max(initial=-1) + 2))
    left = [order[a:b] for a, b in itertools.pairwise(bounds)]
    while left:
        rows = left.pop()
        seen = np.flatnonzero(known[rows])
        place = _change(_comparable(faces.appearance[rows[seen]], config.metric), config)
        if not place:
            parts.append(rows)
            continue
        # Of the faces between the two pictures, it changed where two neighbours overlap least.
        between = np.arange(seen[place - 1], seen[place])
        boxes = faces.boxes[rows].astype(np.float64)
        overlaps = [float(iou(boxes[i : i + 1], boxes[i + 1 : i + 2])[0, 0]) for i in between]
        change = between[int(np.argmin(overlaps))] + 1
        left += [rows[:change], rows[change:]]
    numbers = np.full(len(track_ids), DROPPED, np.int64)
    for number, rows in enumerate(sorted(parts, key=lambda rows: int(rows[0]))):
        numbers[rows] = number
    return numbers


def _change(vectors: np.ndarray, config: TrackConfig) -> int:
    """From which of these vectors [N, D], in time order, a track shows somebody else; 0: none."""
    assert config.person_distance is not None
    if len(vectors) < 2 * MIN_SPLIT_FACES:
        return 0
    counts = np.arange(1, len(vectors))[:, None]
    sums = np.cumsum(vectors, axis=0, dtype=np.float64)
    before, after = sums[:-1] / counts, (sums[-1] - sums[:-1]) / (len(vectors) - counts)
    spread = (counts * (len(vectors) - counts))[:, 0] * ((before - after) ** 2).sum(1)
    spread[: MIN_SPLIT_FACES - 1] = spread[len(vectors) - MIN_SPLIT_FACES :] = 0
    place = int(spread.argmax())
    apart = _distances(before[place : place + 1], after[place : place + 1], config.metric)[0, 0]
    return place + 1 if apart >= config.person_distance else 0


def _unlike_distance(faces: Detections, config: TrackConfig) -> float | None:
    """The distance at which two faces look like two people; none: appearance says nothing.

    A vector without a known `person_distance` is measured on the video itself: the median distance
    of faces seen in one frame (of the first 1000 such frames), who must be different people.
    """
    if faces.appearance is None or config.person_distance is not None:
        return config.person_distance if faces.appearance is not None else None
    starts, counts = np.unique(faces.frame_index, return_index=True, return_counts=True)[1:]
    found: list[float] = []
    for start, count in [(s, c) for s, c in zip(starts, counts, strict=True) if c > 1][:1000]:
        vectors = _comparable(faces.appearance[start : start + count], config.metric)
        distances = _distances(vectors, vectors, config.metric)
        pairs = distances[np.triu_indices(count, 1)]
        found += pairs[~np.isnan(pairs)].tolist()
    median = float(np.median(found)) if found else 0.0
    return median if median > 1e-6 else None


def _costs(
    tracks: Sequence[_Track],
    boxes: np.ndarray,
    seconds: float,
    vectors: np.ndarray | None,
    unlike_distance: float | None,
    config: TrackConfig,
) -> np.ndarray:
    """Cost [tracks, faces] of calling a face the next of a track: 0..1, infinite if impossible.

    Source: our choice, after SORT (Bewley 2016: IoU, constant velocity, Hungarian) and DeepSORT
    (Wojke 2017: appearance); distance relative to size serves where boxes no longer overlap.
    """
    if not tracks:
        return np.zeros((0, len(boxes)))
    last = np.array([track.box for track in tracks])
    predicted = np.array([track.predicted(seconds) for track in tracks])
    passed = np.array([seconds - track.seconds for track in tracks])[:, None]
    size = np.sqrt(_sizes(last)[:, None] * _sizes(boxes)[None])
    to_predicted = _apart(predicted, boxes) / size
    to_last = _apart(last, boxes) / size
    reach = 0.5 + config.max_speed * passed
    growth = np.abs(np.log(_sizes(last)[:, None] / _sizes(boxes)[None]))
    overlap = np.maximum(iou(predicted, boxes), iou(last, boxes))
    possible = (np.minimum(to_predicted, to_last) <= reach) & (growth <= np.log(config.max_growth))
    # Crossing faces swap places: the last place alone would swap their tracks.
    distance = np.minimum((0.75 * to_predicted + 0.25 * to_last) / reach, 1)
    cost = (
        0.6 * distance + 0.2 * (1 - overlap) + 0.2 * growth / np.log(max(config.max_growth, 1.01))
    )
    if vectors is not None and unlike_distance is not None:
        means = np.array([track.appearance for track in tracks])
        unlike = _distances(means, vectors, config.metric) / unlike_distance
        unlike = np.where(np.isnan(unlike), 1.0, unlike)  # not known: neither like nor unlike
        if config.person_distance is not None:
            # A face that turns or laughs looks unlike itself for a moment, but stays in place.
            possible &= (unlike <= UNLIKE_LIMIT) | (overlap >= 0.5)
        cost = 0.5 * cost + 0.5 * np.minimum(unlike / 2, 1)
    return np.where(possible, np.minimum(cost, 1), np.inf)


def _apart(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(_centres(boxes_a)[:, None] - _centres(boxes_b)[None], axis=2)


def _drop_short(
    faces: Detections,
    track_ids: np.ndarray,
    cuts: np.ndarray,
    frames: Frames | None,
    min_track_faces: int,
) -> np.ndarray:
    """Track ids numbered anew without the short ones."""
    if not len(track_ids):
        return track_ids
    counts = np.bincount(track_ids)
    sampled = np.unique(faces.frame_index if frames is None else frames.frame_index)
    shot_lengths = np.bincount(
        np.searchsorted(cuts, sampled, side="right"), minlength=len(cuts) + 1
    )
    first = np.unique(track_ids, return_index=True)[1]
    shot_of_track = np.searchsorted(cuts, faces.frame_index[first], side="right")
    keep = counts >= np.minimum(min_track_faces, shot_lengths[shot_of_track])
    if not keep.any():
        keep[:] = True
    renumbered = np.where(keep, np.cumsum(keep) - 1, DROPPED)
    return renumbered[track_ids]


def _mend(
    faces: Detections, track_ids: np.ndarray, cuts: np.ndarray, config: TrackConfig
) -> np.ndarray:
    """Track ids numbered anew, with tracks joined that go on as one another within a short gap.

    Faces that swapped tracks come apart in `_split`; here each gets its own rest back. The most
    alike are joined first; source: our choice.
    """
    if faces.appearance is None or config.person_distance is None or not len(track_ids):
        return track_ids
    means, counts = _means(faces, track_ids, config)
    first, last = _ends(track_ids, np.arange(len(track_ids)))
    gap = faces.pts_seconds[first][None] - faces.pts_seconds[last][:, None]
    shots = np.searchsorted(cuts, faces.frame_index[first], side="right")
    boxes = faces.boxes.astype(np.float64)
    size = np.sqrt(_sizes(boxes[last])[:, None] * _sizes(boxes[first])[None])
    reach = 0.5 + config.max_speed * gap
    possible = (gap > 0) & (gap <= config.max_gap_seconds) & (shots[:, None] == shots[None])
    possible &= (counts > 0)[:, None] & (counts > 0)[None]
    possible &= _apart(boxes[last], boxes[first]) / size <= reach
    distances = np.where(possible, _distances(means, means, config.metric), np.inf)
    pairs = np.argwhere(distances < config.person_distance)
    has_next, has_previous = np.zeros(len(means), bool), np.zeros(len(means), bool)
    joined = np.arange(len(means))
    for before, after in pairs[np.argsort(distances[*pairs.T], kind="stable")]:
        if not has_next[before] and not has_previous[after]:
            has_next[before] = has_previous[after] = True
            joined[joined == joined[after]] = joined[before]
    return np.unique(joined[track_ids], return_inverse=True)[1].astype(np.int64)


def _means(
    faces: Detections, track_ids: np.ndarray, config: TrackConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Mean vector of each track [T, D], and how many faces it rests on [T]."""
    assert faces.appearance is not None
    num_tracks = int(track_ids.max(initial=-1)) + 1
    means = np.zeros((num_tracks, faces.appearance.shape[1]), np.float32)
    known = np.flatnonzero((track_ids >= 0) & ~np.isnan(faces.appearance[:, 0]))
    # In pieces: an hour of vectors is copied nowhere as a whole.
    for piece in np.array_split(known, 1 + len(known) // 1024):
        np.add.at(means, track_ids[piece], _comparable(faces.appearance[piece], config.metric))
    counts = np.bincount(track_ids[known], minlength=num_tracks)
    return means / np.maximum(counts, 1)[:, None], counts


def _ends(track_ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest of the values of each track's faces: int64 [T], [T]."""
    kept = track_ids >= 0
    num_tracks = int(track_ids.max(initial=-1)) + 1
    first, last = np.full(num_tracks, np.iinfo(np.int64).max), np.full(num_tracks, -1)
    np.minimum.at(first, track_ids[kept], values[kept])
    np.maximum.at(last, track_ids[kept], values[kept])
    return first, last


def _join(faces: Detections, track_ids: np.ndarray, config: TrackConfig) -> np.ndarray:
    """Person of each face."""
    kept = track_ids >= 0
    if not kept.any() or faces.appearance is None or config.person_distance is None:
        return track_ids.copy()
    means, counts = _means(faces, track_ids, config)
    first, last = _ends(track_ids, faces.frame_index)
    # Pieces of swapped tracks may overlap a little, which makes nobody two people.
    shared = np.minimum(last[:, None], last[None]) - np.maximum(first[:, None], first[None]) + 1
    lengths = last - first + 1
    together = shared > 0.1 * np.minimum(lengths[:, None], lengths[None])
    distances = _distances(means, means, config.metric)
    distances[together] = np.inf
    distances[counts == 0] = distances[:, counts == 0] = np.inf
    person_of_track = average_linkage(distances, np.maximum(counts, 1), config.person_distance)
    return np.where(kept, person_of_track[np.maximum(track_ids, 0)], DROPPED)


def average_linkage(distances: np.ndarray, weights: np.ndarray, limit: float) -> np.ndarray:
    """Cluster of each of n items: int64 [n], 0, 1, ... in the order of their first items.

    Joins the two nearest clusters while their mean distance, items counted by `weights`, is below
    `limit`. An infinite distance in `distances` [n, n] keeps two items apart for good.
    """
    distances = distances.astype(np.float64)
    np.fill_diagonal(distances, np.inf)
    weights = weights.astype(np.float64)
    cluster = np.arange(len(distances))
    nearest = distances.argmin(1)
    shortest = distances[np.arange(len(distances)), nearest]
    while True:
        a = int(shortest.argmin())
        if not shortest[a] < limit:
            break
        a, b = sorted((a, int(nearest[a])))
        share = weights[a] / (weights[a] + weights[b])
        row = share * distances[a] + (1 - share) * distances[b]
        weights[a] += weights[b]
        cluster[cluster == b] = a
        row[a] = np.inf
        distances[a], distances[:, a] = row, row
        distances[b], distances[:, b] = np.inf, np.inf
        stale = np.flatnonzero((nearest == a) | (nearest == b) | (row < shortest))
        for i in {a, b, *stale.tolist()}:
            nearest[i] = distances[i].argmin()
            shortest[i] = distances[i, nearest[i]]
    return np.unique(cluster, return_inverse=True)[1].astype(np.int64)


def prominence(faces: Detections, person_ids: np.ndarray) -> np.ndarray:
    """Mean area (pixels) x mean score x number of faces of each person: float64 [people].

    Source: our choice of what makes someone the main person of a video.
    """
    kept = person_ids >= 0
    people = person_ids[kept]
    if not len(people):
        return np.zeros(0)
    counts = np.bincount(people)
    areas = np.bincount(people, _sizes(faces.boxes[kept].astype(np.float64)) ** 2)
    return areas * np.bincount(people, faces.scores[kept]) / counts


def select_people(
    faces: Detections,
    person_ids: np.ndarray,
    policy: Policy,
    marked_box: Box | None = None,
    marked_seconds: float | None = None,
) -> list[int]:
    """The people of a video that `policy` wants, the most prominent first.

    `main`: the most prominent. `marked`: the one whose faces overlap `marked_box` most (mean IoU,
    in the frame nearest to `marked_seconds` if that is given), nobody if none does. `all`: all.

    Raises:
        ValueError: unknown policy, or `marked` without a box.
    """
    order = np.argsort(-prominence(faces, person_ids), kind="stable").tolist()
    if policy == "all" or not order:
        return order
    if policy == "main":
        return order[:1]
    if policy != "marked" or marked_box is None:
        raise ValueError(f"face policy `{policy}` needs a face_box, or give main or all")
    considered = person_ids >= 0
    if marked_seconds is not None:
        away = np.where(considered, np.abs(faces.pts_seconds - marked_seconds), np.inf)
        considered &= away <= away.min() + 1e-9
    overlap = iou(faces.boxes[considered], np.array([marked_box]))[:, 0]
    people = person_ids[considered]
    total = np.bincount(people, overlap, minlength=len(order))
    mean = total / np.maximum(np.bincount(people, minlength=len(order)), 1)
    return [int(mean.argmax())] if mean.max() > 0 else []
