"""WIDER FACE as published: its lists of boxes, and its images at the size that a detector sees.

    WIDER_train/images/<event>/<name>.jpg            WIDER_val/ likewise
    wider_face_split/wider_face_train_bbx_gt.txt     wider_face_val_bbx_gt.txt likewise

Source: Yang et al. 2016 [30], readme of wider_face_split.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from caan import storage
from caan.datasets.splits import shuffle_key
from caan.errors import InputError
from caan.faces.detection import DetectorConfig

LISTED_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("uri", pa.string()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
    ]
)
"""One row per listed image, numbered from 0; boxes x0, y0, x1, y1 in its pixels."""

IMAGES_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("picture", pa.large_binary()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
    ]
)
"""One row per decoded image: `picture` is uint8 RGB, boxes are in its pixels."""

INVALID = 7
"""Index of the flag `invalid` in the line of a box."""


@dataclass(frozen=True, kw_only=True)
class WiderFace:
    """The published data set, or one in its layout."""

    train: pa.Table
    """LISTED_SCHEMA, in an order that mixes the events."""
    validation: pa.Table
    """LISTED_SCHEMA: the published part `val`, or rows held out of `train` if there is none."""


def parse_boxes(text: str, source: str) -> list[tuple[str, list[list[float]]]]:
    """Image names and their boxes x0, y0, x1, y1 from a `*_bbx_gt.txt`.

    Boxes that are marked invalid or have no area are left out. For an image without faces the list
    has a line of zeros and the result has no box.

    Raises:
        InputError: a line is not what the format has there; the message has its number.
    """
    lines = text.splitlines()
    found: list[tuple[str, list[list[float]]]] = []
    place = 0
    while place < len(lines):
        name = lines[place].strip()
        place += 1
        if not name:
            continue
        count = lines[place].strip() if place < len(lines) else ""
        if not name.lower().endswith((".jpg", ".jpeg", ".png")) or not count.isdigit():
            raise InputError(
                f"`{source}`, line {place}: expected an image name and then a number of boxes, "
                f"not `{name[:60]}` and `{count[:60]}`."
            )
        place += 1
        boxes = []
        for number in range(max(int(count), 1)):
            fields = lines[place].split() if place < len(lines) else []
            is_box = len(fields) >= 4 and all(f.lstrip("-").isdigit() for f in fields)
            if not is_box:
                if not int(count):
                    break  # some lists have no line of zeros
                raise InputError(
                    f"`{source}`, line {place + 1}: expected box {number + 1} of {count} of "
                    f"`{name}`: x y w h and flags."
                )
            place += 1
            x, y, width, height = (float(value) for value in fields[:4])
            is_invalid = len(fields) > INVALID and fields[INVALID] == "1"
            if int(count) and width > 0 and height > 0 and not is_invalid:
                boxes.append([x, y, x + width, y + height])
        found.append((name, boxes))
    return found


def read_wider_face(folder: str, *, fraction: float, seed: int) -> WiderFace:
    """Read the lists of a folder in the published layout.

    Without a part `val`, the share `fraction` of the training images is held out by `seed`.

    Raises:
        InputError: the list of training boxes is missing, broken, or without a face.
    """
    train = _listed(folder, "train")
    if train is None:
        raise InputError(
            f"`{folder}` is not WIDER FACE as published: it has no "
            "wider_face_split/wider_face_train_bbx_gt.txt."
        )
    train.sort(key=lambda row: shuffle_key(row["uri"], seed))
    validation = _listed(folder, "val")
    if validation is None:
        count = max(1, round(fraction * len(train))) if len(train) > 1 else 0
        validation, train = train[:count], train[count:]
    if not any(row["boxes"] for row in train):
        raise InputError(f"no training image of `{folder}` has a valid face: check its lists.")
    return WiderFace(train=_numbered(train), validation=_numbered(validation))


def _numbered(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [row | {"number": number} for number, row in enumerate(rows)], LISTED_SCHEMA
    )


def _listed(folder: str, part: str) -> list[dict[str, Any]] | None:
    source = storage.join(folder, "wider_face_split", f"wider_face_{part}_bbx_gt.txt")
    if not storage.exists(source):
        return None
    text = storage.read_bytes(source).decode()
    images = storage.join(folder, f"WIDER_{part}", "images")
    return [
        {"uri": storage.join(images, name), "boxes": boxes}
        for name, boxes in parse_boxes(text, source)
    ]


def decode_images(table: pa.Table, *, detector: DetectorConfig, min_box_pixels: float) -> pa.Table:
    """LISTED_SCHEMA -> IMAGES_SCHEMA, at the size that the detector sees.

    Faces with a side below `min_box_pixels` at that size are left out.

    Raises:
        InputError: a listed image is missing or cannot be decoded.
    """
    import cv2  # imports for 0.2 s: only decoding needs it

    from caan.faces.crops import resize_for_detector

    rows = []
    for row in table.to_pylist():
        try:
            content = storage.read_bytes(row["uri"])
        except FileNotFoundError as error:
            raise InputError(
                f"the list names `{row['uri']}`, and no file lies there: add the file, or remove "
                "it from the list."
            ) from error
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"`{row['uri']}` cannot be decoded as an image: replace the file.")
        seen = resize_for_detector(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), detector)
        height, width = seen.shape[:2]
        boxes = np.array(row["boxes"], np.float32).reshape(-1, 4)
        boxes *= np.tile([width / image.shape[1], height / image.shape[0]], 2)
        boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
        sides = boxes[:, 2:] - boxes[:, :2]
        rows.append(
            {
                "number": row["number"],
                "height": height,
                "width": width,
                "picture": seen.tobytes(),
                "boxes": boxes[(sides >= min_box_pixels).all(1)].tolist(),
            }
        )
    return pa.Table.from_pylist(rows, IMAGES_SCHEMA)


def images_of(table: pa.Table) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 [H, W, 3] and their boxes float32 [N, 4], from IMAGES_SCHEMA."""
    return [
        (
            np.frombuffer(row["picture"], np.uint8).reshape(row["height"], row["width"], 3),
            np.array(row["boxes"], np.float32).reshape(-1, 4),
        )
        for row in table.to_pylist()
    ]
