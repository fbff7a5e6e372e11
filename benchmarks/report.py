"""Write docs/results.md from the records in benchmarks/results.

python -m benchmarks.report            writes the page
python -m benchmarks.report --check    exits with 1 if the page is not what the records give

Each row of the page names what was measured, the figure, the command, the machine and the commit of
the record. A benchmark writes its record itself; a figure on the page is never typed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reliability import tables

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    what: str
    """What was measured."""
    record: str
    """Name of the record in benchmarks/results, without its ending."""
    command: str
    """Command that writes the record, after `python -m benchmarks.`."""
    figure: Callable[[Record], str]
    """The figure, from the record or from its part."""
    part: str = ""
    """Key of the part of the record; empty: the whole record."""


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f}%"


def points(interval: list[float]) -> str:
    """An interval of shares in points."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def joined(values: dict[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _attention(record: Record) -> str:
    head = record["starter_head"]
    more = head["with_more_seeds"]
    return (
        f"attention {percent(head['attention'])}, equal scores {percent(head['averaging'])}; "
        f"gain {100 * head['difference']:.1f} points (95% interval "
        f"{points(head['difference_interval_95'])}); heads of {len(more['attention'])} seeds: gain "
        f"{100 * more['difference']:.1f} ({points(more['difference_interval_95'])})"
    )


def _areas(record: Record) -> str:
    areas = record["starter_head"]["auc"]
    return joined({name: f"{value:.2f}" for name, value in areas.items()})


def _composed(record: Record) -> str:
    of_caan, test = record["caan_accuracy"], record["test"]
    others = {name: percent(row["accuracy"]) for name, row in test.items() if "seed" not in name}
    del others["caan"]
    return (
        f"CAAN {percent(of_caan['mean'])} ± {100 * of_caan['deviation']:.1f} "
        f"({of_caan['seeds']} seeds); {joined(others)}"
    )


def _starter(split: str) -> Callable[[Record], str]:
    def figure(record: Record) -> str:
        found = record[split]
        recalls = {k: f"{v:.2f}" for k, v in found["recall"].items() if k != "disgust"}
        return (
            f"{percent(found['accuracy_without_disgust'])} of "
            f"{found['num_faces_without_disgust']:,} faces; recall: {joined(recalls)}; "
            f"calibration error {found['calibration_error']:.3f}"
        )

    return figure


def _changes(record: Record) -> str:
    return joined(
        {
            name: percent(row["accuracy_without_disgust"])
            for name, row in record["validation_variants"].items()
        }
    )


def _backbone_speed(record: Record) -> str:
    times = record["cpu_ms_per_picture_by_threads_and_batch"]
    return joined({name: f"{by_threads['1']['8']:.1f} ms" for name, by_threads in times.items()})


def _people(fps: float) -> Callable[[Record], str]:
    def figure(record: Record) -> str:
        runs = [run for run in record["runs"] if run["fps"] == fps]
        run = runs[0]
        same = "the same ids" if len({run["ids"] for run in runs}) == 1 else "other ids"
        numbers = " and ".join(str(run["segments"]) for run in runs)
        return (
            f"tracks {run['idf1_tracks']:.3f} ({run['true_tracks']} true, {run['tracks']} found), "
            f"people {run['idf1_people']:.3f} (4 true, {run['people']} found); "
            f"{percent(run['face_recall'], 0)} of the faces found, "
            f"{percent(1 - run['face_precision'])} false; {same} in {numbers} segments"
        )

    return figure


def _decode(record: Record) -> str:
    kinds = {}
    for kind in ("full sampling", "1 per second", "key frames"):
        ratios = {name: f"{x:.2f} x" for name, x in record[kind]["times_bare"].items()}
        del ratios["bare"]
        kinds[kind] = f"({joined(ratios)})"
    return joined(kinds)


def _detect(record: Record) -> str:
    sides = record["ms_per_picture"].items()
    return joined(
        {
            f"{side} pixels": f"{ways['libfacedetection']['cpu_ms']:.0f} ms (bare "
            f"{ways['bare libfacedetection']['cpu_ms']:.0f})"
            for side, ways in sides
        }
    )


def _embed(record: Record) -> str:
    rates = record["pictures_per_second"]
    return (
        f"{rates['ours']:,} pictures/s, {record['ours_over_bare']:.2f} x the bare loop; largest "
        f"difference of a vector {record['largest_difference']:g}"
    )


