"""Opening and sampling of real and composed videos."""

import contextlib
import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from caan.errors import DecodeFailed, InputError
from caan.media.config import require_decoder
from caan.media.grid import Frame
from caan.media.sampling import decode_at, probe, sample_frames
from tests.support.videos import FORMATS, compose, expected, same

CLIPS_OF_BOTH_DECODERS = [
    "carphone_pristine.mp4",
    "fer_woman2.mp4",
    "d3_vp8.webm",
    "liveportrait_d13.mp4",
    "pyfeat_face_noface.mov",
    "single_face_mjpeg.avi",
    "single_face_phone_rot270.mp4",
]
IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 0x4000]


def patch_matrix(path: Path, values: list[int]) -> None:
    """Writes another display matrix into the track header of an MP4."""
    data = path.read_bytes()
    identity = b"".join((v << 16).to_bytes(4, "big") for v in IDENTITY)
    matrix = b"".join(((v << 16) & 0xFFFFFFFF).to_bytes(4, "big") for v in values)
    at = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:at] + matrix + data[at + 36 :])


@pytest.mark.parametrize("fps", [2, 7.5, 29.97, 60])
def test_sampled_images_follow_the_grid_of_a_variable_rate(tmp_path: Path, fps: float) -> None:
    gaps = np.random.default_rng(1).integers(5, 400, 40)
    path = tmp_path / "vfr.mkv"
    compose(path, options={"bf": "3"}, times_ms=[int(t) for t in 700 + np.cumsum(gaps)])
    rows = expected(path, Fraction(fps).limit_denominator(1000))
    frames = list(sample_frames(str(path), fps=fps))
    assert [(f.frame_index, f.pts_seconds) for f in frames] == [(k, t) for k, t, _ in rows]
    assert all(
        np.abs(f.image.astype(int) - image).max() <= 2
        for f, (_, _, image) in zip(frames, rows, strict=True)
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
        for frame, (_, _, image) in zip(frames, rows[first : first + 3], strict=True):
            assert np.abs(frame.image.astype(int) - image).max() <= 2


@pytest.mark.parametrize("suffix", FORMATS)
def test_skipping_decoder_gives_the_images_of_the_full_one(
    videos: dict[str, Path], suffix: str
) -> None:
    rows = expected(videos[suffix], Fraction(6))
    frames = list(sample_frames(str(videos[suffix]), fps=6, decoder="pyav"))
    assert [f.pts_seconds for f in frames] == [t for _, t, _ in rows]
    for frame, (_, _, image) in zip(frames, rows, strict=True):
        assert np.abs(frame.image.astype(int) - image).max() <= 2


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
    image = next(iter(sample_frames(str(path), fps=1, decoder=decoder))).image
    assert image.shape == (found.height, found.width, 3)
    assert found.width == (64 if degrees in (90, 270) else 96)
    assert image[bright].min() > 200
    assert image[dark].max() < 50
    assert decode_at(str(path), [0.0])[0][bright].min() > 200
    known = next(sample_frames(str(path), fps=1, probe=found, max_side_pixels=48)).image
    assert known.shape[0] == (48 if degrees in (90, 270) else 32)
    assert known[bright].min() > 200


def test_decode_at_gives_the_image_shown_then(videos: dict[str, Path]) -> None:
    frames = list(sample_frames(str(videos["mp4"]), fps=30))
    wanted = [frames[i] for i in (100, 3, 149)]
    images = decode_at(str(videos["mp4"]), [f.pts_seconds for f in wanted])
    assert all(np.array_equal(p, f.image) for p, f in zip(images, wanted, strict=True))
    before, after = decode_at(str(videos["mp4"]), [-1, 99])
    assert np.array_equal(before, frames[0].image)
    assert np.array_equal(after, frames[-1].image)


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
