"""The log of an output: a row file counts because a commit names it, never because it is there.

    OUTPUT/log/00000042.json                  a commit: row files added and removed
    OUTPUT/log/checkpoint-00000099.parquet    what counts after commit 99
    OUTPUT/<table>/<uuid>.parquet             rows; a file that no commit names is garbage

A commit is created, never overwritten. Of two writers that create the same one, the second finds it
there and stops. No commit is ever deleted: a writer that slept through another's commits must find
the number taken.
"""

import itertools
import json
import logging
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caan import storage
from caan.errors import InputError, StorageError, redact
from caan.schema import video_status

logger = logging.getLogger(__name__)

FOLDER = "log"
CHECKPOINT_COMMITS = 100
"""Commits from one checkpoint to the next: what a resume reads at most, beside one checkpoint."""

READERS = 16
"""Commits that are read at the same time."""

RECEIPTS_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("video_id", pa.string()),
        ("first_index", pa.int64()),
        ("status", pa.string()),
        ("num_faces", pa.int32()),
    ]
)
"""One row per segment: the row file that holds it, as `<table>/<uuid>.parquet`."""

STATE_SCHEMA = pa.schema(
    [
        pa.field(f.name, pa.dictionary(pa.int32(), pa.string()))
        if f.name in ("file", "status")
        else f
        for f in RECEIPTS_SCHEMA
    ]
)
"""RECEIPTS_SCHEMA in the memory that five million segments leave to a driver (200 MB)."""


