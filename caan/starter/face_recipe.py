"""Train the starter's face network from FER2013.

    python -m caan.starter all --faces fer2013.parquet --output DIR

1. The teachers, networks of the same layers and twice the width, learn from the labels.
2. The small network learns the teachers' mean output for each augmented image (Beyer et al. 2022,
   "Knowledge distillation: a good teacher is patient and consistent").
3. The small network is refined twice. Each time it learns the training faces and another half of
   the validation faces. The mean of the two networks ships (Wortsman et al. 2022, "Model soups").
   Each half of the validation faces is measured with the network that has not learned it.

One GPU is used if there is one. The same command continues a stopped run. It writes to DIR
`starter_face.safetensors`, `unrefined.safetensors`, `refined0.safetensors`,
`refined1.safetensors`, `training.jsonl` (validation figures) and `state/`.
"""

import copy
import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from caan.backbones.starter_face import INPUT_SIZE_PIXELS, StarterFace, standardise
from caan.schema import EMOTIONS
from caan.starter.augmentation import augment, blend
from caan.starter.faces import load_faces
from caan.starter.learner import Learner, unfold
from caan.starter.teaching import Labels, Refining, Seen, Teachers

LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Options of one training run of the face network; the defaults need a GPU."""

    faces: Path
    """FER2013 as a Parquet file with the columns split, label and jpeg."""
    output: Path
    """Folder for weights, log and the state of a stopped run."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to train on. GPUs, and CPUs that multiply in bf16, compute in bf16."""
    teachers: int = 3
    """Number of teachers; 0: the small network learns from the labels."""
    teacher_width: int = 2
    """Channels of a teacher, as a multiple of the small network's."""
    teacher_steps: int = 8000
    """Optimiser steps of each teacher."""
    steps: int = 20000
    """Optimiser steps of the small network; MODEL_CARD.md has those of the shipped one."""
    minutes: float = 0.0
    """Length of the schedule before the refining in wall-clock minutes, half of it for the
    teachers; 0: steps decide."""
    start: Path | None = None
    """Weights to refine; without it, teachers and a network are trained first."""
    refine_steps: int = 1200
    """Optimiser steps of each of the two refined networks; 0: no refining."""
    refine_rate: float = 0.05
    """Highest learning rate of the refining."""
    trust: float = 0.3
    """Share of the labels in the targets while refining; the rest is the unrefined network's
    output. Twice this for the validation faces, which the unrefined network has not learned."""
    batch: int = 512
    """Faces per step."""
    learning_rate: float = 0.2
    """Highest learning rate (SGD, Nesterov momentum 0.9)."""
    weight_decay: float = 5e-4
    """Weight decay; 0 for biases and norms."""
    strength: float = 0.9
    """Strength of the random changes of the images; 1 is the full range in `augmentation`."""
    blended: float = 0.5
    """Share of the images that are blended with another one (mixup)."""
    smoothing: float = 0.1
    """Probability that is spread over all emotions where the labels are the targets."""
    memory: float = 0.35
    """Largest share of the network's own running prediction in the target of a face, where the
    labels are the targets. Many labels of FER2013 are wrong."""
    balance: float = 0.5
    """Emotions are drawn in proportion to their count to this power (disgust: copies removed)."""
    average: float = 0.998
    """Decay per step of the averaged weights; the averaged weights are kept."""
    validate_minutes: float = 6.0
    """Wall-clock minutes between validations; the state is stored at each."""
    seed: int = 7
    """Seed of all random numbers."""


def learned_by(places: Tensor) -> Tensor:
    """Which refined network, 0 or 1, learns the validation face at each index [N].

    The other network is measured on that face.
    """
    return places % 2


