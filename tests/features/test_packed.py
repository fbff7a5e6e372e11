"""Packing: from the features' Parquet to flat arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caan.errors import InputError
from caan.features.packing import add_maps, pack_features
from caan.features.splits import split_validation
from caan.schema import EMOTIONS, MANIFEST_SCHEMA, features_schema, table_of

SCHEMA = features_schema(4, 3)


def vector(dim, value):
    return np.full(dim, value, dtype=np.float16)


def face(index, box, value):
    return {"frame_index": index, "box": box, "score": 0.9, "face_vector": vector(4, value)}


def frame(index, value):
    context = None if value is None else vector(3, value)
    return {"frame_index": index, "pts_seconds": index / 2, "context_vector": context}


def segment(video, first, frames, faces):
    return {
        "segment_id": f"{video}-{first:08d}",
        "video_id": video,
        "status": "ok",
        "frames": frames,
        "faces": faces,
    }


def manifest(*rows):
    return table_of(list(rows), MANIFEST_SCHEMA)


def features(*rows):
    return table_of(list(rows), SCHEMA)


ROWS = (
    segment(
        "b",
        0,
        [frame(0, 1), frame(1, None), frame(2, 3)],
        [face(0, [0, 0, 9, 9], 10), face(0, [0, 0, 2, 2], 11), face(2, [5, 5, 7, 7], 12)],
    ),
    segment("a", 2, [frame(2, 6), frame(3, 7)], [face(3, [0, 0, 1, 1], 17)]),
    segment(
        "a", 0, [frame(0, 4), frame(1, 5)], [face(1, [0, 0, 1, 1], 15), face(0, [0, 0, 1, 1], 14)]
    ),
    segment("stranger", 0, [frame(0, 1)], [face(0, [0, 0, 1, 1], 1)]),
    {"segment_id": "c-00000000", "video_id": "c", "status": "decode_failed"},
)
MANIFEST = manifest(
    {"video_id": "a", "label": "joy", "split": "train"},
    {"video_id": "b", "label": "fear", "split": "test"},
    {"video_id": "c", "label": "joy"},
)


@pytest.mark.parametrize("cut", ["one_table", "table_per_row", "parquet"])
def test_frames_lie_in_manifest_and_time_order_with_their_largest_face(cut, tmp_path):
    table = features(*ROWS)
    if cut == "parquet":
        pq.write_table(table, tmp_path / "f.parquet", row_group_size=2)
        tables = [pq.read_table(tmp_path / "f.parquet")]
    else:
        tables = [table] if cut == "one_table" else [table.slice(i, 1) for i in range(len(ROWS))]
    packed = pack_features(tables, MANIFEST, EMOTIONS)
    assert packed.counts_V.tolist() == [3, 2, 0]
    assert packed.starts_V.tolist() == [0, 3, 5]
    assert packed.face_ND[:, 0].tolist() == [14, 15, 17, 10, 12]
    assert packed.context_NE[:, 0].tolist() == [4, 5, 7, 1, 3]
    assert packed.frame_indices_N.tolist() == [0, 1, 3, 0, 2]
    assert packed.pts_seconds_N.tolist() == [0, 0.5, 1.5, 0, 1]
    assert packed.boxes_N4[3].tolist() == [0, 0, 9, 9]
    assert packed.labels_V.tolist() == [3, 2, 3]
    assert packed.splits_V.tolist() == ["train", "test", ""]
    assert packed.face_ND.dtype == packed.context_NE.dtype == np.float16
    assert packed.usable().video_ids_V.tolist() == ["a", "b"]


def test_frames_without_a_face_stay_when_asked_for():
    packed = pack_features([features(*ROWS)], MANIFEST, EMOTIONS, no_face="context_only")
    assert packed.counts_V.tolist() == [4, 2, 0]
    assert packed.has_face_N.tolist() == [True, True, False, True, True, True]
    assert packed.face_ND[2].tolist() == [0, 0, 0, 0]
    assert packed.context_NE[2, 0] == 6


def map_of(value):
    return np.full(8, value, dtype=np.float16)


def with_maps(row):
    """Maps whose numbers are those of their vectors; null where the vector is."""
    contexts = [frame["context_vector"] for frame in row.get("frames", ())]
    return row | {
        "face_pool5": [map_of(face["face_vector"][0]) for face in row.get("faces", ())],
        "context_pool5": [None if v is None else map_of(v[0]) for v in contexts],
    }


MAP_SCHEMA = features_schema(4, 3, face_pool5=8, context_pool5=8)
MAP_SHAPES = {"face": (2, 2, 2), "context": [2, 2, 2]}


@pytest.mark.parametrize("no_face", ["drop", "context_only"])
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_pool5_maps_lie_beside_the_vectors_of_their_frames(no_face, cut):
    packed = pack_features([features(*ROWS)], MANIFEST, EMOTIONS, no_face=no_face)
    table = table_of([with_maps(row) for row in ROWS], MAP_SCHEMA)
    tables = [table.slice(start, cut) for start in range(0, len(ROWS), cut)]
    found = add_maps(packed, tables, MAP_SHAPES).maps
    assert found["face"].shape == found["context"].shape == (len(packed.face_ND), 2, 2, 2)
    np.testing.assert_array_equal(found["face"][:, 1, 0, 1], packed.face_ND[:, 0])
    np.testing.assert_array_equal(found["context"][:, 0, 1, 1], packed.context_NE[:, 0])
    assert found["face"].dtype == np.float16


def test_maps_that_are_missing_or_too_large_are_named():
    packed = pack_features([features(*ROWS)], MANIFEST, EMOTIONS)
    table = table_of([with_maps(row) for row in ROWS], MAP_SCHEMA)
    with pytest.raises(InputError, match="--pool5 face"):
        add_maps(packed, [features(*ROWS)], {"face": (2, 2, 2)})
    with pytest.raises(InputError, match="--pool5 context"):
        add_maps(packed, [table.slice(1)], {"context": (2, 2, 2)})
    with pytest.raises(InputError, match="5 frames take"):
        add_maps(packed, [table], MAP_SHAPES, max_bytes=100)


def test_the_marked_face_goes_before_the_largest():
    marked = manifest({"video_id": "b", "label": "fear", "face_box": [0, 0, 2, 3]})
    packed = pack_features([features(ROWS[0])], marked, EMOTIONS)
    assert packed.face_ND[:, 0].tolist() == [11, 12]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="`delight` is not in the label set"):
        pack_features([features(*ROWS)], manifest({"video_id": "a", "label": "delight"}), EMOTIONS)
    with pytest.raises(InputError, match="no features belong"):
        pack_features([features(ROWS[3])], MANIFEST, EMOTIONS)
    with pytest.raises(InputError, match="different backbones"):
        pack_features([features(*ROWS), features_schema(8, 3).empty_table()], MANIFEST, EMOTIONS)
    with pytest.raises(InputError, match="are no features"):
        pack_features([MANIFEST], MANIFEST, EMOTIONS)
    with pytest.raises(InputError, match="the manifest has"):
        pack_features([features(*ROWS)], MANIFEST, EMOTIONS).split("validation")


def test_validation_takes_its_share_of_every_class():
    rows = [{"video_id": f"v{i}", "label": EMOTIONS[i % 3]} for i in range(60)]
    table = features(
        *(segment(f"v{i}", 0, [frame(0, 1)], [face(0, [0, 0, 1, 1], i)]) for i in range(60))
    )
    packed = pack_features([table], manifest(*rows), EMOTIONS)
    train, validation = split_validation(packed, fraction=0.2, seed=1)
    assert np.bincount(validation.labels_V).tolist() == [4, 4, 4]
    assert not set(train.video_ids_V) & set(validation.video_ids_V)
    assert len(train) == 48
    again = split_validation(packed, fraction=0.2, seed=1)[1]
    assert again.video_ids_V.tolist() == validation.video_ids_V.tolist()
    assert np.shares_memory(train.face_ND, packed.face_ND)


def test_votes_become_soft_labels_and_the_label_stands_where_there_are_none():
    schema, some = MANIFEST_SCHEMA, [("joy", 3), ("anger", 1)]
    rows = [("a", "joy", some), ("b", "joy", None), ("c", None, [("fear", 2)])]
    table = table_of([{"video_id": v, "label": k, "votes": n} for v, k, n in rows], schema)
    segments = [segment(v, 0, [frame(0, 1)], [face(0, [0, 0, 5, 5], 1)]) for v, *_ in rows]
    packed = pack_features([features(*segments)], table, ("anger", "joy"))
    assert packed.soft_VK.tolist() == [[0.25, 0.75], [0, 1], [0, 0]]
    assert packed.select([1, 0]).soft_VK.tolist() == [[0, 1], [0.25, 0.75]]
    without = table.set_column(
        schema.get_field_index("votes"), "votes", pa.nulls(3, schema.field("votes").type)
    )
    assert pack_features([features(*segments)], without, ("anger", "joy")).soft_VK is None