def _extraction(record: Record) -> str:
    rate = record["ways"]["project"]["frames_per_second"]
    ratios = {name: f"{x:.2f} x" for name, x in record["project_over"].items()}
    return f"{rate:.2f} frames/s; over {joined(ratios)}"


def _cascade(record: Record) -> str:
    return joined(
        {
            name: f"{percent(row['share_of_time'], 0)} of the CPU time "
            f"({row['faces_cascade']} of {row['faces_full']} faces)"
            for name, row in record["results"].items()
        }
    )


def _scale(record: Record) -> str:
    return joined(
        {
            f"{row['segments']:,} segments": f"{row['seconds']:.0f} s "
            f"({row['driver_peak_mb']:.0f} MB)"
            for row in record["found"]
        }
    )


def _resume(record: Record) -> str:
    found = record["found"]
    return (
        f"plan {found['planning_seconds']} s, find the open shard {found['check_seconds']} s, "
        f"until the last segments are written {found['until_done_seconds']} s; driver "
        f"{found['driver_peak_mb']:.0f} MB"
    )


def _index(record: Record) -> str:
    rates = record["objects_per_second"]
    return f"{rates['ours']:,} objects/s, {record['ours_over_bare']:.2f} x the bare paginator"


def _memory(record: Record) -> str:
    return joined({name: f"{row['child_peak_mb']} MB" for name, row in record.items() if row})


def _long_video(record: Record) -> str:
    rows = sorted(record["runs"], key=lambda run: run["minutes"])
    return "; ".join(
        f"{run['minutes']:g} min: {run['seconds']:.0f} s, peak MB {joined(run['peak_mb'])}"
        for run in rows
    )


def _startup(record: Record) -> str:
    return "; ".join(
        f"{name.replace('_', ' ')}: {joined(value) if isinstance(value, dict) else value}"
        for name, value in record.items()
    )


def _training(record: Record) -> str:
    seconds = record["train_seconds"]
    plain = seconds["plain"]
    return f"plain loop {plain:.1f} s; " + joined(
        {
            name: f"{value:.1f} s ({value / plain:.2f} x)"
            for name, value in seconds.items()
            if name in ("mapped", "memory")
        }
    )


def _workers(record: Record) -> str:
    worst = max(record["greatest_relative_difference"].values())
    return f"losses differ by {worst:.1e} at most (relative)"


def _head_epoch(record: Record) -> str:
    heads = {name: f"{value:.1f} s" for name, value in record["cpu_seconds_of_heads"].items()}
    return f"fit over a plain loop {record['fit_over_plain_loop']:.2f} x; {joined(heads)}"


def _heads(record: Record) -> str:
    return f"{record['cpu_minutes_of_one_seed']} CPU minutes per seed"


def _heads_grid(record: Record) -> str:
    return (
        f"{record['trials']} trials in {record['minutes']} min (limit {record['limit_minutes']}); "
        f"a trial's own memory {record['own_memory_of_a_trial_mb']} MB"
    )


def _search(record: Record) -> str:
    return (
        f"{percent(record['share_of_epochs'], 0)} of the epochs "
        f"({percent(record['share_of_epochs_most'], 0)} at most); test accuracy "
        f"{percent(record['test_accuracy_asha'])}, in full {percent(record['test_accuracy_none'])}"
    )


def _cluster(record: Record) -> str:
    compared = record["compared"]
    worst = max(value for name, value in compared.items() if name.endswith("_max_difference"))
    equal = all(value for name, value in compared.items() if name.endswith("_equal"))
    return (
        f"tables equal: {'yes' if equal else 'no'}; largest difference of a vector, weight, loss "
        f"or confidence {worst:g}; {compared['segments']} segments of {compared['videos']} videos"
    )


def _kills(record: Record) -> str:
    runs = record["runs"]
    lost, doubled = (sum(run[name] for run in runs) for name in ("lost", "doubled"))
    return (
        f"{len(runs)} kills: {lost} rows lost, {doubled} doubled; "
        f"{len(record['not_counted'])} groups of runs are not counted (reasons below)"
    )


def _media(record: Record) -> str:
    return (
        f"{record['files']} files: {record['not_one_row']} without exactly one row, "
        f"{len(record['unexpected'])} with a status that it may not have, {record['hangs']} hangs, "
        f"{record['crashes']} crashes of a job"
    )


