"""What the starter's face network reaches, and the speed of all backbones.

python -m benchmarks.accuracy.starter --faces fer2013.parquet --recipe DIR

The weights that ship have learned the validation faces, so validation figures are those of the two
networks whose mean they are (DIR: what the recipe wrote), each on the half that it has not seen.
With `--before WEIGHTS` they are compared, face by face, with the network that was refined.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measuring import RESULTS, write_record
from caan.backbones.build import load_backbone
from caan.backbones.config import BackboneConfig
from caan.backbones.starter_face import WEIGHTS, StarterFace
from caan.schema import EMOTIONS
from caan.starter.augmentation import augment, blur, warp
from caan.starter.face_recipe import learned_by
from caan.starter.faces import load_faces
from caan.starter.head_recipe import spoil

THREADS = (1, 2)
BATCHES = (1, 8, 32)

VARIANTS = (
    "as it is", "224 pixels", "20 pixels", "14 pixels", "blurred 1.5", "dark 0.25 noisy",
    "turned 20 degrees", "looser 1.3", "tighter 0.85", "mouth covered", "eyes covered",
    "training changes",
)  # fmt: skip


def vary(faces: Tensor, name: str) -> Tensor:
    """Validation faces float [N, 1, H, W] under one change."""
    if name.endswith(" pixels"):
        side = int(name.split()[0])
        return functional.interpolate(faces, size=(side, side), mode="bilinear", antialias=True)
    if name == "blurred 1.5":
        return blur(faces, 1.5)
    if name == "dark 0.25 noisy":
        return (faces * 0.25 + torch.randn_like(faces) * 3).clamp(0, 255)
    if name == "training changes":
        return augment(faces, 96)
    if name == "mouth covered":
        return torch.cat([faces[:, :, :30], torch.full_like(faces[:, :, 30:], 120)], dim=2)
    if name == "eyes covered":
        band = torch.full_like(faces[:, :, 12:22], 40)
        return torch.cat([faces[:, :, :12], band, faces[:, :, 22:]], dim=2)
    if name in ("looser 1.3", "tighter 0.85", "turned 20 degrees"):
        scale = {"looser 1.3": 1.3, "tighter 0.85": 0.85}.get(name, 1.0)
        angle = torch.tensor(0.349 if name.startswith("turned") else 0.0)
        matrix = torch.tensor(
            [[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]]
        ) * torch.tensor([scale, scale, 1.0])
        grid = functional.affine_grid(
            matrix.expand(len(faces), 2, 3), [len(faces), 1, 96, 96], align_corners=False
        )
        return functional.grid_sample(faces, grid, padding_mode="border", align_corners=False)
    return faces


def logits_of(network: StarterFace, faces: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([
            network.logits(part.round().byte().expand(-1, 3, -1, -1).movedim(1, 3))
            for part in faces.split(64)
        ])  # fmt: skip


def unseen_logits(refined: list[StarterFace], faces: Tensor, places: Tensor) -> Tensor:
    """Logits of each validation face, by its place [N] in the split, from whom it is unseen."""
    by_first, by_second = (logits_of(network, faces) for network in refined)
    return torch.where((learned_by(places) == 0)[:, None], by_second, by_first)


def gain(logits: Tensor, before: Tensor, labels: Tensor) -> dict[str, float]:
    """What `logits` are better by than those before, on the same images of the same faces."""
    right, was_right = ((these.argmax(1) == labels).float() for these in (logits, before))
    return {
        "accuracy_before": round(float(was_right.mean()), 4),
        "gain": round(float((right - was_right).mean()), 4),
        "standard_error": round(float((right - was_right).std() / len(labels) ** 0.5), 4),
        "cross_entropy": round(float(functional.cross_entropy(logits, labels)), 4),
        "cross_entropy_before": round(float(functional.cross_entropy(before, labels)), 4),
    }


def describe(logits: Tensor, labels: Tensor) -> dict[str, object]:
    """Accuracy, recalls, confusion and calibration error; disgust only where it is named."""
    told = labels != EMOTIONS.index("disgust")
    guess, confidence = logits.argmax(1), logits.softmax(1).amax(1)
    right = guess == labels
    error = 0.0
    for low in torch.arange(15) / 15:
        inside = told & (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            gap = (right[inside].float().mean() - confidence[inside].mean()).abs()
            error += float(gap * inside.sum() / told.sum())
    confusion = torch.zeros(7, 7, dtype=torch.int64)
    for truth, given in zip(labels.tolist(), guess.tolist(), strict=True):
        confusion[truth, given] += 1
    return {
        "num_faces_without_disgust": int(told.sum()),
        "accuracy_without_disgust": round(float(right[told].float().mean()), 4),
        "calibration_error": round(error, 4),
        "recall": {e: round(float(right[labels == k].float().mean()), 3)
                   for k, e in enumerate(EMOTIONS)},
        "precision": {e: round(float(right[guess == k].float().mean()), 3)
                      for k, e in enumerate(EMOTIONS)},
        "confusion_rows_truth": confusion.tolist(),
    }  # fmt: skip


def milliseconds_per_image() -> dict[str, dict[str, dict[str, float]]]:
    """Wall-clock milliseconds per 224x224 colour image: network -> threads -> batch.

    Each figure is the median of five passes (three of a VGG), all in one process, the networks in
    turn at every setting, so that a busy machine slows them all. The VGGs' weights are random.
    """
    passes = {"starter_face": 5, "starter_context": 5, "vggface": 3, "vgg16": 3}
    networks = {
        name: load_backbone(BackboneConfig(name=name, weights="random" if "vgg" in name else ""))
        for name in passes
    }
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in networks}
    for threads in THREADS:
        torch.set_num_threads(threads)
        for batch in BATCHES:
            images = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8)
            for name, network in networks.items():
                seconds = []
                with torch.inference_mode():
                    network(images)
                    for _ in range(passes[name]):
                        start = time.perf_counter()
                        network(images)
                        seconds.append(time.perf_counter() - start)
                median = 1000 * statistics.median(seconds) / batch
                table[name].setdefault(str(threads), {})[str(batch)] = round(median, 2)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS / "starter.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    speed = milliseconds_per_image()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = StarterFace()
    record: dict[str, object] = {
        "identity": network.identity,
        "weights_bytes": WEIGHTS.stat().st_size,
        "temperature": round(float(network.temperature), 3),
        "cpu_ms_per_picture_by_threads_and_batch": speed,
        "load_average_while_timed": round(os.getloadavg()[0], 1),
    }
    refined = [StarterFace(options.recipe / f"refined{half}.safetensors") for half in range(2)]
    record["validated"] = [network.identity for network in refined]
    faces, labels = load_faces(options.faces, "val")
    record["val"] = describe(
        unseen_logits(refined, faces.float(), torch.arange(len(faces))), labels
    )
    chosen = torch.nonzero(labels != EMOTIONS.index("disgust")).flatten()
    faces, labels = faces[chosen].float(), labels[chosen]
    changes = {name: lambda name=name: vary(faces, name) for name in VARIANTS}
    changes["spoiled as for the head"] = lambda: spoil(warp(faces, 96, 0.0))
    table = {}
    for name, changed in changes.items():
        images = changed()
        logits = unseen_logits(refined, images, chosen)
        told = describe(logits, labels)
        table[name] = {k: told[k] for k in ("accuracy_without_disgust", "calibration_error")}
        if options.before:
            before = logits_of(StarterFace(options.before), images)
            table[name] |= gain(logits, before, labels)
    record["validation_variants"] = table
    faces, labels = load_faces(options.faces, "test")
    record["test"] = describe(logits_of(network, faces.float()), labels)
    write_record(options.output, record)


if __name__ == "__main__":
    main()
