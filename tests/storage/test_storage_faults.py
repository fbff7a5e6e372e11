"""Storage that fails for a while, for ever, or denies access: by a proxy before an S3 server."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caan import storage
from caan.errors import StorageError
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.extraction.probe import probe_uri
from caan.outputs import log
from caan.outputs.log import LogWriter
from caan.outputs.plan import plan
from caan.schema import MANIFEST_SCHEMA, table_of
from caan.storage import paths
from caan.storage.failures import fault_of
from tests.support.faults import TRANSIENT, FaultProxy, Faults
from tests.support.row_files import add, counted, stored

CONTENT = bytes(range(256)) * 50_000  # more than one part of an upload


@pytest.fixture
def proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(paths, "S3_REQUEST_SECONDS", 1.0)
    yield proxy
    proxy.close()


@pytest.fixture
def units(s3_bucket: str, half_faceless: Path) -> pa.Table:
    """One segment of a clip on S3."""
    uri = s3_bucket + "/clip.mp4"
    storage.write_bytes(uri, half_faceless.read_bytes())
    row = {"video_id": "v", "uri": uri, "duration_seconds": 3.0, "status": "ok", "size_bytes": 1}
    planned = plan(table_of([row], MANIFEST_SCHEMA), fps=2.0, segment_frames=64)
    return planned.units(np.ones(1, bool), 1)


def decoder_of(spool_mb: int) -> SegmentDecoder:
    cut = ExtractionConfig(no_face="context_only", segment_frames=64).segment_config(
        detect_here=False
    )
    return SegmentDecoder(cut, SandboxConfig(spool_mb=spool_mb))


@pytest.mark.parametrize("kind", TRANSIENT)
def test_faults_that_pass_are_ridden_out(kind: str, proxy: FaultProxy, s3_bucket: str) -> None:
    proxy.faults = Faults(kinds=(kind,), stall_seconds=1.3, most_per_request=1)
    uri = s3_bucket + "/folder/x"
    storage.write_bytes(uri, CONTENT)
    assert storage.read_bytes(uri) == CONTENT
    assert storage.stat(uri).size_bytes == len(CONTENT)
    files, inner = storage.filesystem(uri)
    files.move(inner, inner + "-moved")
    assert [file.uri for file in storage.list_files(s3_bucket)] == [uri + "-moved"]
    assert storage.list_names(s3_bucket + "/folder") == ["x-moved"]
    storage.delete(s3_bucket + "/folder")
    assert not storage.exists(uri + "-moved")
    done = {name.split()[0] for name in proxy.faults.injected}
    assert done >= {"GET", "HEAD", "LIST", "PART", "COMPLETE", "COPY", "DELETE"}, done


@pytest.mark.parametrize("kind", ["500", "503", "reset", "lost"])
def test_commits_ride_out_faults_and_lost_answers(
    kind: str, proxy: FaultProxy, s3_bucket: str
) -> None:
    output = s3_bucket + "/out"
    proxy.faults = Faults(kinds=(kind,), operations=("PUT",), keys="/log/", most_per_request=1)
    writer = LogWriter(output, "w")
    for n in range(3):
        add(writer, (f"v{n}", 0, "ok"))
    proxy.faults, found = Faults(), proxy.faults.injected
    assert found[f"PUT {kind}"] == 4
    assert counted(log.read(output)) == stored(output) == [(f"v{n}", 0, "ok") for n in range(3)]
    assert log.read(output).number == 3


@pytest.mark.parametrize("operation", ["PART", "COMPLETE"])
def test_an_upload_that_never_ends_leaves_no_object(
    operation: str, proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "S3_ATTEMPTS", 2)
    proxy.faults = Faults(kinds=("503",), operations=(operation,), most_per_request=100)
    with pytest.raises(StorageError, match=r"storage failed while writing `s3://.*/x`"):
        storage.write_bytes(s3_bucket + "/x", CONTENT)
    proxy.faults = Faults()
    assert not storage.exists(s3_bucket + "/x")


def test_denied_access_stops_at_once_and_names_the_key(proxy: FaultProxy, s3_bucket: str) -> None:
    uri = s3_bucket + "/x"
    storage.write_bytes(uri, b"1")
    actions = {
        "GET": lambda: storage.read_bytes(uri),
        "HEAD": lambda: storage.exists(uri),
        "PART": lambda: storage.write_bytes(uri, b"2"),
        "DELETE": lambda: storage.delete(uri),
        "LIST": lambda: storage.list_files(s3_bucket),
    }
    for operation, action in actions.items():
        proxy.faults = Faults(kinds=("403",), operations=(operation,), most_per_request=100)
        name = s3_bucket if operation == "LIST" else uri
        with pytest.raises(StorageError, match=rf"access denied while .*`{name}"):
            action()
        assert sum(proxy.faults.injected.values()) <= 2, (operation, proxy.faults.injected)


def test_a_refusal_that_ray_met_names_the_key_too(proxy: FaultProxy, s3_bucket: str) -> None:
    proxy.faults = Faults(kinds=("403",), operations=("PART", "COMPLETE"), most_per_request=100)
    files, inner = storage.filesystem(s3_bucket + "/features/0.parquet")
    with pytest.raises(OSError, match="ACCESS_DENIED") as failure:
        pq.write_table(pa.table({"n": [1]}), inner, filesystem=files)
    said = str(fault_of(failure.value))
    assert said.startswith("access denied: ")
    assert "features/0.parquet" in said
    assert fault_of(OSError(28, "No space left on device")) is not None
    assert fault_of(OSError("another thing")) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_leaves_the_old_content(
    small_disk: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(small_disk / "run.json")
    storage.write_bytes(file, b"old")
    with pytest.raises(StorageError, match=r"no space left while writing `.*run\.json`: free"):
        storage.write_bytes(file, CONTENT)
    with pytest.raises(StorageError, match=r"no space left while writing `.*0\.json`: free"):
        storage.create_bytes(str(small_disk / "0.json"), CONTENT)
    assert storage.read_bytes(file) == b"old"
    uri = s3_bucket + "/clip.mp4"
    storage.write_bytes(uri, CONTENT)
    with storage.spooled(uri, len(CONTENT), 1 << 30, str(small_disk)) as path:
        assert path == uri, "it is read in its place"
    usage = shutil.disk_usage("/")  # what another process filled meanwhile
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))
    with (
        pytest.raises(StorageError, match=r"no space left while reading `s3://"),
        storage.spooled(uri, len(CONTENT), 1 << 30, str(small_disk)),
    ):
        pass
    assert os.listdir(small_disk) == ["run.json"]


@pytest.mark.parametrize("spool_mb", [0, 9])
def test_storage_is_never_called_a_corrupt_video(
    spool_mb: int,
    proxy: FaultProxy,
    units: pa.Table,
) -> None:
    decoder = decoder_of(spool_mb)
    (whole,) = decoder(units)
    assert whole["status"].to_pylist() == ["ok"]
    proxy.faults = Faults(kinds=("500", "503", "reset", "half"), operations=("GET",))
    (again,) = decoder(units)
    assert again["frames"] == whole["frames"]
    assert proxy.faults.injected
    uri = units["uri"][0].as_py()
    proxy.faults = Faults(kinds=("403",), operations=("GET",), most_per_request=1000)
    with pytest.raises(StorageError, match=rf"access denied while reading `{uri}`"):
        list(decoder(units))
    decoder.sandbox.close()
    with pytest.raises(StorageError, match=rf"access denied while reading `{uri}`"):
        probe_uri(uri)