def _storage(record: Record) -> str:
    return f"{record['injected']} faults, {record['survived']} survived"


CORPUS = "700 test videos composed of FER2013 test faces"
AREAS = {
    "Accuracy": [
        Row(
            what="starter face network on FER2013 test faces without disgust",
            record="starter",
            command="accuracy.starter --faces fer2013.parquet --recipe DIR",
            figure=_starter("test"),
        ),
        Row(
            what="the two halves of the starter, each on the validation faces it has not learned",
            record="starter",
            command="accuracy.starter --faces fer2013.parquet --recipe DIR",
            figure=_starter("val"),
        ),
        Row(
            what="the same validation faces under changes",
            record="starter",
            command="accuracy.starter --faces fer2013.parquet --recipe DIR",
            figure=_changes,
        ),
        Row(
            what=f"shipped starter head, attention against averaging; {CORPUS}, 3 frames/s",
            record="attention",
            command="accuracy.attention --corpus corpus --features features",
            figure=_attention,
        ),
        Row(
            what="the emotion scores of that head: area under the curve between kinds of frames",
            record="attention",
            command="accuracy.attention --corpus corpus --features features",
            figure=_areas,
        ),
        Row(
            what=f"the whole chain, RANDOM VGG weights, 1 frame/s; {CORPUS}; chance is 14.3%",
            record="composed",
            command="accuracy.composed --corpus corpus --work work --fps 1",
            figure=_composed,
        ),
        Row(
            what="IDF1 of tracks and people in a composed hour at 1 frame/s",
            record="people",
            command="accuracy.people --clips CLIPS --video people.mp4",
            figure=_people(1.0),
        ),
        Row(
            what="the same at 5 frames/s",
            record="people",
            command="accuracy.people --clips CLIPS --video people.mp4",
            figure=_people(5.0),
        ),
    ],
    "Speed of one stage": [
        Row(
            what="decoding 720p H.264 with B-frames: source frames per CPU second over bare PyAV; "
            "`auto` tries decord first; same images from every way",
            record="decode",
            command="speed.decode",
            figure=_decode,
        ),
        Row(
            what="libfacedetection, CPU time per image by longer side; same faces",
            record="detect",
            command="speed.detect",
            figure=_detect,
        ),
        Row(
            what="VGG16 to fc6 on CPU, float32",
            record="embed",
            part="cpu float32",
            command="speed.embed --precision fp32",
            figure=_embed,
        ),
        Row(
            what="VGG16 to fc6 on CPU, bfloat16",
            record="embed",
            part="cpu bfloat16",
            command="speed.embed --precision bf16",
            figure=_embed,
        ),
        Row(
            what="VGG16 to fc6 on GPU, bfloat16",
            record="embed",
            part="cuda bfloat16",
            command="speed.embed --device cuda --precision bf16",
            figure=_embed,
        ),
        Row(
            what="all backbones, CPU time per image, one thread, batches of 8",
            record="starter",
            command="accuracy.starter --faces fer2013.parquet --recipe DIR",
            figure=_backbone_speed,
        ),
        Row(
            what="listing 100,000 objects of a local S3 server",
            record="index",
            command="speed.index",
            figure=_index,
        ),
        Row(
            what="`--cascade`, CPU time of decoding and detection over sampling everything",
            record="cascade",
            command="speed.cascade --clips CLIPS --minutes 2",
            figure=_cascade,
        ),
    ],
    "Speed, memory and growth of whole jobs": [
        Row(
            what="jobs.extract with VGGs of random weights, all in float32",
            record="extraction",
            part="vgg fp32",
            command="speed.extraction --clips CLIPS --copies 13 --other-copies 2",
            figure=_extraction,
        ),
        Row(
            what="the same, jobs.extract at its defaults (bfloat16), the others in float32",
            record="extraction",
            part="vgg defaults",
            command="speed.extraction --clips CLIPS --copies 35 --other-copies 2 --defaults",
            figure=_extraction,
        ),
        Row(
            what="stages without decoding or networks: seconds and peak memory of the driver",
            record="scale",
            part="run",
            command="speed.scale run",
            figure=_scale,
        ),
        Row(
            what="resume of a plan of 1,000,000 segments, all but 100 done",
            record="scale",
            part="resume",
            command="speed.scale resume",
            figure=_resume,
        ),
        Row(
            what="peak memory of the decoding child with its detector, 1080p",
            record="memory",
            command="speed.memory",
            figure=_memory,
        ),
        Row(
            what="start: CPU time of --help, memory of Ray workers and of a decoding child",
            record="startup",
            command="speed.startup",
            figure=_startup,
        ),
        Row(
            what="jobs.label over the length of a video, starter model, 1 frame/s",
            record="long_video",
            command="speed.long_video --video people.mp4",
            figure=_long_video,
        ),
    ],
    "Training and search": [
        Row(
            what="an epoch over mapped files, over arrays in memory, and of a plain loop, "
            "default CAAN, 2,000 videos x 16 frames of 4096-d vectors",
            record="training",
            command="speed.training",
            figure=_training,
        ),
        Row(
            what="1, 2 and 4 workers, the same training",
            record="workers",
            command="speed.training --workers 1 2 4",
            figure=_workers,
        ),
        Row(
            what="CPU time of an epoch of 280 videos, one thread",
            record="head_epoch",
            command="speed.head_epoch --videos 280",
            figure=_head_epoch,
        ),
        Row(
            what="15 fc6 heads on 1,000 videos x 16 frames, early stopping",
            record="heads",
            command="speed.heads",
            figure=_heads,
        ),
        Row(
            what="the same heads x 5 seeds by jobs.reproduce, beside another training",
            record="heads_grid",
            command="speed.heads --reproduce",
            figure=_heads_grid,
        ),
        Row(
            what="ASHA against all trials in full: 30 trials of 27 epochs, 600 synthetic videos, "
            "3 search seeds",
            record="search",
            command="speed.search",
            figure=_search,
        ),
    ],
    "Reliability": [
        Row(
            what="index, extract, train, tune and label by `ray job submit` on four nodes and S3, "
            "a node lost, one added, label stopped and submitted again; against one process",
            record="cluster_run",
            command="reliability.cluster_run",
            figure=_cluster,
        ),
        Row(
            what="kills of drivers, workers, raylets, machines and jobs",
            record="reliability",
            part="kills",
            command="reliability kills",
            figure=_kills,
        ),
        Row(
            what="hostile and broken files through index and extract",
            record="reliability",
            part="media",
            command="reliability media",
            figure=_media,
        ),
        Row(
            what="faults of an S3 server during index, extract and label",
            record="reliability",
            part="storage",
            command="reliability storage",
            figure=_storage,
        ),
    ],
}

