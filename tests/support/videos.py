"""Videos that tests compose, and how sampled frames are compared."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from caan.errors import DecodeFailed
from caan.media.grid import Frame
from caan.media.sampling import sample_frames

FORMATS = {
    "mp4": ("libx264", {"bf": "3", "g": "24", "x264-params": "b-pyramid=normal"}),
    "mkv": ("libx264", {"bf": "2", "x264-params": "open-gop=1:keyint=20:min-keyint=20"}),
    "mov": ("libx265", {"x265-params": "keyint=20:min-keyint=20:log-level=none"}),
    "webm": ("libvpx-vp9", {"g": "25", "deadline": "realtime", "cpu-used": "8"}),
    "avi": ("mpeg4", {"g": "15", "bf": "2"}),
    "flv": ("flv", {"g": "15"}),
    "ts": ("libx264", {"bf": "2", "g": "25"}),
    "mpg": ("mpeg2video", {"bf": "2", "g": "12"}),
    "wmv": ("wmv2", {"g": "15"}),
    "gif": ("gif", {}),
}


def draw(index: int, width: int = 96, height: int = 64) -> np.ndarray:
    """An image that tells its index by grey, and its corners by brightness and darkness."""
    image = np.full((height, width, 3), 60 + index % 100, np.uint8)
    image[: height // 4, : width // 4] = 255
    image[: height // 4, -width // 4 :] = 0
    return image


def compose(
    path: Path | io.IOBase,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times_ms: list[int] | None = None,
    num_frames: int = 150,
    fps: int = 30,
    noise: bool = False,
    form: str | None = None,
    movflags: str = "",
) -> None:
    """Writes a video of `num_frames` images, at the given times or at `fps`."""
    rng = np.random.default_rng(0)
    target = str(path) if isinstance(path, Path) else path
    with av.open(
        target, "w", format=form, options={"movflags": movflags} if movflags else {}
    ) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = 96, 64
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(len(times_ms) if times_ms is not None else num_frames):
            image = draw(i)
            if noise:
                image[16:] = rng.integers(0, 255, image[16:].shape)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = times_ms[i] if times_ms is not None else i
            frame.time_base = Fraction(1, 1000) if times_ms is not None else Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def expected(path: Path, fps: Fraction) -> list[tuple[int, float, np.ndarray]]:
    """The grid's definition, by decoding everything and searching."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(f.pts, f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        base = Fraction(stream.time_base)
    times = [(pts - frames[0][0]) * base for pts, _ in frames]
    rows, k = [], 0
    while k / fps <= times[-1]:
        shown = max(i for i, t in enumerate(times) if t <= k / fps)
        rows.append((k, float(times[shown]), frames[shown][1]))
        k += 1
    return rows


def until_damage(source: str, fps: float, match: str = ".", decoder: str = "pyav") -> list[Frame]:
    """The frames that come before the error that must come."""
    frames: list[Frame] = []

    def collect() -> None:
        for frame in sample_frames(source, fps=fps, decoder=decoder):
            frames.append(frame)

    with pytest.raises(DecodeFailed, match=match):
        collect()
    return frames


def same(first: list[Frame], second: list[Frame]) -> bool:
    return [(f.frame_index, f.pts_seconds) for f in first] == [
        (f.frame_index, f.pts_seconds) for f in second
    ] and all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))
