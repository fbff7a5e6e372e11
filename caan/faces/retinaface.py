"""RetinaFace of the retina-face package: its torch network on batches, its post-processing.

The package's own `detect_faces` takes one image at a time and runs on the CPU only. This module
gives the same scores and boxes (before the package truncates boxes to whole pixels) for batches.

Source: retina-face 0.0.19, `RetinaFace.detect_faces`; Deng et al., RetinaFace, CVPR 2020.
"""

import hashlib
import os
import pickle
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from retinaface.commons import postprocess
from retinaface.model.retinaface_pth_model import RetinaFace

from caan.errors import InputError
from caan.faces.crops import resize_for_detector
from caan.faces.detection import DetectorConfig, Face, faces_in_image

ANCHORS = {
    32: np.array([[-248, -248, 263, 263], [-120, -120, 135, 135]], np.float32),
    16: np.array([[-56, -56, 71, 71], [-24, -24, 39, 39]], np.float32),
    8: np.array([[-8, -8, 23, 23], [0, 0, 15, 15]], np.float32),
}
"""Two anchor boxes per cell, by stride in pixels, in the order of the network's outputs."""

NMS_IOU = 0.4
"""Overlap from which the lower score of two boxes is dropped."""


class RetinaFaceDetector:
    """Faces by RetinaFace with ResNet-50, on `device`."""

    def __init__(self, config: DetectorConfig, min_score: float, device: str = "cpu"):
        path = retinaface_weights_path(config)
        content = path.read_bytes()
        network = RetinaFace()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            network.load_state_dict(state)
        except (pickle.UnpicklingError, EOFError, RuntimeError, TypeError) as error:
            raise InputError(
                f"`{path}` does not hold the weights of the retina-face package's torch network "
                f"(retinaface.pth): {(str(error) or 'empty').splitlines()[0]}"
            ) from error
        self._network = network.eval().to(device)
        self._device = device
        self._config = config
        self._min_score = min_score
        digest = hashlib.sha256(content).hexdigest()[:16]
        self.identity = f"retinaface:retina-face-{version('retina-face')}:sha256:{digest}"

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Faces per image, best score first; images of one size share passes."""
        seen = [resize_for_detector(image, self._config) for image in images]
        same_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(seen):
            same_shape.setdefault(image.shape, []).append(index)
        faces: list[list[Face]] = [[] for _ in images]
        for indices in same_shape.values():
            for start in range(0, len(indices), self._config.batch_size):
                chosen = indices[start : start + self._config.batch_size]
                outputs = self._run(np.stack([seen[index] for index in chosen]))
                for row, index in enumerate(chosen):
                    boxes, scores = decode_outputs(
                        [output[row] for output in outputs],
                        seen[index].shape[:2],
                        self._min_score,
                    )
                    faces[index] = faces_in_image(boxes, scores, seen[index], images[index])
        return faces

    @torch.inference_mode()
    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        # The network takes RGB; the package reverses its BGR input before it.
        batch = torch.from_numpy(images).to(self._device).float()
        return [output.float().cpu().numpy() for output in self._network(batch)]


def decode_outputs(
    outputs: list[np.ndarray], shape: tuple[int, int], min_score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] and scores [N] of one image of `shape` (height, width), best first.

    `outputs` are the network's nine maps for it: scores, box deltas, landmarks by stride.
    """
    boxes, scores = [], []
    for level, (stride, anchors) in enumerate(ANCHORS.items()):
        face_scores = outputs[3 * level][:, :, len(anchors) :].ravel()
        deltas = outputs[3 * level + 1]
        height, width = deltas.shape[:2]
        plane = postprocess.anchors_plane(height, width, stride, anchors).reshape(-1, 4)
        keep = np.flatnonzero(face_scores >= min_score)
        decoded = postprocess.bbox_pred(plane[keep], deltas.reshape(-1, 4)[keep])
        boxes.append(postprocess.clip_boxes(decoded, shape))
        scores.append(face_scores[keep])
    boxes_all, scores_all = np.concatenate(boxes), np.concatenate(scores)
    order = scores_all.argsort()[::-1]
    candidates = np.column_stack([boxes_all[order], scores_all[order]]).astype(np.float32)
    kept = candidates[postprocess.cpu_nms(candidates, NMS_IOU)]
    return kept[:, :4].astype(np.float64), kept[:, 4]


def retinaface_weights_path(config: DetectorConfig) -> Path:
    """The local weight file of retinaface; an s3:// one is fetched into the node's cache.

    Raises:
        InputError: there is no such file. Nothing is downloaded from the web here.
    """
    if config.weights.startswith("s3://"):
        from caan.backbones.weights import cache_folder
        from caan.storage.objects import fetch

        try:
            return fetch(config.weights, cache_folder())
        except FileNotFoundError:
            path = Path(config.weights)
    else:
        home = Path(os.environ.get("DEEPFACE_HOME") or Path.home())
        default = home / ".deepface" / "weights" / "retinaface.pth"
        path = Path(config.weights).expanduser() if config.weights else default
        if path.is_file():
            return path
    raise InputError(
        f"the weights of retinaface are not at `{config.weights or path}`: download "
        "https://github.com/serengil/deepface_models/releases/download/v1.0/retinaface.pth "
        "(110 MB), put it there or name it as the detector's weights (local path or s3://); "
        "or give --detector libfacedetection, which needs no file"
    )