INTRODUCTION = """# Results

`python -m benchmarks.report` (or `make results`) writes this page from the records in
[benchmarks/results](../benchmarks/results). Each command writes its own record. The last column
links the record and gives its commit: the one that was checked out, or, for records of before
2026-11-28, the one that added the record. `fer2013.parquet`, CLIPS and `corpus` are not part of
the repository: the first lines of each benchmark say what it reads.
"""


def machine(of: Record) -> str:
    """The machine of a record in a few words."""
    words = [of["gpu"]] if of.get("gpu") else []
    words.append(of["processor"])
    if cores := of.get("cores"):
        words.append(f"{cores} cores")
    if (load := of.get("load_average")) is not None:
        words.append(f"load {load:g}")
    return ", ".join(words)


def line(row: Row, records: Record) -> str:
    """A row of Markdown."""
    record = records[row.record]
    record = dict(record[row.part] if row.part else record)
    origin = record.pop("recorded")
    cells = (
        row.what,
        row.figure(record),
        f"`python -m benchmarks.{row.command}`",
        machine(origin["machine"]),
        f"[{origin['commit']}](../benchmarks/results/{row.record}.json)",
    )
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    records = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    used = {row.record for rows in AREAS.values() for row in rows}
    if unknown := records.keys() - used:
        raise SystemExit(f"benchmarks/report.py has no row for {sorted(unknown)}: add one")
    lines = [INTRODUCTION]
    for area, rows in AREAS.items():
        lines += [
            f"## {area}",
            "| what | figure | command | machine | record |",
            "|---|---|---|---|---|",
            *(line(row, records) for row in rows if row.record in records),
            "",
        ]
    if missing := sorted(used - records.keys()):
        lines += [f"Not recorded: {', '.join(missing)}.", ""]
    lines += ["## Reliability in detail", "", *tables.tables(records["reliability"])]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page differs")
    options = parser.parse_args()
    if not options.check:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit(f"{PAGE} is not what the records give: run `python -m benchmarks.report`")


if __name__ == "__main__":
    main()
