"""DETECTORS by name."""

from collections.abc import Callable

from caan.errors import InputError
from caan.faces.detection import Detector, DetectorConfig, min_score_of
from caan.faces.libfacedetection import LibFaceDetection


def _retinaface(config: DetectorConfig, device: str) -> Detector:
    from caan.faces.retinaface import RetinaFaceDetector

    return RetinaFaceDetector(config, min_score_of(config), device)


def _faster_rcnn(config: DetectorConfig, device: str) -> Detector:
    from caan.faces.faster_rcnn import FasterRcnnDetector

    return FasterRcnnDetector(config, min_score_of(config), device)


DETECTORS: dict[str, Callable[[DetectorConfig, str], Detector]] = {
    "retinaface": _retinaface,
    "libfacedetection": LibFaceDetection,
    "faster_rcnn": _faster_rcnn,
}


def load_detector(config: DetectorConfig, device: str = "cpu") -> Detector:
    """The detector that `config` names, on `device` as torch names it (GPU_DETECTORS only).

    Raises:
        InputError: unknown name, option out of range, missing package or weight file.
    """
    if config.name not in DETECTORS:
        raise InputError(
            f"--detector `{config.name}` is unknown: give one of {', '.join(DETECTORS)}"
        )
    if config.detect_size_pixels < 32 or config.max_enlargement < 1 or config.batch_size < 1:
        raise InputError(
            f"detect_size_pixels {config.detect_size_pixels} must be at least 32, max_enlargement "
            f"{config.max_enlargement} and batch_size {config.batch_size} at least 1"
        )
    return DETECTORS[config.name](config, device)
