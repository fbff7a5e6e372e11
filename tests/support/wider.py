"""A data set in the layout of WIDER FACE, made of one real face."""

from pathlib import Path

import cv2
import numpy as np

from caan.faces.build import load_detector
from caan.faces.detection import DetectorConfig
from caan.media.sampling import sample_frames


def write_wider(folder: Path, clip: Path, count: int = 4) -> None:
    """A data set in the published layout: one real face, moved about and resized."""
    image = next(iter(sample_frames(str(clip), fps=1.0, decoder="pyav"))).image
    found = load_detector(DetectorConfig(name="libfacedetection")).detect([image])[0][0]
    x0, y0, x1, y1 = (round(value) for value in found.box)
    face = image[y0:y1, x0:x1]
    lines = []
    images = folder / "WIDER_train" / "images" / "0--Parade"
    images.mkdir(parents=True)
    (folder / "wider_face_split").mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        image = np.full((120, 160, 3), int(rng.integers(60, 200)), np.uint8)
        size = int(rng.integers(44, 70))
        x, y = int(rng.integers(0, 160 - size)), int(rng.integers(0, 120 - size))
        image[y : y + size, x : x + size] = cv2.resize(face, (size, size))
        cv2.imwrite(str(images / f"{number}.jpg"), image[..., ::-1])
        lines += [f"0--Parade/{number}.jpg", "1", f"{x} {y} {size} {size} 0 0 0 0 0 0"]
    text = "\n".join(lines) + "\n"
    (folder / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_text(text)
