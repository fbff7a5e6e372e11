"""Outputs proved whole, every kind of damage named, and videos forgotten; no Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caan import config, storage
from caan.errors import InputError
from caan.outputs import layout
from caan.outputs import verify as verify_module
from caan.outputs.forget import counts_of, forget
from caan.outputs.plan import plan_segments
from caan.outputs.verify import verify
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

VIDEOS = ("aaaa", "bbbb", "cccc")
FAILED = "cccc"


def segment_row(request, schema):
    """What the stages write of a segment: one face per frame, or a failure of video `cccc`."""
    row = {k: request[k] for k in ("segment_id", "video_id", "start_seconds", "end_seconds")}
    row |= {"attempt": request["attempt"], "frames": [], "faces": []}
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
    plan = plan_segments(manifest, fps=2.0, segment_frames=4)
    name = {"extract": "features", "label": "segment_scores"}[job]
    schema = features_schema(3, 5) if job == "extract" else segment_scores_schema(3, 2, 4)
    shard = layout.extend_plan(output, name, plan, retry_failed=False)[0]
    table = table_of([segment_row(r, schema) for r in plan.to_pylist()], schema)
    storage.write_table(table.slice(0, 3), storage.join(shard.folder, "0.parquet"))
    storage.write_table(table.slice(3), storage.join(shard.folder, "1.parquet"))
    storage.write_bytes(storage.join(shard.folder, layout.SUCCESS), b"")
    of = {"fps": 2.0}
    record = {
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
    assert done.num_rows == {"extract": 7, "label": 18}[job]  # manifest, plan 2, rows 2, text 2
    assert [name.rpartition("/")[2] for name in done.files] == ["aaaa.mp4"]
    assert storage.exists(output + "/previews/aaaab.mp4")
    for file in storage.list_files(output):
        if file.uri.endswith(".parquet"):
            assert "aaaa" not in storage.read_table(file.uri)["video_id"].to_pylist()
        else:
            assert b'aaaa"' not in storage.read_bytes(file.uri)
    after = verify(output)
    assert after.problems == []
    assert (after.num_videos, after.statuses) == (2, {"ok": 1, "timed_out": 1})
    again = forget(output, ["aaaa"])
    assert (again.num_rows, again.files) == (0, [])
    assert verify_job.main(verify_job.Job(output=output)) == 0


def test_an_output_on_s3_is_verified_and_forgotten_likewise(s3_bucket: str, tmp_path: Path) -> None:
    write_output(str(tmp_path / "out"))
    storage.copy_folder(tmp_path / "out", s3_bucket + "/out")
    assert verify(s3_bucket + "/out").problems == []
    assert forget(s3_bucket + "/out", ["aaaa"]).num_rows == 5
    after = verify(s3_bucket + "/out")
    assert (after.problems, after.num_videos, after.num_segments) == ([], 2, 4)


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


def test_forget_refuses_what_it_cannot_mean(tmp_path: Path) -> None:
    output = write_output(str(tmp_path / "out"))
    before = {f.uri: f.etag for f in storage.list_files(output)}
    for ids in ([], ["a"], ["../x"], ["", "aaaa"]):
        with pytest.raises(InputError, match="--video-ids"):
            forget(output, ids)
    with pytest.raises(InputError, match=r"no run\.json"):
        forget(str(tmp_path), ["aaaa"])
    assert {f.uri: f.etag for f in storage.list_files(output)} == before


def edit(name, change):
    """Damage that rewrites a table: `change` gets its rows."""

    def damage(output: Path) -> None:
        path = next(output.glob(name))
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


FIRST = "features/*/*/0.parquet"
DAMAGES = {
    "a lost row": (edit(FIRST, lambda rows: rows[1:]), "segments are lost: aaaa-00000000"),
    "a lost file": (lambda out: next(out.glob(FIRST)).unlink(), "segments are lost"),
    "a doubled row": (edit(FIRST, lambda rows: [*rows, rows[0]]), "segments stand twice"),
    "a file copied": (
        lambda out: (next(out.glob(FIRST)).parent / "2.parquet").write_bytes(
            next(out.glob(FIRST)).read_bytes()
        ),
        "segments stand twice",
    ),
    "a row of another plan": (
        edit(FIRST, lambda rows: rows[0].update(segment_id="zzzz-00000000")),
        "segments were never planned: zzzz-00000000",
    ),
    "half a file": (
        lambda out: next(out.glob(FIRST)).write_bytes(next(out.glob(FIRST)).read_bytes()[:500]),
        "cannot be read",
    ),
    "no marker": (lambda out: next(out.rglob("_SUCCESS")).unlink(), "is not finished"),
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
        edit("features/*/*/1.parquet", lambda rows: rows[2].update(error=None)), "without an error"
    ),
    "a video fewer": (edit("manifest.parquet", lambda rows: rows[:2]), "not in the manifest: cccc"),
    "a video unplanned": (
        edit("manifest.parquet", lambda rows: [*rows, rows[0] | {"video_id": "dddd"}]),
        "never planned: dddd",
    ),
    "a plan lost": (lambda out: next(out.glob("plan/*/*")).unlink(), "have no plan"),
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
            storage.read_table(next(out.glob(FIRST))).append_column("x", pa.array([1, 2, 3])),
            next(out.glob(FIRST)),
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
    path = next(output.glob(FIRST))
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
