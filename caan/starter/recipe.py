"""Retrains the starter: its face network from nothing but FER2013, then its head.

    python -m caan.starter.recipe --faces fer2013.parquet --output DIR

Two processes of one thread each share every step: on cores that others use too, two threads of one
process waited for each other in every layer and were slower than one thread alone. The same command
continues a run that was stopped. DIR gets `starter_face.safetensors`, `training.jsonl`, `model/`.
"""

import copy
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn import functional

from caan.schema import EMOTIONS
from caan.starter.augmentation import augment
from caan.starter.network import (
    INPUT_SIZE_PIXELS,
    NUM_EMBEDDED,
    ResidualBlock,
    StarterFace,
    build_trunk,
    fold_batch_norms,
    standardise,
)

LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """What one training run of the face network uses."""

    faces: Path
    """Parquet of (split, label, jpeg): FER2013."""
    output: Path
    """Folder for weights, log and the state that a stopped run continues from."""
    steps: int = 12000
    """Optimiser steps; the published weights' own count is in MODEL_CARD.md."""
    minutes: float = 0.0
    """Length of the schedule in wall-clock minutes instead of steps; 0: steps decide."""
    init: Path | None = None
    """Weights to start from, as the recipe writes them; none: random ones."""
    processes: int = 2
    """Processes of one thread each."""
    batch: int = 64
    """Faces per process and step."""
    learning_rate: float = 0.1
    """Highest learning rate (SGD, Nesterov momentum 0.9)."""
    weight_decay: float = 5e-4
    """Decay of the weights; biases and norms have none."""
    strength: float = 0.75
    """How far the random changes of the pictures go; 1 is what `augmentation` calls full."""
    smoothing: float = 0.1
    """Probability spread over the other emotions."""
    memory: float = 0.35
    """Largest share that the network's own running opinion of a face has in its target."""
    balance: float = 0.75
    """Emotions are drawn in proportion to their count to this power (disgust: copies removed)."""
    average: float = 0.998
    """Decay per step of the averaged weights, which are what is kept."""
    sizes: tuple[tuple[float, int], ...] = ((0.45, 40), (1.0, 48))
    """Picture side in pixels (multiples of 8) until each share of the schedule."""
    validate_minutes: float = 6.0
    """Wall-clock minutes between validations and stored states."""
    seed: int = 7
    """Seed of everything random."""


