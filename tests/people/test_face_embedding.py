"""Vectors that tell people apart."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from caan.errors import InputError
from caan.faces.detection import Face
from caan.media.sampling import sample_frames
from caan.people.config import FaceEmbeddingConfig, face_embedding_name
from caan.people.dlib_resnet import DlibResNet
from caan.people.face_embedding import dlib_embedder, face_embeddings, shorten_fc6

dlib = pytest.importorskip("_dlib_pybind11", reason="needs the wheel of dlib")

FACE = Face(box=(56.0, 38.0, 103.0, 98.0), score=0.9)  # the man of carphone in its first image


@pytest.fixture(scope="module")
def image(carphone: Path) -> np.ndarray:
    return next(sample_frames(str(carphone), fps=1.0)).image


def test_our_network_gives_the_vectors_of_dlibs_own(image: np.ndarray) -> None:
    files = {f.name: str(f.locate()) for f in metadata.files("face_recognition_models") or ()}
    path = files["dlib_face_recognition_resnet_model_v1.dat"]
    embedder = dlib_embedder()
    chips = np.array([embedder._chip(image, FACE.box), embedder._chip(image, (0, 0, 90, 90))])
    theirs = dlib.face_recognition_model_v1(path).compute_face_descriptor(list(chips))
    ours = DlibResNet(path)(chips)
    assert np.abs(ours - np.array([list(vector) for vector in theirs])).max() < 1e-4
    assert np.linalg.norm(ours[0] - ours[1]) > 0.3
    with pytest.raises(InputError, match="landmarks"):
        DlibResNet(files["shape_predictor_5_face_landmarks.dat"])


def test_the_grid_alone_decides_which_frames_are_looked_at(image: np.ndarray) -> None:
    tiny = Face(box=(0.0, 0.0, 20.0, 20.0), score=0.9)
    config = FaceEmbeddingConfig(every_seconds=1.0)
    first, none = face_embeddings(config, 2.0, 4, [FACE, tiny], image)
    assert first is not None
    assert first.shape == (128,)
    assert none is None
    assert face_embeddings(config, 2.0, 5, [FACE], image) == [None]
    assert face_embeddings(config, 0.3, 5, [FACE], image)[0] is not None
    assert face_embeddings(None, 2.0, 4, [FACE], image) == [None]
    assert face_embeddings(FaceEmbeddingConfig(name="none"), 2.0, 4, [FACE], image) == [None]


def test_shorter_vectors_keep_their_cosines() -> None:
    rng = np.random.default_rng(0)
    people = np.maximum(rng.normal(size=(4, 1, 4096)), 0)
    faces = np.maximum(people + 0.3 * rng.normal(size=(4, 3, 4096)), 0).reshape(12, 4096)
    unit = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    short = shorten_fc6(faces.astype(np.float16)).astype(np.float64)
    assert np.abs(short @ short.T - unit @ unit.T).max() < 0.25
    assert short[:5] == pytest.approx(shorten_fc6(faces[:5].astype(np.float16)), abs=1e-3)


def test_auto_is_the_backbones_own_vector_where_it_knows_people() -> None:
    assert face_embedding_name("auto", "vggface", is_random=False) == "vggface"
    assert face_embedding_name("auto", "vggface", is_random=True) == "dlib"
    assert face_embedding_name("auto", "starter_face", is_random=False) == "dlib"
    assert face_embedding_name("none", "vggface", is_random=False) == "none"
    with pytest.raises(InputError, match="starter_face"):
        face_embedding_name("vggface", "starter_face", is_random=False)
