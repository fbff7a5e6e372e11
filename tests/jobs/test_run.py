"""Runs that are extended, retried, repeated and killed, with stages that need no Ray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caan import storage
from caan.errors import InputError
from caan.extraction.config import ExtractionConfig
from caan.outputs import layout, log
from caan.outputs.committer import Committer
from caan.outputs.lease import FILE
from caan.outputs.plan import Plan
from caan.schema import MANIFEST_SCHEMA, table_of
from jobs.runtime import cluster
from jobs.runtime.run import Run
from tests.support.row_files import counted, row_files, rows_of, stored, write

CONFIG = ExtractionConfig(fps=1.0, segment_frames=4)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "start", lambda: None)
    monkeypatch.setattr(cluster, "configure_data", lambda: None)


class Stages:
    """Writes the segments that are left, two per file, as the pipeline would."""

    table = "features"

    def __init__(self, statuses: dict[str, str] | None = None, die_after: int = 10**9) -> None:
        self.statuses = statuses or {}
        self.die_after = die_after
        self.did: list[tuple[str, int]] = []

    def run(self, job: str, plan: Plan, committer: Committer) -> dict[str, Any]:
        left = np.flatnonzero(plan.not_in(committer.writer.state.segments))
        ids = plan.manifest["video_id"].to_pylist()
        segments = [(ids[plan.video_N[n]], int(plan.first_N[n])) for n in left]
        for start in range(0, len(segments), 2):
            some = segments[start : start + 2]
            rows = rows_of((v, first, self.statuses.get(v, "ok")) for v, first in some)
            receipts = layout.write_rows(rows, committer.writer.output, self.table)
            if start >= self.die_after:
                raise KeyboardInterrupt
            committer.add(receipts)
            self.did += some
        committer.flush()
        return {"stages": {}, "pools": {}, "seconds": 1.0}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Stages]:
    """Extracts videos of ten seconds: three segments each."""

    def extract(
        *videos: str | dict[str, Any], stages: Stages | None = None, **options: Any
    ) -> Stages:
        rows = [{"video_id": v} if isinstance(v, str) else v for v in videos]
        known = {"duration_seconds": 10.0, "etag": "1", "status": "ok"}
        rows = [known | {"uri": f"/{row['video_id']}"} | row for row in rows]
        storage.write_table(table_of(rows, MANIFEST_SCHEMA), tmp_path / "m.parquet")
        job = Run(
            job_name="extract", manifest=f"{tmp_path}/m.parquet", output=f"{tmp_path}/out",
            networks={}, whole_config={}, **{"config": CONFIG} | options,
        )  # fmt: skip
        stages = stages or Stages()
        with job.opened() as opened:
            record = opened.process(stages)  # type: ignore[arg-type]
            opened.finish(record, opened.writer.state.statuses())
        return stages

    return extract


def segments_of(*videos: str, status: str = "ok") -> list[tuple[str, int, str]]:
    return [(video, first, status) for video in videos for first in (0, 4, 8)]


def test_a_longer_manifest_does_its_new_videos_only(tmp_path: Path, run: Any) -> None:
    output = f"{tmp_path}/out"
    run("a", "b")
    assert stored(output) == segments_of("a", "b")
    before = row_files(output)
    assert run("a", "b").did == []
    assert {v for v, _ in run("c", "b", "a").did} == {"c"}
    assert stored(output) == segments_of("a", "b", "c")
    assert set(before) < set(row_files(output))
    record = storage.read_json(f"{output}/run.json")
    assert (record["num_segments"], record["statuses"]) == (9, {"ok": 3})
    assert not storage.exists(f"{output}/{FILE}")


def test_a_killed_run_goes_on_where_it_was_and_removes_what_it_left(
    tmp_path: Path, run: Any
) -> None:
    output = f"{tmp_path}/out"
    with pytest.raises(KeyboardInterrupt):
        run("a", "b", stages=Stages(die_after=2))
    assert not storage.read_json(f"{output}/run.json")["is_complete"]
    assert len(stored(output)) == 2
    assert len(row_files(output)) == 2, "one that nobody committed"
    again = run("a", "b")
    assert again.did == [("a", 8), ("b", 0), ("b", 4), ("b", 8)]
    assert stored(output) == segments_of("a", "b")
    assert row_files(output) == log.read(output).files("features")


def test_failed_segments_are_retried_alone(tmp_path: Path, run: Any) -> None:
    output = f"{tmp_path}/out"
    run("a", "b", "c", stages=Stages({"b": "timed_out", "c": "no_face"}))
    assert run("a", "b", "c").did == []
    again = run("a", "b", "c", retry_failed=True, stages=Stages({"b": "crashed"}))
    assert again.did == [("b", 0), ("b", 4), ("b", 8)]
    expected = segments_of("a") + segments_of("b", status="crashed")
    assert stored(output) == expected + segments_of("c", status="no_face")
    assert row_files(output) == log.read(output).files("features")
    assert run("a", "b", "c", retry_failed=True).did == again.did
    assert run("a", "b", "c", retry_failed=True).did == []
    assert storage.read_json(f"{output}/run.json")["statuses"] == {"no_face": 1, "ok": 2}


def test_a_retry_that_was_killed_leaves_no_output_that_looks_whole(
    tmp_path: Path, run: Any
) -> None:
    run("a", "b", stages=Stages({"b": "timed_out"}))
    with pytest.raises(KeyboardInterrupt):
        run("a", "b", retry_failed=True, stages=Stages(die_after=0))
    assert not storage.read_json(tmp_path / "out/run.json")["is_complete"]
    assert len(run("a", "b").did) == 3
    assert stored(f"{tmp_path}/out") == segments_of("a", "b")


@pytest.mark.parametrize("step", ["drop_videos", "commit", "start"])
def test_an_output_that_lacks_segments_says_so_whenever_it_is_killed(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run("a", "b", stages=Stages({"b": "timed_out"}))
    where = {"drop_videos": layout, "commit": log.LogWriter, "start": cluster}[step]
    plain = getattr(where, step)

    def die(*arguments: Any, **options: Any) -> None:
        plain(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, step, die)
        changed = {"video_id": "a", "etag": "2"}
        run(changed, "b", "c", on_change="recompute", retry_failed=step == "commit")
    assert not storage.read_json(tmp_path / "out/run.json")["is_complete"]


def test_a_changed_video_is_done_anew_only_when_asked(tmp_path: Path, run: Any) -> None:
    output = f"{tmp_path}/out"
    run("a", "b")
    shorter = {"video_id": "b", "etag": "2", "duration_seconds": 3.0}
    with pytest.raises(InputError, match=r"`/b` changed \(etag\) since .*--on-change recompute"):
        run("a", shorter)
    assert stored(output) == segments_of("a", "b")
    assert run("a", shorter, on_change="recompute").did == [("b", 0)]
    # The shorter file leaves none of the old one's segments.
    assert stored(output) == [*segments_of("a"), ("b", 0, "ok")]
    assert run("a", shorter, on_change="recompute").did == []
    assert run("a", shorter).did == []


def test_another_marked_face_is_a_change_where_faces_are_marked(tmp_path: Path, run: Any) -> None:
    marked = ExtractionConfig(fps=1.0, segment_frames=4, face_policy="marked")
    a, b = ({"video_id": v, "face_box": [0.0, 0.0, 9.0, 9.0]} for v in "ab")
    moved = b | {"face_box": [1.0, 0.0, 9.0, 9.0]}
    run(a, b, config=marked)
    with pytest.raises(InputError, match=r"`/b` changed \(face_box\)"):
        run(a, moved, config=marked)
    assert {v for v, _ in run(a, moved, config=marked, on_change="recompute").did} == {"b"}


def test_other_options_compute_everything_anew_and_only_when_asked(
    tmp_path: Path, run: Any
) -> None:
    output = f"{tmp_path}/out"
    run("a", "b")
    other = ExtractionConfig(fps=1.0, segment_frames=10)
    with pytest.raises(InputError, match=r"segment_frames \(4 -> 10\)"):
        run("a", "b", config=other)
    with pytest.raises(KeyboardInterrupt):
        run("a", "b", config=other, on_change="recompute", stages=Stages(die_after=0))
    assert counted(log.read(output)) == []
    assert run("a", "b", config=other).did == [("a", 0), ("b", 0)]
    assert stored(output) == [("a", 0, "ok"), ("b", 0, "ok")]
    assert row_files(output) == log.read(output).files("features")


def test_a_second_driver_is_refused_while_the_first_works(tmp_path: Path, run: Any) -> None:
    storage.write_json(
        tmp_path / "out" / FILE,
        {"id": "x", "host": "farm-7", "process": 1, "process_started": 1.0, "job": "extract",
         "since": "2030-01-01T00:00:00+00:00", "renewed": "2099-01-01T00:00:00+00:00"},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"jobs.extract on farm-7 .* writes to"):
        run("a")
    assert not storage.exists(tmp_path / "out" / "log")


def test_what_is_written_by_a_driver_that_lost_its_output_does_not_count(
    tmp_path: Path, run: Any
) -> None:
    output = f"{tmp_path}/out"

    class Taken(Stages):
        def run(self, job: str, plan: Plan, committer: Committer) -> dict[str, Any]:
            log.LogWriter(output, "jobs.extract on another machine")
            return super().run(job, plan, committer)

    with pytest.raises(log.LostOutput, match=r"taken over by jobs\.extract on another machine"):
        run("a", stages=Taken())
    write(output, ("a", 0, "ok"))  # and of a worker that was left behind
    assert counted(log.read(output)) == []
    assert len(run("a").did) == 3
    assert row_files(output) == log.read(output).files("features")
