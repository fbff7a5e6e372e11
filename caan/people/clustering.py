"""Correct tracks by appearance: split them, mend them, and join them to people."""

import itertools

import numpy as np

from caan.faces.detection import iou
from caan.people.config import TrackConfig
from caan.people.detections import (
    DROPPED,
    Detections,
    centres_apart,
    comparable,
    distances_between,
    sizes,
)

MIN_SPLIT_FACES = 3
"""Faces with a vector that a track needs before and after a change of person."""

MAX_SHARED = 0.1
"""Longest overlap in time of two tracks of one person, as a share of the shorter track.

Pieces of swapped tracks overlap a little. Source: our choice, like `MIN_SPLIT_FACES`; both work on
the video of benchmarks.accuracy.people."""


def split_tracks(faces: Detections, track_ids: np.ndarray, config: TrackConfig) -> np.ndarray:
    """Split tracks where they change from one person to another; return new track ids.

    A track changes person where one face hides another, or at a cut between images of similar
    colours, if both faces lie in the same place. One face unlike the others is not enough for a
    split: `MIN_SPLIT_FACES` are needed on each side.

    Source: our choice; the change of mean that explains most of the variance (binary segmentation,
    Scott and Knott 1974), if the two means are at least `person_distance` apart.
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
        place = _change(comparable(faces.appearance[rows[seen]], config.metric), config)
        if not place:
            parts.append(rows)
            continue
        # Between the two faces with a vector, split where neighbouring boxes overlap least.
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
    """Index of the first of these vectors [N, D], in time order, of a new person; 0: none."""
    assert config.person_distance is not None
    if len(vectors) < 2 * MIN_SPLIT_FACES:
        return 0
    counts = np.arange(1, len(vectors))[:, None]
    sums = np.cumsum(vectors, axis=0, dtype=np.float64)
    before, after = sums[:-1] / counts, (sums[-1] - sums[:-1]) / (len(vectors) - counts)
    spread = (counts * (len(vectors) - counts))[:, 0] * ((before - after) ** 2).sum(1)
    spread[: MIN_SPLIT_FACES - 1] = spread[len(vectors) - MIN_SPLIT_FACES :] = 0
    place = int(spread.argmax())
    apart = distances_between(before[place : place + 1], after[place : place + 1], config.metric)[
        0, 0
    ]
    return place + 1 if apart >= config.person_distance else 0


def mend_tracks(
    faces: Detections, track_ids: np.ndarray, cuts: np.ndarray, config: TrackConfig
) -> np.ndarray:
    """Merge tracks that continue one another across a short gap; return new track ids.

    `split_tracks` cuts tracks whose faces were swapped; this function joins the right pieces again.
    Pairs with the smallest distance are joined first. Source: our choice.
    """
    if faces.appearance is None or config.person_distance is None or not len(track_ids):
        return track_ids
    means, counts = _means(faces, track_ids, config)
    first, last = _ends(track_ids, np.arange(len(track_ids)))
    gap = faces.pts_seconds[first][None] - faces.pts_seconds[last][:, None]
    shots = np.searchsorted(cuts, faces.frame_index[first], side="right")
    boxes = faces.boxes.astype(np.float64)
    size = np.sqrt(sizes(boxes[last])[:, None] * sizes(boxes[first])[None])
    reach = 0.5 + config.max_speed * gap
    possible = (gap > 0) & (gap <= config.max_gap_seconds) & (shots[:, None] == shots[None])
    possible &= (counts > 0)[:, None] & (counts > 0)[None]
    possible &= centres_apart(boxes[last], boxes[first]) / size <= reach
    distances = np.where(possible, distances_between(means, means, config.metric), np.inf)
    pairs = np.argwhere(distances < config.person_distance)
    has_next, has_previous = np.zeros(len(means), bool), np.zeros(len(means), bool)
    joined = np.arange(len(means))
    for before, after in pairs[np.argsort(distances[*pairs.T], kind="stable")]:
        if not has_next[before] and not has_previous[after]:
            has_next[before] = has_previous[after] = True
            joined[joined == joined[after]] = joined[before]
    return np.unique(joined[track_ids], return_inverse=True)[1].astype(np.int64)


def join_people(faces: Detections, track_ids: np.ndarray, config: TrackConfig) -> np.ndarray:
    """Join tracks to people by appearance; return the person of each face, int64 [N]."""
    kept = track_ids >= 0
    if not kept.any() or faces.appearance is None or config.person_distance is None:
        return track_ids.copy()
    means, counts = _means(faces, track_ids, config)
    first, last = _ends(track_ids, faces.frame_index)
    shared = np.minimum(last[:, None], last[None]) - np.maximum(first[:, None], first[None]) + 1
    lengths = last - first + 1
    together = shared > MAX_SHARED * np.minimum(lengths[:, None], lengths[None])
    distances = distances_between(means, means, config.metric)
    distances[together] = np.inf
    distances[counts == 0] = distances[:, counts == 0] = np.inf
    person_of_track = average_linkage(distances, np.maximum(counts, 1), config.person_distance)
    return np.where(kept, person_of_track[np.maximum(track_ids, 0)], DROPPED)


def _means(
    faces: Detections, track_ids: np.ndarray, config: TrackConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Mean vector of each track [T, D], and the number of faces in each mean [T]."""
    assert faces.appearance is not None
    num_tracks = int(track_ids.max(initial=-1)) + 1
    means = np.zeros((num_tracks, faces.appearance.shape[1]), np.float32)
    known = np.flatnonzero((track_ids >= 0) & ~np.isnan(faces.appearance[:, 0]))
    # In pieces, to bound memory: `comparable` copies its input.
    for piece in np.array_split(known, 1 + len(known) // 1024):
        np.add.at(means, track_ids[piece], comparable(faces.appearance[piece], config.metric))
    counts = np.bincount(track_ids[known], minlength=num_tracks)
    return means / np.maximum(counts, 1)[:, None], counts


def _ends(track_ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value among each track's faces: int64 [T], [T]."""
    kept = track_ids >= 0
    num_tracks = int(track_ids.max(initial=-1)) + 1
    first, last = np.full(num_tracks, np.iinfo(np.int64).max), np.full(num_tracks, -1)
    np.minimum.at(first, track_ids[kept], values[kept])
    np.maximum.at(last, track_ids[kept], values[kept])
    return first, last


def average_linkage(distances: np.ndarray, weights: np.ndarray, limit: float) -> np.ndarray:
    """Cluster of each of n items: int64 [n], 0, 1, ... in the order of their first items.

    Joins the two nearest clusters while their mean distance, weighted by `weights` [n], is below
    `limit`. Two items with an infinite distance in `distances` [n, n] are never in one cluster.
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
