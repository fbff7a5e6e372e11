"""Videos forgotten: no row, file or byte of them is left; no Ray."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caan import storage
from caan.errors import InputError
from caan.outputs import layout, log
from caan.outputs.forget import counts_of, forget
from caan.outputs.lease import FILE
from caan.outputs.verify import clean, verify
from jobs import forget as forget_job
from jobs import verify as verify_job
from tests.support.row_files import rows_of
from tests.support.whole_outputs import write_output


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
