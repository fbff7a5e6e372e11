"""Outputs proved whole, and every kind of damage named; no Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caan import storage
from caan.errors import InputError
from caan.outputs import layout
from caan.outputs import verify as verify_module
from caan.outputs.log import LogWriter
from caan.outputs.verify import clean, verify
from caan.schema import (
    features_schema,
    table_of,
)
from jobs import verify as verify_job
from tests.support.row_files import rows_of
from tests.support.whole_outputs import write_output


def test_a_file_that_no_commit_names_is_counted_and_cleaned_away(
    tmp_path: Path, s3_bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_output(str(tmp_path / "out"))
    storage.copy_folder(tmp_path / "out", s3_bucket + "/out")
    for output in (str(tmp_path / "out"), s3_bucket + "/out"):
        before = {file.uri for file in storage.list_files(output)}
        garbage = layout.write_rows(rows_of([("aaaa", 0, "ok")]), output, "features")
        found = verify(output)
        assert (found.problems, found.num_garbage, found.num_segments) == ([], 1, 6)
        assert clean(output) == 1
        assert {file.uri for file in storage.list_files(output)} == before
        assert (verify(output).num_garbage, clean(output)) == (0, 0)
        (name,) = garbage["file"].to_pylist()
        storage.write_bytes(storage.join(output, name), b"half")
        assert verify_job.main(verify_job.Job(output=output)) == 0
        assert "1 of killed runs: see --clean" in capsys.readouterr().out
        assert verify_job.main(verify_job.Job(output=output, clean=True)) == 0
        assert "1 files of killed runs deleted" in capsys.readouterr().out


def first_of(output: Path, name: str) -> Path:
    """The file with the most rows of those that match."""
    return max(output.glob(name), key=lambda path: (pq.read_metadata(path).num_rows, path))


def edit(name, change):
    """Damage that rewrites a table: `change` gets its rows."""

    def damage(output: Path) -> None:
        path = first_of(output, name)
        table = storage.read_table(path)
        rows = table.to_pylist()
        storage.write_table(table_of(change(rows) or rows, table.schema), path)

    return damage


def set_item(rows, column, position, key, value):
    rows[0][column][position][key] = value


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


FIRST = "features/[0-9a-f]*.parquet"
FAILED_ONE = "features/failed-*.parquet"
DAMAGES = {
    "a lost row": (edit(FIRST, lambda rows: rows[1:]), "than the log says: aaaa-00000000"),
    "a lost file": (lambda out: first_of(out, FIRST).unlink(), ".parquet` is missing"),
    "a lost commit": (
        lambda out: (out / "log" / "00000003.json").unlink(), "segments are lost: cccc-00000004"
    ),
    "a commit of rows that are not there": (
        lambda out: LogWriter(str(out), "x").commit(
            layout.write_rows(rows_of([("cccc", 4, "ok")]), str(out), "segment_scores")
        ),
        "run.json says num_segments 6, but 7",
    ),
    "a number of faces": (
        edit(FIRST, lambda rows: rows[0]["faces"].pop() and None),
        "than the log says: aaaa-00000000",
    ),
    "a status other than the log's": (
        edit(FAILED_ONE, lambda rows: rows[0].update(status="crashed")), "than the log says"
    ),
    "a doubled row": (edit(FIRST, lambda rows: [*rows, rows[0]]), "segments stand twice"),
    "a file copied": (
        lambda out: LogWriter(str(out), "x").commit(
            layout.write_rows(storage.read_table(first_of(out, FIRST)), str(out), "features")
        ),
        "segments stand twice: aaaa-00000000",
    ),
    "a row of another plan": (
        edit(FIRST, lambda rows: rows[0].update(segment_id="zzzz-00000000")),
        "segments were never planned: zzzz-00000000",
    ),
    "half a file": (
        lambda out: first_of(out, FIRST).write_bytes(first_of(out, FIRST).read_bytes()[:500]),
        "cannot be read",
    ),
    "no end": (
        lambda out: storage.write_json(
            out / "run.json", storage.read_json(out / "run.json") | {"is_complete": False}
        ),
        "is not finished",
    ),
    "a frame moved": (
        edit(FIRST, lambda rows: set_item(rows, "frames", 1, "frame_index", 3)), "on the grid"
    ),
    "a late frame": (
        edit(FIRST, lambda rows: set_item(rows, "frames", 1, "pts_seconds", 0.9)), "on the grid"
    ),
    "a frame missing": (edit(FIRST, lambda rows: rows[0]["frames"].pop(1) and None), "on the grid"),
    "a face without its frame": (
        edit(FIRST, lambda rows: set_item(rows, "faces", 1, "frame_index", 7)), "on the grid"
    ),
    "infinite vectors": (
        edit(FIRST, lambda rows: set_item(rows, "faces", 0, "face_vector", [np.inf, 0, 0])),
        "not finite",
    ),
    "a turned box": (
        edit(FIRST, lambda rows: set_item(rows, "faces", 0, "box", [9, 9, 0, 0])), "boxes"
    ),
    "a status nobody knows": (
        edit(FIRST, lambda rows: rows[0].update(status="fine")), "unknown status"
    ),
    "a silent failure": (
        edit(FAILED_ONE, lambda rows: rows[0].update(error=None)), "without an error"
    ),
    "a video fewer": (
        edit("manifest.parquet", lambda rows: rows[:2]),
        "never planned: cccc-00000000, cccc-00000004",
    ),
    "a video unplanned": (
        edit("manifest.parquet", lambda rows: [*rows, rows[0] | {"video_id": "dddd"}]),
        "segments are lost: dddd-00000000, dddd-00000004",
    ),
    "another fingerprint": (
        lambda out: storage.write_json(
            out / "run.json", storage.read_json(out / "run.json") | {"fingerprint": "x"}
        ),
        "run.json says fingerprint x",
    ),
    "other dimensions": (
        lambda out: storage.write_json(
            out / "run.json",
            storage.read_json(out / "run.json") | {"identity": {"face_dim": 4096}},
        ),
        "departs from the schema: faces",
    ),
    "another run's column": (
        lambda out: storage.write_table(
            storage.read_table(first_of(out, FIRST)).append_column("x", pa.array([1, 2, 3])),
            first_of(out, FIRST),
        ),
        "departs from the schema: x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    write_output(str(output))
    damage, sentence = DAMAGES[what]
    damage(output)
    assert verify_job.main(verify_job.Job(output=str(output))) == 1
    said = capsys.readouterr().out
    assert sentence in said
    assert "NOT WHOLE" in said


LABEL_DAMAGES = {
    "a lost label": (edit("labels/*", lambda rows: rows[1:]), "videos have no label row: aaaa"),
    "a doubled label": (edit("labels/*", lambda rows: [*rows, rows[0]]), "label rows stand twice"),
    "no main person": (
        edit("labels/*", lambda rows: rows[0].update(is_main=False)), "exactly one main row: aaaa"
    ),
    "a foreign label": (edit("labels/*", lambda rows: rows[0].update(label="love")), "foreign"),
    "another model": (edit("labels/*", lambda rows: rows[0].update(model_id="n")), "another model"),
    "a doubled window": (edit("windows/*", lambda rows: [*rows, rows[0]]), "windows stand twice"),
    "a window of nobody": (
        edit("windows/*", lambda rows: rows[0].update(person_id="7")), "windows are of nobody"
    ),
    "a longer window": (
        edit("windows/*", lambda rows: rows[0].update(end_seconds=9.0)), "or length"
    ),
    "no windows": (lambda output: next(output.glob("windows/*")).unlink(), "no table of them"),
    "a lost score": (edit("frame_scores/*", lambda rows: rows[1:]), "do not sum to 1: aaaa"),
    "scores of nobody": (
        edit("frame_scores/*", lambda rows: [r | {"video_id": "zzzz"} for r in rows]),
        "of nobody in the labels: zzzz",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LABEL_DAMAGES)
def test_damage_of_labels_is_named(what: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_output(str(output), "label")
    damage, sentence = LABEL_DAMAGES[what]
    damage(output)
    assert any(sentence in problem for problem in verify(str(output)).problems)


def test_flipped_bytes_are_seen(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_output(str(output))
    path = first_of(output, FIRST)
    whole = path.read_bytes()
    pages = pq.ParquetFile(path).metadata.row_group(0)
    ends = [pages.column(n).data_page_offset + pages.column(n).total_compressed_size - 1
            for n in range(0, pages.num_columns, 3)]  # fmt: skip
    seen = 0
    for at in (0, len(whole) - 1, *ends):
        flip(path, min(at, len(whole) - 1))
        seen += bool(verify(str(output)).problems)
        path.write_bytes(whole)
    assert seen == 2 + len(ends)


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run\.json"):
        verify(str(tmp_path))
    with pytest.raises(InputError, match="there is no file"):
        verify(str(tmp_path / "manifest.parquet"))
    storage.write_json(tmp_path / "run.json", {"job": "train", "is_complete": True})
    with pytest.raises(InputError, match=r"jobs\.train"):
        verify(str(tmp_path))
    storage.write_json(tmp_path / "run.json", {"fingerprint": "x", "is_complete": False})
    assert "not finished" in verify(str(tmp_path)).problems[0]


def test_features_with_pool5_maps_have_the_expected_schema():
    record = {"job": "extract", "identity": {"face_pool5_shape": [2, 3, 3]}}
    expected = features_schema(4, 5, face_pool5=18)
    assert verify_module._segment_schema(expected.empty_table(), record) == expected
