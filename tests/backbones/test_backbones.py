import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.models import VGG16_Weights, vgg16

from caan.backbones.backbone import choose_precision, embed_images
from caan.backbones.build import load_backbone
from caan.backbones.config import BackboneConfig
from caan.backbones.vgg import FACE_COLOURS, IMAGENET_COLOURS, Colours, Vgg, random_vgg
from caan.backbones.weights import save_weights
from caan.errors import InputError

WIDTHS = (16, 16, 32, 32, 32)


def _images(count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """Smooth coloured noise, uint8 RGB [count, H, W, 3], different in every image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 6, 6), generator=generator) * 255
    fine = functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def _save(path: Path, backbone: str, channel_order: str = "RGB", turned: bool = False) -> Path:
    colours = FACE_COLOURS if backbone == "vggface" else IMAGENET_COLOURS
    state = random_vgg(3, colours, WIDTHS, grid=2, num_features=24).state_dict()
    if turned:
        state["features.0.weight"] = state["features.0.weight"].flip(1)
    note = {"backbone": backbone, "channel_order": channel_order, "split": "fold-1"}
    save_weights(state, path, note)
    return path


@pytest.fixture
def narrow(tmp_path: Path) -> BackboneConfig:
    path = _save(tmp_path / "weights.safetensors", "vggface")
    return BackboneConfig(name="vggface", weights=str(path), precision="fp32")


def _vectors(config: BackboneConfig, images: np.ndarray) -> torch.Tensor:
    return load_backbone(config)(torch.from_numpy(images))


def test_weights_of_either_colour_order_give_the_same_vectors(
    narrow: BackboneConfig, tmp_path: Path
) -> None:
    bgr = _save(tmp_path / "bgr" / "w.safetensors", "vggface", "BGR", turned=True)
    turned = BackboneConfig(name="vggface", weights=str(bgr), precision="fp32")
    images = _images(3)
    torch.testing.assert_close(_vectors(narrow, images), _vectors(turned, images))
    flipped = images[..., ::-1].copy()
    assert not torch.allclose(_vectors(narrow, flipped), _vectors(turned, images))


def test_vggface_subtracts_red_from_red(narrow: BackboneConfig) -> None:
    """An image of the mean colour becomes zero; with red and blue exchanged it does not."""
    mean = np.broadcast_to(np.uint8([129, 105, 94]), (1, 64, 64, 3)).copy()
    backbone = load_backbone(narrow)
    assert backbone.prepare(torch.from_numpy(mean)).abs().max() < 1
    exchanged = mean[..., ::-1].copy()
    assert backbone.prepare(torch.from_numpy(exchanged)).abs().max() > 30


def test_vgg16_prepares_as_torchvision(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.safetensors", "vgg16")
    backbone = load_backbone(BackboneConfig(name="vgg16", weights=str(path), precision="fp32"))
    images = torch.from_numpy(_images(2))
    theirs = VGG16_Weights.IMAGENET1K_V1.transforms(crop_size=64, resize_size=64)
    torch.testing.assert_close(
        backbone.prepare(images), theirs(images.permute(0, 3, 1, 2)), check_stride=False
    )


def test_fc6_reads_the_map_in_channel_height_width_order(narrow: BackboneConfig) -> None:
    """The memory layout chosen for speed must not leak into the flattening before fc6."""
    images = torch.from_numpy(_images(2))
    backbone = load_backbone(narrow)
    linear = backbone.network.classifier[0]
    vectors, map_BCHW = backbone.with_map(images)
    assert map_BCHW.shape == (2, *backbone.map_shape) == (2, 32, 2, 2)
    torch.testing.assert_close(vectors, backbone(images))
    kernel = linear.weight.reshape(24, 32, 2, 2)
    expected = functional.conv2d(map_BCHW, kernel, linear.bias).flatten(1)
    torch.testing.assert_close(backbone(images), expected.relu())


def test_a_vector_depends_on_its_own_image_only(narrow: BackboneConfig) -> None:
    backbone = load_backbone(narrow)
    images = _images(7, size=(50, 90))
    whole, num_batches = embed_images(backbone, images, batch_size=8)
    assert (whole.dtype, whole.shape, num_batches) == (np.float16, (7, 24), 1)
    parts, num_batches = embed_images(backbone, images, batch_size=3)
    assert num_batches == 3
    np.testing.assert_allclose(parts, whole, rtol=2e-3, atol=1e-3)
    none, num_batches = embed_images(backbone, images[:0], batch_size=3)
    assert (none.shape, num_batches) == ((0, 24), 0)


def test_bf16_is_close_to_fp32(narrow: BackboneConfig) -> None:
    images = _images(4)
    half = BackboneConfig(name="vggface", weights=narrow.weights, precision="bf16")
    fine, coarse = _vectors(narrow, images), _vectors(half, images)
    assert coarse.dtype == torch.float32
    assert functional.cosine_similarity(fine, coarse).min() > 0.995


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu(narrow: BackboneConfig) -> None:
    images = _images(4)
    config = BackboneConfig(name="vggface", weights=narrow.weights)
    ours, _ = embed_images(load_backbone(config, "cuda"), images, 4)
    theirs, _ = embed_images(load_backbone(narrow), images, 4)
    similarity = functional.cosine_similarity(torch.tensor(ours).float(), torch.tensor(theirs))
    assert similarity.min() > 0.99


def test_overflow_in_half_precision_is_an_error(tmp_path: Path) -> None:
    state = random_vgg(0, FACE_COLOURS, WIDTHS, grid=2, num_features=24).state_dict()
    state["classifier.0.weight"] = state["classifier.0.weight"] * 1e6
    note = {"backbone": "vggface", "channel_order": "RGB"}
    save_weights(state, tmp_path / "w.safetensors", note)
    config = BackboneConfig(name="vggface", weights=str(tmp_path), precision="fp32")
    with pytest.raises(ValueError, match="beyond float16"):
        embed_images(load_backbone(config), _images(1), 1)


def test_the_folder_of_fine_tuning_tells_its_split(narrow: BackboneConfig) -> None:
    config = BackboneConfig(name="vggface", weights=str(Path(narrow.weights).parent))
    backbone = load_backbone(config)
    assert backbone.metadata["split"] == "fold-1"
    assert backbone.identity.startswith("vggface:sha256:")
    assert not backbone.is_random


@pytest.mark.parametrize("colours", [FACE_COLOURS, IMAGENET_COLOURS])
def test_random_weights_keep_the_scale_and_tell_images_apart(colours: Colours) -> None:
    network = random_vgg(0, colours, WIDTHS, grid=2, num_features=256)
    again = random_vgg(0, colours, WIDTHS, grid=2, num_features=256)
    other = random_vgg(1, colours, WIDTHS, grid=2, num_features=256)
    images = torch.from_numpy(_images(8)).permute(0, 3, 1, 2) / colours.scale
    x_BCHW = (images - torch.tensor(colours.mean).view(3, 1, 1)) / torch.tensor(
        colours.deviation
    ).view(3, 1, 1)
    with torch.no_grad():
        vectors = network(x_BCHW)
        assert torch.equal(vectors, again(x_BCHW))
        assert not torch.allclose(vectors, other(x_BCHW))
    assert 0.3 < vectors.std() < 3
    vectors = functional.normalize(vectors.relu())
    similarity = (vectors @ vectors.T)[~torch.eye(8, dtype=torch.bool)]
    assert similarity.mean() < 0.8


def test_random_vgg_of_full_size_embeds_and_says_that_it_is_random(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The one test that builds the real 117 million parameters."""
    with caplog.at_level(logging.WARNING):
        backbone = load_backbone(BackboneConfig(name="vgg16", weights="random", seed=5))
    assert "random weights" in caplog.text
    assert (backbone.is_random, backbone.identity, backbone.dim) == (True, "vgg16:random:5", 4096)
    pool5 = np.full((2, *backbone.map_shape), np.nan, np.float16)
    vectors, _ = embed_images(backbone, _images(2, size=(120, 200)), 2, pool5)
    assert vectors.shape == (2, 4096)
    assert 0.2 < vectors.astype(np.float32).std() < 2
    assert pool5.shape == (2, 512, 7, 7)
    assert pool5.max() > 0


@pytest.mark.parametrize("name", ["starter_face", "starter_context"])
def test_the_starters_last_map_stands_for_pool5(name: str) -> None:
    backbone = load_backbone(BackboneConfig(name=name))
    images = _images(3)
    maps = np.zeros((3, *backbone.map_shape), np.float16)
    with_maps, _ = embed_images(backbone, images, 2, maps)
    without, _ = embed_images(backbone, images, 2)
    np.testing.assert_array_equal(with_maps, without)
    assert np.ptp(maps, axis=0).max() > 0.1


def test_vgg_has_torchvisions_layers() -> None:
    with torch.device("meta"):
        ours, theirs = Vgg().features, vgg16(weights=None).features
    assert [str(layer) for layer in ours] == [str(layer) for layer in theirs]


def test_starter_context_knows_imagenet() -> None:
    backbone = load_backbone(BackboneConfig(name="starter_context"))
    assert backbone.dim == 1280
    assert backbone.identity.startswith("starter_context:sha256:b0353104")
    vectors, _ = embed_images(backbone, _images(2, size=(90, 160)), 2)
    assert vectors.shape == (2, 1280)
    assert not np.allclose(vectors[0], vectors[1])
    random = load_backbone(BackboneConfig(name="starter_context", weights="random", seed=2))
    assert (random.identity, random.is_random) == ("starter_context:random:2", True)


def test_starter_face_embeds() -> None:
    backbone = load_backbone(BackboneConfig(name="starter_face"))
    vectors, _ = embed_images(backbone, _images(3), 2)
    assert vectors.shape == (3, backbone.dim)
    assert backbone.identity.startswith("starter_face:sha256:")


def test_wrong_options_are_named() -> None:
    with pytest.raises(InputError, match="unknown backbone `vgg`; there are vggface"):
        load_backbone(BackboneConfig(name="vgg"))
    with pytest.raises(InputError, match="`precision` is `half`; choose one of auto"):
        load_backbone(BackboneConfig(name="vgg16", precision="half"))
    with pytest.raises(InputError, match="takes no `random`"):
        load_backbone(BackboneConfig(name="starter_face", weights="random"))


def test_precision_follows_the_device() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("bf16", cpu) == torch.bfloat16
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert choose_precision("auto", cpu) == (torch.bfloat16 if has_bf16 else torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_memory_that_networks_free_is_kept_for_their_next_layer() -> None:
    code = """
import resource, torch
from caan.backbones.backbone import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert keep_freed_memory()
for _ in range(20):  # pieces that cannot be aligned are left behind at first
    torch.ones(10_000_000)
before = faults()
for _ in range(5):
    torch.ones(10_000_000)
print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # 49,000 without: 40 MB five times, by pages of 4 KB
