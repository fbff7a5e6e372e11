"""Invariants of every head: padding, batch size, order, finite gradients."""

import inspect

import pytest
import torch

from caan.errors import InputError
from caan.models.build import MODELS, build_model
from caan.models.caan import normalize_scores
from caan.models.config import ModelConfig
from caan.models.head import EncodedFrames, FrameBatch
from caan.training.config import LossConfig
from caan.training.objective import batch_loss

DIM, EMOTIONS, POOL5 = 24, 5, (6, 3, 3)
SMALL = {"projection_size": 16, "fusion_size": 20, "feature_size": 12, "recurrent_size": 10}


def head_named(name, **options):
    accepted = inspect.signature(MODELS[name]).parameters
    sizes = {key: value for key, value in SMALL.items() if key in accepted}
    if name == "pool5_attention":
        sizes |= {"pool5_shape": POOL5, "modality": "context"}
    config = ModelConfig(name=name, **(sizes | options))
    return build_model(config, face_dim=DIM, context_dim=DIM, num_emotions=EMOTIONS).eval()


def frames_of(counts):
    generator = torch.Generator().manual_seed(0)
    shape = (len(counts), max(counts))
    return FrameBatch(
        face_BTD=torch.randn(*shape, DIM, generator=generator),
        context_BTE=torch.randn(*shape, DIM, generator=generator),
        mask_BT=torch.arange(max(counts))[None] < torch.tensor(counts)[:, None],
        has_face_BT=torch.ones(shape, dtype=torch.bool),
        context_pool5_BTCHW=torch.randn(*shape, *POOL5, generator=generator),
    )


def each(frames, change):
    """The same change to every tensor of a batch."""
    return FrameBatch(*(None if part is None else change(part) for part in frames))


def widened(part):
    filler = torch.full((len(part), 4, *part.shape[2:]), 9.0).to(part.dtype)
    return torch.cat([part, filler], dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name):
    head = head_named(name)
    frames = frames_of([7, 3])
    mask_BT = torch.cat([frames.mask_BT, torch.zeros(2, 4, dtype=torch.bool)], dim=1)
    padded = each(frames, widened)._replace(mask_BT=mask_BT)
    with torch.inference_mode():
        plain, wide = head(frames), head(padded)
    torch.testing.assert_close(wide.video_logits_BK, plain.video_logits_BK)
    torch.testing.assert_close(wide.embedding_BR, plain.embedding_BR)
    torch.testing.assert_close(wide.scores_BT[:, :7], plain.scores_BT)
    assert not wide.scores_BT[:, 7:].any()
    torch.testing.assert_close(plain.scores_BT.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", MODELS)
def test_a_video_alone_gives_what_it_gives_among_others(name):
    head = head_named(name)
    frames = frames_of([6, 2, 4])
    with torch.inference_mode():
        together = head(frames)
        for video, count in enumerate([6, 2, 4]):
            alone = head(each(frames, lambda part, v=video, n=count: part[v : v + 1, :n]))
            torch.testing.assert_close(alone.video_logits_BK[0], together.video_logits_BK[video])


@pytest.mark.parametrize("name", MODELS)
def test_order_of_frames_matters_only_where_the_head_says_so(name):
    head = head_named(name)
    frames = frames_of([8])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    turned = each(frames, lambda part: part[:, order])
    with torch.inference_mode():
        first, second = head(frames).video_logits_BK, head(turned).video_logits_BK
    assert head.keeps_order != torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_encoding_in_pieces_and_pooling_equals_forward(name):
    head = head_named(name)
    frames = frames_of([9])
    with torch.inference_mode():
        whole = head(frames)
        pieces = [
            head.encode(each(frames, lambda part, c=cut: part[:, c]))
            for cut in (slice(0, 4), slice(4, 9))
        ]
        encoded = EncodedFrames(*(torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)))
        embedding_BR, scores_BT = head.pool(encoded.g_BTF, encoded.s_BT, frames.mask_BT)
        torch.testing.assert_close(head.classify(embedding_BR), whole.video_logits_BK)
    assert encoded.g_BTF.shape[-1] == head.feature_dim
    torch.testing.assert_close(encoded.frame_logits_BTK, whole.frame_logits_BTK)
    torch.testing.assert_close(scores_BT, whole.scores_BT)


@pytest.mark.parametrize("name", MODELS)
def test_a_video_without_frames_is_encoded_to_nothing(name):
    none = each(frames_of([2]), lambda part: part[:, :0])
    encoded = head_named(name).encode(none)
    assert encoded.g_BTF.shape == (1, 0, head_named(name).feature_dim)
    assert encoded.frame_logits_BTK.shape == (1, 0, EMOTIONS)


@pytest.mark.parametrize("name", [n for n in MODELS if not head_named(n).trains_frames])
def test_a_head_without_frame_branch_judges_a_frame_like_a_video_of_one(name):
    head = head_named(name)
    with torch.inference_mode():
        output = head(frames_of([1, 1]))
    torch.testing.assert_close(output.frame_logits_BTK[:, 0], output.video_logits_BK)


# kosti's batch norm uses the batch in training.
@pytest.mark.parametrize("name", [n for n in MODELS if n != "kosti"])
def test_training_mode_computes_the_same_but_for_dropout(name):
    options = {"modality_dropout": 0.0} if name == "vielzeuf" else {}
    head = head_named(name, dropout=0.0, **options)
    frames = frames_of([5, 2])
    with torch.inference_mode():
        still, moving = head(frames), head.train()(frames)
    torch.testing.assert_close(still.video_logits_BK, moving.video_logits_BK)
    torch.testing.assert_close(still.embedding_BR, moving.embedding_BR)


