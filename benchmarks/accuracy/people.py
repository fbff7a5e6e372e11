"""Who is who in a long video: four people whose paths cross, against the truth.

python -m benchmarks.accuracy.people --clips CLIPS --video people.mp4

Composes a video of moving insets, each a real person of a clip in CLIPS, on real backgrounds: shots
of 60 to 240 seconds with cuts between them, crossing paths, a pillar that hides a part of whoever
passes it, and absences. Then it follows the faces at 1 and 5 sampled frames per second, in twelve
segments and in one, and gives IDF1 of tracks and of people (Ristani 2016).
"""

import functools
import hashlib
import json
import math
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import tyro
from scipy.optimize import linear_sum_assignment

from benchmarks.measuring import RESULTS, read_record, write_record
from caan import storage
from caan.extraction.config import ExtractionConfig
from caan.extraction.segment import SegmentImages, warm_up
from caan.faces.build import load_detector
from caan.faces.detection import DetectorConfig, iou
from caan.media.sampling import sample_frames
from caan.outputs.plan import plan_segments
from caan.people.config import FaceEmbeddingConfig, TrackConfig, with_person_distance
from caan.people.people import VideoPeople, find_people
from caan.schema import MANIFEST_SCHEMA, table_of

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
VISIBLE = 0.5
"""A face counts if at least this share of it can be seen; others count neither for nor against."""
MIN_IOU = 0.5
FACE_OF_INSET = 0.45
"""Side of the face over the side of its inset."""


