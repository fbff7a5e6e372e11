import dataclasses

import numpy as np
import pytest

from caan.people.clustering import average_linkage
from caan.people.config import TrackConfig, with_person_distance
from caan.people.detections import DROPPED, Detections, Frames
from caan.people.tracking import find_cuts, follow_faces, select_people

SIZE = 40.0
NAMES = {name: vector for name, vector in zip("abcd", np.eye(8)[:4], strict=True)}
TELLS_PEOPLE = TrackConfig(metric="cosine", person_distance=0.5)


def detections(seen, fps=2.0, *, with_appearance=False, seed=0):
    """Faces from rows (frame, person, x, y), with a little noise."""
    rng = np.random.default_rng(seed)
    seen = sorted(seen, key=lambda row: row[0])
    centres = np.array([row[2:4] for row in seen], float) + rng.normal(0, 1, (len(seen), 2))
    vectors = np.array([NAMES[row[1]] for row in seen]) + rng.normal(0, 0.08, (len(seen), 8))
    index = np.array([row[0] for row in seen], np.int64)
    faces = Detections(
        frame_index=index,
        pts_seconds=index / fps,
        boxes=np.hstack([centres - SIZE / 2, centres + SIZE / 2]),
        scores=np.full(len(seen), 0.9),
        appearance=vectors if with_appearance else None,
    )
    return faces, np.array([row[1] for row in seen])


def frames(num_frames, cuts=()):
    """Histograms that change at the frames `cuts`."""
    shot = np.searchsorted(cuts, np.arange(num_frames), side="right")
    return Frames(
        frame_index=np.arange(num_frames), histograms=np.eye(len(cuts) + 1)[shot] * 200 + 1
    )


def groups(ids, names):
    """The people whose faces each track holds."""
    return [set(names[ids == i]) for i in range(ids.max() + 1)]


@pytest.mark.parametrize("with_appearance", [False, True])
@pytest.mark.parametrize("fps", [1, 2, 5])
def test_crossing_paths_keep_their_tracks(fps, with_appearance):
    seen = []
    for k in range(12 * fps):
        seconds = k / fps
        seen += [(k, "a", 60 + 40 * seconds, 100), (k, "b", 540 - 40 * seconds, 125)]
    faces, names = detections(seen, fps, with_appearance=with_appearance)
    tracking = follow_faces(faces, frames(12 * fps), TELLS_PEOPLE)
    assert groups(tracking.track_ids, names) == [{"a"}, {"b"}]


def test_a_short_gap_is_bridged_and_a_long_one_is_not():
    for missing, num_tracks in ((2, 1), (10, 2)):
        seen = [(k, "a", 100 + 10 * k, 100) for k in range(20) if not 6 <= k < 6 + missing]
        faces, _ = detections(seen)
        assert follow_faces(faces, frames(20)).track_ids.max() + 1 == num_tracks


def test_a_cut_ends_tracks_and_appearance_joins_them_to_people():
    seen = []
    for k in range(30):
        left, right = ("a", "b") if k < 10 or k >= 20 else ("b", "a")
        seen += [(k, left, 100, 100), (k, right, 400, 100)]
    faces, names = detections(seen, with_appearance=True)
    tracking = follow_faces(faces, frames(30, cuts=(10, 20)), TELLS_PEOPLE)
    assert tracking.cuts.tolist() == [10, 20]
    assert tracking.track_ids.max() + 1 == 6
    assert groups(tracking.person_ids, names) == [{"a"}, {"b"}]


def test_two_tracks_at_the_same_time_are_never_one_person():
    seen = [(k, "a", x, 100) for k in range(6) for x in (100, 400)]
    faces, _ = detections(seen, with_appearance=True)
    tracking = follow_faces(faces, frames(6), TELLS_PEOPLE)
    assert set(tracking.person_ids) == {0, 1}


def test_without_a_person_distance_every_track_is_a_person():
    seen = [(k, "a", 100, 100) for k in range(20)]
    faces, _ = detections(seen, with_appearance=True)
    tracking = follow_faces(faces, frames(20, cuts=(10,)), TrackConfig())
    assert tracking.person_ids.tolist() == [0] * 10 + [1] * 10


def test_any_appearance_helps_where_paths_are_wild():
    rng = np.random.default_rng(3)
    seen = [(k, n, *rng.uniform(0, 130, 2)) for k in range(40) for n in "ab"]
    faces, names = detections(seen, fps=1, with_appearance=True)
    tracking = follow_faces(faces, frames(40), TrackConfig(max_growth=3))
    assert groups(tracking.track_ids, names) == [{"a"}, {"b"}]


def test_someone_who_takes_the_place_of_another_is_a_new_track():
    seen = [(k, "a" if k < 8 else "b", 100 + (k >= 8) * 30, 100) for k in range(16)]
    faces, names = detections(seen, with_appearance=True)
    assert groups(follow_faces(faces, frames(16), TELLS_PEOPLE).track_ids, names) == [{"a"}, {"b"}]


