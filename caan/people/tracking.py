"""Follow the faces of one video: detections -> tracks -> people.

A **track** is one face followed without a break: it ends at a cut or a gap. A **person** is the
tracks of one human, joined by appearance. The result does not depend on segments, random numbers or
threads. The method is made for 1 to 5 sampled frames per second. At that rate the boxes of a moving
face hardly overlap, so the cost of a link uses distance relative to face size, and appearance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from caan.errors import InputError
from caan.faces.detection import Box, Policy, iou
from caan.people.clustering import join_people, mend_tracks, split_tracks
from caan.people.config import TrackConfig
from caan.people.detections import (
    DROPPED,
    Detections,
    Frames,
    centres,
    centres_apart,
    comparable,
    distances_between,
    sizes,
)

UNLIKE_LIMIT = 1.5
"""A face further than this many times `person_distance` from a track's appearance is not linked to
it, unless it lies where the track was. For dlib that is 0.6, its author's limit for two single
images of one person; means over a track differ less."""


@dataclass(frozen=True)
class Tracking:
    """Tracks, people and cuts of one video."""

    track_ids: np.ndarray
    """Track of each face: int64 [N], 0, 1, ... by first appearance, or `DROPPED`."""
    person_ids: np.ndarray
    """Person of each face: int64 [N], 0, 1, ... by first appearance, or `DROPPED`."""
    cuts: np.ndarray
    """Grid indices of the first frame of each shot but the first: int64."""


def follow_faces(
    faces: Detections, frames: Frames | None = None, config: TrackConfig | None = None
) -> Tracking:
    """Find the tracks and people of one video; without `frames` no cuts are found."""
    config = config or TrackConfig()
    cuts = find_cuts(frames, config.cut_distance) if frames is not None else np.zeros(0, np.int64)
    track_ids = split_tracks(faces, _link(faces, cuts, config), config)
    track_ids = mend_tracks(faces, track_ids, cuts, config)
    track_ids = _drop_short(faces, track_ids, cuts, frames, config.min_track_faces)
    person_ids = join_people(faces, track_ids, config)
    return Tracking(track_ids, person_ids, cuts)


def find_cuts(frames: Frames, cut_distance: float) -> np.ndarray:
    """Grid indices of the frames that follow a cut: int64.

    Source: our choice; total variation between the histograms of neighbouring frames.
    """
    if frames.histograms is None or len(frames.frame_index) < 2:
        return np.zeros(0, np.int64)
    shares = frames.histograms.astype(np.float64)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-12)
    distance = np.abs(np.diff(shares, axis=0)).sum(1) / 2
    return frames.frame_index[1:][distance >= cut_distance].astype(np.int64)


@dataclass
class _Track:
    """A track that is still being built."""

    id: int
    box: np.ndarray
    seconds: float
    appearance: np.ndarray | None
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    num_faces: int = 1

    def predicted(self, seconds: float) -> np.ndarray:
        """Predict the box at this time; the velocity counts for at most one second."""
        return self.box + np.tile(self.velocity * min(seconds - self.seconds, 1.0), 2)

    def add(self, box: np.ndarray, seconds: float, appearance: np.ndarray | None) -> None:
        passed = max(seconds - self.seconds, 1e-6)
        velocity = (centres(box[None])[0] - centres(self.box[None])[0]) / passed
        self.velocity = velocity if self.num_faces == 1 else 0.5 * (self.velocity + velocity)
        if appearance is not None and self.appearance is not None and not np.isnan(appearance[0]):
            # A moving average: the mean of all faces would not follow a turning head.
            is_first = np.isnan(self.appearance[0])
            self.appearance = appearance if is_first else 0.7 * self.appearance + 0.3 * appearance
        self.box, self.seconds, self.num_faces = box, seconds, self.num_faces + 1


def _link(faces: Detections, cuts: np.ndarray, config: TrackConfig) -> np.ndarray:
    """Link faces to tracks by one assignment per frame; return the track of each face."""
    from scipy.optimize import (
        linear_sum_assignment,
    )  # imports for 0.6 s: only where faces are linked

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
        vectors = None if appearance is None else comparable(appearance[here], config.metric)
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


def _unlike_distance(faces: Detections, config: TrackConfig) -> float | None:
    """Distance at which two faces look like two people; None: appearance does not help.

    Without a `person_distance` it is measured on the video itself: the median distance between
    faces in one frame, which are different people, over the first 1000 frames with several faces.
    """
    if faces.appearance is None or config.person_distance is not None:
        return config.person_distance if faces.appearance is not None else None
    starts, counts = np.unique(faces.frame_index, return_index=True, return_counts=True)[1:]
    found: list[float] = []
    for start, count in [(s, c) for s, c in zip(starts, counts, strict=True) if c > 1][:1000]:
        vectors = comparable(faces.appearance[start : start + count], config.metric)
        distances = distances_between(vectors, vectors, config.metric)
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
    """Cost [tracks, faces] of linking a face to a track: 0..1, infinite if impossible.

    Source: our choice, after SORT (Bewley 2016: IoU, constant velocity, Hungarian) and DeepSORT
    (Wojke 2017: appearance). Distance relative to face size is used where boxes do not overlap.
    """
    if not tracks:
        return np.zeros((0, len(boxes)))
    last = np.array([track.box for track in tracks])
    predicted = np.array([track.predicted(seconds) for track in tracks])
    passed = np.array([seconds - track.seconds for track in tracks])[:, None]
    size = np.sqrt(sizes(last)[:, None] * sizes(boxes)[None])
    to_predicted = centres_apart(predicted, boxes) / size
    to_last = centres_apart(last, boxes) / size
    reach = 0.5 + config.max_speed * passed
    growth = np.abs(np.log(sizes(last)[:, None] / sizes(boxes)[None]))
    overlap = np.maximum(iou(predicted, boxes), iou(last, boxes))
    possible = (np.minimum(to_predicted, to_last) <= reach) & (growth <= np.log(config.max_growth))
    # Crossing faces exchange positions: with the last position alone they would swap tracks.
    distance = np.minimum((0.75 * to_predicted + 0.25 * to_last) / reach, 1)
    cost = (
        0.6 * distance + 0.2 * (1 - overlap) + 0.2 * growth / np.log(max(config.max_growth, 1.01))
    )
    if vectors is not None and unlike_distance is not None:
        means = np.array([track.appearance for track in tracks])
        unlike = distances_between(means, vectors, config.metric) / unlike_distance
        unlike = np.where(np.isnan(unlike), 1.0, unlike)  # 1: not known
        if config.person_distance is not None:
            # A face that turns or laughs changes its vector for a moment, but stays in place.
            possible &= (unlike <= UNLIKE_LIMIT) | (overlap >= 0.5)
        cost = 0.5 * cost + 0.5 * np.minimum(unlike / 2, 1)
    return np.where(possible, np.minimum(cost, 1), np.inf)


def _drop_short(
    faces: Detections,
    track_ids: np.ndarray,
    cuts: np.ndarray,
    frames: Frames | None,
    min_track_faces: int,
) -> np.ndarray:
    """Drop short tracks; return new track ids."""
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


def prominence(faces: Detections, person_ids: np.ndarray) -> np.ndarray:
    """Prominence of each person: float64 [people], mean area (pixels) x mean score x face count.

    Source: our choice; the most prominent person is the main person of a video.
    """
    kept = person_ids >= 0
    people = person_ids[kept]
    if not len(people):
        return np.zeros(0)
    counts = np.bincount(people)
    areas = np.bincount(people, sizes(faces.boxes[kept].astype(np.float64)) ** 2)
    return areas * np.bincount(people, faces.scores[kept]) / counts


def select_people(
    faces: Detections,
    person_ids: np.ndarray,
    policy: Policy,
    marked_box: Box | None = None,
    marked_seconds: float | None = None,
) -> list[int]:
    """Choose the people of a video that `policy` wants, the most prominent first.

    | policy | people |
    |---|---|
    | `main` | the most prominent one |
    | `marked` | the one with the highest mean IoU with `marked_box`; nobody if none overlaps it |
    | `all` | everybody |

    With `marked_seconds`, `marked` compares only the faces nearest to that time.

    Raises:
        InputError: `marked` without a box.
    """
    order = np.argsort(-prominence(faces, person_ids), kind="stable").tolist()
    if policy == "all" or not order:
        return order
    if policy == "main":
        return order[:1]
    if policy != "marked" or marked_box is None:
        raise InputError(f"face policy `{policy}` needs a face_box: give one, or give main or all")
    considered = person_ids >= 0
    if marked_seconds is not None:
        away = np.where(considered, np.abs(faces.pts_seconds - marked_seconds), np.inf)
        considered &= away <= away.min() + 1e-9
    overlap = iou(faces.boxes[considered], np.array([marked_box]))[:, 0]
    people = person_ids[considered]
    total = np.bincount(people, overlap, minlength=len(order))
    mean = total / np.maximum(np.bincount(people, minlength=len(order)), 1)
    return [int(mean.argmax())] if mean.max() > 0 else []
