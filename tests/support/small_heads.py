"""Small heads and packed videos that they learn in a second."""

import numpy as np

from caan.features.packed import PackedVideos
from caan.models.build import build_model
from caan.models.config import ModelConfig
from caan.training.config import TrainConfig

DIM = 32
SMALL = {"projection_size": 24, "fusion_size": 32, "feature_size": 16, "scorer_sizes": (8, 4)}
QUICK = TrainConfig(epochs=6, batch_videos=12, num_frames=4, learning_rate=3e-3, patience_epochs=0)


def packed_videos(num_videos, num_classes=3, *, seed=0, noise=1.0, counts=(1, 9)):
    """Videos of noisy frames around their class's vector; a third of the frames are noise only."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(num_classes, DIM))
    labels = np.arange(num_videos) % num_classes
    counts_V = rng.integers(*counts, size=num_videos)
    label_N = np.repeat(labels, counts_V)
    told_N = rng.random(len(label_N)) > 0.33
    signal = directions[label_N] * told_N[:, None]
    face = signal + noise * rng.normal(size=signal.shape)
    context = 100 * (0.5 * signal + noise * rng.normal(size=signal.shape)) + 7
    total = len(label_N)
    return PackedVideos(
        face_ND=face.astype(np.float16),
        context_NE=context.astype(np.float16),
        has_face_N=np.ones(total, bool),
        frame_indices_N=np.arange(total),
        pts_seconds_N=np.arange(total) / 2.0,
        boxes_N4=np.zeros((total, 4), np.float32),
        starts_V=np.concatenate([[0], np.cumsum(counts_V)[:-1]]),
        counts_V=counts_V,
        labels_V=labels,
        video_ids_V=np.array([f"v{number}" for number in range(num_videos)]),
        splits_V=np.array(["train"] * num_videos),
        label_set=tuple("abcdefg"[:num_classes]),
    )


def small_head(num_emotions=3, seed=0, **options):
    config = ModelConfig(**{**SMALL, **options})
    return build_model(config, face_dim=DIM, context_dim=DIM, num_emotions=num_emotions, seed=seed)
