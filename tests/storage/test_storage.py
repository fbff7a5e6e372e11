"""Files on local paths and on a real S3 server on loopback."""

import os
import random
import shutil
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from moto.moto_server.threaded_moto_server import MotoRequestHandler

from caan import storage
from caan.errors import InputError, Missing, StorageError, redact
from caan.storage import objects, paths

TABLE = pa.table({"n": [1, 2, 3]})


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """A new empty folder of each kind."""
    if request.param == "local":
        return str(tmp_path)
    return storage.join(request.getfixturevalue("s3_bucket"), "some", "folder")


def test_what_is_written_is_read_listed_and_deleted(folder):
    file = storage.join(folder, "deep", "a b.json")
    storage.write_json(file, {"x": [1]})
    storage.write_bytes(storage.join(folder, "deep", ".hidden"), b"")
    storage.write_bytes(storage.join(folder, "z.bin"), b"12345")
    assert storage.read_json(file) == {"x": [1]}
    assert storage.exists(file)
    assert not storage.exists(file + "x")
    assert storage.is_folder(storage.join(folder, "deep"))
    assert not storage.is_folder(file)
    names = [f.uri.removeprefix(folder) for f in storage.list_files(folder)]
    assert names == ["/deep/a b.json", "/z.bin"]
    assert [f.uri for f in storage.list_files(storage.join(folder, "*.bin"))] == [folder + "/z.bin"]
    assert storage.list_files(storage.join(folder, "z.bin"))[0].size_bytes == 5
    storage.delete(storage.join(folder, "deep"))
    storage.delete(storage.join(folder, "deep"))
    assert [f.uri for f in storage.list_files(folder)] == [folder + "/z.bin"]


def test_etag_and_size_follow_the_content(folder):
    file = storage.join(folder, "x")
    storage.write_bytes(file, b"one")
    before = storage.stat(file)
    assert (before.uri, before.size_bytes) == (file, 3)
    assert before == storage.list_files(folder)[0] == storage.stat(file)
    storage.write_bytes(file, b"three")
    assert storage.stat(file).etag != before.etag
    with pytest.raises(FileNotFoundError):
        storage.stat(file + "x")


def test_a_folder_of_tables_reads_as_one(folder):
    storage.write_table(TABLE, storage.join(folder, "deep", "b.parquet"))
    storage.write_table(TABLE.slice(0, 1), storage.join(folder, "deep", "a.parquet"))
    storage.write_bytes(storage.join(folder, "deep", "note.txt"), b"")
    assert storage.read_table(folder)["n"].to_pylist() == [1, 1, 2, 3]
    assert storage.read_table(folder, ["n"]).column_names == ["n"]


def test_the_rows_of_some_videos_are_read_alone(folder):
    ids = ["a", "b", "a", "c"]
    table = pa.table({"video_id": ids, "n": range(4)})
    for name in ("x.parquet", "y.parquet"):
        storage.write_table(table, storage.join(folder, name), rows_per_group=2)
    found = storage.read_table(folder, ["n"], video_ids=["a", "z"])
    assert found.to_pydict() == {"n": [0, 2, 0, 2]}
    assert storage.read_table(folder, video_ids=("c",))["video_id"].to_pylist() == ["c", "c"]
    assert storage.read_table(folder, video_ids=[]).num_rows == 0


def test_a_file_is_created_once_and_never_overwritten(folder):
    file = storage.join(folder, "log", "00000000.json")
    storage.create_bytes(file, b"first")
    with pytest.raises(FileExistsError):
        storage.create_bytes(file, b"second")
    assert storage.read_bytes(file) == b"first"
    assert storage.list_names(storage.join(folder, "log")) == ["00000000.json"]
    assert len(storage.list_files(folder)) == 1, "no temporary file is left"


def test_of_writers_that_create_a_file_together_one_succeeds(folder):
    file = storage.join(folder, "log", "00000000.json")
    barrier = threading.Barrier(6)

    def create(number):
        barrier.wait()
        try:
            storage.create_bytes(file, b"%d" % number * 1000)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(6) as pool:
        done = [number for number in pool.map(create, range(6)) if number is not None]
    assert len(done) == 1
    assert storage.read_bytes(file) == b"%d" % done[0] * 1000


def test_a_file_that_cannot_be_created_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"storage failed while writing `.*file/0.json`"):
        storage.create_bytes(tmp_path / "file" / "0.json", b"x")
    with pytest.raises(TypeError):
        storage.create_bytes(tmp_path / "0.json", "text")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all, but long enough for one"])
