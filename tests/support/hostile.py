"""A corpus of hostile and broken media; the same for the same seed and the same real clips.

From a real clip come whole and damaged clips in every container, from drawn images what is odd
by design.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from caan.media.sampling import sample_frames

READ = frozenset({"ok", "partial", "no_face"})
"""Statuses of files that give images."""

ANY = frozenset(
    READ | {"unreadable", "no_video", "too_large", "decode_failed", "timed_out", "out_of_memory"}
)
"""Statuses of a damaged file; `crashed` is none of them: that is a decoder's crash."""

CONTAINERS = {
    "mp4": "libx264", "mov": "mpeg4", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4",
    "flv": "flv", "mpg": "mpeg2video", "gif": "gif",
}  # fmt: skip
"""Codec of the whole clip in each container."""


@dataclass(frozen=True)
class Case:
    """One file of the corpus."""

    path: Path
    kind: str
    """What was done to it."""
    allowed: frozenset[str]
    """Statuses that it may get."""


def images(rng: np.random.Generator, count: int, width: int = 96, height: int = 64) -> np.ndarray:
    """uint8 [count, height, width, 3]: a bright square that moves over noise."""
    found = rng.integers(0, 60, (count, height, width, 3), dtype=np.uint8)
    for n in range(count):
        x = 2 * n % (width - 24)
        found[n, 16:40, x : x + 24] = (250, 40 + 5 * n % 200, 90)
    return found


def write_clip(
    path: Path,
    frames: np.ndarray,
    codec: str,
    *,
    times: list[int] | None = None,
    pixel_format: str = "",
) -> Path:
    """A clip at 12 images per second, or with these times in twelfths of a second."""
    formats = {"gif": "rgb8", "webm": "yuv420p"}
    # MPEG-2 knows few frame rates.
    rate = 24 if codec == "mpeg2video" else 12
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format or formats.get(path.suffix[1:], "yuv420p")
        stream.codec_context.gop_size = 6
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 12)
            stream.codec_context.max_b_frames = 0
        for n, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[n], Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path, codec: str) -> Path:
    """A second of silence without images."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000)
        for n in range(20):
            frame = av.AudioFrame(format="fltp", layout="mono", samples=960)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate, frame.pts = 48000, 960 * n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def clips(folder: Path, frames: np.ndarray) -> dict[str, Path]:
    """A whole clip of two seconds in each container."""
    return {
        suffix: write_clip(folder / f"whole.{suffix}", frames, codec)
        for suffix, codec in CONTAINERS.items()
    }


def damaged(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """`content` cut off, with flipped bits, a hole, a damaged header, or foreign bytes."""
    size = len(content)
    changed = bytearray(content)
    if kind == "truncated":
        return content[: int(rng.integers(1, size))]
    if kind == "bits flipped":
        for at in rng.integers(0, size, int(rng.integers(1, 40))):
            changed[at] ^= 1 << int(rng.integers(8))
    elif kind == "header damaged":
        for at in rng.integers(0, min(size, 400), 6):
            changed[at] = int(rng.integers(256))
    elif kind == "hole":
        start = int(rng.integers(0, size))
        end = min(size, start + int(rng.integers(1, 4096)))
        changed[start:end] = bytes(end - start)
    elif kind == "spliced":
        at = int(rng.integers(0, size))
        changed[at:at] = rng.bytes(int(rng.integers(1, 2000)))
    else:
        raise ValueError(kind)
    return bytes(changed)


DAMAGES = ("truncated", "bits flipped", "header damaged", "hole", "spliced")


def damaged_clips(
    folder: Path, seed: int, per_kind: int, real_clips: Sequence[Path]
) -> Iterator[Case]:
    """`per_kind` files of every damage in every container, and one of it of each real clip."""
    rng = np.random.default_rng(seed)
    frames = images(rng, 24)
    if real_clips:
        shown = sample_frames(str(real_clips[0]), fps=12.0, num_frames=24, max_side_pixels=176)
        frames = np.stack([frame.image for frame in shown])
    whole = [(path, per_kind) for path in clips(folder, frames).values()]
    for path, count in [*whole, *((path, 1) for path in real_clips)]:
        if path.parent == folder:
            yield Case(path, "whole", READ)
        content = path.read_bytes()
        for kind in DAMAGES:
            for n in range(count):
                name = f"{path.stem}-{kind.replace(' ', '_')}-{n}{path.suffix}"
                (folder / name).write_bytes(damaged(content, kind, rng))
                yield Case(folder / name, kind, ANY)


def patched(content: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """MP4 with `value` at `offset` behind the name of every box `box`."""
    changed, at = bytearray(content), content.find(box)
    assert at >= 0
    while at >= 0:
        changed[at + 4 + offset : at + 4 + offset + len(value)] = value
        at = content.find(box, at + 4)
    return bytes(changed)


def write_png_bomb(path: Path, side: int = 12_000) -> Path:
    """A film of one PNG of `side` x `side` black pixels, whose header says 96x64."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side))
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        container.start_encoding()
        for n in range(3):
            packet = av.Packet(content)
            packet.pts = packet.dts = n
            packet.time_base, packet.stream = Fraction(1, 12), stream
            packet.is_keyframe = True
            container.mux(packet)
    return path


