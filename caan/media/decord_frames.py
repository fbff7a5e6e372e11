"""Sampling with decord, for the files that it decodes to the same frames as PyAV.

Loaded only where decord is the chosen decoder.
"""

from collections.abc import Iterator

import decord
import numpy as np

from caan.errors import DecodeFailed
from caan.media.container import MAX_STILL_SECONDS, MediaFile
from caan.media.grid import Frame, Grid
from caan.media.rgb import RgbConverter

CONTAINERS = ("mov", "matroska", "avi")
CODECS = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")
PIXEL_FORMATS = ("yuv420p", "yuvj420p")
MAX_BYTES = 256 * 2**20
"""Largest file that decord gets: it reads all packets of a file to open it."""


def why_not(reader: MediaFile, *, is_turned: bool) -> str:
    """Reason why decord cannot decode this file as PyAV does; empty if it can.

    `is_turned`: the images have to be mirrored, or both rotated and scaled.
    """
    context = reader.stream.codec_context
    if reader.path is None:
        return "it needs a local path"
    if reader.container.format.name.split(",")[0] not in CONTAINERS:
        return f"container {reader.container.format.name}"
    if reader.stream.codec.canonical_name not in CODECS:
        return f"codec {reader.stream.codec.canonical_name}"
    if context.pix_fmt not in PIXEL_FORMATS:
        return f"pixel format {context.pix_fmt}"
    if reader.container.size > MAX_BYTES:
        return f"larger than {MAX_BYTES} bytes"
    return "mirrored, or rotated and scaled, images" if is_turned else ""


def decord_frames(reader: MediaFile, grid: Grid, converter: RgbConverter) -> Iterator[Frame]:
    """The grid's frames, one decord image for each packet that PyAV reads.

    Raises:
        DecodeFailed: decord cannot decode the file, or its clock differs from PyAV's.
    """
    all_pts = _pts_of_packets(reader)
    video = _open(reader, grid, all_pts)
    position, image = -1, np.empty(0)
    for index, pts, wanted in grid.select((pts, i) for i, pts in enumerate(all_pts)):
        try:
            if wanted > position + 1:
                video.skip_frames(wanted - position - 1)
            if wanted > position:
                image, position = converter.convert_array(video.next().asnumpy()), wanted
        except (decord.DECORDError, StopIteration) as error:
            raise DecodeFailed(f"decord cannot decode frame {wanted}") from error
        yield Frame(
            frame_index=index, pts_seconds=grid.seconds_of(pts), image=image, decoder="decord"
        )


def _pts_of_packets(reader: MediaFile) -> list[int]:
    """Presentation times of all packets, in order of time."""
    reader.rewind()
    key_pts, all_pts = 0, []
    for packet in reader.packets():
        if not packet.size:
            continue
        if packet.pts is None or packet.is_discard:
            raise DecodeFailed("packets without a time, or cut away by an edit list")
        key_pts = packet.pts if packet.is_keyframe else key_pts
        if packet.pts < key_pts:
            # decord seeks to key frames and then counts frames; leading frames are lost there.
            raise DecodeFailed("groups of pictures are open, where decord miscounts")
        all_pts.append(packet.pts)
    return sorted(all_pts)


def _open(reader: MediaFile, grid: Grid, all_pts: list[int]) -> "decord.VideoReader":
    """Open the file and compare decord's clock with the packets' times."""
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # Without fault_tol decord repeats a frame silently where it cannot decode the next one.
        video = decord.VideoReader(str(reader.path), num_threads=1, fault_tol=1e-6)
        clock = video.get_frame_timestamp(range(len(video)))[:, 0]
    except (decord.DECORDError, RuntimeError, AssertionError) as error:
        raise DecodeFailed("decord cannot open it") from error
    seconds = np.array([float(pts * grid.seconds_per_tick) for pts in all_pts])
    if clock.shape != seconds.shape or not np.allclose(clock, seconds, rtol=1e-6, atol=1e-3):
        raise DecodeFailed("decord's clock differs from PyAV's")
    if not all_pts or all_pts[0] != grid.start_pts:
        raise DecodeFailed("the first packets give no image")
    if max(np.diff(seconds), default=0) > MAX_STILL_SECONDS:
        raise DecodeFailed("timestamps jump")
    return video