def drawn_faces(labels: Tensor, balance: float, batch: int) -> Iterator[Tensor]:
    """Yield batches of face indices, int64 [batch], without end; `balance` weighs the emotions.

    One pass draws as many faces as there are. A face is drawn again only after all faces of its
    emotion have been drawn.
    """
    members = [torch.nonzero(labels == k).flatten() for k in range(len(EMOTIONS))]
    counts = torch.tensor([len(faces) for faces in members], dtype=torch.float)
    counts[EMOTIONS.index("disgust")] /= 9  # its images are about 9 copies of each other
    shares = counts**balance / (counts**balance).sum()
    device = labels.device
    while True:
        parts = []
        for faces, share in zip(members, shares.tolist(), strict=True):
            wanted = round(share * len(labels))
            rounds = math.ceil(wanted / max(1, len(faces)))
            orders = [torch.randperm(len(faces), device=device) for _ in range(rounds)]
            parts.append(faces[torch.cat(orders)[:wanted]] if orders else faces)
        drawn = torch.cat(parts)
        drawn = drawn[torch.randperm(len(drawn), device=device)]
        yield from drawn[: len(drawn) // batch * batch].split(batch)


def learning_rate_at(progress: float) -> float:
    """Share of the highest learning rate: a short linear rise, then half a cosine."""
    return min(progress / 0.04, 0.5 * (1 + math.cos(math.pi * progress)) + 0.004)


def evaluate(network: StarterFace, faces: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy 0..1 without disgust, recall per emotion, and its mean; faces [N, 1, 48, 48]."""
    with torch.no_grad():
        logits = torch.cat([network.logits(p.expand(-1, 3, -1, -1).movedim(1, 3))
                            for p in faces.split(128)])  # fmt: skip
    return _accuracies(logits, labels)


def _accuracies(logits_NK: Tensor, labels: Tensor) -> dict[str, float]:
    right = (logits_NK.argmax(1) == labels).float()
    told = labels != EMOTIONS.index("disgust")
    per_class = [float(right[labels == k].mean()) for k in range(len(EMOTIONS))]
    return {
        "accuracy": float(right[told].mean()),
        "balanced": sum(per_class) / len(per_class),
        **{emotion: value for emotion, value in zip(EMOTIONS, per_class, strict=True)},
    }


def calibrate(network: StarterFace, faces: Tensor, labels: Tensor) -> None:
    """Set the network's temperature so that its confidence is right on validation faces.

    Half of the faces are augmented, because real crops are harder than FER2013's. Disgust is left
    out, because its images are copies.
    """
    told = labels != EMOTIONS.index("disgust")
    faces, labels = faces[told].float(), labels[told]
    with torch.no_grad():
        images = [standardise(functional.interpolate(
            part, size=(INPUT_SIZE_PIXELS, INPUT_SIZE_PIXELS), mode="bilinear", antialias=True,
        )) for part in faces[::2].split(128)]  # fmt: skip
        images += [standardise(augment(part, INPUT_SIZE_PIXELS)) for part in faces[1::2].split(128)]
        logits = torch.cat([network.classifier(network.embed(part)) for part in images])
        right = torch.cat([labels[::2], labels[1::2]])
        choices = torch.linspace(0.3, 3.0, 136)
        losses = [float(functional.cross_entropy(logits / t, right)) for t in choices.tolist()]
        network.temperature.copy_(choices[losses.index(min(losses))])


@dataclasses.dataclass(frozen=True)
class Stage:
    """The training of one network: its targets, its length and its seed."""

    name: str
    teaching: Labels | Teachers | Refining
    steps: int
    minutes: float
    seed: int
    learning_rate: float


def fit(
    stage: Stage,
    learner: Learner,
    faces: Tensor,
    labels: Tensor,
    validation: tuple[Tensor, Tensor],
    config: RecipeConfig,
) -> Learner:
    """Train a learner to the end of its schedule; return its averaged weights.

    Continues from `state/NAME.pt` if that exists.
    """
    state_path = config.output / "state" / f"{stage.name}.pt"
    averaged = copy.deepcopy(learner)
    teaching = stage.teaching
    parameters = list(learner.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(groups, lr=stage.learning_rate, momentum=0.9, nesterov=True)
    means = [v for v in averaged.state_dict().values() if v.is_floating_point()]
    values = [v for v in learner.state_dict().values() if v.is_floating_point()]
    step, elapsed = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=config.device)
        learner.load_state_dict(state["learner"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        if isinstance(teaching, Labels):
            teaching.opinions, teaching.seen = state["opinions"], state["seen"]
        step, elapsed = state["step"], state["elapsed"]
    torch.manual_seed(stage.seed + 1000 * (step + 1))
    draws = drawn_faces(labels, config.balance, config.batch)
    started, last_kept = time.monotonic() - elapsed, elapsed
    has_bf16 = faces.is_cuda or torch.cpu.get_capabilities().get("avx512_bf16", False)
    learner.train()
    while True:
        elapsed = time.monotonic() - started
        progress = elapsed / 60 / stage.minutes if stage.minutes else step / stage.steps
        if progress >= 1 or elapsed - last_kept > 60 * config.validate_minutes:
            last_kept = elapsed
            state = {
                "learner": learner.state_dict(),
                "averaged": averaged.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "elapsed": elapsed,
            }
            if isinstance(teaching, Labels):
                state |= {"opinions": teaching.opinions, "seen": teaching.seen}
            unfinished = state_path.with_suffix(".unfinished")
            torch.save(state, unfinished)
            unfinished.replace(state_path)
            found = _accuracies(_view_and_mirror([averaged], validation[0]), validation[1])
            _log(config, stage.name, found, step=step, minutes=round(elapsed / 60, 2))
        if progress >= 1:
            return averaged
        index = next(draws)
        images = augment(faces[index].float(), INPUT_SIZE_PIXELS, config.strength)
        images, share, partner = blend(images, config.blended)
        seen = Seen(standardise(images), torch.stack([index, index[partner]]), share)
        with torch.autocast(faces.device.type, torch.bfloat16, enabled=has_bf16):
            logits = learner(seen.images).float()
            wanted = teaching.targets(seen, progress)
        loss = -(wanted * logits.log_softmax(1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        for group in optimiser.param_groups:
            group["lr"] = stage.learning_rate * learning_rate_at(progress)
        optimiser.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(means, values, 1 - min(config.average, (1 + step) / (10 + step)))
            if isinstance(teaching, Labels):
                teaching.remember(seen, logits)
        if step % 200 == 0:
            LOGGER.info("%s step %d, %.3f done, loss %.3f", stage.name, step, progress, loss.item())


def _log(config: RecipeConfig, name: str, found: dict[str, float], **where: float) -> None:
    line = {"network": name, **where, **{key: round(value, 4) for key, value in found.items()}}
    LOGGER.info("%s", line)
    with (config.output / "training.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


@torch.no_grad()
def _view_and_mirror(networks: list[Learner], faces: Tensor) -> Tensor:
    """Mean probabilities [N, K] over networks, and over each face and its mirror image."""
    folded = [network.folded() for network in networks]
    found = []
    for part in faces.split(256):
        standard = standardise(part.float())
        views = (standard, standard.flip(3))
        found.append(torch.stack([n(view).softmax(1) for n in folded for view in views]).mean(0))
    return torch.cat(found)


def train(config: RecipeConfig) -> Path:
    """Train the teachers and the network, and refine it; return the path of the final weights."""
    (config.output / "state").mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    faces, labels = (part.to(config.device) for part in load_faces(config.faces, "train"))
    images, answers = (part.to(config.device) for part in load_faces(config.faces, "val"))
    start = config.start or config.output / "unrefined.safetensors"
    if not config.start:
        network = _taught(config, faces, labels, (images, answers))
        torch.manual_seed(config.seed)
        calibrate(network, images, answers)
        _log(config, "not refined", evaluate(network, images, answers))
        _save(network, start)
    network = StarterFace(start).to(config.device)
    if config.refine_steps:
        network = _refined(config, network, (faces, labels), (images, answers))
    weights = config.output / "starter_face.safetensors"
    _save(network, weights)
    return weights


def _taught(
    config: RecipeConfig, faces: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor]
) -> StarterFace:
    """Train the network from teachers, or from the labels if there are no teachers."""
    teachers = []
    rate = config.learning_rate
    for number in range(config.teachers):
        seed = config.seed + number + 1
        minutes = config.minutes / 2 / config.teachers
        labelled = Labels(labels, config.smoothing, config.memory)
        stage = Stage(f"teacher{number}", labelled, config.teacher_steps, minutes, seed, rate)
        torch.manual_seed(seed)
        learner = Learner(config.teacher_width).to(config.device)
        teachers.append(fit(stage, learner, faces, labels, validation, config))
    minutes = config.minutes
    teaching: Labels | Teachers = Labels(labels, config.smoothing, config.memory)
    if teachers:
        found = _accuracies(_view_and_mirror(teachers, validation[0]), validation[1])
        _log(config, "all teachers", found)
        minutes, teaching = config.minutes / 2, Teachers(teachers)
    stage = Stage("starter", teaching, config.steps, minutes, config.seed, rate)
    torch.manual_seed(config.seed)
    learner = Learner().to(config.device)
    return fit(stage, learner, faces, labels, validation, config).finished()


def _refined(
    config: RecipeConfig,
    network: StarterFace,
    training: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
) -> StarterFace:
    """Refine the network twice, each with one half of the validation faces; return the mean."""
    learners, temperatures = [], []
    origin = network.identity.rpartition(":")[2][:8]  # a state is continued for these weights only
    by = learned_by(torch.arange(len(validation[1]), device=validation[1].device))
    for half in range(2):
        torch.manual_seed(config.seed + half)
        more = [part[by == half] for part in validation]
        held = [part[by != half] for part in validation]
        faces, labels = (torch.cat([a, b]) for a, b in zip(training, more, strict=True))
        trust = torch.full((len(labels),), config.trust, device=labels.device)
        trust[len(training[1]) :] *= 2
        teaching = Refining(network, labels, trust, config.smoothing)
        some = faces[torch.randperm(len(faces), device=faces.device)[:2048]].float()
        changed = standardise(augment(some, INPUT_SIZE_PIXELS, config.strength))
        stage = Stage(
            f"refined{half}-{origin}", teaching, config.refine_steps, 0.0, config.seed + half,
            config.refine_rate,
        )  # fmt: skip
        learner = unfold(network, changed)
        learner = fit(stage, learner, faces, labels, (held[0], held[1]), config)
        refined = learner.finished()
        torch.manual_seed(config.seed)
        calibrate(refined, held[0], held[1])
        _save(refined, config.output / f"refined{half}.safetensors")
        _log(config, f"refined{half} as it would ship", evaluate(refined, held[0], held[1]))
        learners.append(learner.state_dict())
        temperatures.append(refined.temperature)
    mean = Learner().to(config.device)
    mean.load_state_dict({
        name: value.lerp(learners[1][name], 0.5) if value.is_floating_point() else value
        for name, value in learners[0].items()
    })  # fmt: skip
    shipped = mean.finished()
    shipped.temperature.copy_(torch.stack(temperatures).mean())
    return shipped


def _save(network: StarterFace, weights: Path) -> None:
    save_file({k: v.half().cpu().contiguous() for k, v in network.state_dict().items()}, weights)