def test_what_is_no_table_is_named(folder, content):
    file = storage.join(folder, "m.parquet")
    storage.write_bytes(file, content)
    with pytest.raises(InputError, match=r"m\.parquet` is not a Parquet file"):
        storage.read_table(file)


def test_tables_that_do_not_fit_together_are_named(folder):
    storage.write_table(TABLE, storage.join(folder, "a.parquet"))
    storage.write_table(pa.table({"n": ["x"]}), storage.join(folder, "b.parquet"))
    with pytest.raises(InputError, match="do not have the same columns"):
        storage.read_table(folder)


def test_what_is_absent_is_named(folder):
    file = storage.join(folder, "nowhere")
    for read in (storage.list_files, storage.read_table):
        with pytest.raises(InputError, match=r"nothing is at `.*nowhere`"):
            read(file)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(file)
    storage.write_bytes(file, b"{")
    with pytest.raises(InputError, match="nowhere` is not valid JSON"):
        storage.read_json(file)


def test_a_writable_place_stays_empty(folder):
    storage.check_writable(storage.join(folder, "new"))
    place = storage.join(folder, "new")
    assert not storage.exists(place) or storage.list_files(place) == []


def test_a_folder_is_copied_between_storages(s3_bucket, tmp_path):
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "sub" / "w").write_bytes(b"weights")
    storage.copy_folder(tmp_path / "model", s3_bucket + "/models/1")
    with storage.local_folder(s3_bucket + "/models/1/") as local:
        assert (local / "sub" / "w").read_bytes() == b"weights"
    assert not local.exists()
    with storage.local_folder(tmp_path / "model") as local:
        assert local == tmp_path / "model"
    with (
        pytest.raises(InputError, match=r"no folder `.*models/2`"),
        storage.local_folder(s3_bucket + "/models/2"),
    ):
        pass


def test_a_local_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    file = tmp_path / "run.json"
    storage.write_bytes(file, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(file, "text")  # type: ignore[arg-type]
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_local_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to `.*file`.* another --output"):
        storage.check_writable(tmp_path / "file")


def test_a_bucket_that_does_not_exist_is_named(s3_bucket):
    for read in (storage.list_files, storage.read_table):
        with pytest.raises(InputError, match="no-such-bucket"):
            read("s3://no-such-bucket/x")
    with pytest.raises(InputError, match="cannot write to `s3://no-such-bucket/x`"):
        storage.check_writable("s3://no-such-bucket/x")


@pytest.mark.parametrize("path", ["", "https://a:b@host/x", "gs://b/x", "s3://", "s3:/bucket/x"])
def test_bad_paths_are_refused_without_their_credentials(path):
    with pytest.raises(InputError, match=r"only local paths and s3://|names no") as failure:
        storage.normalise(path)
    assert "a:b" not in str(failure.value)


def test_a_path_has_one_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spellings = ["x/y", "./x//y/", f"file://{tmp_path}/x/y", tmp_path / "z" / ".." / "x" / "y"]
    assert {storage.normalise(path) for path in spellings} == {str(tmp_path / "x" / "y")}
    assert storage.normalise("s3://bucket/a/b/") == "s3://bucket/a/b"


def test_credentials_are_redacted_and_the_rest_stays(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    text = (
        "no `s3://bucket/a?.mp4`: is it there? See https://me:pw@host/p?sig=abc "
        "and http://you:pw2@[::1]:80, not very-secret."
    )
    assert redact(text) == (
        "no `s3://bucket/a?.mp4`: is it there? See https://host/p and http://[::1]:80, "
        "not <AWS_SECRET_ACCESS_KEY>."
    )


def check_keys_after(s3_server, num_requests):
    address, kind = f"{s3_server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    request = urllib.request.Request(address, str(num_requests).encode(), kind, method="POST")
    urllib.request.urlopen(request).close()


def test_denied_access_is_named_as_such(s3_server, s3_bucket):
    storage.write_bytes(s3_bucket + "/x", b"1")
    check_keys_after(s3_server, num_requests=0)
    try:
        for action in (storage.read_bytes, storage.exists, storage.stat, storage.list_files):
            with pytest.raises(StorageError, match=r"access denied while .* `s3://.*credentials"):
                action(s3_bucket + "/x")
        with pytest.raises(InputError, match=r"cannot write .*access denied"):
            storage.check_writable(s3_bucket + "/new")
    finally:
        check_keys_after(s3_server, num_requests=10**9)


def test_storage_out_of_reach_is_named_as_such(s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(paths, "S3_ATTEMPTS", 1)
    for action in (storage.read_bytes, storage.stat, storage.list_files):
        with pytest.raises(StorageError, match=r"storage failed while .* `s3://"):
            action(s3_bucket + "/x")


def test_an_object_is_fetched_once_and_again_when_it_changes(s3_bucket, tmp_path):
    uri, cache = s3_bucket + "/weights.bin", tmp_path / "cache"
    storage.write_bytes(uri, b"one")
    first = storage.fetch(uri, cache)
    written = first.stat().st_mtime_ns
    assert first.read_bytes() == b"one"
    assert storage.fetch(uri, cache) == first
    assert first.stat().st_mtime_ns == written
    storage.write_bytes(uri, b"two")
    assert storage.fetch(uri, cache).read_bytes() == b"two"
    assert len(os.listdir(cache)) == 2
    assert storage.fetch(str(first), cache) == first
    for absent in (s3_bucket + "/none", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError):
            storage.fetch(absent, cache)


def test_small_objects_are_spooled_and_large_ones_and_local_files_stay(s3_bucket, tmp_path):
    uri = s3_bucket + "/clip.mp4"
    storage.write_bytes(uri, b"12345")
    with storage.spooled(uri, 5, spool_bytes=5) as path:
        assert path.endswith(".mp4")
        assert os.path.getsize(path) == 5
    assert not os.path.exists(path)
    with storage.spooled(uri, 6, spool_bytes=5) as path:
        assert path == uri
    local = tmp_path / "clip.mp4"
    local.write_bytes(b"123456")
    with storage.spooled(str(local), 6, spool_bytes=5) as path:
        assert path == str(local)
    for absent in (s3_bucket + "/none.mp4", str(tmp_path / "none.mp4")):
        with pytest.raises(Missing, match=r"none.mp4"), storage.spooled(absent, 1, spool_bytes=5):
            pass


def test_an_object_that_the_disk_has_no_room_for_is_read_in_its_place(
    s3_bucket, tmp_path, monkeypatch
):
    uri = s3_bucket + "/clip.mp4"
    storage.write_bytes(uri, b"12345")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9))
    with storage.spooled(uri, 5, spool_bytes=100, folder=str(tmp_path)) as path:
        assert path == uri
    with storage.spooled(uri, 4, spool_bytes=100, folder=str(tmp_path)) as path:
        assert os.path.dirname(path) == str(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 20_500])
