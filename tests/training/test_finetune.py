"""Fine-tuning: it learns, resumes, keeps to its split, and its weights are a backbone."""

import dataclasses
import logging
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from caan import schema
from caan.backbones.build import load_backbone
from caan.backbones.config import BackboneConfig
from caan.backbones.vgg import Colours, random_vgg
from caan.backbones.weights import SEEN_VIDEOS, finetuned_weights, save_weights
from caan.datasets import splits as seen_videos
from caan.errors import InputError
from caan.features.leakage import honest_splits, seen_of
from caan.training import finetune_data
from caan.training.augmentation import change_pictures
from caan.training.config import FinetuneConfig
from caan.training.finetune import PictureClassifier, fit_pictures, parameter_groups
from caan.training.finetune_data import Numbers, count_pictures

NARROW = (8, 8, 8, 8, 8)
COLOURS = Colours(mean=(0.5,) * 3, deviation=(0.25,) * 3, scale=255.0, spread=1.0)
QUICK = FinetuneConfig(
    epochs=20, learning_rate=1e-2, head_learning_rate=0.1, dropout=0.0, patience_epochs=0
)


@pytest.fixture
def narrow_vgg(tmp_path: Path) -> BackboneConfig:
    """A VGG of few channels, as a weight file."""
    path = tmp_path / "base" / "narrow.safetensors"
    state = random_vgg(0, COLOURS, NARROW, grid=2, num_features=16).state_dict()
    save_weights(state, path, {"backbone": "vgg16", "channel_order": "RGB"})
    return BackboneConfig(name="vgg16", weights=str(path), precision="fp32")


def red_and_green(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 64, 64, 3), generator=generator, dtype=torch.uint8)
    label_B = torch.arange(count) % 2
    for row, label in enumerate(label_B):
        images[row, ..., label] += 100
    return images, label_B


def learn(config: BackboneConfig, options: FinetuneConfig, **more):
    torch.manual_seed(0)
    model = PictureClassifier(
        load_backbone(config), 2, dropout=0.0, freeze_convolutions=options.freeze_convolutions
    )
    images, label_B = red_and_green(16, 1)

    def batches(epoch):
        for rows in torch.arange(16).split(8):
            yield change_pictures(images[rows], 0.5), label_B[rows]

    def validate():
        tests, truth = red_and_green(8, 2)
        with torch.inference_mode():
            right = (model.logits(tests).argmax(1) == truth).float().mean()
        return {"validation_uar": float(right)}

    groups = parameter_groups(model.last, model, options)
    return model, fit_pictures(model, groups, batches, validate, options, **more)


def test_it_learns_and_what_is_saved_gives_the_same_vectors(
    narrow_vgg: BackboneConfig, tmp_path: Path
) -> None:
    before = load_backbone(narrow_vgg)
    model, result = learn(narrow_vgg, QUICK)
    assert result.history[result.best_epoch]["validation_uar"] == 1.0
    note = {"backbone": "vgg16", "channel_order": "RGB", SEEN_VIDEOS: "{}"}
    folder = tmp_path / "tuned"
    save_weights(model.backbone.network.state_dict(), folder / "backbone.safetensors", note)
    tuned = dataclasses.replace(narrow_vgg, weights=str(folder))
    after = load_backbone(tuned)
    images, _ = red_and_green(4, 3)
    torch.testing.assert_close(after(images), model.backbone(images).detach())
    assert not torch.allclose(after(images), before(images))
    assert after.identity != before.identity
    assert finetuned_weights("vgg16", str(folder)) is not None
    assert finetuned_weights("vgg16", narrow_vgg.weights) is None


def test_a_resumed_run_ends_as_an_undisturbed_one(
    narrow_vgg: BackboneConfig, tmp_path: Path
) -> None:
    options = dataclasses.replace(QUICK, epochs=6)
    whole, _ = learn(narrow_vgg, options)

    def stop(row, folder):
        if row["epoch"] == 2:
            (tmp_path / "state").mkdir()
            for file in folder.iterdir():
                (tmp_path / "state" / file.name).write_bytes(file.read_bytes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(narrow_vgg, options, report=stop)
    resumed, result = learn(narrow_vgg, options, resume=tmp_path / "state")
    assert len(result.history) == options.epochs
    for name, tensor in resumed.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name])


def test_frozen_convolutions_stay_as_they_are(narrow_vgg: BackboneConfig) -> None:
    before = load_backbone(narrow_vgg).network.state_dict()
    options = dataclasses.replace(QUICK, epochs=1, freeze_convolutions=True)
    model, _ = learn(narrow_vgg, options)
    after = model.backbone.network.state_dict()
    assert torch.equal(after["features.0.weight"], before["features.0.weight"])
    assert not torch.equal(after["classifier.0.weight"], before["classifier.0.weight"])
    with pytest.raises(InputError, match="nothing of `starter_face`"):
        PictureClassifier(
            load_backbone(BackboneConfig(name="starter_face")), 7, freeze_convolutions=True
        )


@pytest.mark.parametrize("name", ["starter_face", "starter_context"])
def test_a_starter_takes_its_fine_tuned_weights_and_no_others(
    name: str, narrow_vgg: BackboneConfig, tmp_path: Path
) -> None:
    own = load_backbone(BackboneConfig(name=name))
    state = {key: value.clone() for key, value in own.network.state_dict().items()}
    first = next(key for key in state if key.endswith("weight") and state[key].ndim == 4)
    state[first] *= 1.5
    path = tmp_path / "backbone.safetensors"
    save_weights(state, path, {"backbone": name, "channel_order": "RGB", "base": own.identity})
    tuned = load_backbone(BackboneConfig(name=name, weights=str(path)))
    assert tuned.metadata["base"] == own.identity
    assert tuned.identity != own.identity
    images, _ = red_and_green(2, 4)
    assert not torch.allclose(tuned(images), own(images))
    with pytest.raises(InputError, match="weights of `vgg16`"):
        load_backbone(BackboneConfig(name=name, weights=narrow_vgg.weights))
    (tmp_path / "foreign.pth").write_bytes(b"")
    with pytest.raises(InputError, match="not written by jobs"):
        load_backbone(BackboneConfig(name=name, weights=str(tmp_path / "foreign.pth")))