@dataclass(frozen=True)
class Inset:
    """One person's pictures at `FPS`, and where the face is in each, in shares of the side."""

    pictures: list[np.ndarray]
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
    """A person's square pictures around the face, whose truth is the detector's box in them."""
    detector = load_detector(DetectorConfig(name="libfacedetection"))
    side = round(face_side / FACE_OF_INSET)
    pictures, boxes = [], []
    for frame in sample_frames(str(path), fps=FPS):
        faces = detector.detect([frame.picture])[0]
        if not faces:
            continue
        x0, y0, x1, y1 = max(faces, key=lambda face: face.score).box
        centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
        half = math.sqrt((x1 - x0) * (y1 - y0)) / FACE_OF_INSET / 2
        view = np.array([[side / 2 / half, 0, 0], [0, side / 2 / half, 0]], np.float64)
        view[:, 2] = side / 2 - view[0, 0] * centre_x, side / 2 - view[1, 1] * centre_y
        pictures.append(
            cv2.warpAffine(frame.picture, view, (side, side), borderMode=cv2.BORDER_REPLICATE)
        )
        corners = np.array([[x0, y0], [x1, y1]]) * view[0, 0] + view[:, 2]
        boxes.append(corners.reshape(-1))
    return Inset(pictures, np.array(boxes), side)


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
        cv2.resize(frame.picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
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
            picture = still.copy()
            _paint(picture, truth, first + n, shot, insets, paths, present, pillar, n)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
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
    picture: np.ndarray,
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
        count = len(inset.pictures)
        k = index % (2 * count - 2)
        k = k if k < count else 2 * count - 2 - k  # forth and back, without a jump
        part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        mask = ellipse(inset.side)[part]
        picture[y0:y1, x0:x1][mask] = inset.pictures[k][part][mask]
        owner[y0:y1, x0:x1][mask] = person
        placed.append((person, inset.boxes[k] + [left, top, left, top]))
    if pillar is not None:
        picture[:, pillar : pillar + PILLAR] = (90, 80, 70)
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


def cut(path: Path, fps: float, kept: Path, request: dict[str, Any]) -> float:
    """The product's own first phase of a segment without networks, into the folder `kept`.

    Gives the CPU seconds it took; 0 if it is there already.
    """
    target = kept / f"{request['segment_id']}.parquet"
    if target.exists():
        return 0.0
    config = ExtractionConfig(
        detector="libfacedetection", fps=fps, face_policy="all", max_faces_per_frame=4
    )
    segment_config = config.segment_config(detect_here=True, face_embedding=FaceEmbeddingConfig())
    warm_up(segment_config)
    start = time.process_time()
    segment = SegmentImages(request, segment_config)
    for frame in sample_frames(
        str(path),
        fps=fps,
        first_index=request["first_index"],
        num_frames=request["num_frames"],
        decoder="pyav",
    ):
        segment.add([frame])
        for row in (*segment.faces[-4:], segment.frames[-1]):
            row["picture"] = None  # an hour of pictures is not kept
    storage.write_table(segment.table(None), target)
    return time.process_time() - start


def follow(
    path: Path, minutes: float, fps: float, num_segments: int, workers: int
) -> tuple[VideoPeople, dict[str, float]]:
    """The people of the video, and the CPU seconds of the first phase and of the second.

    Segments that are done are kept beside the video, so an interrupted run goes on.
    """
    frames = math.ceil(60 * minutes * fps / num_segments)
    video = {
        "video_id": "v", "uri": str(path), "end_seconds": 60 * minutes, "status": "ok",
        "duration_seconds": 60 * minutes,
    }  # fmt: skip
    plan = plan_segments(table_of([video], MANIFEST_SCHEMA), fps=fps, segment_frames=frames)
    assert plan.num_rows == num_segments
    kept = path.with_suffix(f".{fps:g}-{num_segments}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        seconds = sum(pool.map(functools.partial(cut, path, fps, kept), plan.to_pylist()))
    tables = [storage.read_table(file) for file in sorted(kept.glob("*.parquet"))]
    start = time.process_time()
    tracks = with_person_distance(TrackConfig(), "dlib")
    people = find_people(
        pa.concat_tables(tables), detector="libfacedetection", policy="all", tracks=tracks
    )
    return people, {
        "cpu_seconds_of_faces": round(seconds, 1),
        "cpu_seconds_of_people": round(time.process_time() - start, 2),
    }


def tracks_of(truth: Truth, step: int, max_gap_seconds: float) -> dict[tuple[int, int], int]:
    """The true track of (frame, person): it ends at a cut or a longer absence."""
    found: dict[tuple[int, int], int] = {}
    last: dict[int, tuple[int, int, int]] = {}
    count = 0
    rows = zip(truth.index, truth.person, truth.visible, truth.shot, strict=True)
    for index, person, visible, shot in rows:
        if index % step or visible < VISIBLE:
            continue
        before = last.get(person)
        if before is None or before[1] != shot or index - before[0] > max_gap_seconds * FPS:
            before = (index, shot, count)
            count += 1
        last[person] = (index, shot, before[2])
        found[index, person] = before[2]
    return found


def scores(truth: Truth, people: VideoPeople, fps: float) -> dict[str, float]:
    """IDF1 of tracks and people, and how many faces were found at all."""
    step = round(FPS / fps)
    true_tracks = tracks_of(truth, step, TrackConfig().max_gap_seconds)
    by_frame: dict[int, list[int]] = defaultdict(list)
    for row, index in enumerate(truth.index):
        if index % step == 0:
            by_frame[index].append(row)
    pairs: list[tuple[int, int, int, int]] = []  # true track, true person, track, person
    num_pred = num_truth = 0
    boxes = people.faces.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    found_in: dict[int, list[int]] = defaultdict(list)
    index = people.faces.field("frame_index").to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(people.track_ids >= 0).tolist():
        found_in[int(index[row]) * step].append(row)
    for frame in sorted(by_frame.keys() | found_in.keys()):
        there, found = by_frame[frame], found_in[frame]
        counted = [row for row in there if truth.visible[row] >= VISIBLE]
        num_truth += len(counted)
        left = set(found)
        for rows, is_counted in ((counted, True), ([r for r in there if r not in counted], False)):
            rest = sorted(left)
            for row, place in _matches(np.array([truth.box[r] for r in rows]), boxes[rest]):
                left.discard(rest[place])
                if is_counted:
                    person = truth.person[rows[row]]
                    pairs.append(
                        (true_tracks[frame, person], person,
                         int(people.track_ids[rest[place]]), int(people.person_ids[rest[place]]))
                    )  # fmt: skip
        num_pred += len(left)
    num_matched = len(pairs)
    num_pred += num_matched
    table = np.array(pairs)
    return {
        "true_faces": num_truth,
        "found_faces": num_pred,
        "face_recall": round(num_matched / num_truth, 4),
        "face_precision": round(num_matched / num_pred, 4),
        "true_tracks": len(set(true_tracks.values())),
        "tracks": len(set(table[:, 2].tolist())),
        "people": len(set(table[:, 3].tolist())),
        "idf1_tracks": _idf1(table[:, 0], table[:, 2], num_truth, num_pred),
        "idf1_people": _idf1(table[:, 1], table[:, 3], num_truth, num_pred),
    }


def _matches(true_boxes: np.ndarray, boxes: np.ndarray) -> Iterator[tuple[int, int]]:
    if len(true_boxes) and len(boxes):
        overlap = iou(true_boxes, boxes)
        for row, place in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[row, place] >= MIN_IOU:
                yield int(row), int(place)


def _idf1(true_ids: np.ndarray, ids: np.ndarray, num_truth: int, num_pred: int) -> float:
    """Source: Ristani et al. 2016, Performance Measures and a Data Set for Multi-Target Tracking"""
    counts = np.zeros((true_ids.max() + 1, ids.max() + 1))
    np.add.at(counts, (true_ids, ids), 1)
    rows, columns = linear_sum_assignment(-counts)
    return round(float(2 * counts[rows, columns].sum() / (num_truth + num_pred)), 4)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark."""

    clips: Path
    """Folder of the clips that `PEOPLE` and `BACKGROUNDS` name."""
    video: Path
    """Where the composed video is, or is to be kept, with its truth beside it."""
    output: Path = RESULTS / "people.json"
    """JSON file of the figures; runs that it has already are not done again."""
    minutes: float = 60.0
    """Length of the video."""
    fps: tuple[float, ...] = (1.0, 5.0)
    """Sampled frames per second."""
    segments: tuple[int, ...] = (12, 1)
    """Numbers of segments."""
    workers: int = 2
    """Processes that cut segments."""


def main(options: Options) -> None:
    """Compose, follow, compare."""
    beside = options.video.with_suffix(".json")
    if not beside.exists():
        truth = compose(options.video, options.clips, options.minutes, options.workers)
        beside.write_text(json.dumps(asdict(truth)))
        print("composed", flush=True)
    truth = Truth(**json.loads(beside.read_text()))
    figures: dict[str, Any] = {"runs": []} | read_record(options.output)
    figures.pop("recorded", None)
    figures |= {
        "minutes": options.minutes,
        "cuts": truth.shot[-1],
        "hidden_faces": round(1 - float(np.mean(np.array(truth.visible) >= VISIBLE)), 4),
    }
    for fps in options.fps:
        for number in options.segments:
            if any((run["fps"], run["segments"]) == (fps, number) for run in figures["runs"]):
                continue
            people, seconds = follow(options.video, options.minutes, fps, number, options.workers)
            run = {"fps": fps, "segments": number} | scores(truth, people, fps) | seconds
            ids = np.stack([people.track_ids, people.person_ids]).tobytes()
            run["ids"] = hashlib.sha256(ids).hexdigest()[:16]  # equal where all ids are
            figures["runs"].append(run)
            write_record(options.output, figures)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
