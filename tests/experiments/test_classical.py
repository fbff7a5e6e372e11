"""The encoders of Table 6 learn, and do so for any modality and number of frames."""

from dataclasses import replace

import numpy as np
import pytest

from caan.errors import InputError
from caan.experiments.classical import (
    CLASSICAL_MODELS,
    ConceptSelection,
    KernelizedFeatures,
    build_encoder,
)
from caan.experiments.config import EncoderConfig
from caan.features.packed import PackedVideos

DIM, CLASSES = 40, 4


def packed_videos(num_videos, *, seed, counts=(3, 12)):
    """Half of each video's frames lie around their class's vector, half around a common one."""
    directions = np.random.default_rng(9).normal(size=(CLASSES + 1, DIM))
    rng = np.random.default_rng(seed)
    labels = np.arange(num_videos) % CLASSES
    counts_V = rng.integers(*counts, size=num_videos)
    label_N = np.repeat(labels, counts_V)
    shown_N = np.where(rng.random(len(label_N)) < 0.5, label_N, CLASSES)
    vectors = directions[shown_N] + 1.2 * rng.normal(size=(len(label_N), DIM))
    context = np.maximum(vectors, 0).astype(np.float16)
    return PackedVideos(
        face_ND=context,
        context_NE=context,
        has_face_N=np.ones(len(label_N), bool),
        frame_indices_N=np.arange(len(label_N)),
        pts_seconds_N=np.zeros(len(label_N)),
        boxes_N4=np.zeros((len(label_N), 4), np.float32),
        starts_V=np.cumsum(counts_V) - counts_V,
        counts_V=counts_V,
        labels_V=labels,
        video_ids_V=np.array([f"v{number}" for number in range(num_videos)]),
        splits_V=np.array([""] * num_videos),
        label_set=("a", "b", "c", "d"),
    )


@pytest.mark.parametrize("modality", ["context", "fusion"])
@pytest.mark.parametrize("name", CLASSICAL_MODELS)
def test_encoders_beat_chance_clearly(name, modality):
    model = CLASSICAL_MODELS[name](modality=modality).fit(packed_videos(120, seed=1))
    test = packed_videos(80, seed=2, counts=(1, 12))
    evidence_VK = model.evidence(test)
    assert evidence_VK.shape == (80, CLASSES)
    assert (evidence_VK.argmax(axis=1) == test.labels_V).mean() > 0.6
    alone = model.evidence(test.select([5]))
    np.testing.assert_allclose(alone[0], evidence_VK[5], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CLASSICAL_MODELS)
def test_the_options_of_the_encoders_reach_them_and_keep_their_defaults(name):
    assert vars(build_encoder(name, EncoderConfig())) == vars(CLASSICAL_MODELS[name]())
    changed = build_encoder(name, EncoderConfig(modality="face", svm_c=2.0), seed=3)
    assert (changed.modalities, changed.svm_c, changed.seed) == (("face",), 2.0, 3)


def test_sparse_representation_classifies_too():
    model = KernelizedFeatures(classifier="src").fit(packed_videos(120, seed=1))
    test = packed_videos(80, seed=2)
    assert (model.evidence(test).argmax(axis=1) == test.labels_V).mean() > 0.5


def test_named_concepts_take_the_place_of_clusters():
    directions = np.random.default_rng(9).normal(size=(CLASSES, DIM)).astype(np.float32)
    model = ConceptSelection(concept_scores=lambda x_NE: x_NE @ directions.T)
    model.fit(packed_videos(120, seed=1))
    test = packed_videos(80, seed=2)
    assert (model.evidence(test).argmax(axis=1) == test.labels_V).mean() > 0.6


@pytest.mark.parametrize("name", CLASSICAL_MODELS)
def test_two_classes_a_silent_class_and_videos_without_frames(name):
    videos = packed_videos(40, seed=1)
    two = videos.select(videos.labels_V < 2)
    empty = replace(two, counts_V=np.where(np.arange(len(two)) == 0, 0, two.counts_V))
    evidence_VK = CLASSICAL_MODELS[name]().fit(empty).evidence(empty)
    assert not evidence_VK[0].any()
    assert set(evidence_VK[1:].argmax(axis=1)) == {0, 1}


@pytest.mark.parametrize("name", CLASSICAL_MODELS)
def test_one_class_and_foreign_features_are_refused(name):
    videos = packed_videos(40, seed=1)
    with pytest.raises(InputError, match="at least two emotions"):
        CLASSICAL_MODELS[name]().fit(videos.select(videos.labels_V == 0))
    model = CLASSICAL_MODELS[name]().fit(videos)
    with pytest.raises(InputError, match="another backbone"):
        model.evidence(replace(videos, context_NE=videos.context_NE[:, :8]))
