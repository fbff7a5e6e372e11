"""Hostile media through the real path of index and extract: a row each, nothing else opened."""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.extraction.probe import IndexProber
from caan.outputs.plan import plan
from caan.schema import MANIFEST_SCHEMA, STATUSES, table_of, video_id_of
from tests.support.hostile import READ, corpus, playlists, write_clip
from tests.support.hostile import images as hostile_images
from tests.support.watching import FileWatch, Listener

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")

SEED = 5
LIMITS = SandboxConfig(time_limit_seconds=30.0, memory_limit_mb=1500)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[tuple[Path, FileWatch, Listener]]:
    path = tmp_path / "canary" / "canary.mp4"
    path.parent.mkdir()
    write_clip(path, hostile_images(np.random.default_rng(0), 6), "libx264")
    with (
        contextlib.closing(FileWatch(path)) as watch,
        contextlib.closing(Listener()) as listener,
    ):
        yield path, watch, listener


def rows_of(paths: list[Path]) -> tuple[pa.Table, pa.Table]:
    """The manifest and the decoded segments of these files, as index and extract make them."""
    listed = [{"video_id": video_id_of(str(p), None, None), "uri": str(p)} for p in paths]
    prober = IndexProber()
    manifest = prober(table_of(listed, MANIFEST_SCHEMA))
    prober.sandbox.close()
    cut = ExtractionConfig(no_face="context_only", segment_frames=64).segment_config(
        detect_here=False
    )
    planned = plan(manifest, fps=2.0, segment_frames=cut.segment_frames)
    decoder = SegmentDecoder(cut, LIMITS)
    units = planned.units(np.ones(planned.num_segments, bool), 1000)
    segments = pa.concat_tables(decoder(units))
    decoder.sandbox.close()
    return manifest, segments


def test_every_hostile_file_gets_its_row_and_opens_nothing_else(
    tmp_path: Path, canary: tuple[Path, FileWatch, Listener]
) -> None:
    path, watch, listener = canary
    cases = corpus(tmp_path / "corpus", SEED, 1, path, listener.url)
    assert len(cases) > 100
    manifest, segments = rows_of([case.path for case in cases])
    assert not watch.was_opened()
    assert not listener.was_called()
    assert manifest.num_rows == len(cases)
    ids = segments["segment_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    statuses: dict[str, set[str]] = {}
    for row in segments.to_pylist():
        assert row["status"] in STATUSES
        assert row["error"] or row["status"] in READ
        assert bool(row["frames"]) <= (row["status"] in READ)
        assert all(f["pts_seconds"] <= f["frame_index"] / 2 for f in row["frames"])
        statuses.setdefault(row["video_id"], set()).add(row["status"])
    for case, row in zip(cases, manifest.to_pylist(), strict=True):
        found = statuses[row["video_id"]]
        assert found <= case.allowed, (case.path.name, found, row["error"])


def test_the_witnesses_see_an_unguarded_reader(
    tmp_path: Path, canary: tuple[Path, FileWatch, Listener]
) -> None:
    path, watch, listener = canary
    cases = {case.path.name: case.path for case in playlists(tmp_path, path, listener.url)}
    options = {"safe": "0", "protocol_whitelist": "file,http,tcp"}
    with av.open(str(cases["concat-file.mp4"]), format="concat", options=options):
        pass
    assert watch.was_opened()
    host, port = listener.url.split("/")[2].split(":")
    socket.create_connection((host, int(port))).close()
    assert listener.was_called()
