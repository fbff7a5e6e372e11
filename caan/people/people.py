"""Who is in a video: its segments' faces followed over time, joined to people, and chosen among."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from caan.arrow import flat_list, numbers
from caan.faces.detection import LONE_MIN_SCORES, LONE_SECONDS, Box, Policy, iou
from caan.people.config import TrackConfig
from caan.people.detections import DROPPED, Detections, Frames
from caan.people.tracking import follow_faces, select_people
from caan.schema import video_status


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The person that a manifest row marks."""

    box: Box
    """`face_box`: x0, y0, x1, y1 in pixels of the full size."""
    pts_seconds: float | None
    """`face_pts_seconds`, if known."""


@dataclass(frozen=True, kw_only=True)
class VideoPeople:
    """One video with its faces sorted out; N rows of faces in time order."""

    frame_index: np.ndarray
    """Grid index of every sampled frame, int64, rising."""
    pts_seconds: np.ndarray
    """Its time, float64."""
    faces: pa.StructArray
    """Rows of segment_scores' `faces`; `box` is null where a frame without a face was looked at."""
    face_pts_seconds: np.ndarray
    """Time of each row, float64 [N]."""
    track_ids: np.ndarray
    """Track of each row, int64 [N]; `DROPPED` for false faces and for frames without a face."""
    person_ids: np.ndarray
    """Person of each row, likewise; 0 is the most prominent."""
    wanted: Sequence[int]
    """The people that the face policy wants, the most prominent first."""
    status: str
    """Status of the video."""

    @property
    def is_bare(self) -> np.ndarray:
        """Rows of frames without a face: bool [N]."""
        return self.faces.field("box").is_null().to_numpy(zero_copy_only=False)

    def rows_of(self, person: int) -> np.ndarray:
        """A person's rows, and those of frames without a face, in time order: int64.

        A person below 0 is nobody, who has the latter only.
        """
        own = (self.person_ids == person) & (person >= 0)
        return np.flatnonzero(own | self.is_bare)


def find_people(
    segments: pa.Table,
    *,
    detector: str,
    policy: Policy,
    tracks: TrackConfig,
    mark: Mark | None = None,
) -> VideoPeople:
    """The people of one video from its rows of segment_scores, in the order of their segments.

    Where no face has an appearance vector, people cannot be told apart: under `main` and `marked`
    the chosen face of each frame is then one person, under `all` every track is one.
    """
    frames, _ = flat_list(segments["frames"])
    faces, _ = flat_list(segments["faces"])
    status = video_status(segments["status"].to_pylist())
    frame_index = frames.field("frame_index").to_numpy(zero_copy_only=False)
    pts = frames.field("pts_seconds").to_numpy(zero_copy_only=False)
    index = faces.field("frame_index").to_numpy(zero_copy_only=False)
    times = pts[np.searchsorted(frame_index, index)]
    seen = faces.field("box").is_valid().to_numpy(zero_copy_only=False)
    scores = faces.field("score").fill_null(0.0).to_numpy(zero_copy_only=False)
    kept = ~false_faces(times, scores, seen, detector)
    if not kept.all():
        faces, index, times = faces.filter(pa.array(kept)), index[kept], times[kept]
        scores, seen = scores[kept], seen[kept]
        if not seen.any() and status == "ok":
            status = "no_face"
    detections = Detections(
        frame_index=index[seen],
        pts_seconds=times[seen],
        boxes=numbers(faces.field("box").filter(pa.array(seen))),
        scores=scores[seen],
        appearance=_appearance(faces.field("appearance_vector").filter(pa.array(seen))),
    )
    histograms = frames.field("histogram")
    known = Frames(
        frame_index=frame_index,
        histograms=None if histograms.null_count else numbers(histograms),
    )
    tracking = follow_faces(detections, known, tracks)
    people = tracking.person_ids
    if policy != "all" and (detections.appearance is None or tracks.person_distance is None):
        people = _chosen_faces(detections, policy, mark)
    people = _by_prominence(detections, people)
    box, seconds = (mark.box, mark.pts_seconds) if mark else (None, None)
    wanted = select_people(detections, people, policy, box, seconds)
    track_ids, person_ids = (np.full(len(faces), DROPPED, np.int64) for _ in range(2))
    track_ids[seen], person_ids[seen] = tracking.track_ids, people
    return VideoPeople(
        frame_index=frame_index,
        pts_seconds=pts,
        faces=faces,
        face_pts_seconds=times,
        track_ids=track_ids,
        person_ids=person_ids,
        wanted=wanted,
        status=status,
    )


def false_faces(
    pts_seconds: np.ndarray, scores: np.ndarray, seen: np.ndarray, detector: str
) -> np.ndarray:
    """Which rows are lone faces of low score, taken for false: bool [N].

    A face counts from the detector's own lowest score on if one is seen in another frame within
    `LONE_SECONDS` of it, else from `LONE_MIN_SCORES` on (Source: our choice, after the two
    thresholds of hysteresis in edge detection).
    """
    own = pts_seconds[seen]
    times = np.concatenate([[-np.inf], np.unique(own), [np.inf]])
    place = np.searchsorted(times, own)
    nearest = np.minimum(own - times[place - 1], times[place + 1] - own)
    is_false = np.zeros(len(seen), bool)
    is_false[seen] = (nearest > LONE_SECONDS) & (scores[seen] < LONE_MIN_SCORES.get(detector, 0.0))
    return is_false


def _appearance(column: pa.FixedSizeListArray) -> np.ndarray | None:
    """Vectors float16 [N, D], NaN where there is none; None if nobody has one."""
    if column.null_count == len(column):
        return None
    given = column.is_valid().to_numpy(zero_copy_only=False)
    vectors = np.full((len(column), column.type.list_size), np.nan, np.float16)
    vectors[given] = numbers(column.drop_null())
    return vectors


def _chosen_faces(faces: Detections, policy: Policy, mark: Mark | None) -> np.ndarray:
    """Person 0 for the largest face of each frame, or the one on the marked box; else `DROPPED`."""
    sizes = (faces.boxes[:, 2:] - faces.boxes[:, :2]).prod(1)
    if policy == "marked" and mark is not None:
        sizes = iou(faces.boxes, np.array([mark.box]))[:, 0]
    order = np.lexsort((faces.scores, sizes, faces.frame_index))
    last = np.append(np.diff(faces.frame_index[order]) > 0, True)[: len(order)]
    people = np.full(len(order), DROPPED, np.int64)
    people[order[last & (sizes[order] > 0)]] = 0
    return people


def _by_prominence(faces: Detections, person_ids: np.ndarray) -> np.ndarray:
    """The same people numbered anew, the most prominent 0."""
    order = select_people(faces, person_ids, "all")
    rank = np.full(len(order) + 1, DROPPED, np.int64)  # the last place serves DROPPED, -1
    rank[order] = np.arange(len(order))
    return rank[person_ids]
