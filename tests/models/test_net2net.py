"""A model that starts from another one says the same before it learns more."""

import pytest
import torch

from caan.errors import InputError
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.models.head import FrameBatch
from caan.models.net2net import grow_from

SMALL = ModelConfig(
    modality="face", projection_size=9, feature_size=8, scorer_depth=3, scorer_sizes=(5, 4)
)
LARGE = ModelConfig(projection_size=16, fusion_size=24, feature_size=20, scorer_sizes=(7, 6))
EMOTIONS = ("anger", "joy", "sadness")


def small():
    head = build_model(SMALL, face_dim=6, context_dim=0, num_emotions=3, seed=1)
    head.standardize_face.set(torch.rand(6), torch.rand(6) + 0.5)
    return head.eval()


def large(num_emotions=3, config=LARGE):
    return build_model(config, face_dim=6, context_dim=5, num_emotions=num_emotions, seed=2).eval()


def frames():
    torch.manual_seed(3)
    return FrameBatch(torch.randn(4, 7, 6), torch.randn(4, 7, 5), torch.ones(4, 7, dtype=bool))


def test_a_fusion_head_grown_from_a_face_head_says_what_that_said():
    source, grown = small(), large()
    grow_from(grown, source, label_set=EMOTIONS, source_label_set=EMOTIONS)
    expected, found = source(frames()), grown(frames())
    torch.testing.assert_close(found.video_logits_BK, expected.video_logits_BK)
    torch.testing.assert_close(found.scores_BT, expected.scores_BT)


def test_emotions_are_matched_by_name_and_unknown_ones_are_new():
    source, grown = small(), large(num_emotions=4)
    names = ("fear", "sadness", "anger", "joy")
    grow_from(grown, source, label_set=names, source_label_set=EMOTIONS)
    expected, found = source(frames()), grown(frames())
    torch.testing.assert_close(found.video_logits_BK[:, [2, 3, 1]], expected.video_logits_BK)


def test_the_context_can_be_learned_after_growing():
    grown = large()
    grow_from(grown, small(), label_set=EMOTIONS, source_label_set=EMOTIONS)
    grown.train()
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.5)
    batch = frames()
    for _ in range(3):
        loss = grown(batch).video_logits_BK[:, 0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert grown.project_context.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="ffaa"), "`caan` only"),
        (ModelConfig(modality="context"), "leaves that out"),
        (ModelConfig(projection_size=4), "at least"),
        (ModelConfig(fusion="product"), "concat_fc"),
        (ModelConfig(score_fn="raw"), "must be the same"),
    ],
)
def test_models_that_do_not_fit_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        grow_from(large(config=config), small(), label_set=EMOTIONS, source_label_set=EMOTIONS)
