"""Losses against their definitions, written out slowly."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from caan import config
from caan.errors import InputError
from caan.training import losses
from caan.training.config import LossConfig, TripletMining

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2])


def embedding(seed=0):
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))


def test_batch_all_averages_over_violating_triplets():
    unit = F.normalize(embedding(), dim=1)
    costs = []
    for a in range(7):
        for p in range(7):
            for n in range(7):
                if a != p and LABELS[a] == LABELS[p] and LABELS[a] != LABELS[n]:
                    gap = (unit[a] - unit[p]).square().sum() - (unit[a] - unit[n]).square().sum()
                    costs.append(max(float(gap) + 0.3, 0.0))
    violating = [cost for cost in costs if cost > 0]
    got = losses.triplet_loss(embedding(), LABELS, 0.3, "batch_all")
    assert float(got) == pytest.approx(sum(violating) / len(violating), rel=1e-4)


def test_semi_hard_takes_the_nearest_negative_beyond_the_positive():
    unit = F.normalize(embedding(3), dim=1)
    distance = torch.cdist(unit, unit).square()
    costs = []
    for a in range(7):
        negatives = [n for n in range(7) if LABELS[n] != LABELS[a]]
        for p in range(7):
            if a == p or LABELS[a] != LABELS[p]:
                continue
            beyond = [float(distance[a, n]) for n in negatives if distance[a, n] > distance[a, p]]
            chosen = min(beyond) if beyond else max(float(distance[a, n]) for n in negatives)
            costs.append(max(float(distance[a, p]) - chosen + 0.3, 0.0))
    got = losses.triplet_loss(embedding(3), LABELS, 0.3, "semi_hard")
    assert float(got) == pytest.approx(sum(costs) / len(costs), rel=1e-4)


@pytest.mark.parametrize("mining", get_args(TripletMining))
def test_triplet_gradients_are_finite_without_triplets_and_with_equal_features(mining):
    for values, labels in (
        (torch.ones(4, 3), torch.tensor([0, 0, 1, 1])),
        (torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])),
        (torch.randn(3, 3), torch.tensor([1, 1, 1])),
        (torch.randn(3, 3), torch.tensor([0, 1, 2])),
    ):
        values.requires_grad_()
        losses.triplet_loss(values, labels, 0.3, mining).backward()
        assert torch.isfinite(values.grad).all()


def test_contrastive_pulls_like_pairs_and_pushes_unlike_ones():
    near = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert float(losses.contrastive_loss(near, torch.tensor([0, 0, 1]), 0.8)) == 0.0
    assert float(losses.contrastive_loss(near, torch.tensor([0, 1, 1]), 0.8)) > 1.0


def test_frame_loss_counts_each_video_once_and_ignores_padding():
    logits = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    targets = torch.tensor([1, 2])
    got = losses.frame_cross_entropy(logits, targets, mask)
    first = F.cross_entropy(logits[0], torch.tensor([1, 1, 1]))
    second = F.cross_entropy(logits[1, :1], torch.tensor([2]))
    torch.testing.assert_close(got, torch.stack([first, second]))


def test_votes_as_probabilities_equal_class_numbers_when_all_agree():
    logits, targets = torch.randn(3, 4), torch.tensor([0, 3, 1])
    votes = F.one_hot(targets, 4).float()
    torch.testing.assert_close(
        losses.video_cross_entropy(logits, votes), losses.video_cross_entropy(logits, targets)
    )
    torch.testing.assert_close(
        losses.video_squared_error(logits, votes), losses.video_squared_error(logits, targets)
    )


def test_votes_mix_with_the_label_by_their_share():
    labels, votes = torch.tensor([1, 0]), torch.tensor([[0.5, 0.5, 0.0], [0.8, 0.0, 0.2]])
    assert losses.soft_targets(labels, votes, 0.0) is labels
    half = losses.soft_targets(labels, votes, 0.5)
    assert torch.allclose(half, torch.tensor([[0.25, 0.75, 0.0], [0.9, 0.0, 0.1]]))
    lowest = losses.video_cross_entropy(votes.clamp(min=1e-9).log(), votes)
    entropy = -(votes * votes.clamp(min=1e-9).log()).sum(dim=1)
    assert lowest.tolist() == pytest.approx(entropy.tolist())
    with pytest.raises(InputError, match="no votes"):
        losses.soft_targets(labels, None, 0.5)


def test_rare_classes_weigh_more():
    labels = [0] * 90 + [1] * 10
    for kind in ("balanced", "log"):
        weights = losses.class_weights(labels, 2, kind)
        assert weights[1] > weights[0]
        assert float(weights.mean()) == pytest.approx(1.0)
    assert losses.class_weights(labels, 2, "none").tolist() == [1.0, 1.0]


def test_unknown_choice_is_named():
    with pytest.raises(
        InputError, match="`triplet_mining` is `hard`; choose one of semi_hard, bat"
    ):
        config.from_dict(LossConfig, {"triplet_mining": "hard"})
