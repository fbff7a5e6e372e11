"""The networks beside a bare torch loop, recorded per device and precision.

python -m benchmarks.speed.embed [--device cuda] [--precision bf16]

Bare is what a user would write: torchvision's VGG16 with the same weights up to fc6, channels_last,
same batch and precision, fed with prepared batches that already lie on the device. Vectors are compared.
On a GPU the share of the matrix peak is that of a large matrix product measured in the same run.
"""  # noqa: E501

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from benchmarks.measuring import RESULTS, in_turn, write_record
from caan.backbones.backbone import choose_precision, embed_images
from caan.backbones.build import load_backbone
from caan.backbones.config import BackboneConfig

FLOPS_PER_IMAGE = 30.9e9
"""VGG16 up to fc6 at 224x224: 15.45 G multiply-adds, by counting hooks."""


def bare_network(state: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The VGG16 of torchvision up to fc6 and its ReLU, with the weights of ours."""
    whole = vgg16(weights=None)
    features, fc6 = whole.features, nn.Sequential(whole.classifier[0], nn.ReLU())
    features.load_state_dict(
        {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
    )
    fc6[0].load_state_dict(
        {k.rpartition(".")[2]: v for k, v in state.items() if k.startswith("classifier.")}
    )
    network = nn.Sequential(features, nn.Flatten(1), fc6)
    return network.to(device, dtype, memory_format=torch.channels_last).eval()


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product on this device now."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        finish(device)
        start = time.perf_counter()
        for _ in range(10):
            a @ a
        finish(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - start))
    return best


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def measure(device: torch.device, precision: str, batch: int, batches: int, rounds: int) -> dict:
    backbone = load_backbone(
        BackboneConfig(name="vgg16", weights="random", precision=precision), device
    )
    dtype = backbone.dtype
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batches * batch, 224, 224, 3), dtype=np.uint8)
    network = bare_network(backbone.network.state_dict(), device, dtype)
    ready = [
        backbone.prepare(torch.from_numpy(part).to(device)) for part in np.split(images, batches)
    ]

    def bare() -> np.ndarray:
        vectors = [network(part) for part in ready]
        finish(device)
        return torch.cat(vectors).half().cpu().numpy()

    def ours() -> np.ndarray:
        return embed_images(backbone, images, batch)[0]

    ways: dict[str, Callable[[], np.ndarray]] = {"bare": bare, "ours": ours}
    timed = in_turn(ways, rounds)
    expected, found = (timed[name]["result"].astype(np.float32) for name in ("bare", "ours"))
    difference = float(np.abs(expected - found).max() / np.abs(expected).max())
    if difference > 0.02:
        raise SystemExit(f"the vectors differ by {difference:.3f} of their range")
    rates = {name: len(images) / of["seconds"] for name, of in timed.items()}
    peak = matrix_peak(device, dtype)
    return {
        "network": "vgg16 to fc6",
        "precision": str(dtype).removeprefix("torch."),
        "batch": batch,
        "largest_difference": round(difference, 5),
        "pictures_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ours_over_bare": round(rates["ours"] / rates["bare"], 3),
        "share_of_matrix_peak": {
            name: round(rate * FLOPS_PER_IMAGE / peak, 3) for name, rate in rates.items()
        },
        "matrix_peak_teraflops": round(peak / 1e12, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--batches", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "embed.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    is_gpu = device.type == "cuda"
    found = measure(
        device,
        options.precision,
        options.batch or (128 if is_gpu else 16),
        options.batches or (40 if is_gpu else 1),
        options.rounds,
    )
    dtype = choose_precision(options.precision, device)
    key = f"{device.type} {str(dtype).removeprefix('torch.')}"
    write_record(options.output, found, key)


if __name__ == "__main__":
    main()
