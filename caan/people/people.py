"""Find the people of one video in its segment_scores, and choose those whom the policy wants."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from caan.arrow import flat_list, numbers
from caan.faces.build import DETECTORS, LONE_SECONDS
from caan.faces.detection import Policy, iou
from caan.people.config import Mark, TrackConfig
from caan.people.detections import DROPPED, Detections, Frames
from caan.people.tracking import follow_faces, select_people
from caan.schema import video_status


@dataclass(frozen=True, kw_only=True)
class VideoPeople:
    """The tracks and people of one video; N rows of faces in time order."""

    frame_index: np.ndarray
    """Grid index of every sampled frame: int64 [F], ascending."""
    pts_seconds: np.ndarray
    """Time of every sampled frame: float64 [F]."""
    faces: pa.StructArray
    """Rows [N] of segment_scores' `faces`; `box` is null in the row of a frame without a face."""
    face_pts_seconds: np.ndarray
    """Time of each row: float64 [N]."""
    track_ids: np.ndarray
    """Track of each row: int64 [N]; `DROPPED` for false faces and frames without a face."""
    person_ids: np.ndarray
    """Person of each row: int64 [N]; 0 is the most prominent, `DROPPED` as for `track_ids`."""
    wanted: Sequence[int]
    """The people that the face policy wants, the most prominent first."""
    status: str
    """The video's status."""

    @property
    def is_bare(self) -> np.ndarray:
        """Which rows are frames without a face: bool [N]."""
        return self.faces.field("box").is_null().to_numpy(zero_copy_only=False)

    def rows_of(self, person: int) -> np.ndarray:
        """Indices of a person's rows and of frames without a face, in time order: int64.

        For a person below 0 only those of frames without a face.
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
    """Find the people of one video in its rows of segment_scores, in segment order.

    If no face has an appearance vector, people cannot be told apart. Then under `main` and `marked`
    the chosen faces of all frames are one person, and under `all` every track is a person.
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
    appearance = faces.field("appearance_vector").filter(pa.array(seen))
    has_appearance = appearance.null_count < len(appearance)
    detections = Detections(
        frame_index=index[seen],
        pts_seconds=times[seen],
        boxes=numbers(faces.field("box").filter(pa.array(seen))),
        scores=scores[seen],
        appearance=numbers(appearance, missing=np.nan) if has_appearance else None,
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
    """Which rows are false faces, that is lone faces with a low score: bool [N].

    A face is lone if no other frame within `LONE_SECONDS` has a face. A lone face needs a score of
    the detector's `lone_min_score`. Any other face needs only the detector's own lowest score.

    Source: our choice, after the two thresholds of hysteresis in edge detection.
    """
    own = pts_seconds[seen]
    times = np.concatenate([[-np.inf], np.unique(own), [np.inf]])
    place = np.searchsorted(times, own)
    nearest = np.minimum(own - times[place - 1], times[place + 1] - own)
    is_false = np.zeros(len(seen), bool)
    lone_min_score = DETECTORS[detector].lone_min_score
    is_false[seen] = (nearest > LONE_SECONDS) & (scores[seen] < lone_min_score)
    return is_false


def _chosen_faces(faces: Detections, policy: Policy, mark: Mark | None) -> np.ndarray:
    """Person 0 for one face of each frame, the largest or the marked one; `DROPPED` for others."""
    sizes = (faces.boxes[:, 2:] - faces.boxes[:, :2]).prod(1)
    if policy == "marked" and mark is not None:
        sizes = iou(faces.boxes, np.array([mark.box]))[:, 0]
    order = np.lexsort((faces.scores, sizes, faces.frame_index))
    last = np.append(np.diff(faces.frame_index[order]) > 0, True)[: len(order)]
    people = np.full(len(order), DROPPED, np.int64)
    people[order[last & (sizes[order] > 0)]] = 0
    return people


def _by_prominence(faces: Detections, person_ids: np.ndarray) -> np.ndarray:
    """Renumber people by prominence; the most prominent is 0."""
    order = select_people(faces, person_ids, "all")
    rank = np.full(len(order) + 1, DROPPED, np.int64)  # DROPPED (-1) indexes the last entry
    rank[order] = np.arange(len(order))
    return rank[person_ids]
