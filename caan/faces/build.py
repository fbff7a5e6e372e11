"""DETECTORS: every face detector by name, and what the project knows of each.

To add a detector: write its class in a file of its own, with the two members of `Detector`; add its
name to `DetectorName` in detection.py, a loader below, and its entry in DETECTORS. A loader imports
the detector's file when it is called, so that a command line imports none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from caan.errors import InputError
from caan.faces.detection import Detector, DetectorConfig


@dataclass(frozen=True, kw_only=True)
class DetectorKind:
    """How to load one detector, and which of its scores count."""

    load: Callable[[DetectorConfig, float, str], Detector]
    """Makes the detector from its options, its lowest score and a device as torch names it."""
    min_score: float
    """Default of `DetectorConfig.min_score`, 0..1."""
    lone_min_score: float = 0.0
    """Lowest score, 0..1, of a face with no other face within LONE_SECONDS; 0: any score."""
    runs_on_gpu: bool
    """Whether it gets a stage of its own where there is a GPU."""


def _retinaface(config: DetectorConfig, min_score: float, device: str) -> Detector:
    from caan.faces.retinaface import RetinaFaceDetector

    return RetinaFaceDetector(config, min_score, device)


def _libfacedetection(config: DetectorConfig, min_score: float, device: str) -> Detector:
    from caan.faces.libfacedetection import LibFaceDetection

    return LibFaceDetection(config, min_score)


def _faster_rcnn(config: DetectorConfig, min_score: float, device: str) -> Detector:
    from caan.faces.faster_rcnn import FasterRcnnDetector

    return FasterRcnnDetector(config, min_score, device)


DETECTORS: dict[str, DetectorKind] = {
    # Source of the score: the retina-face package's own default.
    "retinaface": DetectorKind(load=_retinaface, min_score=0.9, runs_on_gpu=True),
    # Measured on real clips with people, at 10 frames per second:
    #   upright faces of 20 pixels and more    0.80 to 0.95
    #   small faces tilted by 30 degrees       0.60 to 0.80, so they are lost
    #   large faces tilted by 30 degrees       above 0.85
    #   heads in profile or from behind        mostly below 0.75, at most 0.83
    #   a cartoon rabbit                       up to 0.87
    #   images without people                no face
    # Lone faces, measured on 27 real clips at 2 frames per second: false faces came alone and
    # scored 0.80 to 0.82; faces of people scored 0.84 and more, and were hardly ever alone.
    "libfacedetection": DetectorKind(
        load=_libfacedetection, min_score=0.8, lone_min_score=0.85, runs_on_gpu=False
    ),
    # Our choice; the training data of the weights decide what is right.
    "faster_rcnn": DetectorKind(load=_faster_rcnn, min_score=0.8, runs_on_gpu=True),
}
"""Every detector by name."""

LONE_SECONDS = 1.0
"""A face is lone if no other frame within this many seconds has a face."""


def load_detector(config: DetectorConfig, device: str = "cpu") -> Detector:
    """Load the detector that `config` names; `device`, as torch names it, is for GPU detectors.

    Raises:
        InputError: an unknown name, an option out of range, or a missing package or weight file.
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
    kind = DETECTORS[config.name]
    min_score = kind.min_score if config.min_score is None else config.min_score
    if not 0 < min_score <= 1:
        raise InputError(f"min_score {min_score} must be above 0 and at most 1")
    return kind.load(config, min_score, device)
