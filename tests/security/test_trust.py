"""SECURITY.md's promises: no code from weights, no path out of the output, no secret shown."""

import functools
import http.client
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
import torch

from caan import storage
from caan.annotation.server import make_server
from caan.backbones.download import download
from caan.backbones.vgg import Vgg
from caan.backbones.weights import ready_weights, save_weights
from caan.config import to_dict
from caan.datasets.folder import read_folder
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig
from caan.extraction.probe import IndexProber
from caan.faces.build import load_detector
from caan.faces.detection import DetectorConfig
from caan.labelling.config import SidecarConfig
from caan.labelling.sidecars import write_sidecars
from caan.models import checkpoint
from caan.outputs.forget import forget
from caan.outputs.plan import check_manifest
from caan.report import label_run
from caan.schema import LABELS_SCHEMA, MANIFEST_SCHEMA, table_of
from caan.storage import paths
from caan.training.loop import STATE_FILE, fit
from jobs.runtime import cli
from tests.support.small_heads import QUICK, packed_videos, small_head

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAQQQQQQQQQQQQQQQQ",
    "AWS_SECRET_ACCESS_KEY": "zzzz/Secret+Key/zzzzzzzzzzzz",
    "AWS_SESSION_TOKEN": "session-token-yyyyyyyyyyyy",
    "HTTPS_PROXY": "http://proxy-user:proxy-word@127.0.0.1:9",
}
SIGNATURE = "signature-xxxxxxxxxxxx"
HIDDEN = (*list(SECRETS.values())[:3], "proxy-user", "proxy-word", SIGNATURE, "url-word")


# No code from weights -------------------------------------------------------------------------