def test_changes_keep_the_form_and_strength_0_keeps_the_image() -> None:
    images, _ = red_and_green(6, 5)
    torch.testing.assert_close(change_pictures(images, 0.0), images.float())
    changed = change_pictures(images, 1.0)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert (changed - images.float()).abs().mean() > 5


def test_images_find_their_video_and_label() -> None:
    image = bytes(224 * 224 * 3)
    kept = pa.Table.from_pylist(
        [
            {"video_id": "a", "pictures": [image, b"\1" * len(image)]},
            {"video_id": "unwanted", "pictures": [image]},
            {"video_id": "b", "pictures": []},
            {"video_id": "c", "pictures": [image]},
        ],
        pa.schema([finetune_data.KEPT_SCHEMA.field(n) for n in ("video_id", "pictures")]),
    )
    numbers = {"a": Numbers(0, 1), "b": Numbers(1, 0), "c": Numbers(2, 0)}
    single = finetune_data.single_images(kept, numbers=numbers)
    images, label_B, video_B = finetune_data.picture_batch(single)
    assert label_B.tolist() == [1, 1, 0]
    assert video_B.tolist() == [0, 0, 2]
    assert images[1].unique().tolist() == [1]
    (own,) = finetune_data.rows_of_worker([single], "video", 0, 2)
    assert own["video"].to_pylist() == [0, 0, 2]
    assert not list(finetune_data.rows_of_worker([single], "video", 1, 2))
    counts_K, num_held = count_pictures([kept], {"a": Numbers(0, 1)}, {"c": Numbers(0, 0)}, 2)
    assert (counts_K.tolist(), num_held) == ([0, 2], 1)


def test_held_out_videos_do_not_depend_on_the_order_of_rows() -> None:
    rows = [{"video_id": f"v{n}", "label": "ab"[n % 2]} for n in range(40)]
    train, held = seen_videos.hold_out(rows, fraction=0.2, seed=3)
    again = seen_videos.hold_out(rows[::-1], fraction=0.2, seed=3)[1]
    assert {row["video_id"] for row in held} == {row["video_id"] for row in again}
    assert [sum(row["label"] == label for row in held) for label in "ab"] == [4, 4]
    assert len(train) == 32


def listed(splits: list[str], **changes) -> pa.Table:
    """A manifest of as many videos as there are splits."""
    rows = [
        {"video_id": f"v{n}", "uri": f"/there/{n}.mp4", "size_bytes": 1000 + n, "label": "joy"}
        | {"split": split or None}
        | changes
        for n, split in enumerate(splits)
    ]
    return schema.table_of(rows, schema.MANIFEST_SCHEMA)


class TestHonestSplits:
    """Who may be judged by features of fine-tuned backbones."""

    splits = ("train",) * 8 + ("test",) * 4

    def seen(self, trained, held, **changes):
        rows = listed(list(self.splits), **changes).to_pylist()
        return seen_of([rows[n] for n in trained], [rows[n] for n in held])

    def test_what_all_backbones_held_out_validates(self) -> None:
        both = {"face": self.seen(range(5), [5, 6, 7]), "context": self.seen(range(6), [6, 7])}
        expected = ["train"] * 6 + ["val"] * 2
        manifest = listed(list(self.splits))
        found = honest_splits(manifest, both, "train")
        assert found["split"].to_pylist() == [*expected, *["test"] * 4]
        assert found.schema == manifest.schema
        unsplit = honest_splits(listed([""] * 8), both, "train")
        assert unsplit["split"].to_pylist() == expected
        assert honest_splits(manifest, {}, "train") is manifest

    def test_seen_test_videos_are_refused_wherever_they_lie_now(self) -> None:
        message = r"face backbone .* fine-tuned on 2 of the 4 videos of split `test`"
        manifest = listed(list(self.splits))
        with pytest.raises(InputError, match=message):
            honest_splits(manifest, {"face": self.seen(range(10), [])}, "train")
        moved = self.seen([0, 1, 8], [9], video_id="other")
        with pytest.raises(InputError, match=message):
            honest_splits(manifest, {"face": moved}, "train")

    def test_without_common_held_out_videos_it_says_what_to_do(self) -> None:
        both = {"face": self.seen(range(6), [6, 7]), "context": self.seen([6, 7], [0, 1])}
        with pytest.raises(InputError, match="held out no common video"):
            honest_splits(listed(list(self.splits)), both, "train")

    def test_an_own_split_val_may_be_what_chose_the_epoch_but_not_what_was_learned(self) -> None:
        manifest = listed(["train"] * 6 + ["val"] * 2 + ["test"] * 4)
        chose = {"face": self.seen(range(6), [6, 7])}
        assert honest_splits(manifest, chose, "train") is manifest
        learned = {"face": self.seen(range(8), [])}
        with pytest.raises(InputError, match="2 of the 2 videos of split `val`"):
            honest_splits(manifest, learned, "train")


def test_a_line_tells_of_each_epoch(
    narrow_vgg: BackboneConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    learn(narrow_vgg, dataclasses.replace(QUICK, epochs=1))
    assert "epoch 0: loss" in caplog.text
    assert "held out: uar" in caplog.text
