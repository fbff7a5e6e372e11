"""Every published form of VGG weights reads as the same tensors, and no other file does."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch.nn import functional
from torchvision.models import vgg16

from caan.backbones.vgg import Vgg
from caan.backbones.weight_formats import (
    LAYERS,
    TORCHVISION_NAMES,
    SourceLayer,
    SourceWeights,
    read_weights,
    to_state_dict,
)
from caan.backbones.weights import ready_weights
from caan.errors import InputError
from tests.support.vgg_weights import expected_state, save_pth

pytestmark = pytest.mark.usefixtures("cache")


def _assert_reads(path: Path, layers: dict, form: str, channel_order: str) -> None:
    source = read_weights(path)
    assert (source.format, source.channel_order) == (form, channel_order)
    state = to_state_dict(source)
    expected = expected_state(layers)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("naming", "channel_order"),
    [("torchvision", "RGB"), ("albanie", "RGB"), ("prlz77", "BGR"), ("PyVGGFace", "BGR")],
)
def test_reads_pytorch_namings(
    tmp_path: Path, layers: dict, naming: str, channel_order: str
) -> None:
    path = save_pth(tmp_path / "w.pth", layers, naming)
    _assert_reads(path, layers, naming, channel_order)


def test_reads_a_wrapped_state_dict_of_a_parallel_model(tmp_path: Path, layers: dict) -> None:
    state = {f"module.{name}": value for name, value in expected_state(layers).items()}
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
    state = expected_state(layers)
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
    path = save_pth(tmp_path / "w.pth", imagenet, "torchvision")
    with pytest.raises(InputError, match="weights of vgg16"):
        ready_weights("vggface", str(path))
    face = ready_weights("vggface", str(save_pth(tmp_path / "f.pth", layers, "albanie")))
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
