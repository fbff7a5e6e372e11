import hashlib
import pickle
import struct
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
from scipy.io import savemat
from torch.nn import functional
from torchvision.models import vgg16

from caan.backbones.download import download
from caan.backbones.vgg import Vgg
from caan.backbones.weight_formats import (
    LAYERS,
    TORCHVISION_NAMES,
    SourceLayer,
    SourceWeights,
    read_weights,
    to_state_dict,
)
from caan.backbones.weights import OFFICIAL_FILES, load_state, ready_weights, save_weights
from caan.errors import InputError

WIDTHS = (4, 4, 4, 6, 8)
NUM_FEATURES = 10


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def layers() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random weights of a narrow VGG with a 2x2 last map, by the papers' layer names."""
    torch.manual_seed(0)
    network = Vgg(WIDTHS, grid=2, num_features=NUM_FEATURES)
    state = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    generator = np.random.default_rng(0)
    state["classifier.3.weight"] = generator.normal(size=(9, NUM_FEATURES)).astype(np.float32)
    state["classifier.3.bias"] = generator.normal(size=9).astype(np.float32)
    state["classifier.6.weight"] = generator.normal(size=(7, 9)).astype(np.float32)
    state["classifier.6.bias"] = generator.normal(size=7).astype(np.float32)
    return {
        name: (state[f"{target}.weight"], state[f"{target}.bias"])
        for name, target in TORCHVISION_NAMES.items()
    }


def _expected(layers: dict) -> dict[str, torch.Tensor]:
    return {
        f"{TORCHVISION_NAMES[name]}.{part}": torch.from_numpy(value)
        for name, values in layers.items()
        for part, value in zip(("weight", "bias"), values, strict=True)
    }


def _assert_reads(path: Path, layers: dict, form: str, channel_order: str) -> None:
    source = read_weights(path)
    assert (source.format, source.channel_order) == (form, channel_order)
    state = to_state_dict(source)
    expected = _expected(layers)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, msg=name)


def _save_pth(path: Path, layers: dict, naming: str) -> Path:
    names = {
        "torchvision": TORCHVISION_NAMES,
        "albanie": {name: name for name in layers},
        "prlz77": {name: name.replace("conv", "conv_") for name in layers},
        "PyVGGFace": {
            name: "features." + name.replace("conv", "conv_") if "conv" in name else "fc." + name
            for name in layers
        },
    }[naming]
    state = {
        f"{names[name]}.{part}": torch.from_numpy(value)
        for name, values in layers.items()
        for part, value in zip(("weight", "bias"), values, strict=True)
    }
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("naming", "channel_order"),
    [("torchvision", "RGB"), ("albanie", "RGB"), ("prlz77", "BGR"), ("PyVGGFace", "BGR")],
)
def test_reads_pytorch_namings(
    tmp_path: Path, layers: dict, naming: str, channel_order: str
) -> None:
    path = _save_pth(tmp_path / "w.pth", layers, naming)
    _assert_reads(path, layers, naming, channel_order)