@pytest.mark.parametrize("counts", [[1, 1], [1], [500, 1]], ids=["single", "alone", "long"])
@pytest.mark.parametrize("equal", [False, True], ids=["random", "all_equal"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_finite(name, counts, equal):
    head = head_named(name).train()
    frames = frames_of(counts)
    if equal:
        frames = each(frames, torch.ones_like)._replace(mask_BT=frames.mask_BT)
    output = head(frames)
    loss = sum(part.square().sum() for part in output)
    loss.backward()
    for parameter, weight in head.named_parameters():
        assert weight.grad is None or torch.isfinite(weight.grad).all(), parameter


@pytest.mark.parametrize("equal", [False, True], ids=["random", "all_equal"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_every_loss_together_are_finite(name, equal):
    head = head_named(name).train()
    frames = frames_of([40, 1, 3, 1])
    if equal:
        frames = each(frames, torch.ones_like)._replace(mask_BT=frames.mask_BT)
    frame_weight = 1.0 if head.trains_frames else 0.0
    config = LossConfig(frame_weight=frame_weight, contrastive_weight=1.0)
    targets_B = torch.tensor([0, 1, 0, 1])
    loss = batch_loss(head(frames), frames, targets_B, config, torch.ones(EMOTIONS))
    loss.backward()
    assert torch.isfinite(loss)
    for parameter, weight in head.named_parameters():
        assert weight.grad is None or torch.isfinite(weight.grad).all(), parameter


@pytest.mark.parametrize("score_fn", ["sigmoid", "softplus", "softmax", "raw"])
@pytest.mark.parametrize("fusion", ["concat", "concat_fc", "sum_fc", "product", "gated"])
def test_every_form_of_caan_gives_weights_that_sum_to_one(score_fn, fusion):
    head = head_named("caan", score_fn=score_fn, fusion=fusion, scorer_depth=1, score_input="r")
    with torch.inference_mode():
        output = head(frames_of([5, 2]))
    torch.testing.assert_close(output.scores_BT.sum(dim=1), torch.ones(2), atol=1e-4, rtol=0)
    assert torch.isfinite(output.video_logits_BK).all()


@pytest.mark.parametrize("score_fn", ["sigmoid", "softplus", "softmax"])
def test_extreme_scores_keep_weights_and_gradients_finite(score_fn):
    s_BT = torch.tensor([[-1e4, -1e4, -2e4], [1e4, -1e4, 0.0]], requires_grad=True)
    mask_BT = torch.tensor([[True, True, False], [True, True, True]])
    weights_BT = normalize_scores(s_BT, mask_BT, score_fn)
    weights_BT.square().sum().backward()
    torch.testing.assert_close(weights_BT.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(weights_BT[0, :2], torch.full((2,), 0.5))
    assert torch.isfinite(s_BT.grad).all()


def test_the_raw_form_of_equation_4_is_unstable_and_guarded():
    generator = torch.Generator().manual_seed(0)
    s_BT = torch.randn(4000, 8, generator=generator)
    mask_BT = torch.ones(4000, 8, dtype=torch.bool)
    raw = normalize_scores(s_BT, mask_BT, "raw")
    # Of videos with 8 frames and scores around 0, nearly all get a negative weight.
    assert (raw < 0).any(dim=1).float().mean() > 0.95
    assert 0.05 < (raw.abs() > 5).any(dim=1).float().mean() < 0.15
    assert normalize_scores(s_BT, mask_BT, "sigmoid").max() < 1
    zero = normalize_scores(torch.tensor([[1.0, -1.0]]), mask_BT[:1, :2], "raw")
    assert torch.isfinite(zero).all()


def test_a_learned_vector_stands_for_a_missing_face():
    head = head_named("caan", null_face=True)
    frames = frames_of([3])
    without = frames._replace(has_face_BT=torch.tensor([[True, False, True]]))
    other = without._replace(face_BTD=without.face_BTD.index_fill(1, torch.tensor(1), 7.0))
    with torch.inference_mode():
        assert torch.equal(head(without).video_logits_BK, head(other).video_logits_BK)
        assert not torch.equal(head(without).video_logits_BK, head(frames).video_logits_BK)


def test_pool5_attention_says_when_maps_are_missing():
    frames = frames_of([2])._replace(context_pool5_BTCHW=None)
    with pytest.raises(InputError, match="needs pool5 maps of the context"):
        head_named("pool5_attention")(frames)


def test_standardised_vectors_have_mean_0_and_deviation_1():
    head = head_named("caan")
    x_ND = torch.randn(1000, DIM) * 30 + 5
    head.standardize_face.set(x_ND.mean(dim=0), x_ND.std(dim=0))
    out_ND = head.standardize_face(x_ND.half())
    assert out_ND.mean(dim=0).abs().max() < 0.01
    torch.testing.assert_close(out_ND.std(dim=0), torch.ones(DIM), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "can"}, "unknown model `can`"),
        ({"name": "caan", "score_fn": "relu"}, "choose one of sigmoid"),
        ({"name": "caan", "fusion": "sum"}, "choose one of concat"),
        ({"name": "faa", "scorer_depth": 1}, "no effect on model `faa`"),
        ({"name": "caan", "scorer_depth": 4}, "scorer_depth"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        build_model(ModelConfig(**options), face_dim=4, context_dim=4, num_emotions=2)
