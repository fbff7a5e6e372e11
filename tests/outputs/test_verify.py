"""Outputs proved whole, every kind of damage named, and videos forgotten; no Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caan import config, storage
from caan.errors import InputError
from caan.outputs import layout, log
from caan.outputs import verify as verify_module
from caan.outputs.forget import counts_of, forget
from caan.outputs.lease import FILE
from caan.outputs.log import LogWriter
from caan.outputs.plan import plan, segments_of
from caan.outputs.verify import clean, verify
from caan.schema import (
    FRAME_SCORES_SCHEMA,
    LABELS_SCHEMA,
    MANIFEST_SCHEMA,
    WINDOWS_SCHEMA,
    features_schema,
    segment_scores_schema,
    table_of,
)
from jobs import forget as forget_job
from jobs import verify as verify_job
from tests.support.row_files import rows_of

VIDEOS = ("aaaa", "bbbb", "cccc")
FAILED = "cccc"


def segment_row(request, schema):
    """What the stages write of a segment: one face per frame, or a failure of video `cccc`."""
    row = {k: request[k] for k in ("segment_id", "video_id", "start_seconds", "end_seconds")}
    row |= {"frames": [], "faces": []}
    if request["video_id"] == FAILED:
        return row | {"status": "timed_out", "error": "killed after 300 seconds"}

    def item(column, k):
        types = schema.field(column).type.value_type
        known = {"frame_index": k, "pts_seconds": k / 2.0, "box": [0, 0, 9, 9], "score": 1.0}
        known |= {"raw_score": 0.5, "blind_raw_score": 0.5}
        return {
            part.name: known.get(part.name, [0] * getattr(part.type, "list_size", 0))
            if part.name != "logits"
            else [0.0, 1.0]
            for part in types
        }

    indices = range(request["first_index"], request["first_index"] + request["num_frames"])
    row |= {name: [item(name, k) for k in indices] for name in ("frames", "faces")}
    return row | {"status": "ok", "decoder": "pyav"}


def write_output(output: str, job: str = "extract") -> str:
    """An output of extract or label as the jobs leave it, of three videos in six segments."""
    videos = [
        {"video_id": v, "uri": f"/{v}.mp4", "duration_seconds": 4.0, "status": "ok"} for v in VIDEOS
    ]
    manifest = table_of(videos, MANIFEST_SCHEMA)
    storage.write_table(manifest, storage.join(output, "manifest.parquet"))
    planned = plan(manifest, fps=2.0, segment_frames=4)
    units = planned.units(np.ones(6, bool), 1).to_pylist()
    requests = [request for unit in units for request in segments_of(unit, 2.0, 4)]
    name = {"extract": "features", "label": "segment_scores"}[job]
    schema = features_schema(3, 5) if job == "extract" else segment_scores_schema(3, 2, 4)
    table = table_of([segment_row(r, schema) for r in requests], schema)
    of = {"fps": 2.0, "segment_frames": 4}
    layout.begin_record(output, of, config.fingerprint(of))
    writer = LogWriter(output, "a test")
    receipts = [layout.write_rows(table.slice(0, 3), output, name)]
    writer.commit(receipts[0])
    receipts += [layout.write_rows(table.slice(n, 1), output, name) for n in (4, 3)]
    writer.commit(pa.concat_tables(receipts[1:]))
    writer.commit(layout.write_rows(table.slice(5), output, name))
    record = {
        "format": layout.FORMAT,
        "job": job,
        "is_complete": True,
        "fingerprint": config.fingerprint(of),
        "fingerprint_of": of,
        "identity": {"face_dim": 3, "context_dim": 5},
    }
    if job == "label":
        record |= {"label_set": ["anger", "joy"], "model_id": "m"}
        shared = {"person_id": "0", "probabilities": {"anger": 0.25, "joy": 0.75}}
        labels = [
            {"video_id": v, "is_main": True, "model_id": "m", "status": "ok", "label": "joy"}
            | shared
            for v in VIDEOS[:2]
        ] + [{"video_id": FAILED, "is_main": True, "status": "timed_out", "model_id": "m"}]
        record["pooling"] = {"window_seconds": 2.0}
        windows = [
            row | {"window_index": n, "start_seconds": 2.0 * n, "end_seconds": 2.0 * n + 2.0}
            for row in labels[:2]
            for n in range(2)
        ]
        storage.write_table(table_of(windows, WINDOWS_SCHEMA), output + "/windows/part-0.parquet")
        scores = [
            {"video_id": v, "frame_index": k, "pts_seconds": k / 2, "emotion_score": 0.125} | shared
            for v in VIDEOS[:2]
            for k in range(8)
        ]
        storage.write_table(table_of(labels, LABELS_SCHEMA), output + "/labels/part-0.parquet")
        storage.write_table(
            table_of(scores, FRAME_SCORES_SCHEMA), output + "/frame_scores/part-0.parquet"
        )
    storage.write_json(output + "/run.json", record | counts_of(output, record))
    return output


@pytest.mark.parametrize("job", ["extract", "label"])
def test_a_whole_output_passes_and_a_video_is_forgotten(tmp_path: Path, job: str) -> None:
    output = write_output(str(tmp_path / "out"), job)
    found = verify(output)
    assert found.problems == []
    assert (found.num_videos, found.num_segments) == (3, 6)
    assert found.statuses == {"ok": 2, "timed_out": 1}
    storage.write_bytes(output + "/previews/aaaa.mp4", b"film")
    storage.write_bytes(output + "/previews/aaaab.mp4", b"another")
    storage.write_bytes(output + "/labels.csv", b"video_id,label\naaaa,joy\nbbbb,joy\n")
    storage.write_bytes(output + "/labels.jsonl", b'{"video_id": "aaaa"}\n{"video_id": "bbbb"}\n')
    done = forget(output, ["aaaa"])
    assert done.num_rows == {"extract": 5, "label": 16}[job]  # manifest, segments 2, rows, text 2
    assert [name.rpartition("/")[2] for name in done.files] == ["aaaa.mp4"]
    assert storage.exists(output + "/previews/aaaab.mp4")
    (tmp_path / "out" / "previews" / "aaaab.mp4").unlink()
    assert mentions(output, "aaaa") == []
    after = verify(output)
    assert after.problems == []
    assert (after.num_videos, after.statuses) == (2, {"ok": 1, "timed_out": 1})
    again = forget(output, ["aaaa"])
    assert (again.num_rows, again.files) == (0, [])
    assert verify_job.main(verify_job.Job(output=output)) == 0


def mentions(output: str, video_id: str) -> list[str]:
    """Files that hold these bytes, in their names or as they are or decompressed."""
    found = []
    uris = [file.uri for file in storage.list_files(output)]
    if not storage.is_s3(output):  # hidden ones too
        uris = [str(path) for path in Path(output).rglob("*") if path.is_file()]
    for uri in uris:
        content = storage.read_bytes(uri)
        if uri.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(content))
            content += str(table.to_pydict()).encode() + str(table.schema.metadata).encode()
        if video_id.encode() in content or video_id in uri.rpartition("/")[2]:
            found.append(uri)
    return found


def test_an_output_on_s3_is_verified_and_forgotten_likewise(s3_bucket: str, tmp_path: Path) -> None:
    write_output(str(tmp_path / "out"))
    storage.copy_folder(tmp_path / "out", s3_bucket + "/out")
    assert verify(s3_bucket + "/out").problems == []
    assert forget(s3_bucket + "/out", ["aaaa"]).num_rows == 3
    after = verify(s3_bucket + "/out")
    assert (after.problems, after.num_videos, after.num_segments) == ([], 2, 4)
    assert mentions(s3_bucket + "/out", "aaaa") == []


def test_forgetting_goes_on_after_an_interruption_and_names_what_it_cannot_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = write_output(str(tmp_path / "out"))
    (tmp_path / "out" / "report.md").write_text("see bbbb")
    (tmp_path / "out" / "old.parquet.0123abcd.tmp").write_bytes(b"half of a killed write")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            forget(output, ["bbbb"])
    assert any("run.json says" in problem for problem in verify(output).problems)
    assert forget_job.main(forget_job.Job(output=output, video_ids=("bbbb",))) == 1  # report.md
    assert verify(output).problems == []
    assert not list(tmp_path.glob("out/*.tmp"))
    (tmp_path / "out" / "report.md").unlink()
    assert forget_job.main(forget_job.Job(output=output, video_ids=("bbbb",))) == 0


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


def test_nothing_is_cleaned_or_forgotten_while_a_driver_writes(tmp_path: Path) -> None:
    output = write_output(str(tmp_path / "out"))
    layout.write_rows(rows_of([("aaaa", 0, "ok")]), output, "features")
    driver = {
        "id": "x", "host": "farm-7", "process": 1, "process_started": 1.0, "job": "extract",
        "since": "2030-01-01T00:00:00+00:00", "renewed": "2099-01-01T00:00:00+00:00",
    }  # fmt: skip
    storage.write_json(storage.join(output, FILE), driver)
    before = {f.uri: f.etag for f in storage.list_files(output)}
    for act in (clean, lambda output: forget(output, ["aaaa"])):
        with pytest.raises(InputError, match=r"jobs\.extract on farm-7"):
            act(output)
    assert {f.uri: f.etag for f in storage.list_files(output)} == before


def die_at(patch: pytest.MonkeyPatch, where: object, name: str) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(where, name, die)


@pytest.mark.parametrize(
    ("where", "step"),
    [
        (storage, "create_bytes"),  # before its commit
        (storage, "delete"),  # after it
        (layout, "remove_garbage"),
        (log, "write_checkpoint"),
        (storage, "write_json"),  # while the log is written anew
    ],
)
def test_forgetting_leaves_no_byte_of_an_id_wherever_it_was_interrupted(
    where: object, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "CHECKPOINT_COMMITS", 2)
    output = write_output(str(tmp_path / "out"))
    half = tmp_path / "out" / "log" / "00000009.json.0123abcd.tmp"
    half.write_bytes(b'{"add": {"features/x.parquet": {"aaaa": [')
    assert len(mentions(output, "aaaa")) > 4
    assert any("checkpoint" in name for name in mentions(output, "aaaa"))
    with monkeypatch.context() as patch:
        die_at(patch, where, step)
        with pytest.raises(KeyboardInterrupt):
            forget(output, ["aaaa"])
    forget(output, ["aaaa"])
    assert mentions(output, "aaaa") == []
    after = verify(output)
    assert (after.problems, after.num_videos, after.num_garbage) == ([], 2, 0)
    assert forget(output, ["aaaa"]).num_rows == 0
    assert verify(output).num_segments == 4


def test_a_video_of_an_interrupted_run_is_forgotten_too(tmp_path: Path) -> None:
    output = write_output(str(tmp_path / "out"))
    record = storage.read_json(output + "/run.json")
    layout.begin_record(output, record["fingerprint_of"], record["fingerprint"])
    layout.write_rows(rows_of([("aaaa", 0, "ok")]), output, "features")
    assert forget(output, ["aaaa"]).num_rows == 3
    assert mentions(output, "aaaa") == []
    assert log.read(output).segments.num_rows == 4
    storage.write_json(output + "/run.json", record | counts_of(output, record))
    assert verify(output).problems == []


def test_forget_refuses_what_it_cannot_mean(tmp_path: Path) -> None:
    output = write_output(str(tmp_path / "out"))
    before = {f.uri: f.etag for f in storage.list_files(output)}
    for ids in ([], ["a"], ["../x"], ["", "aaaa"]):
        with pytest.raises(InputError, match="--video-ids"):
            forget(output, ids)
    with pytest.raises(InputError, match=r"no run\.json"):
        forget(str(tmp_path), ["aaaa"])
    assert {f.uri: f.etag for f in storage.list_files(output)} == before


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
