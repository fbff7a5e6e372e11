"""Training: it learns, resumes exactly, and does not care how many workers there are."""

import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from caan.errors import InputError
from caan.features.batches import plan_epoch, sample_frames_of
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.models.evidence import calibrated_temperature
from caan.training.config import LossConfig
from caan.training.loop import fit, rate_of_epoch
from caan.training.predict import predict
from caan.training.recipes import RECIPES, recipe
from tests.support.small_heads import DIM, QUICK, SMALL, packed_videos, small_head

MAP_SHAPE = (4, 3, 3)


def with_maps(videos):
    """The same videos with small pool5 maps of noise."""
    shape = (len(videos.face_ND), *MAP_SHAPE)
    noise = np.random.default_rng(5).normal(size=shape).astype(np.float16)
    return replace(videos, maps={"face": noise, "context": noise})


def test_overfits_four_clips():
    clips = packed_videos(4, 4, noise=2.0, counts=(4, 6))
    head = small_head(4)
    fit(head, clips, clips, replace(QUICK, epochs=100, batch_videos=8, learning_rate=1e-2))
    probabilities = predict(head, clips).probabilities()
    assert probabilities.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert probabilities.max(axis=1).min() > 0.9


def test_learns_what_unseen_videos_show_and_reports_every_epoch():
    rows = []
    head = small_head()
    result = fit(
        head,
        packed_videos(150),
        packed_videos(60, seed=1),
        QUICK,
        report=lambda row, folder: rows.append((row, folder)),
    )
    assert [row["epoch"] for row, _ in rows] == list(range(6))
    assert all(folder is None for _, folder in rows)
    assert result.metrics["validation_uar"] > 0.7
    for rule in ("head", "frames", "centroids"):
        assert result.metrics[f"validation_accuracy_{rule}"] > 0.7
        assert 0.05 <= result.temperatures[rule] <= 20
    assert result.metrics["validation_videos"] == 60
    # The weights that stay are those of the best epoch.
    best = max(row["validation_uar"] for row, _ in rows)
    assert result.metrics["validation_uar_head"] == pytest.approx(best)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_on_a_gpu_learns_what_a_cpu_learns():
    train, validation = packed_videos(150), packed_videos(60, seed=1)
    found = [
        fit(small_head(), train, validation, replace(QUICK, precision=precision), device=device)
        for precision, device in (("float32", "cpu"), ("float32", "cuda"), ("bfloat16", "cuda"))
    ]
    cpu, gpu, mixed = (result.metrics["validation_accuracy_head"] for result in found)
    assert gpu == pytest.approx(cpu, abs=0.05)
    assert mixed == pytest.approx(cpu, abs=0.05)