def load_faces(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Faces uint8 [N, 1, 48, 48] and labels int64 [N] of one split of FER2013."""
    table = pq.read_table(path, filters=[("split", "==", split)])
    pictures = [
        np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE))
        for jpeg in table["jpeg"].to_pylist()
    ]
    labels = [EMOTIONS.index(label) for label in table["label"].to_pylist()]
    return torch.from_numpy(np.stack(pictures))[:, None], torch.tensor(labels)


class Learner(nn.Module):
    """The network while it learns, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = build_trunk()
        self.classifier = nn.Linear(NUM_EMBEDDED, len(EMOTIONS))
        nn.init.normal_(self.classifier.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.norm2.weight)  # every block begins as its shortcut
        self.to(memory_format=torch.channels_last)

    def forward(self, standard_B1HW: Tensor) -> Tensor:
        """Logits [B, K] of standardised grey pictures."""
        pictures = standard_B1HW.contiguous(memory_format=torch.channels_last)
        embedded = self.trunk(pictures).mean((2, 3))
        return self.classifier(functional.dropout(embedded, 0.3, self.training))

    @torch.no_grad()
    def start_from(self, shipped: StarterFace, standard_B1HW: Tensor) -> None:
        """Take over a finished network, and give back to it the batch norms that were folded away.

        Each norm gets the mean and deviation that its convolution has on these pictures, so that
        the network says the same at first; filters get the length that random ones have.
        """
        self.classifier.load_state_dict(shipped.classifier.state_dict())
        parts = dict(shipped.trunk.named_modules())
        hooks = []
        previous = ""
        for name, module in self.trunk.named_modules():
            if isinstance(module, nn.Conv2d):
                conv = parts[name]
                assert isinstance(conv, nn.Conv2d)
                module.weight.copy_(conv.weight)
                previous = name
            elif isinstance(module, nn.BatchNorm2d):
                own = dict(self.trunk.named_modules())[previous]
                hooks.append(module.register_forward_hook(_restore_norm(own, parts[previous])))
        self.eval()(standard_B1HW)
        for hook in hooks:
            hook.remove()

    def finished(self) -> StarterFace:
        """The network as it ships, with every batch norm folded away."""
        copied = copy.deepcopy(self)
        fold_batch_norms(copied.trunk)
        network = StarterFace(weights=None)
        network.load_state_dict({**copied.state_dict(), "temperature": torch.ones(())})
        return network.eval()


def _restore_norm(conv: nn.Module, folded: nn.Module) -> Callable[..., Tensor]:
    def hook(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(folded, nn.Conv2d)
        assert folded.bias is not None
        wanted = inputs[0] + folded.bias[:, None, None]
        length = conv.weight.flatten(1).norm(dim=1)
        scale = math.sqrt(2 * conv.in_channels / conv.out_channels) / length.clamp(1e-8)
        conv.weight.mul_(scale[:, None, None, None])
        outputs = inputs[0] * scale[:, None, None]
        variance, mean = torch.var_mean(outputs, dim=(0, 2, 3), correction=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt() / scale)
        norm.bias.copy_(folded.bias + mean / scale)
        return wanted

    return hook


class ClassQueues:
    """Draws faces of each emotion in shuffled order, emotions in given proportions."""

    def __init__(self, labels: Tensor, balance: float) -> None:
        self.members = [torch.nonzero(labels == k).flatten() for k in range(len(EMOTIONS))]
        counts = torch.bincount(labels, minlength=len(EMOTIONS)).float()
        counts[EMOTIONS.index("disgust")] /= 9  # its pictures are about 9 copies of each other
        self.shares = counts**balance
        self.queues = [members[:0] for members in self.members]

    def draw(self, count: int) -> Tensor:
        """Indices int64 [count] of faces."""
        drawn = []
        for k in torch.multinomial(self.shares, count, replacement=True).tolist():
            if len(self.queues[k]) == 0:
                self.queues[k] = self.members[k][torch.randperm(len(self.members[k]))]
            drawn.append(self.queues[k][0])
            self.queues[k] = self.queues[k][1:]
        return torch.stack(drawn)


def size_at(progress: float, sizes: tuple[tuple[float, int], ...]) -> int:
    """Picture side in pixels at a share 0..1 of the schedule."""
    return next((size for end, size in sizes if progress < end), sizes[-1][1])


def learning_rate_at(progress: float) -> float:
    """Share of the highest learning rate: a short climb, then half a cosine."""
    return min(progress / 0.04, 0.5 * (1 + math.cos(math.pi * progress)) + 0.004)


def evaluate(network: StarterFace, faces: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy 0..1 without disgust, per emotion, and the mean of those; faces [N, 1, 48, 48]."""
    with torch.no_grad():
        logits = torch.cat([network.logits(p.expand(-1, 3, -1, -1).movedim(1, 3))
                            for p in faces.split(128)])  # fmt: skip
    right = (logits.argmax(1) == labels).float()
    told = labels != EMOTIONS.index("disgust")
    per_class = [float(right[labels == k].mean()) for k in range(len(EMOTIONS))]
    return {
        "accuracy": float(right[told].mean()),
        "balanced": sum(per_class) / len(per_class),
        **{emotion: value for emotion, value in zip(EMOTIONS, per_class, strict=True)},
    }


def calibrate(network: StarterFace, faces: Tensor, labels: Tensor) -> None:
    """Set the network's temperature so that its confidence is right on validation faces.

    Half of the faces are as they are, half as augmentation changes them, since real crops are
    harder than FER2013's; disgust, whose pictures are copies, is left out.
    """
    told = labels != EMOTIONS.index("disgust")
    faces, labels = faces[told].float(), labels[told]
    with torch.no_grad():
        pictures = [standardise(functional.interpolate(
            part, size=(INPUT_SIZE_PIXELS, INPUT_SIZE_PIXELS), mode="bilinear", antialias=True,
        )) for part in faces[::2].split(128)]  # fmt: skip
        pictures += [
            standardise(augment(part, INPUT_SIZE_PIXELS)) for part in faces[1::2].split(128)
        ]
        logits = torch.cat([network.classifier(network.embed(part)) for part in pictures])
        right = torch.cat([labels[::2], labels[1::2]])
        choices = torch.linspace(0.3, 3.0, 136)
        losses = [float(functional.cross_entropy(logits / t, right)) for t in choices]
        network.temperature.copy_(choices[losses.index(min(losses))])


def soft_targets(labels: Tensor, opinions_NK: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Targets [N, K]: smoothed labels mixed with the network's running opinion of each face."""
    hard = functional.one_hot(labels, len(EMOTIONS)).float()
    hard = hard * (1 - smoothing) + smoothing / len(EMOTIONS)
    return hard * (1 - weight) + opinions_NK * weight


def train(rank: int, config: RecipeConfig) -> None:
    """One process's part of the run; process 0 validates and writes."""
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29417")
    distributed.init_process_group("gloo", rank=rank, world_size=config.processes)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(config.seed)
    faces, labels = load_faces(config.faces, "train")
    validation = load_faces(config.faces, "val") if rank == 0 else None
    state_path = config.output / f"state_{rank}.pt"
    network = Learner()
    if config.init is not None:
        sample = faces[torch.randperm(len(faces))[:768]].float()
        pictures = standardise(augment(sample, INPUT_SIZE_PIXELS, config.strength))
        network.start_from(StarterFace(config.init), pictures)
    faces, labels = faces[rank :: config.processes], labels[rank :: config.processes]
    averaged = copy.deepcopy(network)
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)
    opinions = torch.full((len(faces), len(EMOTIONS)), 1 / len(EMOTIONS))
    seen = torch.zeros(len(faces))
    step, elapsed, losses = 0, 0.0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        opinions, seen = state["opinions"], state["seen"]
        step, elapsed = state["step"], state["elapsed"]
    torch.manual_seed(config.seed + 1000 * (step + 1) + rank)
    queues = ClassQueues(labels, config.balance)
    started, last_kept = time.monotonic() - elapsed, elapsed
    network.train()
    while True:
        elapsed = time.monotonic() - started
        clock = torch.tensor([elapsed])
        distributed.broadcast(clock, 0)  # all processes follow the first one's clock
        elapsed = float(clock)
        progress = elapsed / 60 / config.minutes if config.minutes else step / config.steps
        done = progress >= 1
        if done or elapsed - last_kept > 60 * config.validate_minutes:
            last_kept = elapsed
            state = {
                "network": network.state_dict(), "averaged": averaged.state_dict(),
                "optimiser": optimiser.state_dict(), "opinions": opinions, "seen": seen,
                "step": step, "elapsed": elapsed,
            }  # fmt: skip
            torch.save(state, state_path)
            if validation is not None:
                shipped = averaged.finished()
                if done:
                    calibrate(shipped, *validation)
                save_file(
                    {k: v.half().contiguous() for k, v in shipped.state_dict().items()},
                    config.output / "starter_face.safetensors",
                )
                measured = evaluate(shipped, *validation)
                line = {"step": step, "minutes": elapsed / 60, "progress": progress, **measured}
                with (config.output / "training.jsonl").open("a") as log:
                    log.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + "\n")
                LOGGER.info("%s", line)
        if done:
            break
        index = queues.draw(config.batch)
        size = size_at(progress, config.sizes)
        # Pictures are changed at their own size and then in the size of the network's input.
        pictures = standardise(augment(faces[index].float(), size, config.strength))
        own_weight = config.memory * min(1.0, max(0.0, (progress - 0.15) / 0.3))
        targets = soft_targets(
            labels[index],
            opinions[index],
            own_weight * (seen[index] > 2)[:, None],
            config.smoothing,
        )
        logits = network(pictures)
        loss = -(targets * logits.log_softmax(1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        gradient = torch.cat([part.flatten() for part in gradients])
        if config.processes > 1:
            distributed.all_reduce(gradient)
            gradient /= config.processes
        gradient *= (1.0 / (gradient.norm() / 5.0)).clamp(max=1.0)
        offset = 0
        for part in gradients:
            part.copy_(gradient[offset : offset + part.numel()].view_as(part))
            offset += part.numel()
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * learning_rate_at(progress)
        optimiser.step()
        step += 1
        decay = min(config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, now in zip(
                averaged.state_dict().values(), network.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - decay)
            opinions[index] = opinions[index].lerp(logits.softmax(1), 0.3)
            seen[index] += 1
        losses = 0.98 * losses + 0.02 * loss.item() if losses else loss.item()
        if rank == 0 and step % 20 == 0:
            LOGGER.info("step %d progress %.3f size %d loss %.3f", step, progress, size, losses)
    distributed.destroy_process_group()


def main() -> None:
    """Run the recipe with options from the command line."""
    config = tyro.cli(RecipeConfig, description=__doc__)
    config.output.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(train, args=(config,), nprocs=config.processes)
    from caan.starter.head import HeadConfig, make_head  # it imports this module

    torch.set_num_threads(1)
    weights = config.output / "starter_face.safetensors"
    make_head(HeadConfig(faces=config.faces, output=config.output / "model", weights=weights))


if __name__ == "__main__":
    main()
