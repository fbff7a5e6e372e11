"""The paper's face detector: torchvision's Faster R-CNN with two classes, trained by jobs.finetune.

The weight file names the network, so extraction needs only `--detector faster_rcnn
--detector-weights FILE`. Nothing is downloaded.

Source: paper section 4.1; Ren et al. 2015 [29]; Lin et al. 2017 for the feature pyramid.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from caan.backbones.build import IMAGENET_MOBILENET
from caan.backbones.weights import ready_weights, save_weights
from caan.errors import InputError
from caan.faces.crops import resize_for_detector
from caan.faces.detection import DetectorConfig, Face, faces_in_image, iou

NETWORKS = ("resnet50", "mobilenet")
"""resnet50: torchvision's fasterrcnn_resnet50_fpn, 41 million weights and 207 GMAC for an image of
640x360. mobilenet: the same over MobileNetV2, 19 million weights and 36 GMAC."""

RATIOS = (1.0, 1.4)
"""Height over width of the anchors: faces stand upright."""

MIN_BOX_PIXELS = 6.0
"""Smallest side of a face that is trained on, in pixels of the image that the detector sees."""


def build_network(network: str, *, learns_norms: bool = False) -> FasterRCNN:
    """The network with random weights; images go through it at the size they have.

    Batch norms are frozen, as with weights that were trained elsewhere; `learns_norms` makes them
    ordinary ones, which training from nothing needs.

    Raises:
        InputError: an unknown network.
    """
    is_small = network == "mobilenet"
    norm: type[nn.Module] = nn.BatchNorm2d if learns_norms else FrozenBatchNorm2d
    sizes: tuple[tuple[int, ...], ...]
    if network == "resnet50":
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=5
        )
        sizes = ((16,), (32,), (64,), (128,), (256,))
    elif is_small:
        backbone = mobilenet_backbone(
            backbone_name="mobilenet_v2",
            weights=None,
            fpn=True,
            norm_layer=norm,
            trainable_layers=6,
            returned_layers=[2, 3, 5],
        )
        sizes = ((16, 24), (32, 48), (64, 96), (128, 256))
    else:
        raise InputError(f"unknown network `{network}`; there are {', '.join(NETWORKS)}")
    names = [str(number) for number in range(len(sizes) - 1)]
    if is_small:
        names = ["2", "3", "5"]
    return FasterRCNN(
        backbone,
        num_classes=2,
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_detections_per_img=300,
        # The layers over each proposal are most of the work where the backbone is small.
        rpn_post_nms_top_n_test=300 if is_small else 1000,
        box_batch_size_per_image=128 if is_small else 512,
        _skip_resize=True,
    )


def network_to_train(network: str, base: str = "") -> FasterRCNN:
    """The network before training, with ImageNet weights if there are any.

    `base` is a file of torchvision's classification weights for the network's backbone; without
    one, mobilenet takes those that this package carries, and resnet50 starts from nothing.

    Raises:
        InputError: no such file, or weights of another network.
    """
    if not base and network == "resnet50":
        return build_network(network, learns_norms=True)
    found = build_network(network)
    path = Path(base) if base else IMAGENET_MOBILENET
    if not path.is_file():
        raise InputError(f"--detector-base: there is no file `{path}`.")
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    body = found.backbone.body  # type: ignore[union-attr]
    own = body.state_dict()  # type: ignore[operator]
    state = {name.removeprefix("features."): tensor for name, tensor in state.items()}
    missing = [n for n, t in own.items() if n not in state or state[n].shape != t.shape]
    if missing:
        raise InputError(
            f"--detector-base `{path}` holds no ImageNet weights of {network}: it lacks "
            f"{missing[0]} in its shape."
        )
    body.load_state_dict({name: state[name] for name in own})  # type: ignore[operator]
    return found


def save_network(network: FasterRCNN, name: str, path: Path, facts: dict[str, str]) -> None:
    """Write the weights with the network's name, as `FasterRcnnDetector` reads them."""
    state = {
        key: tensor.detach().float().cpu()
        for key, tensor in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save_weights(
        state, path, {"backbone": "faster_rcnn", "channel_order": "RGB", "network": name} | facts
    )


class FasterRcnnDetector:
    """Faces by a trained Faster R-CNN, on `device`."""

    def __init__(self, config: DetectorConfig, min_score: float, device: str = "cpu"):
        if not config.weights:
            raise InputError(
                "--detector faster_rcnn needs --detector-weights: train it with `python -m "
                "jobs.finetune --wider-face DIR --output detector/`, or give --detector "
                "retinaface or libfacedetection"
            )
        found = ready_weights("faster_rcnn", config.weights)
        network = build_network(found.metadata["network"])
        try:
            network.load_state_dict(load_file(found.path))
        except RuntimeError as error:
            raise InputError(f"`{found.path}` does not fit its network: {error}") from error
        network.roi_heads.score_thresh = min(min_score, 0.99)
        self._network = network.eval().to(device)
        self._device = device
        self._config = config
        self._min_score = min_score
        name = found.metadata["network"]
        self.identity = f"faster_rcnn:{name}:sha256:{found.sha256[:16]}"

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Faces per image, best score first."""
        seen = [resize_for_detector(image, self._config) for image in images]
        faces: list[list[Face]] = []
        # On a CPU a batch saves no time, and the decoding child has little memory (1.5 GB with one
        # image of 640x360 and ResNet-50).
        size = 1 if self._device == "cpu" else self._config.batch_size
        for start in range(0, len(seen), size):
            some = slice(start, start + size)
            outputs = run_network(self._network, seen[some], self._device)
            for (boxes, scores), small, image in zip(
                outputs, seen[some], images[some], strict=True
            ):
                keep = scores >= self._min_score
                faces.append(faces_in_image(boxes[keep], scores[keep], small, image))
        return faces


@torch.inference_mode()
def run_network(
    network: FasterRCNN, images: Sequence[np.ndarray], device: str | torch.device
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes [N, 4] and scores [N] of each uint8 RGB image, by a network in evaluation mode."""
    outputs = network([to_input(image).to(device) for image in images])
    return [
        (found["boxes"].double().cpu().numpy(), found["scores"].double().cpu().numpy())
        for found in outputs
    ]


def to_input(image: np.ndarray) -> Tensor:
    """A uint8 [H, W, 3] RGB image as the network takes it: float [3, H, W] in 0..1."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


class DetectorLoss(nn.Module):
    """A network with its loss: the sum of the four losses that torchvision computes."""

    def __init__(self, network: FasterRCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        """The batch's loss, a scalar."""
        return torch.stack(list(self.network(images, targets).values())).sum()


def average_precision(
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    truth: Sequence[np.ndarray],
    min_iou: float = 0.5,
) -> float:
    """Area under precision over recall, 0..1, of (boxes, scores) per image against true boxes.

    Every true box counts once, for the best-scored detection that overlaps it by `min_iou`.

    Source: Everingham et al. 2010, PASCAL VOC, at all recalls.
    """
    scores: list[float] = []
    hits: list[bool] = []
    for (boxes, box_scores), true in zip(found, truth, strict=True):
        taken = np.zeros(len(true), bool)
        overlaps = iou(boxes, true) if len(boxes) and len(true) else np.zeros((len(boxes), 0))
        for row in np.argsort(-box_scores, kind="stable"):
            free = np.where(taken, 0.0, overlaps[row]) if len(true) else np.zeros(0)
            best = int(free.argmax()) if len(free) else -1
            hit = best >= 0 and free[best] >= min_iou
            if hit:
                taken[best] = True
            scores.append(float(box_scores[row]))
            hits.append(hit)
    num_true = sum(len(true) for true in truth)
    if not scores or not num_true:
        return 0.0
    right = np.cumsum(np.array(hits)[np.argsort(-np.array(scores), kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(np.concatenate([[0.0], right / num_true]))
    return float((steps * envelope).sum())