def test_reads_a_wrapped_state_dict_of_a_parallel_model(tmp_path: Path, layers: dict) -> None:
    state = {f"module.{name}": value for name, value in _expected(layers).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    _assert_reads(tmp_path / "w.pth", layers, "torchvision", "RGB")


def _hwio(layers: dict, *, is_dense: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same weights as Keras and MatConvNet keep them."""
    turned = {}
    for name, (weight, bias) in layers.items():
        if name.startswith("fc"):
            grid = 2 if name == "fc6" else 1
            weight = weight.reshape(len(weight), -1, grid, grid)
        weight = weight.transpose(2, 3, 1, 0)
        if name.startswith("fc") and is_dense:
            weight = weight.reshape(-1, weight.shape[-1])  # rows run over H, W, C
        turned[name] = (np.ascontiguousarray(weight), bias)
    return turned


def test_reads_matconvnet(tmp_path: Path, layers: dict) -> None:
    turned = _hwio(layers, is_dense=False)
    cells = np.empty(len(turned) + 1, dtype=object)
    for index, (name, (weight, bias)) in enumerate(turned.items()):
        weights = np.empty(2, dtype=object)
        weights[:] = [weight, bias[:, None]]
        cells[index] = {"name": name, "type": "conv", "weights": weights}
    cells[-1] = {"name": "prob", "type": "softmax"}
    savemat(tmp_path / "vgg_face.mat", {"net": {"layers": cells}})
    _assert_reads(tmp_path / "vgg_face.mat", layers, "matconvnet", "RGB")


@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("has_names", [True, False])
def test_reads_keras(tmp_path: Path, layers: dict, is_dense: bool, has_names: bool) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is an optional reader")
    turned = _hwio(layers, is_dense=is_dense)
    with h5py.File(tmp_path / "vgg.h5", "w") as file:
        names = []
        for index, (name, (weight, bias)) in enumerate(turned.items()):
            names += [name if has_names else f"conv2d_{index}", f"pad_{index}"]
            group = file.create_group(names[-2])
            group["kernel:0"], group["bias:0"] = weight, bias
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            file.create_group(names[-1]).attrs["weight_names"] = []
        file.attrs["layer_names"] = [name.encode() for name in names]
    _assert_reads(tmp_path / "vgg.h5", layers, "keras", "BGR")


def test_seven_by_seven_convolution_equals_linear_fc6(tmp_path: Path) -> None:
    """MatConvNet's fc6 slides over the map as a convolution; ours multiplies the flat map."""
    generator = np.random.default_rng(1)
    kernel = generator.normal(size=(7, 7, 5, 6)).astype(np.float32)
    source = _hwio_source(kernel, num_channels=5)
    weight = to_state_dict(source)["classifier.0.weight"]
    map_BCHW = torch.from_numpy(generator.normal(size=(2, 5, 7, 7)).astype(np.float32))
    as_convolution = functional.conv2d(map_BCHW, torch.from_numpy(kernel).permute(3, 2, 0, 1))
    torch.testing.assert_close(map_BCHW.flatten(1) @ weight.T, as_convolution.flatten(1))
    dense = _hwio_source(kernel.reshape(-1, 6), num_channels=5)
    torch.testing.assert_close(to_state_dict(dense)["classifier.0.weight"], weight)


def _hwio_source(fc6: np.ndarray, num_channels: int) -> SourceWeights:
    small = SourceLayer("", np.ones((3, 3, 1, num_channels), np.float32), np.ones(num_channels))
    named = [SourceLayer(name, small.weight, small.bias) for name in LAYERS[:13]]
    named.append(SourceLayer("fc6", fc6, np.zeros(fc6.shape[-1])))
    return SourceWeights("matconvnet", "RGB", is_channels_last=True, layers=named)


# Torch 7 and Caffe, written here by their definitions


class _T7Writer:
    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.count = 0

    def text(self, text: str) -> None:
        self.parts.append(struct.pack("<i", len(text)) + text.encode())

    def start(self, kind: int) -> None:
        self.count += 1
        self.parts.append(struct.pack("<ii", kind, self.count))

    def value(self, value: object) -> None:
        if isinstance(value, str):
            self.parts.append(struct.pack("<i", 2))
            self.text(value)
        elif isinstance(value, int | float):
            self.parts.append(struct.pack("<id", 1, value))
        elif isinstance(value, np.ndarray):
            self.start(4)
            self.text("V 1")
            self.text("torch.FloatTensor")
            strides = [size // 4 for size in value.strides]
            self.parts.append(
                struct.pack(f"<i{2 * value.ndim}q", value.ndim, *value.shape, *strides)
            )
            self.parts.append(struct.pack("<q", 1))
            self.start(4)
            self.text("V 1")
            self.text("torch.FloatStorage")
            self.parts.append(struct.pack("<q", value.size) + value.tobytes())
        elif isinstance(value, dict):
            self.start(3)
            self.parts.append(struct.pack("<i", len(value)))
            for key, item in value.items():
                self.value(key)
                self.value(item)
        else:
            class_name, fields = value
            self.start(4)
            self.text("V 1")
            self.text(class_name)
            self.value(fields)


def test_reads_torch7(tmp_path: Path, layers: dict) -> None:
    modules: list = []
    for name, (weight, bias) in layers.items():
        if name.startswith("conv"):
            flat = weight.reshape(len(weight), -1)
            fields = {"weight": flat, "bias": bias, "kH": 3, "kW": 3}
            fields["nInputPlane"] = weight.shape[1]
            modules.append(("nn.SpatialConvolutionMM", fields))
        else:
            modules.append(("nn.Linear", {"weight": weight, "bias": bias}))
        modules.append(("nn.ReLU", {"inplace": 1}))
    writer = _T7Writer()
    writer.value(("nn.Sequential", {"modules": dict(enumerate(modules, start=1))}))
    path = tmp_path / "VGG_FACE.t7"
    path.write_bytes(b"".join(writer.parts))
    _assert_reads(path, layers, "t7", "BGR")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        read_weights(path)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _blob(values: np.ndarray, *, is_old: bool) -> bytes:
    if is_old:
        shape = (1,) * (4 - values.ndim) + values.shape
        sizes = b"".join(_varint(at << 3) + _varint(size) for at, size in enumerate(shape, 1))
    else:
        sizes = _field(7, _field(1, b"".join(map(_varint, values.shape))))
    return sizes + _field(5, values.tobytes())


@pytest.mark.parametrize("is_old", [True, False])
def test_reads_caffemodel(tmp_path: Path, layers: dict, is_old: bool) -> None:
    layer, name_at, blob_at = (2, 4, 6) if is_old else (100, 1, 7)
    content = _field(1, b"VGG_FACE_16_layers")
    for name, blobs in layers.items():
        message = _field(name_at, name.encode())
        message += b"".join(_field(blob_at, _blob(blob, is_old=is_old)) for blob in blobs)
        content += _field(layer, message)
        content += _field(layer, _field(name_at, b"relu"))
    path = tmp_path / "VGG_FACE.caffemodel"
    path.write_bytes(content)
    _assert_reads(path, layers, "caffemodel", "BGR")
    path.write_bytes(content[:-5])
    with pytest.raises(InputError, match="damaged"):
        read_weights(path)


# Refusals


class _Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_malicious_pickle_does_nothing(tmp_path: Path, is_zip: bool) -> None:
    path, target = tmp_path / "w.pth", tmp_path / "touched"
    if is_zip:
        torch.save({"conv1_1.weight": _Malice(target)}, path)
    else:
        path.write_bytes(pickle.dumps({"conv1_1.weight": _Malice(target)}, protocol=2))
    with pytest.raises(InputError, match="run code, which is refused"):
        ready_weights("vggface", str(path))
    assert not target.exists()


def test_refuses_what_is_no_complete_vgg(tmp_path: Path, layers: dict) -> None:
    state = _expected(layers)
    torch.save({k: v for k, v in state.items() if "features" in k}, tmp_path / "notop.pth")
    with pytest.raises(InputError, match="lacks fc6"):
        ready_weights("vgg16", str(tmp_path / "notop.pth"))
    state["classifier.0.bias"] = state["classifier.0.bias"] * float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(InputError, match="no numbers"):
        ready_weights("vgg16", str(tmp_path / "nan.pth"))
    torch.save({"layer1.0.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="known naming"):
        ready_weights("vgg16", str(tmp_path / "resnet.pth"))
    (tmp_path / "notes.txt").write_text("nothing of the kind")
    with pytest.raises(InputError, match="weight file"):
        ready_weights("vgg16", str(tmp_path / "notes.txt"))
    with pytest.raises(InputError, match="there is no weight file"):
        ready_weights("vgg16", str(tmp_path / "absent.pth"))


def test_refuses_weights_of_the_other_network(tmp_path: Path, layers: dict) -> None:
    imagenet = dict(layers)
    imagenet["fc8"] = (np.zeros((1000, 9), np.float32), np.zeros(1000, np.float32))
    path = _save_pth(tmp_path / "w.pth", imagenet, "torchvision")
    with pytest.raises(InputError, match="weights of vgg16"):
        ready_weights("vggface", str(path))
    face = ready_weights("vggface", str(_save_pth(tmp_path / "f.pth", layers, "albanie")))
    with pytest.raises(InputError, match="holds weights of `vggface`"):
        ready_weights("vgg16", str(face.path))


def test_shapes_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        theirs, ours = vgg16(weights=None).state_dict(), Vgg().state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: theirs[name].shape for name in ours
    }
    assert set(theirs) == {
        f"{n}.{p}" for n in TORCHVISION_NAMES.values() for p in ("weight", "bias")
    }


# Conversion, cache and download


def test_converts_once_and_gives_the_same_bytes(
    tmp_path: Path, layers: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save_pth(tmp_path / "w.pth", layers, "prlz77")
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
    save_weights(_expected(layers), folder / "weights.safetensors", metadata)
    (folder / "run.json").write_text("{}")
    found = ready_weights("vgg16", str(folder))
    assert found.metadata["split"] == "fold-1"
    state = load_state(found, list(_expected(layers)))
    turned = _expected(layers)["features.0.weight"].flip(1)
    torch.testing.assert_close(state["features.0.weight"], turned)


def test_takes_a_safetensors_file_of_another_program(tmp_path: Path, layers: dict) -> None:
    save_file(_expected(layers), tmp_path / "w.safetensors")
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
    server.content = _save_pth(tmp_path / "w.pth", layers, "albanie").read_bytes()
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
        path = _save_pth(tmp_path / "w.pth", layers, "albanie")
        client.upload_file(str(path), "weights", "faces/w.pth")
        found = ready_weights("vggface", "s3://weights/faces/w.pth")
        folder = tmp_path / "tuned"
        save_weights(_expected(layers), folder / "w.safetensors", found.metadata)
        client.upload_file(str(folder / "w.safetensors"), "weights", "tuned/w.safetensors")
        assert ready_weights("vggface", "s3://weights/tuned").sha256 != ""
        with pytest.raises(InputError, match="there is no weight file"):
            ready_weights("vggface", "s3://weights/absent.pth")
    finally:
        server.stop()
    assert found.sha256 == ready_weights("vggface", str(path)).sha256
