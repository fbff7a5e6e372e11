"""Opening and sampling of real and composed videos."""

import contextlib
import io
import socket
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from caan.errors import (
    DecodeFailed,
    InputError,
    Missing,
    NoVideoStream,
    TooLarge,
    Unreadable,
    VideoError,
)
from caan.media.config import require_decoder
from caan.media.grid import Frame
from caan.media.sampling import decode_at, probe, sample_frames

CLIPS_OF_BOTH_DECODERS = [
    "carphone_pristine.mp4",
    "fer_woman2.mp4",
    "d3_vp8.webm",
    "liveportrait_d13.mp4",
    "pyfeat_face_noface.mov",
    "single_face_mjpeg.avi",
    "single_face_phone_rot270.mp4",
]
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
IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 0x4000]


def draw(index: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A picture that tells its index by grey, and its corners by brightness and darkness."""
    picture = np.full((height, width, 3), 60 + index % 100, np.uint8)
    picture[: height // 4, : width // 4] = 255
    picture[: height // 4, -width // 4 :] = 0
    return picture


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
    """Writes a video of `num_frames` pictures, at the given times or at `fps`."""
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
            picture = draw(i)
            if noise:
                picture[16:] = rng.integers(0, 255, picture[16:].shape)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
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
    ] and all(np.array_equal(a.picture, b.picture) for a, b in zip(first, second, strict=True))


def patch_matrix(path: Path, values: list[int]) -> None:
    """Writes another display matrix into the track header of an MP4."""
    data = path.read_bytes()
    identity = b"".join((v << 16).to_bytes(4, "big") for v in IDENTITY)
    matrix = b"".join(((v << 16) & 0xFFFFFFFF).to_bytes(4, "big") for v in values)
    at = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:at] + matrix + data[at + 36 :])


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One video of 5 seconds in every container."""
    folder = tmp_path_factory.mktemp("videos")
    for suffix, (codec, options) in FORMATS.items():
        compose(folder / f"video.{suffix}", codec, options)
    return {suffix: folder / f"video.{suffix}" for suffix in FORMATS}


@pytest.mark.parametrize("fps", [2, 7.5, 29.97, 60])
def test_sampled_pictures_follow_the_grid_of_a_variable_rate(tmp_path: Path, fps: float) -> None:
    gaps = np.random.default_rng(1).integers(5, 400, 40)
    path = tmp_path / "vfr.mkv"
    compose(path, options={"bf": "3"}, times_ms=[int(t) for t in 700 + np.cumsum(gaps)])
    rows = expected(path, Fraction(fps).limit_denominator(1000))
    frames = list(sample_frames(str(path), fps=fps))
    assert [(f.frame_index, f.pts_seconds) for f in frames] == [(k, t) for k, t, _ in rows]
    assert all(
        np.abs(f.picture.astype(int) - picture).max() <= 2
        for f, (_, _, picture) in zip(frames, rows, strict=True)
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_segments_together_equal_the_whole(videos: dict[str, Path], suffix: str) -> None:
    source = str(videos[suffix])
    whole = list(sample_frames(source, fps=6, decoder="pyav"))
    assert 29 <= len(whole) <= 31
    parts: list[Frame] = []
    for first in range(0, 35, 7):
        parts += sample_frames(source, fps=6, first_index=first, num_frames=7)
    assert same(whole, parts)
    with open(source, "rb") as file:
        assert same(whole, list(sample_frames(file, fps=6, probe=probe(source))))


LONG_GROUPS = {
    "one key frame": {"g": "1000", "bf": "3", "sc_threshold": "0"},
    "open and long": {
        "x264-params": "open-gop=1:keyint=70:min-keyint=70:scenecut=0:bframes=3:b-pyramid=normal"
    },
}


@pytest.mark.parametrize("groups", LONG_GROUPS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_segments_of_long_and_open_groups_start_at_the_right_frame(
    tmp_path: Path, groups: str, suffix: str
) -> None:
    path = tmp_path / f"video.{suffix}"
    compose(path, options=LONG_GROUPS[groups], num_frames=240)
    rows = expected(path, Fraction(5))
    for first in (1, 11, 12, 13, 23, 24, 36, 39):  # about the key frames at 0, 70, 140 and 210
        frames = list(sample_frames(str(path), fps=5, first_index=first, num_frames=3))
        assert [(f.frame_index, f.pts_seconds) for f in frames] == [
            (k, seconds) for k, seconds, _ in rows[first : first + 3]
        ]
        for frame, (_, _, picture) in zip(frames, rows[first : first + 3], strict=True):
            assert np.abs(frame.picture.astype(int) - picture).max() <= 2


@pytest.mark.parametrize("suffix", FORMATS)
def test_skipping_decoder_gives_the_pictures_of_the_full_one(
    videos: dict[str, Path], suffix: str
) -> None:
    rows = expected(videos[suffix], Fraction(6))
    frames = list(sample_frames(str(videos[suffix]), fps=6, decoder="pyav"))
    assert [f.pts_seconds for f in frames] == [t for _, t, _ in rows]
    for frame, (_, _, picture) in zip(frames, rows, strict=True):
        assert np.abs(frame.picture.astype(int) - picture).max() <= 2


@pytest.mark.parametrize("suffix", FORMATS)
def test_probe_reads_size_rate_and_duration(videos: dict[str, Path], suffix: str) -> None:
    found = probe(str(videos[suffix]))
    assert (found.width, found.height, found.rotation_degrees) == (96, 64, 0)
    assert found.duration_seconds == pytest.approx(5.0, abs=0.11)
    assert found.fps == pytest.approx(30, rel=0.15)


@pytest.mark.parametrize("name", CLIPS_OF_BOTH_DECODERS)
def test_decord_and_pyav_give_equal_bytes(shared_clips: Path, name: str) -> None:
    pytest.importorskip("decord")
    source = str(shared_clips / name)
    for options in (
        {"fps": 4, "num_frames": 5},
        {"fps": 4, "num_frames": 6, "first_index": 5},
        {"fps": 1, "num_frames": 3, "max_side_pixels": 160},
    ):
        by_decord = list(sample_frames(source, decoder="decord", **options))
        assert same(by_decord, list(sample_frames(source, decoder="pyav", **options)))
        needs_pyav = "rot270" in name and "max_side_pixels" in options
        assert {frame.decoder for frame in by_decord} == {"pyav" if needs_pyav else "decord"}


@pytest.mark.slow
def test_every_real_clip_has_the_same_frames_from_both_decoders(shared_clips: Path) -> None:
    """Clips that decord does not decode included: PyAV takes them over."""
    pytest.importorskip("decord")
    decoders = set()
    for path in sorted(shared_clips.glob("*.[!R]*")):
        if path.suffix == ".md":
            continue
        found = []
        for decoder in ("decord", "pyav"):
            frames: list[Frame] = []
            with contextlib.suppress(DecodeFailed):
                for frame in sample_frames(str(path), fps=2, num_frames=4, decoder=decoder):
                    frames.append(frame)
            found.append(frames)
        assert same(*found), path.name
        decoders |= {frame.decoder for frame in found[0]}
    assert decoders == {"decord", "pyav"}


def test_every_real_clip_is_sampled_or_says_why(shared_clips: Path) -> None:
    for path in sorted(shared_clips.glob("*.[!R]*")):
        if path.suffix == ".md":
            continue
        frames: list[Frame] = []
        try:
            for frame in sample_frames(str(path), fps=2, num_frames=3, decoder="pyav"):
                frames.append(frame)
        except DecodeFailed:
            assert path.stem == "langer_truncated"
        assert [f.frame_index for f in frames] == list(range(len(frames)))
        assert len(frames) == min(3, int(2 * probe(str(path)).duration_seconds - 0.1) + 1)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("matrix", "degrees", "bright", "dark"),
    [
        ([0, 1, 0, -1, 0, 0, 64, 0, 0x4000], 90, (0, -1), (-1, -1)),
        ([-1, 0, 0, 0, -1, 0, 96, 64, 0x4000], 180, (-1, -1), (-1, 0)),
        ([0, -1, 0, 1, 0, 0, 0, 96, 0x4000], 270, (-1, 0), (0, 0)),
        ([-1, 0, 0, 0, 1, 0, 96, 0, 0x4000], 0, (0, -1), (0, 0)),
    ],
)
def test_rotation_and_mirroring_are_applied(
    tmp_path: Path,
    decoder: str,
    matrix: list[int],
    degrees: int,
    bright: tuple[int, int],
    dark: tuple[int, int],
) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    path = tmp_path / "turned.mp4"
    compose(path, num_frames=3)
    patch_matrix(path, matrix)
    found = probe(str(path))
    assert (found.rotation_degrees, found.is_mirrored) == (degrees, degrees == 0)
    picture = next(iter(sample_frames(str(path), fps=1, decoder=decoder))).picture
    assert picture.shape == (found.height, found.width, 3)
    assert found.width == (64 if degrees in (90, 270) else 96)
    assert picture[bright].min() > 200
    assert picture[dark].max() < 50
    assert decode_at(str(path), [0.0])[0][bright].min() > 200
    known = next(sample_frames(str(path), fps=1, probe=found, max_side_pixels=48)).picture
    assert known.shape[0] == (48 if degrees in (90, 270) else 32)
    assert known[bright].min() > 200


def test_decode_at_gives_the_picture_shown_then(videos: dict[str, Path]) -> None:
    frames = list(sample_frames(str(videos["mp4"]), fps=30))
    wanted = [frames[i] for i in (100, 3, 149)]
    pictures = decode_at(str(videos["mp4"]), [f.pts_seconds for f in wanted])
    assert all(np.array_equal(p, f.picture) for p, f in zip(pictures, wanted, strict=True))
    before, after = decode_at(str(videos["mp4"]), [-1, 99])
    assert np.array_equal(before, frames[0].picture)
    assert np.array_equal(after, frames[-1].picture)


class CountingFile(io.FileIO):
    """A file that counts what is read from it."""

    bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_segment_reads_its_own_share_of_the_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / "long"
    compose(path, options={"g": "24", "preset": "ultrafast", "crf": "30"}, num_frames=2160, fps=12,
            noise=True, form=form)  # fmt: skip
    assert probe(str(path)).duration_seconds == pytest.approx(180, abs=0.1)
    size = path.stat().st_size
    for first in (0, 120, 300):
        with CountingFile(str(path)) as file:
            assert len(list(sample_frames(file, fps=2, first_index=first, num_frames=60))) == 60
            assert file.bytes_read < 1.3 * size * 30 / 180 + 0.02 * size


def test_truncated_file_gives_its_good_pictures_first(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    compose(path, movflags="faststart", noise=True)
    whole = list(sample_frames(str(path), fps=6))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = until_damage(str(path), 6)
    assert 10 <= len(frames) <= 20
    assert same(frames, whole[: len(frames)])
    assert probe(str(path)).duration_seconds == pytest.approx(2.5, abs=0.6)


@pytest.mark.parametrize("seed", range(6))
def test_damage_never_doubles_or_reorders_the_grid(videos: dict[str, Path], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for path in videos.values():
        data = bytearray(path.read_bytes())
        for at in rng.integers(len(data) // 10, len(data), 8):
            data[at] ^= 1 << int(rng.integers(8))
        indices: list[int] = []
        try:
            for frame in sample_frames(io.BytesIO(bytes(data)), fps=10, num_frames=200):
                indices.append(frame.frame_index)
        except VideoError:
            pass
        assert indices == list(range(len(indices)))


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "mjpeg"), ("mp4", "libx264")])
def test_all_decoders_stop_at_the_damage(tmp_path: Path, suffix: str, codec: str) -> None:
    pytest.importorskip("decord")
    path = tmp_path / f"damaged.{suffix}"
    compose(path, codec, {"g": "10"} if codec == "libx264" else {}, num_frames=60, noise=True)
    with av.open(str(path)) as container:
        packet = next(p for p in container.demux(video=0) if p.pts and p.pts * p.time_base >= 1)
    data = bytearray(path.read_bytes())
    data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    path.write_bytes(data)
    whole = until_damage(str(path), 30, "damaged", "pyav")
    assert [f.frame_index for f in whole] == list(range(30))
    for _ in range(3):  # decord's reading ahead makes the moment of its failure vary
        assert same(until_damage(str(path), 30, "damaged", "decord"), whole)


def test_wrong_durations_are_replaced_by_what_the_packets_say(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        """Cannot seek, so that the muxer cannot write a duration or an index."""

        data = b""

        def writable(self) -> bool:
            return True

        def write(self, chunk: bytes) -> int:
            Pipe.data += bytes(chunk)
            return len(chunk)

    compose(Pipe(), "libx264", {"g": "25"}, form="matroska")
    assert probe(io.BytesIO(Pipe.data)).duration_seconds == pytest.approx(5.0, abs=0.05)
    path = tmp_path / "liar.mp4"
    compose(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdhd") + 20
    data[at : at + 4] = (2**31 - 1).to_bytes(4, "big")
    path.write_bytes(data)
    assert probe(str(path)).duration_seconds == pytest.approx(5.0, abs=0.05)


def test_timestamps_that_jump_by_days_do_not_fill_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "jump.mkv"
    compose(path, times_ms=[0, 500, 1000, 90_000_000])
    assert len(until_damage(str(path), 2, "jump")) <= 3
    assert probe(str(path)).duration_seconds < 3


def test_wrong_inputs_have_their_kind_of_error(tmp_path: Path, videos: dict[str, Path]) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video here\n" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name, kind in {
        "absent.mp4": Missing,
        ".": Unreadable,
        "empty.mp4": Unreadable,
        "text.mp4": Unreadable,
        "sound.mp4": NoVideoStream,
    }.items():
        with pytest.raises(kind):
            probe(str(tmp_path / name))
        with pytest.raises(kind):
            next(sample_frames(str(tmp_path / name), fps=2))


def test_huge_pictures_are_not_decoded(
    tmp_path: Path, videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = bytearray(videos["gif"].read_bytes())
    bomb[6:10] = b"\x20\x4e\x20\x4e"  # 20000 x 20000: the decoder alone sees it, and refuses
    with pytest.raises(DecodeFailed, match="larger than"):
        probe(io.BytesIO(bytes(bomb)))
    monkeypatch.setattr("caan.media.container.MAX_PIXELS", 95 * 64)
    for suffix in ("mp4", "mkv", "flv", "ts"):
        with pytest.raises(TooLarge):
            probe(str(videos[suffix]))


def test_playlists_open_no_other_file_and_no_address(
    tmp_path: Path, videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary.ts"
    canary.write_bytes(videos["ts"].read_bytes())
    contacts: list[object] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                contacts.append(listener.accept()[1])
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.ts"
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
    files = {
        "file.m3u8": playlist.format(canary),
        "address.m3u8": playlist.format(address),
        "file.mp4": playlist.format("canary.ts"),
        "address.mp4": playlist.format(address),
        "concat.mp4": f"ffconcat version 1.0\nfile {canary.name}\n",
        "dash.mp4": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' "
        f"type='static'><Period><BaseURL>{address}</BaseURL></Period></MPD>",
    }
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(Unreadable):
            probe(name)
    for name in (address, f"concat:{canary.name}", "canary%03d.png", f"subfile:{canary.name}"):
        with pytest.raises(Missing):
            probe(name)
    listener.close()
    assert contacts == []
    with av.open(str(tmp_path / "file.m3u8"), format="hls") as container:  # the trap is a real one
        assert next(container.decode(video=0)).width == 96


def test_pyav_decodes_what_decord_does_not(videos: dict[str, Path]) -> None:
    pytest.importorskip("decord")
    with open(videos["mp4"], "rb") as file:
        for source in (str(videos["gif"]), file):
            assert next(sample_frames(source, fps=1, decoder="decord")).decoder == "pyav"
    assert next(sample_frames(str(videos["mp4"]), fps=1, decoder="decord")).decoder == "decord"


def test_decord_is_refused_where_its_wheel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_decoder("pyav")
    with pytest.raises(InputError, match="--decoder decord needs the package decord"):
        require_decoder("decord")