class LostOutput(InputError):
    """Another writer has taken this output over."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What counts after a commit."""

    number: int = -1
    """The last commit; -1: none."""
    segments: pa.Table = field(default_factory=STATE_SCHEMA.empty_table)
    """STATE_SCHEMA, a row per segment that counts."""

    def files(self, table: str) -> list[str]:
        """Names of the row files of a table that count, sorted."""
        names = pc.unique(self.segments["file"]).to_pylist()
        return sorted(name for name in names if name.startswith(f"{table}/"))

    def by_file(self) -> Iterator[tuple[str, pa.Table]]:
        """Each row file that counts, with its rows of `segments`."""
        files = self.segments["file"].combine_chunks()
        codes = files.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        rows = self.segments.take(pa.array(order))
        bounds = [*np.flatnonzero(np.diff(codes[order], prepend=-1)), len(order)]
        for start, end in itertools.pairwise(bounds):
            yield files.dictionary[int(codes[order[start]])].as_py(), rows.slice(start, end - start)

    def statuses(self) -> dict[str, int]:
        """Number of videos by status, from the statuses of their segments."""
        found: dict[str, int] = defaultdict(int)
        for statuses, count in self._kinds_of_videos():
            found[video_status(statuses)] += count
        return dict(found)

    def _kinds_of_videos(self) -> list[tuple[list[str], int]]:
        """Each combination of statuses that a video's segments have, and how many videos have it.

        A combination names every status once, in order of its first segment.
        """
        table = self.segments.select(["video_id", "first_index", "status"])
        if not table.num_rows:
            return []
        status = table["status"].combine_chunks()
        names = status.dictionary.to_pylist()
        order = pc.sort_indices(table, [("video_id", "ascending"), ("first_index", "ascending")])
        codes = status.indices.take(order).to_numpy()
        ids = table["video_id"].take(order).combine_chunks()
        is_first = np.append(True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False))
        video = np.cumsum(is_first) - 1
        pairs, at = np.unique(video * len(names) + codes, return_index=True)
        by_video = np.lexsort((at, pairs // len(names)))
        kinds: dict[tuple[int, ...], int] = defaultdict(int)
        ends = np.flatnonzero(np.diff(pairs[by_video] // len(names), append=-1)) + 1
        for codes_of_video in np.split(pairs[by_video] % len(names), ends[:-1]):
            kinds[tuple(codes_of_video.tolist())] += 1
        return [([names[code] for code in kind], count) for kind, count in kinds.items()]

    def failed_files(self) -> list[str]:
        """Names of the row files of failed segments, sorted."""
        names = pc.unique(self.segments["file"]).to_pylist()
        return sorted(name for name in names if "/failed-" in name)

    def of_videos(self, video_ids: Sequence[str]) -> pa.Table:
        """The rows of `segments` of these videos."""
        wanted = pa.array(video_ids, pa.string())
        return self.segments.filter(pc.is_in(self.segments["video_id"], wanted))


def path_of(output: str, number: int) -> str:
    """File of a commit."""
    return storage.join(output, FOLDER, f"{number:08d}.json")


def read(output: str) -> State:
    """What counts in an output now: the last checkpoint and the commits after it.

    Raises:
        StorageError: a commit is missing or unreadable.
    """
    names = storage.list_names(storage.join(output, FOLDER))
    numbers = sorted(int(m[1]) for name in names if (m := re.fullmatch(r"(\d{8})\.json", name)))
    points = sorted(name for name in names if name.startswith("checkpoint-"))
    state = State()
    if points:
        table = storage.read_table(storage.join(output, FOLDER, points[-1]))
        state = State(number=int(points[-1][11:19]), segments=table.cast(STATE_SCHEMA))
    left = [number for number in numbers if number > state.number]
    expected = range(state.number + 1, state.number + 1 + len(left))
    if lost := sorted(set(expected) - set(left)):
        raise StorageError(
            f"the log of `{redact(output)}` has a gap at commit {lost[0]}: restore `{FOLDER}/`, or "
            "make the output anew."
        )
    with ThreadPoolExecutor(READERS) as pool:
        commits = list(pool.map(lambda number: _read_commit(output, number), left))
    return _after(state, commits)


def _read_commit(output: str, number: int) -> dict[str, Any]:
    commit: dict[str, Any] = storage.read_json(path_of(output, number))
    return commit


def _after(state: State, commits: list[dict[str, Any]]) -> State:
    """`state` after some more commits."""
    added = [_receipts(commit["add"]) for commit in commits]
    removed = [name for commit in commits for name in commit["remove"]]
    tables = [state.segments, *(table.cast(STATE_SCHEMA) for table in added)]
    segments = pa.concat_tables(tables).unify_dictionaries()
    if removed:
        drop = pc.is_in(segments["file"].cast(pa.string()), pa.array(removed, pa.string()))
        segments = segments.filter(pc.invert(drop))
    return State(number=state.number + len(commits), segments=segments.combine_chunks())


def _receipts(add: dict[str, dict[str, list[list[Any]]]]) -> pa.Table:
    """RECEIPTS_SCHEMA of a commit's `add`."""
    rows = [
        (name, video_id, *segment)
        for name, videos in add.items()
        for video_id, segments in videos.items()
        for segment in segments
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(RECEIPTS_SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, RECEIPTS_SCHEMA, strict=True)]
    return pa.table(arrays, schema=RECEIPTS_SCHEMA)


def _as_json(receipts: pa.Table) -> dict[str, dict[str, list[list[Any]]]]:
    """A commit's `add`: file -> video -> [first index, status, number of faces] per segment."""
    add: dict[str, dict[str, list[list[Any]]]] = {}
    for row in receipts.to_pylist():
        segments = add.setdefault(row["file"], {}).setdefault(row["video_id"], [])
        segments.append([row["first_index"], row["status"], row["num_faces"]])
    return add


class LogWriter:
    """The one writer of an output: makes row files count, one commit after another."""

    def __init__(self, output: str, writer: str) -> None:
        """Read the log and take its next number, so that any other writer's next commit fails.

        `writer` says who this is, for people.
        """
        self._id = uuid.uuid4().hex  # tells an own commit, whose answer was lost, from another's
        self.output = output
        self.writer = writer
        self._state = read(output)
        self._later: list[dict[str, Any]] = []
        while not self._create({}, []):
            self._state = read(output)
        self._made({}, [])

    @property
    def state(self) -> State:
        """What counts now."""
        if self._later:
            self._state, self._later = _after(self._state, self._later), []
        return self._state

    @property
    def number(self) -> int:
        """The last commit."""
        return self._state.number + len(self._later)

    def commit(self, receipts: pa.Table, remove: Sequence[str] = ()) -> None:
        """Make the files of `receipts` (RECEIPTS_SCHEMA) count, and those of `remove` no more.

        Raises:
            LostOutput: another writer has committed meanwhile; nothing of this commit counts.
        """
        add = _as_json(receipts)
        if not self._create(add, list(remove)):
            raise self._lost()
        self._made(add, list(remove))

    def _made(self, add: dict[str, Any], remove: list[str]) -> None:
        self._later.append({"add": add, "remove": remove})
        if self.number % CHECKPOINT_COMMITS == CHECKPOINT_COMMITS - 1:
            write_checkpoint(self.output, self.state)

    def check(self) -> None:
        """Make sure that no other writer has committed: before files are changed without a commit.

        Raises:
            LostOutput: one has.
        """
        if storage.exists(path_of(self.output, self.number + 1)):
            raise self._lost()

    def _lost(self) -> LostOutput:
        holder = storage.read_json(path_of(self.output, self.number + 1))["writer"]
        return LostOutput(
            f"`{redact(self.output)}` was taken over by {holder}: this run stops. What it had "
            "committed stays, and the other run does the rest."
        )

    def _create(self, add: dict[str, Any], remove: list[str]) -> bool:
        """Create the next commit; False if another writer's is there."""
        said = {"writer": self.writer, "id": self._id, "add": add, "remove": remove}
        path = path_of(self.output, self.number + 1)
        try:
            storage.create_bytes(path, json.dumps(said, separators=(",", ":")).encode())
        except FileExistsError:
            # S3 may have stored our own commit and lost its answer; the client then asks again.
            return bool(storage.read_json(path) == said)
        return True


def write_checkpoint(output: str, state: State) -> None:
    """Write what counts after `state.number`, so that readers need no earlier commit."""
    path = storage.join(output, FOLDER, f"checkpoint-{state.number:08d}.parquet")
    storage.write_table(state.segments, path)
