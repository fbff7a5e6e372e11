"""Tracks and people of a long video of four people whose paths cross, against the truth.

python -m benchmarks.accuracy.people --clips CLIPS --video people.mp4

Composes the video from CLIPS (`people_video.py`), follows the faces at 1 and 5 sampled frames per
second, in twelve segments and in one, and gives IDF1 of tracks and of people (Ristani 2016).
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tyro
from scipy.optimize import linear_sum_assignment

from benchmarks.accuracy.people_video import FPS, Truth, compose
from benchmarks.measuring import RESULTS, read_record, write_record
from caan import storage
from caan.extraction.config import ExtractionConfig
from caan.extraction.segment import SegmentImages, warm_up
from caan.faces.detection import iou
from caan.media.sampling import sample_frames
from caan.outputs.plan import plan, segments_of
from caan.people.config import FaceEmbeddingConfig, TrackConfig, with_person_distance
from caan.people.people import VideoPeople, find_people
from caan.schema import MANIFEST_SCHEMA, table_of

VISIBLE = 0.5
"""A face counts if at least this share of it can be seen; others count neither for nor against."""
MIN_IOU = 0.5


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
            row["picture"] = None  # an hour of images is not kept
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
    planned = plan(table_of([video], MANIFEST_SCHEMA), fps=fps, segment_frames=frames)
    assert planned.num_segments == num_segments
    units = planned.units(np.ones(num_segments, bool), num_segments).to_pylist()
    requests = [request for unit in units for request in segments_of(unit, fps, frames)]
    kept = path.with_suffix(f".{fps:g}-{num_segments}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        seconds = sum(pool.map(functools.partial(cut, path, fps, kept), requests))
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
