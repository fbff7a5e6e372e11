"""The starter's face network and head: what they promise to others, on real faces."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from caan.backbones.starter_face import WEIGHTS, StarterFace, standardise
from caan.models.checkpoint import load_model
from caan.models.head import FrameBatch
from caan.schema import EMOTIONS
from caan.starter.augmentation import augment, blend
from caan.starter.face_recipe import RecipeConfig, drawn_faces, fit, train
from caan.starter.faces import load_faces
from caan.starter.head_recipe import as_cropped, spoil
from caan.starter.learner import unfold
from caan.starter.teaching import Refining, Seen

MODEL = WEIGHTS.with_name("model")


@pytest.fixture(scope="module")
def network() -> StarterFace:
    return StarterFace()


@pytest.fixture(scope="module")
def faces(fer2013: Path) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_faces(fer2013, "test")
    keep = torch.nonzero(labels != EMOTIONS.index("disgust")).flatten()
    keep = keep[torch.randperm(len(keep), generator=torch.Generator().manual_seed(1))[:400]]
    return images[keep].expand(-1, 3, -1, -1).movedim(1, 3), labels[keep]


def test_weights_are_small_and_named(network: StarterFace) -> None:
    assert WEIGHTS.stat().st_size <= 6e6
    assert network.identity.startswith("starter_face:sha256:")


@pytest.mark.parametrize("size", [(20, 31), (48, 48), (224, 224)])
def test_any_image_size_gives_finite_vectors(network: StarterFace, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8)
    with torch.no_grad():
        vectors = network(images)
    assert vectors.shape == (3, network.dim)
    assert vectors.isfinite().all()


def test_a_flat_black_image_gives_finite_logits(network: StarterFace) -> None:
    with torch.no_grad():
        assert network.logits(torch.zeros(1, 224, 224, 3, dtype=torch.uint8)).isfinite().all()


def test_vectors_do_not_depend_on_the_batch_or_the_mirror(network: StarterFace) -> None:
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    )
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(p[None]) for p in images])
        mirrored = network(images.flip(2))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(together, mirrored, atol=1e-3, rtol=1e-3)


def test_real_faces_are_recognised(
    network: StarterFace, faces: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, labels = faces
    with torch.no_grad():
        accuracy = (network.logits(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.5


def test_darkness_and_large_colour_crops_change_few_labels(
    network: StarterFace, faces: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images = faces[0][:96]
    with torch.no_grad():
        plain = network.logits(images).argmax(1)
        dark = network.logits((images * 0.5).byte()).argmax(1)
        large = torch.nn.functional.interpolate(
            images.movedim(3, 1).float(), size=(224, 224), mode="bilinear"
        )
        large_labels = network.logits(large.byte().movedim(1, 3)).argmax(1)
    assert (plain == dark).float().mean() > 0.85
    assert (plain == large_labels).float().mean() > 0.85


def test_augmented_images_stay_in_range() -> None:
    torch.manual_seed(0)
    images = augment(torch.rand(40, 1, 48, 48) * 255, 64)
    assert images.shape == (40, 1, 64, 64)
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 255


def test_blended_images_tell_their_parts() -> None:
    torch.manual_seed(0)
    faces = torch.arange(64.0)[:, None, None, None].expand(64, 1, 8, 8)
    images, share, partner = blend(faces, 0.5)
    parts = share * torch.arange(64.0) + (1 - share) * partner
    torch.testing.assert_close(images[:, 0, 0, 0], parts)
    assert 10 < (share < 1).sum() < 54
    assert share.min() >= 0.55


def test_a_rare_emotion_is_drawn_more_often_than_it_occurs() -> None:
    labels = torch.tensor([EMOTIONS.index("joy")] * 900 + [EMOTIONS.index("fear")] * 100)
    draws = drawn_faces(labels, 0.5, 100)
    drawn = torch.cat([next(draws) for _ in range(9)])
    fears = labels[drawn] == EMOTIONS.index("fear")
    assert 0.2 < fears.float().mean() < 0.3
    assert len(drawn[~fears].unique()) == (~fears).sum(), "none twice in a pass"


@pytest.fixture(scope="module")
def few_faces(fer2013: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred faces of each of two splits."""
    path = tmp_path_factory.mktemp("faces") / "faces.parquet"
    table = pq.read_table(fer2013)
    few = [
        table.filter(pc.field("split") == split).take(np.arange(0, 3500, 35))
        for split in ("train", "val")
    ]
    pq.write_table(pa.concat_tables(few), path)
    return path


