"""From a head's output to probabilities of emotions, and a head over whole packed videos."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caan.errors import InputError
from caan.loading import gather_frames
from caan.models.frames import EncodedFrames, FrameBatch, Head, HeadOutput
from caan.packing import PackedVideos, Videos
from caan.schema import UNCERTAIN

RULES = ("head", "frames", "centroids")
"""head: the classifier on R; frames: mean of the frames' softmaxes, weighted by their emotion
scores; centroids: distance of R to the classes' mean R. The paper does not state its rule."""

CENTROID_SHARPNESS = 10.0


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


def probabilities_of(evidence_BK: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax of evidence over temperature: [B, K]."""
    return torch.softmax(evidence_BK.float() / temperature, dim=-1)


def label_of(emotions: Sequence[str], probabilities_K: np.ndarray, abstain_below: float) -> str:
    """The most probable emotion, or `uncertain` where its probability is below the limit."""
    best = int(probabilities_K.argmax())
    return UNCERTAIN if probabilities_K[best] < abstain_below else emotions[best]


def video_evidence(output: HeadOutput, rule: str, centroids_KR: Tensor | None = None) -> Tensor:
    """Logits of each video by one of RULES: [B, K].

    Raises:
        InputError: an unknown rule, or `centroids` for a model that has none.
    """
    if rule == "head":
        return output.video_logits_BK.float()
    if rule == "frames":
        # Weights of score_fn=raw can be negative; a mean of probabilities needs positive ones.
        weights_BT = output.scores_BT.clamp(min=0.0)
        weights_BT = weights_BT / weights_BT.sum(dim=1, keepdim=True).clamp(min=1e-9)
        frames_BTK = torch.softmax(output.frame_logits_BTK.float(), dim=-1)
        mean_BK = torch.bmm(weights_BT[:, None, :], frames_BTK).squeeze(1)
        return mean_BK.clamp(min=1e-9).log()
    if rule == "centroids":
        if centroids_KR is None:
            raise InputError("option `rule` is `centroids`, and this model has no centroids")
        unit_BR = F.normalize(output.embedding_BR.float(), dim=1)
        return CENTROID_SHARPNESS * (2.0 * unit_BR @ centroids_KR.T - 1.0)
    raise InputError(f"option `rule` is `{rule}`; choose one of {', '.join(RULES)}")


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
    evidence = {rule: np.zeros((num_videos, num_emotions), np.float32) for rule in rules}
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


def blinded(model: Head, frames: FrameBatch, modality: str) -> FrameBatch:
    """The same frames with one modality's vectors replaced by the mean of the training frames.

    Raises:
        InputError: the head does not look at that modality.
    """
    if modality not in model.modalities:
        raise InputError(f"this head looks at {', '.join(model.modalities)}, not at `{modality}`")
    if modality == "face":
        mean_D = model.standardize_face.mean_D
        return frames._replace(face_BTD=mean_D.expand(*frames.mask_BT.shape, -1))
    mean_D = model.standardize_context.mean_D
    return frames._replace(context_BTE=mean_D.expand(*frames.mask_BT.shape, -1))


def check_dimensions(model: Head, videos: Videos) -> None:
    """Say so if a head and features do not fit together.

    Raises:
        InputError: the vectors have another size than the head was made for.
    """
    for modality in model.modalities:
        wanted = getattr(model, f"standardize_{modality}").scale_D.numel()
        found = videos.face_dim if modality == "face" else videos.context_dim
        if wanted != found:
            raise InputError(
                f"the model takes {modality} vectors of {wanted} numbers, and these features have "
                f"{found}: they come from another backbone"
            )
    for modality, shape in model.map_shapes.items():
        if modality not in videos.maps:
            raise InputError(
                f"the model reads pool5 maps of the {modality}, and these features have none: "
                f"extract them with `--pool5 {modality}`, or take a model that scores from fc6"
            )
        if (found_shape := videos.maps[modality].shape[1:]) != tuple(shape):
            raise InputError(
                f"the model takes pool5 maps of {shape}, and these features have {found_shape}: "
                "they come from another backbone"
            )


def frames_to(frames: FrameBatch, device: torch.device | str) -> FrameBatch:
    """The same frames on a device."""
    moved = {
        name: part.to(device, non_blocking=True)
        for name, part in frames._asdict().items()
        if part is not None
    }
    return frames._replace(**moved)


def calibrated_temperature(evidence_VK: np.ndarray, labels_V: np.ndarray) -> float:
    """The temperature (0.05 to 20) under which these labels are most likely; 1 without labels."""
    if len(labels_V) == 0:
        return 1.0
    evidence = torch.from_numpy(evidence_VK).float()
    labels = torch.from_numpy(labels_V)
    candidates = torch.logspace(np.log10(0.05), np.log10(20.0), 241)
    losses = torch.stack([F.cross_entropy(evidence / value, labels) for value in candidates])
    return round(float(candidates[losses.argmin()]), 4)


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
