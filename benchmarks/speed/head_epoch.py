"""CPU seconds of a training epoch of each head, and of CAAN in a plain loop, same batches.

Run: `python -m benchmarks.speed.head_epoch [--videos 280]`. One thread, vectors of 4096 numbers, 16
frames stored and 8 trained on per video, batches of 56.
CPU seconds, as other load disturbs them less.
"""

import argparse
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import RESULTS, write_record
from benchmarks.speed.synthetic import equal_videos, plain_loss
from caan.experiments.classical import CLASSICAL_MODELS
from caan.features.batches import Loader
from caan.features.packed import PackedVideos
from caan.models.build import build_model
from caan.models.head import FrameBatch, Head
from caan.training.loop import fit
from caan.training.recipes import RECIPES, Recipe

DIM, STORED, CLASSES = 4096, 16, 7
POOL5 = (512, 7, 7)


def synthetic_videos(num_videos: int) -> PackedVideos:
    """Rectified noise around a vector per class and a stronger one per video, in both modalities.

    About half of them can be told, so that training ends early, as it does on real videos.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(num_videos) % CLASSES
    frames = num_videos * STORED

    def vectors(strength: float) -> np.ndarray:
        out = np.empty((frames, DIM), np.float16)
        directions = rng.normal(size=(CLASSES, DIM)).astype(np.float32)
        for video, label in enumerate(labels):
            of_video = rng.standard_normal(DIM, np.float32) + strength * directions[label]
            noise = rng.standard_normal((STORED, DIM), np.float32)
            rows = slice(video * STORED, (video + 1) * STORED)
            out[rows] = np.maximum(noise + of_video, 0)
        return out

    return equal_videos(vectors(0.07), vectors(0.06), labels, split="")


def with_maps(videos: PackedVideos, modalities: Iterable[str]) -> PackedVideos:
    """The videos with pool5 maps of VGG's size that say nothing: 50 KB a frame and modality."""
    rng = np.random.default_rng(1)
    some = np.maximum(rng.standard_normal((512, *POOL5), np.float32), 0).astype(np.float16)
    number = np.arange(len(videos.pts_seconds_N)) % len(some)
    return replace(videos, maps={name: some[number] for name in modalities})


def head_of(recipe: Recipe) -> Head:
    return build_model(recipe.model, face_dim=DIM, context_dim=DIM, num_emotions=CLASSES)


def plain_epoch(videos: PackedVideos, recipe: Recipe) -> float:
    """CPU seconds of the loop that one would write by hand, on tensors in memory."""
    head = head_of(recipe).train()
    config = recipe.train
    loader = Loader(
        videos,
        modalities=head.modalities,
        batch_videos=config.batch_videos,
        num_frames=config.num_frames,
        sampling=config.sampling,
        seed=0,
    )
    batches = list(loader.training(0))
    face = torch.cat([batch.frames.face_BTD for batch in batches])
    context = torch.cat([batch.frames.context_BTE for batch in batches])
    mask = torch.cat([batch.frames.mask_BT for batch in batches])
    targets = torch.cat([batch.targets_B for batch in batches])
    optimizer = torch.optim.Adam(head.parameters(), 1e-4, weight_decay=1e-4, fused=True)
    started = time.process_time()
    for rows in torch.arange(len(targets)).split(config.batch_videos):
        output = head(FrameBatch(face[rows], context[rows], mask[rows]))
        loss = plain_loss(output, targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.process_time() - started


def fit_epochs(videos: PackedVideos, recipe: Recipe, epochs: int) -> list[float]:
    """CPU seconds of each epoch within `fit`, start-up and the last pass aside."""
    times = [time.process_time()]
    fit(
        head_of(recipe),
        videos,
        videos.select([]),
        replace(recipe.train, epochs=epochs),
        report=lambda row, folder: times.append(time.process_time()),
    )
    # The first epoch carries the start-up: standardisation and the optimiser's state.
    return list(np.diff(times))[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=280)
    parser.add_argument("--output", type=Path, default=RESULTS / "head_epoch.json")
    options = parser.parse_args()
    num_videos = options.videos
    torch.set_num_threads(1)
    videos = synthetic_videos(num_videos)
    caan = RECIPES["caan"]
    plain, ours = [], []
    for _ in range(5):
        plain.append(plain_epoch(videos, caan))
        ours += fit_epochs(videos, caan, 2)
    record: dict[str, Any] = {
        "videos": num_videos,
        "threads": 1,
        "cpu_seconds": {
            "plain loop": round(float(np.median(plain)), 2),
            "fit": round(float(np.median(ours)), 2),
        },
        "fit_over_plain_loop": round(float(np.median(ours) / np.median(plain)), 3),
        "cpu_seconds_of_heads": {},
        "cpu_seconds_of_classical_encoders": {},
    }
    for name, recipe in RECIPES.items():
        needed = [recipe.model.modality] if recipe.model.name == "pool5_attention" else []
        seconds = float(np.median(fit_epochs(with_maps(videos, needed), recipe, 3)))
        record["cpu_seconds_of_heads"][name] = round(seconds, 2)
    for name, encoder in CLASSICAL_MODELS.items():
        started = time.process_time()
        encoder().fit(videos).evidence(videos)
        seconds = time.process_time() - started
        record["cpu_seconds_of_classical_encoders"][name] = round(seconds, 2)
    write_record(options.output, record)


if __name__ == "__main__":
    main()