def test_the_recipe_makes_weights_that_load_and_continues_where_it_stopped(
    few_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[int] = []  # images of each training step, and those of the calibration

    def counted(faces: torch.Tensor, *options: float) -> torch.Tensor:
        changed.append(len(faces))
        return augment(faces, *options)

    monkeypatch.setattr("caan.starter.face_recipe.augment", counted)
    config = RecipeConfig(
        faces=few_faces, output=tmp_path / "out", device="cpu",
        teachers=1, teacher_width=1, teacher_steps=2, steps=2, refine_steps=0, batch=16,
    )  # fmt: skip
    weights = train(config)
    assert StarterFace(weights).identity != StarterFace().identity
    assert changed.count(16) == 4, "two steps of the teacher, two of the network"
    changed.clear()
    train(dataclasses.replace(config, steps=5))
    assert changed.count(16) == 3, "the teacher is done, the network has three steps left"
    rows = [json.loads(line) for line in (config.output / "training.jsonl").open()]
    assert [row["step"] for row in rows if row["network"] == "starter"] == [2, 5]


def test_each_refined_network_is_measured_on_faces_that_it_has_not_learned(
    few_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, held = [], []

    def watched(stage, learner, faces, labels, validation, config):  # type: ignore[no-untyped-def]
        learned.append({face.numpy().tobytes() for face in faces})
        held.append({face.numpy().tobytes() for face in validation[0]})
        return fit(stage, learner, faces, labels, validation, config)

    monkeypatch.setattr("caan.starter.face_recipe.fit", watched)
    config = RecipeConfig(
        faces=few_faces, output=tmp_path, device="cpu", start=WEIGHTS, refine_steps=2, batch=16
    )
    weights = train(config)
    validation = {face.numpy().tobytes() for face in load_faces(few_faces, "val")[0]}
    assert learned[0] | learned[1] > validation, "together they learn every validation face"
    assert held[0] | held[1] == validation
    assert not held[0] & learned[0]
    assert not held[1] & learned[1]
    paths = (weights, tmp_path / "refined0.safetensors", tmp_path / "refined1.safetensors")
    assert len({StarterFace(path).identity for path in paths}) == 3


def test_refining_another_network_does_not_continue_the_first_ones_state(
    few_faces: Path, tmp_path: Path
) -> None:
    config = RecipeConfig(
        faces=few_faces, output=tmp_path / "out", device="cpu", start=WEIGHTS, refine_steps=1,
        batch=16,
    )  # fmt: skip
    first = train(config).rename(tmp_path / "first.safetensors")
    second = train(dataclasses.replace(config, start=first)).rename(tmp_path / "second.safetensors")
    assert StarterFace(second).identity != StarterFace(first).identity
    again = train(dataclasses.replace(config, start=first))
    assert StarterFace(again).identity == StarterFace(second).identity, "nothing left to do"


def test_batch_norms_put_back_change_nothing(
    network: StarterFace, faces: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images = standardise(faces[0][:64].movedim(3, 1)[:, :1].float())
    learner = unfold(network, images).eval()
    with torch.no_grad():
        wanted = network.classifier(network.embed(images))
        torch.testing.assert_close(learner(images), wanted, atol=1e-3, rtol=1e-3)
        # They describe the images, so that learning begins from the same function.
        torch.testing.assert_close(learner.train().trunk(images).mean((2, 3)),
                                   network.embed(images), atol=1e-2, rtol=1e-2)  # fmt: skip


def test_refining_teaches_labels_as_far_as_they_are_trusted(network: StarterFace) -> None:
    images = standardise(torch.rand(2, 1, 48, 48) * 255)
    labels, trust = torch.tensor([2, 2]), torch.tensor([0.0, 1.0])
    seen = Seen(images, torch.tensor([[0, 1], [0, 1]]), torch.ones(2))
    targets = Refining(network, labels, trust, smoothing=0.1).targets(seen, 0.5)
    with torch.no_grad():
        before = network.classifier(network.embed(images)).softmax(1)
    torch.testing.assert_close(targets[0], before[0])
    assert targets[1, 2] == pytest.approx(0.9 + 0.1 / 7)


def test_a_video_of_one_frame_gets_the_networks_own_probabilities(
    network: StarterFace, faces: tuple[torch.Tensor, torch.Tensor]
) -> None:
    head = load_model(MODEL).head
    with torch.no_grad():
        vectors = network(faces[0][:64])
        output = head(FrameBatch(vectors[:, None], None, torch.ones(64, 1, dtype=torch.bool)))
    torch.testing.assert_close(
        output.video_logits_BK, network.classify(vectors), atol=1e-3, rtol=1e-3
    )


def test_emotion_scores_are_higher_for_clear_frames_than_for_spoiled_ones(
    network: StarterFace, faces: tuple[torch.Tensor, torch.Tensor]
) -> None:
    torch.manual_seed(0)
    grey = faces[0][:100].movedim(3, 1)[:, :1].float()
    both = torch.cat([as_cropped(grey), spoil(grey)]).byte().expand(-1, 3, -1, -1).movedim(1, 3)
    head = load_model(MODEL).head
    with torch.no_grad():
        scores = head.encode(
            FrameBatch(network(both)[None], None, torch.ones(1, 200, dtype=torch.bool))
        ).s_BT[0]
    clear, spoiled = scores[:100], scores[100:]
    assert (clear[:, None] > spoiled[None]).float().mean() > 0.8


def test_the_model_folder_was_made_with_these_weights(network: StarterFace) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["face_backbone_identity"] == network.identity
    assert config["detector"] == "libfacedetection"
