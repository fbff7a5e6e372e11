"""Compose the video of benchmarks.accuracy.people, with the truth of every face in it.

The video shows moving insets, each a real person of a clip, on real backgrounds: shots of 60 to 240
seconds with cuts between them, crossing paths, a pillar that hides a part of whoever passes it, and
absences.
"""

import functools
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np

from caan.faces.build import load_detector
from caan.faces.detection import DetectorConfig
from caan.media.sampling import sample_frames

WIDTH, HEIGHT, FPS = 640, 360, 5
PEOPLE = {
    "fer_woman2.mp4": 60,
    "liveportrait_d10.mp4": 80,
    "liveportrait_d13.mp4": 100,
    "pyfeat_WolfgangLanger_Pexels.mp4": 70,
}
"""Clips of one person each, and the mean side of their faces in pixels."""
BACKGROUNDS = ("pyfeat_no_face.mp4", "intel_one-by-one-person-detection.mp4", "torchcodec_av1.mkv")
PILLAR = 28
"""Width of the pillar in pixels, and half the shots have one."""
FACE_OF_INSET = 0.45
"""Side of the face over the side of its inset."""


@dataclass(frozen=True)
class Inset:
    """One person's images at `FPS`, and where the face is in each, in shares of the side."""

    images: list[np.ndarray]
    boxes: np.ndarray
    side: int


@dataclass
class Truth:
    """Faces that are there, a row each; as JSON beside the video."""

    index: list[int] = field(default_factory=list)
    person: list[int] = field(default_factory=list)
    box: list[list[float]] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    shot: list[int] = field(default_factory=list)


def read_inset(path: Path, face_side: int) -> Inset:
    """A person's square images around the face, whose truth is the detector's box in them."""
    detector = load_detector(DetectorConfig(name="libfacedetection"))
    side = round(face_side / FACE_OF_INSET)
    images, boxes = [], []
    for frame in sample_frames(str(path), fps=FPS):
        faces = detector.detect([frame.image])[0]
        if not faces:
            continue
        x0, y0, x1, y1 = max(faces, key=lambda face: face.score).box
        centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
        half = math.sqrt((x1 - x0) * (y1 - y0)) / FACE_OF_INSET / 2
        view = np.array([[side / 2 / half, 0, 0], [0, side / 2 / half, 0]], np.float64)
        view[:, 2] = side / 2 - view[0, 0] * centre_x, side / 2 - view[1, 1] * centre_y
        images.append(
            cv2.warpAffine(frame.image, view, (side, side), borderMode=cv2.BORDER_REPLICATE)
        )
        corners = np.array([[x0, y0], [x1, y1]]) * view[0, 0] + view[:, 2]
        boxes.append(corners.reshape(-1))
    return Inset(images, np.array(boxes), side)


def ellipse(side: int) -> np.ndarray:
    """The mask of an inset: bool [side, side]."""
    places = (np.arange(side) - side / 2 + 0.5) / (side / 2)
    return (places[None] / 0.8) ** 2 + places[:, None] ** 2 <= 1


