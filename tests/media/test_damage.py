"""Damaged, wrong and hostile files: the good frames come first, then the kind of error."""

import io
import socket
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from caan.errors import DecodeFailed, Missing, NoVideoStream, TooLarge, Unreadable, VideoError
from caan.media.sampling import probe, sample_frames
from tests.support.videos import compose, same, until_damage


def test_truncated_file_gives_its_good_images_first(tmp_path: Path) -> None:
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


def test_huge_images_are_not_decoded(
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
