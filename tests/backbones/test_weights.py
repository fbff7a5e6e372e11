"""Weight files are fetched, converted and kept once, from a path, a URL or S3."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import save_file

from caan.backbones.download import download
from caan.backbones.weights import OFFICIAL_FILES, load_state, ready_weights, save_weights
from caan.errors import InputError
from tests.support.vgg_weights import expected_state, save_pth

pytestmark = pytest.mark.usefixtures("cache")


def test_converts_once_and_gives_the_same_bytes(
    tmp_path: Path, layers: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_pth(tmp_path / "w.pth", layers, "prlz77")
    first = ready_weights("vggface", str(path))
    assert first.metadata["channel_order"] == "BGR"
    written = first.path.stat().st_mtime_ns
    assert ready_weights("vggface", str(path)) == first
    assert first.path.stat().st_mtime_ns == written
    monkeypatch.setenv("CAAN_CACHE", str(tmp_path / "elsewhere"))
    again = ready_weights("vggface", str(path))
    assert again.path != first.path
    assert again.sha256 == first.sha256


def test_takes_the_folder_that_fine_tuning_writes(tmp_path: Path, layers: dict) -> None:
    folder = tmp_path / "backbone"
    metadata = {"backbone": "vgg16", "channel_order": "BGR", "split": "fold-1"}
    save_weights(expected_state(layers), folder / "weights.safetensors", metadata)
    (folder / "run.json").write_text("{}")
    found = ready_weights("vgg16", str(folder))
    assert found.metadata["split"] == "fold-1"
    state = load_state(found, list(expected_state(layers)))
    turned = expected_state(layers)["features.0.weight"].flip(1)
    torch.testing.assert_close(state["features.0.weight"], turned)


def test_takes_a_safetensors_file_of_another_program(tmp_path: Path, layers: dict) -> None:
    save_file(expected_state(layers), tmp_path / "w.safetensors")
    found = ready_weights("vgg16", str(tmp_path / "w.safetensors"))
    assert found.metadata["format"] == "torchvision"


class _Server(ThreadingHTTPServer):
    content = b""
    break_after: list[int]
    requests: list[tuple[str, str | None]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        if self.path == "/absent":
            self.send_error(404)
            return
        tag = '"' + hashlib.sha256(self.server.content).hexdigest()[:8] + '"'
        start = 0
        if asked and self.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", tag)
        self.end_headers()
        stop = self.server.break_after.pop(0) if self.server.break_after else len(body)
        self.wfile.write(body[:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.break_after, server.requests = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _url(server: _Server, path: str = "/w.pth") -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, server: _Server) -> None:
    server.content = np.random.default_rng(0).bytes(300_000)
    server.break_after = [100_000, 50_000]
    digest = hashlib.sha256(server.content).hexdigest()
    target = tmp_path / "w.pth"
    download(_url(server), target, sha256_prefix=digest[:8])
    assert target.read_bytes() == server.content
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []


def test_a_file_that_changed_meanwhile_starts_anew(tmp_path: Path, server: _Server) -> None:
    server.content, server.break_after = b"a" * 1000, [400, 0, 0, 0]
    with pytest.raises(OSError, match="bytes"):
        download(_url(server), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
    server.content, server.break_after = b"b" * 1000, []
    download(_url(server), tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == b"b" * 1000


def test_a_file_with_another_hash_is_refused(tmp_path: Path, server: _Server) -> None:
    server.content = b"something else"
    with pytest.raises(InputError, match="sha256"):
        download(_url(server), tmp_path / "w.pth", sha256_prefix="397923af")
    assert not list(tmp_path.glob("w.pth*[!k]"))


def test_weights_by_url_are_fetched_once_by_several_workers(
    tmp_path: Path, layers: dict, server: _Server
) -> None:
    server.content = save_pth(tmp_path / "w.pth", layers, "albanie").read_bytes()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(ready_weights("vggface", _url(server))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({weights.sha256 for weights in found}) == 1
    assert len(server.requests) == 1
    with pytest.raises(InputError, match="cannot be fetched"):
        ready_weights("vggface", _url(server, "/absent"))


def test_without_network_and_file_the_error_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    for name, official in OFFICIAL_FILES.items():
        with pytest.raises(InputError) as caught:
            ready_weights(name)
        message = str(caught.value)
        option = f"--{official.role}-weights random"
        needed = (official.file_name, official.url, str(cache), option, "starter_" + official.role)
        assert all(part in message for part in needed), message


def test_a_damaged_official_file_is_refused(cache: Path) -> None:
    cache.mkdir()
    (cache / "vgg16-397923af.pth").write_bytes(b"PK half a file")
    with pytest.raises(InputError, match="damaged"):
        ready_weights("vgg16")


def test_weights_on_s3_are_fetched_and_converted(
    tmp_path: Path, layers: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    try:
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="weights")
        path = save_pth(tmp_path / "w.pth", layers, "albanie")
        client.upload_file(str(path), "weights", "faces/w.pth")
        found = ready_weights("vggface", "s3://weights/faces/w.pth")
        folder = tmp_path / "tuned"
        save_weights(expected_state(layers), folder / "w.safetensors", found.metadata)
        client.upload_file(str(folder / "w.safetensors"), "weights", "tuned/w.safetensors")
        assert ready_weights("vggface", "s3://weights/tuned").sha256 != ""
        with pytest.raises(InputError, match="there is no weight file"):
            ready_weights("vggface", "s3://weights/absent.pth")
    finally:
        server.stop()
    assert found.sha256 == ready_weights("vggface", str(path)).sha256