class Malice:
    """Unpickled carelessly, it makes the file that shows it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.canary,))


def _face_weights(path: Path) -> object:
    return ready_weights("vggface", str(path))


def _detector_weights(path: Path) -> object:
    return load_detector(DetectorConfig(name="retinaface", weights=str(path)), device="cpu")


def _training_state(path: Path) -> object:
    path.replace(path.with_name(STATE_FILE))
    videos = packed_videos(12)
    return fit(small_head(), videos, videos, QUICK, resume=path.parent)


def _model_folder(path: Path) -> object:
    (path.parent / "config.json").write_bytes((checkpoint.STARTER / "config.json").read_bytes())
    path.replace(path.with_name("model.safetensors"))
    return checkpoint.load_model(path.parent)


def _model_config(path: Path) -> object:
    path.replace(path.with_name("config.json"))
    return checkpoint.load_model(path.parent)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "load", [_face_weights, _detector_weights, _training_state, _model_folder, _model_config]
)
def test_a_malicious_pickle_is_refused_wherever_it_is_given(
    load: Callable[[Path], object], is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAAN_CACHE", str(tmp_path / "cache"))
    canary, path = tmp_path / "canary", tmp_path / "given" / "w.pth"
    path.parent.mkdir()
    if is_zip:
        torch.save({"model": Malice(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Malice(canary)}, protocol=2))
    content = path.read_bytes()
    with pytest.raises(InputError):
        load(path)
    assert not canary.exists()
    if is_zip:
        torch.load(io.BytesIO(content), weights_only=False)
    else:
        pickle.loads(content)
    assert canary.exists(), "the trap was none"


def test_a_model_config_that_is_no_config_is_a_sentence(tmp_path: Path) -> None:
    for text in (
        "[" * 100_000,
        '{"format": 1}',
        '{"format": 1, "rule": {}}',
        "\0",
        '"x"',
        "\udcff",
    ):
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(InputError):
            checkpoint.load_model(tmp_path)


# No path out of the output --------------------------------------------------------------------

BAD_IDS = ("../../x", "/x", "a/b", "..", ".hidden", "a\0b", "x" * 300, "", "a b", "é" * 80)


@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_that_is_no_plain_name_is_refused_everywhere(bad: str, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "output"
    video = {"video_id": bad, "uri": "/a.mp4", "duration_seconds": 1.0, "status": "ok"}
    manifest = table_of([video], MANIFEST_SCHEMA)
    with pytest.raises(InputError):
        check_manifest(manifest, "m")
    storage.write_table(manifest, f"{tmp_path}/given/m.parquet")
    with pytest.raises(InputError):
        label_run.read_manifest(f"{tmp_path}/given/m.parquet")
    for person in ({"video_id": bad, "person_id": None}, {"video_id": "a", "person_id": bad}):
        labels = table_of([person | {"is_main": True}], LABELS_SCHEMA)
        storage.write_table(labels, f"{tmp_path}/given/labels/l.parquet")
        with pytest.raises(InputError):
            label_run.read_label_run(f"{tmp_path}/given")
    storage.write_json(f"{output}/run.json", {"job": "extract"})
    if bad in ("../../x", "/x", "a/b", "..", "a\0b"):
        with pytest.raises(InputError):
            forget(str(output), [bad])
    if bad in ("../../x", "a\0b", "x" * 300, ".."):  # even past those checks
        with pytest.raises(InputError):
            write_sidecars(
                str(output), video | {"video_id": f"../{bad}"}, people=[], windows=[],
                frame_scores=[], emotions=("joy",), config=SidecarConfig(kinds=("vtt",)),
                written_at=None,  # type: ignore[arg-type]
            )  # fmt: skip
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"m.parquet", "l.parquet", "run.json"}


def test_plain_ids_stay_plain(tmp_path: Path) -> None:
    rows = [
        {"video_id": v, "uri": "/a.mp4", "duration_seconds": 1.0} for v in ("a", "Ärger-1.b", "0_")
    ]
    assert check_manifest(table_of(rows, MANIFEST_SCHEMA), "m").num_rows == 3


@pytest.mark.parametrize("uri", ["/a\0b.mp4", "http://a/b.mp4", "s3://key:word@bucket/a", ""])
def test_an_address_that_cannot_be_read_ends_the_job_before_it_starts(uri: str) -> None:
    row = {"video_id": "a", "uri": uri, "duration_seconds": 1.0, "status": "ok"}
    with pytest.raises(InputError) as raised:
        check_manifest(table_of([row], MANIFEST_SCHEMA), "m")
    assert "word@" not in str(raised.value)


def test_odd_names_of_files_cost_their_own_row(tmp_path: Path) -> None:
    """A name that is not UTF-8, one with a line break and markup, and one that is too long."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in (b"\xff\xfe.mp4", b"line\nbreak<b>.mp4", b"-rf.mp4"):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"no video")
    rows = list(read_folder(str(folder)))
    storage.write_bytes(f"{tmp_path}/list.csv", f"path\n{'x' * 300}.mp4\n".encode())
    rows += read_folder(f"{tmp_path}/list.csv")
    prober = IndexProber()
    manifest = prober(table_of(rows, MANIFEST_SCHEMA))
    prober.sandbox.close()
    assert sorted(manifest["status"].to_pylist()) == ["missing", "missing", *["unreadable"] * 2]


# No secret in sight ---------------------------------------------------------------------------


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CAAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of the folder `served`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def narrow_vgg(path: Path) -> None:
    torch.manual_seed(0)
    network = Vgg((4, 4, 4, 6, 8), grid=2, num_features=10)
    metadata = {"backbone": "vggface", "channel_order": "RGB"}
    save_weights(network.state_dict(), path, metadata)


def assert_hidden(content: str) -> None:
    assert [word for word in HIDDEN if word in content] == []