def test_short_false_tracks_are_dropped_but_never_all():
    seen = [(k, "a", 100, 100) for k in range(10)] + [(4, "b", 500, 300)]
    faces, names = detections(seen)
    tracking = follow_faces(faces, frames(10))
    assert set(tracking.track_ids[names == "b"]) == {DROPPED}
    assert set(tracking.person_ids[names == "a"]) == {0}
    assert DROPPED not in follow_faces(faces, frames(10), TrackConfig(min_track_faces=1)).track_ids
    alone, _ = detections([(4, "b", 500, 300)])
    assert follow_faces(alone, frames(10)).track_ids.tolist() == [0]
    flash, _ = detections([(k, "a", 100, 100) for k in range(9)] + [(9, "b", 500, 300)])
    assert follow_faces(flash, frames(10, cuts=(9,))).track_ids.tolist() == [0] * 9 + [1]


def test_following_is_deterministic_and_takes_an_empty_video():
    seen = [(k, n, 100 * i, 9 * k) for k in range(30) for i, n in enumerate("abcd")]
    faces, names = detections(seen, with_appearance=True)
    first, second = (follow_faces(faces, frames(30), TELLS_PEOPLE) for _ in range(2))
    assert np.array_equal(first.person_ids, second.person_ids)
    assert groups(first.person_ids, names) == [{"a"}, {"b"}, {"c"}, {"d"}]
    empty = Detections(
        frame_index=np.zeros(0, np.int64),
        pts_seconds=np.zeros(0),
        boxes=np.zeros((0, 4)),
        scores=np.zeros(0),
        appearance=np.zeros((0, 8)),
    )
    assert follow_faces(empty, frames(5)).person_ids.shape == (0,)
    assert select_people(empty, np.zeros(0, np.int64), "main") == []


def test_people_by_policy():
    seen = [(k, "a", 100, 100) for k in range(4)] + [(k, "b", 400, 100) for k in range(9)]
    faces, names = detections(seen)
    people = follow_faces(faces, frames(9)).person_ids
    a, b = people[names == "a"][0], people[names == "b"][0]
    assert select_people(faces, people, "main") == [b]
    assert select_people(faces, people, "all") == [b, a]
    assert select_people(faces, people, "marked", (70, 70, 110, 110)) == [a]
    assert select_people(faces, people, "marked", (70, 70, 110, 110), 0.4) == [a]
    assert select_people(faces, people, "marked", (700, 70, 710, 110)) == []
    with pytest.raises(ValueError, match="face_box"):
        select_people(faces, people, "marked")


def test_average_linkage_equals_scipy_where_nothing_is_forbidden():
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform

    points = np.random.default_rng(1).normal(size=(60, 3))
    ours = average_linkage(squareform(pdist(points)), np.ones(60), 1.5)
    theirs = fcluster(linkage(points, "average"), 1.5, "distance")
    pairs = {*zip(ours.tolist(), theirs.tolist(), strict=True)}
    assert len(pairs) == len(set(ours)) == len(set(theirs)) > 3


def test_cuts_need_histograms_and_a_change():
    assert find_cuts(frames(6), 0.4).tolist() == []
    assert find_cuts(Frames(frame_index=np.arange(6)), 0.4).tolist() == []


def test_face_embeddings_bring_their_own_distance():
    assert with_person_distance(TrackConfig(), "dlib").metric == "euclidean"
    assert with_person_distance(TELLS_PEOPLE, "dlib") == TELLS_PEOPLE
    assert with_person_distance(TrackConfig(), "starter_face").person_distance is None


def looked_at(faces, step):
    """The same faces with vectors in every `step`th frame only, as face embeddings come."""
    vectors = np.where((faces.frame_index % step == 0)[:, None], faces.appearance, np.nan)
    return dataclasses.replace(faces, appearance=vectors)


def test_faces_that_swap_tracks_between_two_looks_get_their_own_rest_back():
    seen = []
    for k in range(100):
        left, right = ("a", "b") if k < 52 else ("b", "a")  # no cut: the images are alike
        seen += [(k, left, 100, 100), (k, right, 190, 100)]
    faces, names = detections(seen, fps=5.0, with_appearance=True)
    tracking = follow_faces(looked_at(faces, 5), frames(100), TELLS_PEOPLE)
    of_people = groups(tracking.person_ids, names)
    assert len(of_people) == 2
    for person, name in zip(range(2), "ab", strict=True):
        own = names[tracking.person_ids == person]
        assert (own == name).mean() > 0.95, "but for frames between two looks"


def test_a_face_that_looks_like_another_once_stays_in_its_track():
    faces, _ = detections([(k, "a", 100, 100) for k in range(60)], 5.0, with_appearance=True)
    vectors = faces.appearance.copy()
    vectors[30] = NAMES["b"]
    faces = looked_at(dataclasses.replace(faces, appearance=vectors), 5)
    assert follow_faces(faces, frames(60), TELLS_PEOPLE).track_ids.max() == 0