def test_an_object_reads_like_the_local_file_at_random_places(
    s3_bucket, tmp_path, monkeypatch, size
):
    monkeypatch.setattr(objects, "RANGE_BLOCK_BYTES", 1000)
    rng = random.Random(size)
    (tmp_path / "x").write_bytes(content := rng.randbytes(size))
    storage.write_bytes(s3_bucket + "/x", content)
    # In more blocks than are kept, too.
    with (tmp_path / "x").open("rb") as local, storage.open_ranges(s3_bucket + "/x") as remote:
        for _ in range(300):
            whence = rng.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            low = {os.SEEK_SET: 0, os.SEEK_CUR: -local.tell(), os.SEEK_END: -size}[whence]
            offset = rng.randint(low, low + size + 50)
            assert remote.seek(offset, whence) == local.seek(offset, whence)
            count = rng.choice([-1, 0, 1, 7, 1000, rng.randint(0, size + 1)])
            assert remote.read(count) == local.read(count)
            assert remote.tell() == local.tell()
        remote.seek(0)
        assert remote.read() == content
    assert remote.closed


def test_a_large_object_is_read_by_ranges(s3_bucket, monkeypatch):
    monkeypatch.setattr(objects, "RANGE_BLOCK_BYTES", 1000)
    uri, content = s3_bucket + "/large.mp4", bytes(range(256)) * 4000
    storage.write_bytes(uri, content)
    sent: list[int] = []
    send_header = MotoRequestHandler.send_header

    def count(handler, key, value):
        if handler.command == "GET" and key.lower() == "content-length":
            sent.append(int(value))
        send_header(handler, key, value)

    monkeypatch.setattr(MotoRequestHandler, "send_header", count)
    with storage.open_ranges(uri) as file:
        assert file.seekable()
        file.seek(500_000)
        assert file.read(100) == content[500_000:500_100]
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]
        assert file.read() == b""
        file.seek(0)
        assert file.read(5000) == content[:5000]
    assert 0 < sum(sent) <= 1000 + 10 + 6000
    with pytest.raises(FileNotFoundError):
        storage.open_ranges(s3_bucket + "/none.mp4")
