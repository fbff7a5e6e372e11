"""From a head's output to probabilities of emotions, and a head over whole packed videos."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caan.features.batches import gather_frames
from caan.features.packed import PackedVideos
from caan.models.config import RULES
from caan.models.evidence import (
    blinded,
    check_dimensions,
    frames_to,
    probabilities_of,
    video_evidence,
)
from caan.models.head import EncodedFrames, Head, HeadOutput


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a head says of V videos; frames of all videos lie end to end, in the videos' order."""

    evidence_VK: dict[str, np.ndarray]
    """Logits of each prediction rule, before the temperature."""
    embedding_VR: np.ndarray
    """Video features R, float32."""
    scores_N: np.ndarray
    """Emotion score of each frame; those of a video sum to 1."""
    frame_logits_NK: np.ndarray
    """Logits of each frame alone."""
    counts_V: np.ndarray
    """Frames of each video; a video with 0 has evidence 0 for every emotion."""

    def probabilities(self, rule: str = "head", temperature: float = 1.0) -> np.ndarray:
        """Probability of each emotion by one rule: [V, K]."""
        return probabilities_of(torch.from_numpy(self.evidence_VK[rule]), temperature).numpy()


@torch.inference_mode()
def predict(
    model: Head,
    videos: PackedVideos,
    *,
    centroids_KR: Tensor | None = None,
    without: str | None = None,
    device: torch.device | str = "cpu",
    max_frames: int = 1024,
) -> Predictions:
    """The head over every frame of every video.

    Frames are encoded `max_frames` at a time, without padding and however videos are cut; then
    each video is pooled whole. `without` ("face" or "context") replaces the vectors of that
    modality by their mean over the training frames: what the head says when it cannot see it.
    """
    check_dimensions(model, videos)
    model.eval()
    num_videos, num_emotions = len(videos), len(videos.label_set)
    rules = RULES if centroids_KR is not None else RULES[:2]
    evidence: dict[str, np.ndarray] = {
        rule: np.zeros((num_videos, num_emotions), np.float32) for rule in rules
    }
    ends_V = np.cumsum(videos.counts_V)
    num_frames = int(ends_V[-1]) if num_videos else 0
    scores_N = np.zeros(num_frames, np.float32)
    frame_logits_NK = np.zeros((num_frames, num_emotions), np.float32)
    embedding_VR: np.ndarray | None = None
    for group in _groups(videos.counts_V, max_frames):
        counts = videos.counts_V[group]
        rows = np.concatenate([np.arange(s.start, s.stop) for s in map(videos.rows_of, group)])
        flat = encode_rows(
            model, videos, rows, without=without, device=device, max_frames=max_frames
        )
        encoded, mask_BT = _padded(flat, counts)
        embedding_BR, scores_BT = model.pool(encoded.g_BTF, encoded.s_BT, mask_BT)
        output = HeadOutput(
            model.classify(embedding_BR),
            encoded.frame_logits_BTK,
            scores_BT,
            encoded.s_BT,
            embedding_BR,
        )
        for rule in rules:
            evidence[rule][group] = video_evidence(output, rule, centroids_KR).cpu().numpy()
        if embedding_VR is None:
            embedding_VR = np.zeros((num_videos, embedding_BR.shape[1]), np.float32)
        embedding_VR[group] = embedding_BR.float().cpu().numpy()
        places = np.concatenate(
            [np.arange(ends_V[video] - videos.counts_V[video], ends_V[video]) for video in group]
        )
        scores_N[places] = scores_BT[mask_BT].float().cpu().numpy()
        frame_logits_NK[places] = flat.frame_logits_BTK[0].float().cpu().numpy()
    return Predictions(
        evidence_VK=evidence,
        embedding_VR=np.zeros((num_videos, 1), np.float32)
        if embedding_VR is None
        else embedding_VR,
        scores_N=scores_N,
        frame_logits_NK=frame_logits_NK,
        counts_V=videos.counts_V,
    )


def joined(parts: Sequence[Predictions], num_emotions: int, rules: Sequence[str]) -> Predictions:
    """What a head says of several packs, end to end; of no video if there are none."""
    empty = np.zeros((0, num_emotions), np.float32)
    if len(parts) == 1:
        return parts[0]
    known = [part.embedding_VR for part in parts if len(part.embedding_VR)]
    return Predictions(
        evidence_VK={
            rule: np.concatenate([empty, *(part.evidence_VK[rule] for part in parts)])
            for rule in rules
        },
        embedding_VR=np.concatenate(known) if known else np.zeros((0, 1), np.float32),
        scores_N=np.concatenate([np.zeros(0, np.float32), *(part.scores_N for part in parts)]),
        frame_logits_NK=np.concatenate([empty, *(part.frame_logits_NK for part in parts)]),
        counts_V=np.concatenate([np.zeros(0, np.int64), *(part.counts_V for part in parts)]),
    )


def encode_rows(
    model: Head,
    videos: PackedVideos,
    rows: np.ndarray,
    *,
    without: str | None = None,
    device: torch.device | str = "cpu",
    max_frames: int = 1024,
) -> EncodedFrames:
    """The frame part of a head over these rows of the pack, as one sequence [1, n, ...]."""
    parts = []
    for start in range(0, len(rows), max_frames):
        rows_BT = rows[None, start : start + max_frames]
        mask_BT = np.ones(rows_BT.shape, dtype=bool)
        frames = gather_frames(videos, rows_BT, mask_BT, model.modalities, model.map_shapes)
        frames = frames_to(frames, device)
        if without is not None:
            frames = blinded(model, frames, without)
        parts.append(model.encode(frames))
    return EncodedFrames(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)))


def _groups(counts_V: np.ndarray, max_frames: int) -> list[np.ndarray]:
    """Videos of like length together, `max_frames` in all unless one video has more."""
    groups: list[list[int]] = []
    total = max_frames + 1
    for video in np.argsort(counts_V, kind="stable"):
        count = int(counts_V[video])
        if count == 0:
            continue
        if total + count > max_frames:
            groups.append([])
            total = 0
        groups[-1].append(int(video))
        total += count
    return [np.array(group) for group in groups]


def _padded(flat: EncodedFrames, counts: np.ndarray) -> tuple[EncodedFrames, Tensor]:
    """[1, n, ...] of several videos end to end -> [B, T, ...] and the mask."""
    device = flat.s_BT.device
    mask_BT = np.arange(counts.max())[None, :] < counts[:, None]
    mask = torch.from_numpy(mask_BT).to(device)
    padded = []
    for tensor in flat:
        out = torch.zeros(*mask.shape, *tensor.shape[2:], dtype=tensor.dtype, device=device)
        out[mask] = tensor[0]
        padded.append(out)
    return EncodedFrames(*padded), mask
