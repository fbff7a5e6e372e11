"""FER2013, the data set of faces that the starter is trained on."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from caan.schema import EMOTIONS


def load_faces(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Faces uint8 [N, 1, 48, 48] and labels int64 [N] of one split of FER2013.

    `path` is a Parquet file with the columns split, label and jpeg.
    """
    table = pq.read_table(path, filters=[("split", "==", split)])
    images = [
        np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE))
        for jpeg in table["jpeg"].to_pylist()
    ]
    labels = [EMOTIONS.index(label) for label in table["label"].to_pylist()]
    return torch.from_numpy(np.stack(images))[:, None], torch.tensor(labels)