def test_gradients_are_clipped_and_the_rate_falls():
    head = small_head()
    before = [weight.detach().clone() for weight in head.parameters()]
    sgd = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "standardize": False}
    config = replace(QUICK, epochs=1, batch_videos=64, learning_rate=1.0, grad_clip=0.01, **sgd)
    fit(head, packed_videos(60), packed_videos(30, seed=1), config)
    pairs = zip(head.parameters(), before, strict=True)
    moved = sum((now - old).detach().square().sum() for now, old in pairs)
    assert float(moved) ** 0.5 == pytest.approx(0.01, rel=0.01), "one step of the greatest norm"
    rates = [rate_of_epoch(replace(QUICK, epochs=4), epoch) for epoch in range(4)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert [rate_of_epoch(replace(QUICK, epochs=3, schedule="step"), n) for n in range(3)] == [
        1,
        1,
        0.1,
    ]


def test_patience_ends_training():
    config = replace(QUICK, epochs=50, patience_epochs=2)
    result = fit(small_head(), packed_videos(60), packed_videos(30, seed=1), config)
    assert len(result.history) == result.best_epoch + 3 < 50


def test_a_resumed_run_ends_like_an_undisturbed_one(tmp_path):
    train, validation = packed_videos(60), packed_videos(30, seed=1)
    config = replace(QUICK, checkpoint_every_epochs=1)
    states = tmp_path / "states"

    def keep(row, folder):
        shutil.copytree(folder, states / str(int(row["epoch"])))

    whole, resumed = small_head(dropout=0.2), small_head(dropout=0.2, seed=5)
    first = fit(whole, train, validation, config, report=keep)
    second = fit(resumed, train, validation, config, resume=states / "2")
    for row, other in zip(first.history, second.history, strict=True):
        assert row["train_loss"] == other["train_loss"]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


TWO_WORKERS = replace(QUICK, losses=LossConfig(class_weights="balanced", contrastive_weight=0.5))


def _fit_as(rank, port):
    """Train as one of two workers; gives the losses of the epochs and the final metrics."""
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    train, validation = packed_videos(40), packed_videos(7, seed=1)
    result = fit(small_head(), train, validation, TWO_WORKERS, rank=rank, world_size=2)
    dist.destroy_process_group()
    return [row["train_loss"] for row in result.history], result.metrics


def _second_worker(port, queue):
    torch.set_num_threads(1)
    queue.put(_fit_as(1, port))


def test_one_and_two_workers_learn_the_same(free_port):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    second = context.Process(target=_second_worker, args=(free_port, queue))
    second.start()
    results = [_fit_as(0, free_port), queue.get()]
    second.join()
    alone = fit(small_head(), packed_videos(40), packed_videos(7, seed=1), TWO_WORKERS)
    for train_losses, metrics in results:
        assert train_losses == pytest.approx([row["train_loss"] for row in alone.history], rel=1e-4)
        assert metrics["validation_videos"] == 7
        expected = pytest.approx(alone.metrics["validation_loss"], rel=1e-3)
        assert metrics["validation_loss"] == expected


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_balanced_batches_hold_every_class_alike_and_shuffled_ones_every_video_once():
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    plan = plan_epoch(labels, 12, "balanced", 0, 0)
    assert all(np.bincount(labels[batch]).tolist() == [4, 4, 4] for batch in plan)
    assert len(plan) == 7
    assert [b.tolist() for b in plan] == [
        b.tolist() for b in plan_epoch(labels, 12, "balanced", 0, 0)
    ]
    shuffled = np.concatenate(plan_epoch(labels, 12, "shuffled", 0, 0))
    assert sorted(shuffled) == list(range(84))
    # With more classes than fit, a batch still has two videos of each class that it shows.
    many = plan_epoch(np.arange(40) % 10, 6, "balanced", 0, 0)
    assert all(sorted(np.bincount(np.arange(40)[b] % 10))[-3:] == [2, 2, 2] for b in many)


def test_training_frames_come_one_from_each_segment():
    videos = packed_videos(20, counts=(1, 40))
    rng = np.random.default_rng(0)
    rows, mask = sample_frames_of(videos, np.arange(20), 8, rng)
    for video, count in enumerate(videos.counts_V):
        places = rows[video][mask[video]] - videos.starts_V[video]
        if count <= 8:
            assert places.tolist() == list(range(count))
        else:
            assert ((places * 8) // count).tolist() == sorted((places * 8) // count)
            assert len(set(places)) == 8
            assert places.max() < count


def test_prediction_does_not_depend_on_how_frames_are_grouped():
    videos = packed_videos(12, counts=(0, 30))
    head = small_head()
    wide, narrow = predict(head, videos), predict(head, videos, max_frames=7)
    for rule in ("head", "frames"):
        np.testing.assert_allclose(
            wide.evidence_VK[rule], narrow.evidence_VK[rule], rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(wide.scores_N, narrow.scores_N, rtol=1e-4, atol=1e-6)
    starts = np.cumsum(videos.counts_V) - videos.counts_V
    sums = np.add.reduceat(wide.scores_N, starts[videos.counts_V > 0])
    np.testing.assert_allclose(sums, 1.0, rtol=1e-5)


def test_without_a_modality_the_head_no_longer_sees_it():
    train, test = packed_videos(90), packed_videos(30, seed=1)
    head = small_head()
    fit(head, train, test, QUICK)
    shuffled = replace(test, context_NE=test.context_NE[::-1])
    blind, other = (predict(head, v, without="context").probabilities() for v in (test, shuffled))
    np.testing.assert_allclose(blind, other, atol=1e-6)
    assert np.abs(predict(head, test).probabilities() - blind).max() > 0.01
    with pytest.raises(InputError, match="not at `context`"):
        predict(small_head(modality="face"), test, without="context")


def test_frames_without_a_face_need_a_head_that_knows_them():
    videos = packed_videos(30)
    bare = replace(videos, has_face_N=np.arange(len(videos.has_face_N)) % 3 > 0)
    with pytest.raises(InputError, match="null_face"):
        fit(small_head(), bare, bare, QUICK)
    head = small_head(null_face=True)
    fit(head, bare, bare, QUICK)
    assert head.null_face_D.abs().sum() > 0


def test_calibration_finds_the_temperature():
    rng = np.random.default_rng(0)
    evidence = rng.normal(size=(4000, 3))
    weights = np.exp(evidence)
    labels = np.array([rng.choice(3, p=w / w.sum()) for w in weights])
    assert calibrated_temperature(evidence * 4, labels) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(
    ("videos", "head", "message"),
    [
        (packed_videos(9, 1), {"num_emotions": 1}, "at least two emotions"),
        (packed_videos(2, 3), {}, "no usable training video shows c"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(videos, head, message):
    with pytest.raises(InputError, match=message):
        fit(small_head(**head), videos, videos, QUICK)


def test_features_of_another_backbone_are_refused():
    head = build_model(ModelConfig(**SMALL), face_dim=DIM, context_dim=8, num_emotions=3)
    with pytest.raises(InputError, match="context vectors of 8 numbers"):
        fit(head, packed_videos(9), packed_videos(9), QUICK)


def test_a_frame_loss_without_a_frame_branch_is_refused():
    head = build_model(ModelConfig(name="faa"), face_dim=DIM, context_dim=DIM, num_emotions=3)
    with pytest.raises(InputError, match="no frame branch"):
        fit(head, packed_videos(9), packed_videos(9), QUICK)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    chosen = recipe(name, seed=3)
    train, validation = packed_videos(30), packed_videos(9, seed=1)
    if chosen.model.name == "pool5_attention":
        train, validation = with_maps(train), with_maps(validation)
        chosen = replace(chosen, model=replace(chosen.model, pool5_shape=MAP_SHAPE))
    head = build_model(chosen.model, face_dim=DIM, context_dim=DIM, num_emotions=3)
    config = replace(chosen.train, epochs=2)
    result = fit(head, train, validation, config)
    assert np.isfinite(result.history[-1]["train_loss"])


def test_votes_as_targets_teach_how_sure_the_annotators_were():
    videos = packed_videos(60, noise=0.1)
    votes_KK = np.full((3, 3), 0.2, np.float32) + np.eye(3, dtype=np.float32) * 0.4
    with_votes = replace(videos, soft_VK=votes_KK[videos.labels_V])
    mean = {}
    for share in (0.0, 1.0):
        config = replace(QUICK, epochs=12, losses=LossConfig(votes_share=share))
        head = small_head()
        result = fit(head, with_votes, with_votes, config)
        logits = torch.from_numpy(result.validation.evidence_VK["head"])
        mean[share] = float(logits.softmax(dim=1).max(dim=1).values.mean())
    assert mean[1.0] < mean[0.0] - 0.1
    with pytest.raises(InputError, match="have no votes"):
        fit(small_head(), videos, videos, config)
    with pytest.raises(InputError, match="`votes_share` is 2"):
        LossConfig(votes_share=2)
