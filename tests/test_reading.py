"""docs/reading.md: its blocks read the same rows with each tool, local and on S3."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from caan import storage
from caan.outputs import layout
from caan.outputs.log import LogWriter
from caan.schema import LABELS_SCHEMA, features_schema, table_of

DOC = Path(__file__).resolve().parents[1] / "docs" / "reading.md"
DIM = 3


def written(output: str) -> str:
    """An output of two videos of two segments, each with a face, and files that do not count."""
    writer = LogWriter(output, "a test")
    schema = features_schema(DIM, DIM)
    for video in ("aaaa", "bbbb"):
        rows = [
            {
                "segment_id": f"{video}-{first:08d}",
                "video_id": video,
                "status": "ok",
                "frames": [{"frame_index": first, "context_vector": [0.5] * DIM}],
                "faces": [{"frame_index": first, "score": 0.9, "face_vector": [0.25] * DIM}],
            }
            for first in (0, 8)
        ]  # fmt: skip
        writer.commit(layout.write_rows(table_of(rows, schema), output, "features"))
        layout.write_rows(table_of(rows, schema), output, "features")  # of a killed run
    labels = [{"video_id": v, "label": "joy", "is_main": True} for v in ("aaaa", "bbbb")]
    part = storage.join(output, "labels", "part-00000.parquet")
    storage.write_table(table_of(labels, LABELS_SCHEMA), part)
    return output


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        return written(str(tmp_path / "out"))
    return written(storage.join(request.getfixturevalue("s3_bucket"), "out"))


def test_each_block_of_the_page_reads_the_rows_that_count(output):
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {"output": output}
    exec(blocks[0], names)
    assert len(names["files"]) == 2
    exec(blocks[1], names)
    assert sorted(names["features"]["video_id"]) == ["aaaa", "aaaa", "bbbb", "bbbb"]
    assert len(names["frames"]) == 4
    assert names["labels"]["label"].tolist() == ["joy", "joy"]
    exec(blocks[2], names)
    assert sorted(names["faces"]) == [
        (v, i, pytest.approx(0.9)) for v in ("aaaa", "bbbb") for i in (0, 8)
    ]
    assert names["labels"] == [("joy", 2)]
    exec(blocks[3], names)
    assert sorted(names["vectors"]["frame_index"].to_list()) == [0, 0, 8, 8]
    assert np.allclose(names["vectors"]["face_vector"].to_numpy(), 0.25)
    assert names["labels"].height == 2


def test_pyarrow_reads_half_precision_vectors_as_they_are(output):
    rows = pa.concat_tables(layout.read_rows(output, "features"))
    assert rows.schema.field("faces").type.value_type.field("face_vector").type == pa.list_(
        pa.float16(), DIM
    )
