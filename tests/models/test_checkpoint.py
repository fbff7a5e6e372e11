"""A model folder is complete, and says so when it is not."""

import json

import pytest
import torch

from caan.errors import InputError
from caan.models.build import build_model
from caan.models.checkpoint import ModelInfo, load_model, read_info, save_model
from caan.models.config import ModelConfig
from caan.models.head import FrameBatch

INFO = ModelInfo(
    model=ModelConfig(projection_size=8, fusion_size=8, feature_size=6, scorer_sizes=(4, 3)),
    label_set=("fear", "joy"),
    face_dim=5,
    context_dim=7,
    face_backbone_identity="vggface:random:0",
    extraction=(("expand", "1.2"),),
    temperature=1.7,
)


def saved(folder):
    head = build_model(INFO.model, face_dim=5, context_dim=7, num_emotions=2, seed=4)
    head.standardize_face.set(torch.ones(5), torch.full((5,), 2.0))
    centroids = torch.randn(2, 6)
    model_id = save_model(folder, head, INFO, metrics={"uar": 0.5}, centroids_KR=centroids)
    return head.eval(), centroids, model_id


def test_a_saved_model_predicts_the_same_and_knows_what_it_is(tmp_path):
    head, centroids, model_id = saved(tmp_path / "model")
    loaded = load_model(tmp_path / "model", label_set=["fear", "joy"])
    frames = FrameBatch(torch.randn(2, 3, 5), torch.randn(2, 3, 7), torch.ones(2, 3, dtype=bool))
    with torch.inference_mode():
        expected, got = head(frames), loaded.head(frames)
    assert torch.equal(expected.video_logits_BK, got.video_logits_BK)
    assert torch.equal(loaded.centroids_KR, centroids)
    assert loaded.info == INFO
    assert loaded.metrics == {"uar": 0.5}
    assert loaded.model_id == model_id == read_info(tmp_path / "model")[1]
    assert not loaded.head.training
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_the_training_mean_is_stored_and_older_weights_still_give_it(tmp_path):
    saved(tmp_path / "model")
    head = load_model(tmp_path / "model").head
    assert head.standardize_face.mean_D.tolist() == [1.0] * 5
    state = {name: part for name, part in head.state_dict().items() if "mean_D" not in name}
    older = build_model(INFO.model, face_dim=5, context_dim=7, num_emotions=2)
    older.load_state_dict(state)
    torch.testing.assert_close(older.standardize_face.mean_D, torch.ones(5))


def test_another_label_set_is_refused(tmp_path):
    saved(tmp_path / "model")
    with pytest.raises(InputError, match="knows fear, joy"):
        load_model(tmp_path / "model", label_set=["fear", "anger"])


def test_saving_again_replaces_the_model_whole(tmp_path):
    saved(tmp_path / "model")
    (tmp_path / "model" / "stray").write_text("")
    saved(tmp_path / "model")
    assert len(list((tmp_path / "model").iterdir())) == 3


def test_what_is_no_model_stays_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no model"):
        saved(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "no_json", "other_sizes"])
def test_a_damaged_folder_is_named(tmp_path, damage):
    saved(tmp_path / "model")
    config, weights = tmp_path / "model" / "config.json", tmp_path / "model" / "model.safetensors"
    if damage == "missing":
        config.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "foreign":
        config.write_text('{"architectures": []}')
    elif damage == "no_json":
        config.write_text("{")
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "face_dim": 6}))
    with pytest.raises(InputError, match="model"):
        load_model(tmp_path / "model")
