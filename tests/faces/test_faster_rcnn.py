"""The paper's detector: WIDER FACE's lists, the network, and what it finds after training."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from caan.datasets import wider_face
from caan.errors import InputError
from caan.faces import faster_rcnn
from caan.faces.build import load_detector
from caan.faces.detection import DetectorConfig
from caan.faces.faster_rcnn import DetectorLoss, average_precision
from caan.training.config import FinetuneConfig
from caan.training.finetune import fit_pictures, parameter_groups
from tests.support.wider import write_wider

LIST = """0--Parade/a.jpg
2
10 20 30 40 0 0 0 0 0 0
5 5 9 9 0 0 0 1 0 0
0--Parade/none.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Crowd/b.jpg
1
1 2 0 4 0 0 0 0 0 0
"""


def test_lists_with_invalid_empty_and_zero_boxes_are_read() -> None:
    found = wider_face.parse_boxes(LIST, "list.txt")
    assert found == [
        ("0--Parade/a.jpg", [[10.0, 20.0, 40.0, 60.0]]),
        ("0--Parade/none.jpg", []),
        ("1--Crowd/b.jpg", []),
    ]
    without_zeros = LIST.replace("0 0 0 0 0 0 0 0 0 0\n1--", "1--")
    assert wider_face.parse_boxes(without_zeros, "list.txt") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\nmany\n", "line 1: expected an image name"),
        ("1 2 3\n", "line 1: expected an image name"),
        ("a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\nb.jpg\n", "line 4: expected box 2 of 2 of `a.jpg`"),
    ],
)
def test_a_broken_list_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wider_face.parse_boxes(text, "list.txt")


def test_average_precision_is_what_it_should_be() -> None:
    true = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float)
    both = (true, np.array([0.9, 0.8]))
    assert average_precision([both], [true]) == 1.0
    twice = (np.concatenate([true[:1], true]), np.array([0.9, 0.85, 0.8]))
    assert average_precision([twice], [true]) == pytest.approx(0.5 + 0.5 * 2 / 3)
    nothing = (np.zeros((0, 4)), np.zeros(0))
    assert average_precision([nothing], [true]) == 0.0
    assert average_precision([both, nothing], [true, true]) == 0.5


def test_images_are_decoded_at_the_detectors_size(carphone: Path, tmp_path: Path) -> None:
    write_wider(tmp_path, carphone)
    found = wider_face.read_wider_face(str(tmp_path), fraction=0.25, seed=0)
    assert (found.train.num_rows, found.validation.num_rows) == (3, 1)
    detector = DetectorConfig(name="faster_rcnn", detect_size_pixels=80)
    decoded = wider_face.decode_images(found.train, detector=detector, min_box_pixels=6)
    for (image, boxes), row in zip(
        wider_face.images_of(decoded), found.train.to_pylist(), strict=True
    ):
        assert image.shape == (60, 80, 3)
        np.testing.assert_allclose(boxes, np.array(row["boxes"]) / 2)
    small = dataclasses.replace(detector, detect_size_pixels=32)
    tiny = wider_face.decode_images(found.train, detector=small, min_box_pixels=16)
    assert not any(tiny["boxes"].to_pylist())
    for file in (tmp_path / "WIDER_train" / "images" / "0--Parade").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no file lies there"):
        wider_face.decode_images(
            wider_face.read_wider_face(str(tmp_path), fraction=0.25, seed=0).train,
            detector=detector,
            min_box_pixels=6,
        )
    with pytest.raises(InputError, match="not WIDER FACE"):
        wider_face.read_wider_face(str(tmp_path / "WIDER_train"), fraction=0.25, seed=0)


def test_without_weights_it_says_how_to_make_them() -> None:
    with pytest.raises(InputError, match=r"jobs.finetune --wider-face"):
        load_detector(DetectorConfig(name="faster_rcnn"))


@pytest.mark.slow
def test_its_loss_falls_and_saved_weights_give_the_same_boxes(
    carphone: Path, tmp_path: Path
) -> None:
    write_wider(tmp_path / "wider", carphone, count=3)
    config = DetectorConfig(name="faster_rcnn", detect_size_pixels=160)
    listed = wider_face.read_wider_face(str(tmp_path / "wider"), fraction=0.1, seed=0)
    table = wider_face.decode_images(listed.train, detector=config, min_box_pixels=6)
    images = wider_face.images_of(table)
    network = faster_rcnn.network_to_train("mobilenet")
    model = DetectorLoss(network)
    options = FinetuneConfig(
        epochs=4, learning_rate=5e-3, head_learning_rate=1e-2, schedule="constant",
        patience_epochs=0, selection="average_precision",
    )  # fmt: skip

    def batches(epoch):
        inputs = [faster_rcnn.to_input(image) for image, _ in images]
        yield (
            inputs,
            [
                {"boxes": torch.tensor(b), "labels": torch.ones(len(b), dtype=torch.int64)}
                for _, b in images
            ],
        )

    def validate():
        return {}

    groups = parameter_groups(network.roi_heads.box_predictor, network, options)
    result = fit_pictures(model, groups, batches, validate, options)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    path = tmp_path / "detector.safetensors"
    faster_rcnn.save_network(network, "mobilenet", path, {})
    detector = load_detector(dataclasses.replace(config, weights=str(path), min_score=0.01))
    assert detector.identity.startswith("faster_rcnn:mobilenet:sha256:")
    network.roi_heads.score_thresh = 0.01
    ((boxes, scores),) = faster_rcnn.run_network(network, [images[0][0]], "cpu")
    (faces,) = detector.detect([images[0][0]])
    assert [face.score for face in faces] == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
    assert len(faces) == len(boxes)