def special_files(folder: Path, seed: int) -> Iterator[Case]:
    """Files that are odd by design, not by damage."""
    rng = np.random.default_rng(seed)
    refused = frozenset({"unreadable"})
    broken = frozenset({"unreadable", "no_video", "decode_failed"})

    def raw(name: str, content: bytes, kind: str, allowed: frozenset[str]) -> Case:
        (folder / name).write_bytes(content)
        return Case(folder / name, kind, allowed)

    yield raw("zero.mp4", b"", "zero bytes", refused)
    yield raw("text.mp4", b"this is a letter, not a film\n" * 40, "text", refused)
    yield raw("noise.mkv", rng.bytes(50_000), "noise", refused)
    yield raw("nulls.avi", bytes(50_000), "nulls", refused)
    sounds = (("sound.mp4", "aac"), ("sound.mkv", "aac"), ("sound.flv", "aac"))
    for name, codec in sounds:
        yield Case(write_sound(folder / name, codec), "audio only", frozenset({"no_video"}))
    for suffix, codec in CONTAINERS.items():
        one = write_clip(folder / f"one.{suffix}", images(rng, 1), codec)
        yield Case(one, "one frame", READ)
    odd_times = {
        "variable rate": [0, 1, 2, 30, 31, 90, 91, 92, 93, 200, 201, 260],
        "long still": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12 * 1200],
    }
    for kind, times in odd_times.items():
        for suffix, codec in (("mp4", "libx264"), ("mkv", "libx264")):
            name = f"{kind.replace(' ', '_')}.{suffix}"
            clip = write_clip(folder / name, images(rng, len(times)), codec, times=times)
            yield Case(clip, kind, READ)
    negative = [-40, -30, -20, -10, 0, 1, 2, 3]
    clip = write_clip(folder / "negative.mkv", images(rng, 8), "libx264", times=negative)
    yield Case(clip, "negative times", ANY)
    ten_bit = write_clip(
        folder / "ten_bit.mkv", images(rng, 8), "libx264", pixel_format="yuv420p10le"
    )
    yield Case(ten_bit, "10-bit", READ)
    mp4 = write_clip(folder / "base.mp4", images(rng, 24), "libx264").read_bytes()
    # tkhd: version, flags, times, id, reserved, duration = 24 bytes; layer ... = 16; the matrix.
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    yield raw("rotated.mp4", patched(mp4, b"tkhd", 40, turned), "rotated", READ)
    huge = struct.pack(">I", 0xFFFFFFF0)
    for box, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        name = f"{box.decode()}.mp4"
        yield raw(name, patched(mp4, box, offset, huge), "over-reported duration", ANY)
    yield raw("stts.mp4", patched(mp4, b"stts", 8, huge), "over-reported frames", ANY)
    yield raw("stsz.mp4", patched(mp4, b"stsz", 8, huge), "over-reported frames", ANY)
    yield raw("delta.mp4", patched(mp4, b"stts", 12, bytes(4)), "repeated times", ANY)
    sides = struct.pack(">HH", 65535, 65535)
    yield raw("avc1.mp4", patched(mp4, b"avc1", 24, sides), "huge dimensions", ANY)
    gif = (folder / "one.gif").read_bytes()
    bomb = gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:]
    yield raw("bomb.gif", bomb, "huge dimensions", ANY - READ)
    mpeg4 = write_clip(folder / "base.avi", images(rng, 8), "mpeg4").read_bytes()
    at = mpeg4.find(b"strf") + 12
    yield raw(
        "bomb.avi",
        mpeg4[:at] + struct.pack("<ii", 60000, 60000) + mpeg4[at + 8 :],
        "huge dimensions",
        ANY,
    )
    bomb_path = write_png_bomb(folder / "bomb.mov")
    yield Case(bomb_path, "huge dimensions", frozenset({"decode_failed", "too_large"}))
    yield raw("dref.mov", patched(mp4, b"url ", 3, b"\0"), "external data", broken | READ)


def playlists(folder: Path, canary: Path, url: str) -> Iterator[Case]:
    """Lists in the name of a video, that point at the file `canary` and at `url`."""
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">'
        '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n"
    texts = {
        "hls-file": hls.format(f"file://{canary}"),
        "hls-path": hls.format(canary),
        "hls-url": hls.format(url),
        "hls-concat": hls.format(f"concat:{canary}|{url}"),
        "concat-file": f"ffconcat version 1.0\nfile '{canary}'\n",
        "concat-url": f"ffconcat version 1.0\nfile '{url}'\n",
        "dash-file": dash.format(f"file://{canary}"),
        "dash-url": dash.format(url),
        "sdp": sdp.format(port=url.rpartition(":")[2].partition("/")[0]),
        "smil": f'<smil><body><video src="{url}"/></body></smil>',
        "m3u": f"{canary}\n{url}\n",
        "subtitle": f"[Script Info]\n; {url}\n[Events]\n",
    }
    for name, text in texts.items():
        for suffix in ("mp4", "mkv", "avi"):
            path = folder / f"{name}.{suffix}"
            path.write_text(text)
            yield Case(path, "playlist", frozenset({"unreadable"}))


def corpus(
    folder: Path,
    seed: int,
    per_kind: int,
    canary: Path,
    url: str,
    real_clips: Sequence[Path] = (),
) -> list[Case]:
    """The whole corpus: 40 x `per_kind` damaged files, 5 of each real clip, and what is odd."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *damaged_clips(folder, seed, per_kind, real_clips),
        *special_files(folder, seed),
        *playlists(folder, canary, url),
    ]
