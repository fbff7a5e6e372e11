"""jobs.finetune as a user runs it: a backbone through extract, train and label, and a detector."""

from pathlib import Path

import numpy as np
import pytest

from caan import storage
from caan.errors import InputError
from caan.faces.build import load_detector
from caan.faces.detection import DetectorConfig
from caan.features.leakage import read_beside
from caan.media.sampling import sample_frames
from caan.models import checkpoint
from caan.training.config import FinetuneConfig
from jobs import extract, finetune, index, label, train
from jobs.runtime.options import Resources
from jobs.runtime.training_data import DataOptions, read_data
from tests.support.clips import write_clip
from tests.support.wider import write_wider

STARTER = {
    "detector": "libfacedetection",
    "face_backbone": "starter_face",
    "context_backbone": "starter_context",
}
FEW = Resources(decoders=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, carphone: Path) -> Path:
    """Eight clips of one man, four of each of two emotions, reddish and greenish; two are tests."""
    folder = tmp_path_factory.mktemp("clips")
    images = [frame.image for frame in sample_frames(str(carphone), fps=6.0)]
    for number in range(8):
        some = [image.copy() for image in images[number * 2 : number * 2 + 4]]
        for image in some:
            channel = image[..., number % 2]
            channel[:] = np.minimum(channel.astype(int) + 60, 255)
        emotion = ("anger", "joy")[number % 2]
        place = folder / ("train" if number < 6 else "test") / emotion
        place.mkdir(parents=True, exist_ok=True)
        write_clip(place / f"{number}.mp4", some, fps=4)
    return folder


@pytest.mark.ray
@pytest.mark.slow
def test_a_fine_tuned_backbone_goes_all_the_way_to_labels(
    clips: Path, running_ray: None, tmp_path: Path
) -> None:
    manifest, tuned = str(tmp_path / "manifest.parquet"), str(tmp_path / "backbone")
    assert index.main(index.Job(input=str(clips), output=manifest)) == 0
    job = finetune.Job(
        manifest=manifest,
        output=tuned,
        fps=2.0,
        train=FinetuneConfig(epochs=2, batch_pictures=4),
        resources=FEW,
        **STARTER,
    )
    assert finetune.main(job) == 0
    record = storage.read_json(f"{tuned}/run.json")
    assert record["is_complete"]
    assert (record["num_train_videos"], record["num_held_out_videos"]) == (4, 2)
    assert not storage.exists(f"{tuned}/pictures")
    assert not storage.exists(f"{tuned}/state")
    history = storage.read_json(f"{tuned}/metrics.json")["history"]
    assert len(history) == 2
    assert history[0]["validation_videos"] == 2
    assert finetune.main(job) == 0  # again: nothing is left to do

    features = str(tmp_path / "features")
    settings = {"face_weights": tuned, "fps": 2.0, "resources": FEW, **STARTER}
    assert extract.main(extract.Job(manifest=manifest, output=features, **settings)) == 0
    assert list(read_beside(features)) == ["face"]
    made = storage.read_json(f"{features}/run.json")["finetuned"]["face"]
    assert made["base"].startswith("starter_face:sha256:")

    model = str(tmp_path / "model")
    quick = train.TrainConfig(epochs=2, batch_videos=4)
    assert train.main(train.Job(features=features, output=model, train=quick)) == 0
    held = set(read_beside(features)["face"].held_out)
    data = read_data(DataOptions(features=features))
    assert set(data.validation.video_ids_V.tolist()) == held

    storage.delete(tuned)  # the model takes its backbone along
    assert checkpoint.load_model(model).info.face_backbone == "starter_face"
    labels = str(tmp_path / "labels")
    assert label.main(label.Job(manifest=manifest, model=model, output=labels, resources=FEW)) == 0
    assert storage.read_table(f"{labels}/labels").num_rows == 8

    turned = storage.read_table(manifest)
    names = ["test" if split == "train" else "train" for split in turned["split"].to_pylist()]
    column = turned.schema.get_field_index("split")
    storage.write_table(turned.set_column(column, "split", [names]), tmp_path / "turned.parquet")
    with pytest.raises(InputError, match="there is no weight file"):
        read_data(DataOptions(features=features))
    weights = storage.read_bytes(f"{model}/face_backbone.safetensors")
    storage.write_bytes(f"{tuned}/backbone.safetensors", weights)
    with pytest.raises(InputError, match="6 of the 6 videos of split `test`"):
        read_data(DataOptions(features=features, manifest=str(tmp_path / "turned.parquet")))


@pytest.mark.ray
@pytest.mark.slow
def test_a_detector_is_trained_from_lists_of_boxes(
    running_ray: None, carphone: Path, tmp_path: Path
) -> None:
    write_wider(tmp_path / "wider", carphone)
    job = finetune.Job(
        wider_face=str(tmp_path / "wider"),
        output=str(tmp_path / "detector"),
        detector_network="mobilenet",
        detect_size_pixels=96,
        train=FinetuneConfig(epochs=1, batch_images=2),
    )
    assert finetune.main(job) == 0
    metrics = storage.read_json(f"{job.output}/metrics.json")
    assert metrics["history"][0]["validation_images"] == 1
    detector = load_detector(DetectorConfig(name="faster_rcnn", weights=job.output))
    assert len(detector.detect([np.zeros((90, 120, 3), np.uint8)] * 2)) == 2


def test_bad_input_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="either --manifest"):
        finetune.main(finetune.Job(output=str(tmp_path / "o")))
    with pytest.raises(InputError, match="not WIDER FACE"):
        finetune.main(finetune.Job(output=str(tmp_path / "o"), wider_face=str(tmp_path)))