@pytest.mark.ray
def test_nothing_that_a_run_leaves_holds_a_secret(
    tmp_path: Path, carphone: Path, secrets: None, served: str
) -> None:
    narrow_vgg(tmp_path / "served" / "w.safetensors")
    (tmp_path / "videos").mkdir()
    with av.open(str(carphone)) as source, av.open(f"{tmp_path}/videos/a.mp4", "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    rows = list(read_folder(str(tmp_path / "videos")))
    rows += [{"video_id": "gone", "uri": "/gone.mp4", "status": None, "duration_seconds": 1.0}]
    known = {"duration_seconds": 1.0, "status": "ok"}
    manifest = table_of([row | known for row in rows], MANIFEST_SCHEMA)
    storage.write_table(manifest, f"{tmp_path}/m.parquet")
    weights = f"{served}/w.safetensors?X-Amz-Signature={SIGNATURE}"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.extract", "--manifest", f"{tmp_path}/m.parquet"),
            *("--output", f"{tmp_path}/output", "--detector", "libfacedetection"),
            *("--face-backbone", "vggface", "--face-weights", weights),
            *("--context-backbone", "starter_context"),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    record = storage.read_json(f"{tmp_path}/output/run.json")
    assert record["statuses"] == {"missing": 1, "ok": 1}
    assert record["config"]["face_weights"] == f"{served}/w.safetensors"
    assert_hidden(run.stdout + run.stderr)
    for path in (tmp_path / "output").rglob("*"):
        if path.is_file():
            assert_hidden(path.name + path.read_bytes().decode("latin-1"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--manifest", "s3://key:url-word@bucket/m.parquet"),
        ("--manifest", f"https://host/m.parquet?X-Amz-Signature={SIGNATURE}"),
        ("--manifest", "s3://bucket/m.parquet"),  # nobody answers at that endpoint
        ("--manifest", "M", "--face-weights", "https://user:url-word@127.0.0.1/w.pth"),
        ("--manifest", "M", "--face-weights", f"http://127.0.0.1:9/w?X-Amz-Signature={SIGNATURE}"),
        ("--manifest", "M", "--detector-weights", "s3://key:url-word@bucket/w.pth"),
    ],
)
def test_errors_of_bad_addresses_hold_no_secret(
    arguments: tuple[str, ...],
    tmp_path: Path,
    secrets: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from jobs import extract

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(paths, "S3_ATTEMPTS", 1)
    rows = [{"video_id": "a", "uri": "/a.mp4", "duration_seconds": 1.0}]
    storage.write_table(table_of(rows, MANIFEST_SCHEMA), f"{tmp_path}/m.parquet")
    options = [word if word != "M" else f"{tmp_path}/m.parquet" for word in arguments]
    options += ["--output", str(tmp_path / "o")]
    if "--detector-weights" not in options:
        options += ["--detector", "libfacedetection", "--context-backbone", "starter_context"]
    if "--face-weights" not in options:
        options += ["--face-backbone", "starter_face"]
    code = cli.run_job(extract.Job, extract.main, options)
    said = capsys.readouterr()
    assert code in (1, 2)
    assert "error: " in said.err
    assert_hidden(said.out + said.err)


def test_configs_logs_and_tracebacks_are_filtered(
    tmp_path: Path, secrets: None, capsys: pytest.CaptureFixture[str]
) -> None:
    signed = f"https://host/w.pth?X-Amz-Signature={SIGNATURE}"
    found = to_dict(ExtractionConfig(face_weights=signed, context_weights="https://a:url-word@h/w"))
    assert found["face_weights"] == "https://host/w.pth"
    assert_hidden(json.dumps(found))
    storage.write_json(f"{tmp_path}/run.json", {"a": [SECRETS, signed]})
    assert_hidden((tmp_path / "run.json").read_text())
    code = (
        "import logging, sys\n"
        "from dataclasses import dataclass\n"
        "from jobs.runtime import cli\n"
        "@dataclass\n"
        "class Job:\n"
        "    word: str\n"
        "def main(job):\n"
        "    logging.getLogger('x').warning('took %s', job.word)\n"
        "    raise RuntimeError(job.word)\n"
        "cli.run_job(Job, main)\n"
    )
    for word in (*SECRETS.values(), signed):
        run = subprocess.run(
            [sys.executable, "-c", code, "--word", word],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "took" in run.stderr
        assert "RuntimeError" in run.stderr
        assert_hidden(run.stdout + run.stderr)


def test_a_download_that_fails_names_no_signature(
    tmp_path: Path, secrets: None, served: str
) -> None:
    (tmp_path / "served" / "w").write_bytes(b"x")
    with pytest.raises(InputError) as raised:
        download(f"{served}/w?X-Amz-Signature={SIGNATURE}", tmp_path / "w", sha256_prefix="0" * 8)
    assert_hidden(str(raised.value))


def test_the_voting_page_answers_to_this_machine_only(tmp_path: Path) -> None:
    rows = [{"video_id": "a", "uri": "/a.mp4"}]
    server = make_server(rows, str(tmp_path / "votes.csv"), "anna", ("joy",), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    statuses = {}
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"evil.example:{port}", "evil.example"):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/videos", headers={"Host": host})
        statuses[host] = connection.getresponse().status
        connection.close()
    server.shutdown()
    server.server_close()
    assert list(statuses.values()) == [200, 200, 404, 404]