def shots_of(minutes: float, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Number, first frame and length of each shot: 60 to 240 seconds."""
    shots: list[tuple[int, int, int]] = []
    first, total = 0, round(60 * minutes * FPS)
    while first < total:
        length = min(round(rng.uniform(60, 240) * FPS), total - first)
        shots.append((len(shots), first, length))
        first += length
    return shots


def compose(path: Path, clips: Path, minutes: float, workers: int, seed: int = 1) -> Truth:
    """Write the video, shot by shot in several processes; gives what is in it."""
    shots = shots_of(minutes, np.random.default_rng(seed))
    parts = [path.with_suffix(f".{n}.mp4") for n, _, _ in shots]
    truth = Truth()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        read = [pool.submit(read_inset, clips / name, side) for name, side in PEOPLE.items()]
        insets = [future.result() for future in read]
        compose_one = functools.partial(compose_shot, clips, insets, seed)
        for some in pool.map(compose_one, parts, shots):
            for name, rows in asdict(some).items():
                getattr(truth, name).extend(rows)
    join(parts, path)
    for part in parts:
        part.unlink()
    return truth


def compose_shot(
    clips: Path, insets: list[Inset], seed: int, path: Path, place: tuple[int, int, int]
) -> Truth:
    """Write one shot as a video of its own."""
    shot, first, length = place
    rng = np.random.default_rng((seed, shot))
    stills = [
        cv2.resize(frame.image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        for name in BACKGROUNDS
        for frame in sample_frames(str(clips / name), fps=0.5, num_frames=12)
    ]
    truth = Truth()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"preset": "ultrafast", "crf": "22", "g": "250"}
        )
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        gain = rng.uniform(0.5, 1.2, 3)
        still = np.clip(stills[rng.integers(len(stills))] * gain, 0, 255).astype(np.uint8)
        paths = [_path(rng, length, inset.side) for inset in insets]
        present = rng.permutation(4)[: rng.integers(1, 5)]
        pillar = rng.integers(150, 460) if shot % 2 else None
        for n in range(length):
            image = still.copy()
            _paint(image, truth, first + n, shot, insets, paths, present, pillar, n)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return truth


def join(parts: list[Path], path: Path) -> None:
    """Videos end to end, without encoding again."""
    with av.open(str(path), "w") as container:
        written = None
        start = 0
        for part in parts:
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                written = written or container.add_stream_from_template(stream)
                step = round(1 / FPS / stream.time_base)
                end = start
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + start, packet.dts + start
                    end = max(end, packet.pts + step)
                    packet.stream = written
                    container.mux(packet)
                start = end


def _path(rng: np.random.Generator, length: int, side: int) -> np.ndarray:
    """Centre of an inset in each frame: float [length, 2]; far outside while the person is away."""
    seconds = np.arange(length) / FPS
    swing, period = rng.uniform(120, 230), rng.uniform(14, 30)
    x = (
        WIDTH / 2
        + rng.uniform(-60, 60)
        + swing * np.sin(2 * np.pi * seconds / period + rng.uniform(0, 6.3))
    )
    y = rng.uniform(0.42, 0.58) * HEIGHT + 12 * np.sin(2 * np.pi * seconds / rng.uniform(5, 9))
    if seconds[-1] > 120 and rng.random() < 0.5:  # walks out at the side, and back a minute later
        gone = (seconds > 40) & (seconds < 40 + rng.uniform(60, 70))
        x[gone] = -2 * WIDTH
    return np.stack([x, y], 1)


def _paint(
    image: np.ndarray,
    truth: Truth,
    index: int,
    shot: int,
    insets: list[Inset],
    paths: list[np.ndarray],
    present: np.ndarray,
    pillar: int | None,
    n: int,
) -> None:
    owner = np.full((HEIGHT, WIDTH), -1, np.int8)
    placed = []
    for person in present.tolist():
        inset, (x, y) = insets[person], paths[person][n]
        left, top = round(x - inset.side / 2), round(y - inset.side / 2)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), left + inset.side, top + inset.side
        x1, y1 = min(x1, WIDTH), min(y1, HEIGHT)
        if x0 >= x1 or y0 >= y1:
            continue
        count = len(inset.images)
        k = index % (2 * count - 2)
        k = k if k < count else 2 * count - 2 - k  # forth and back, without a jump
        part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        mask = ellipse(inset.side)[part]
        image[y0:y1, x0:x1][mask] = inset.images[k][part][mask]
        owner[y0:y1, x0:x1][mask] = person
        placed.append((person, inset.boxes[k] + [left, top, left, top]))
    if pillar is not None:
        image[:, pillar : pillar + PILLAR] = (90, 80, 70)
        owner[:, pillar : pillar + PILLAR] = -1
    for person, box in placed:
        x0, y0, x1, y1 = np.round(box).astype(int)
        inside = owner[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        seen = (inside == person).sum() / max(1, (x1 - x0) * (y1 - y0))
        truth.index.append(index)
        truth.person.append(person)
        truth.box.append(box.round(1).tolist())
        truth.visible.append(float(seen))
        truth.shot.append(shot)
