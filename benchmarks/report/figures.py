"""One figure of the page from one record of benchmarks/results."""

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
"""A record, or one part of it, as its benchmark wrote it."""


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f}%"


def points(interval: list[float]) -> str:
    """An interval of shares in points."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def joined(values: dict[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def attention(record: Record) -> str:
    head = record["starter_head"]
    more = head["with_more_seeds"]
    return (
        f"attention {percent(head['attention'])}, equal scores {percent(head['averaging'])}; "
        f"gain {100 * head['difference']:.1f} points (95% interval "
        f"{points(head['difference_interval_95'])}); heads of {len(more['attention'])} seeds: gain "
        f"{100 * more['difference']:.1f} ({points(more['difference_interval_95'])})"
    )


def areas(record: Record) -> str:
    areas = record["starter_head"]["auc"]
    return joined({name: f"{value:.2f}" for name, value in areas.items()})


def composed(record: Record) -> str:
    of_caan, test = record["caan_accuracy"], record["test"]
    others = {name: percent(row["accuracy"]) for name, row in test.items() if "seed" not in name}
    del others["caan"]
    return (
        f"CAAN {percent(of_caan['mean'])} ± {100 * of_caan['deviation']:.1f} "
        f"({of_caan['seeds']} seeds); {joined(others)}"
    )


def starter(split: str) -> Callable[[Record], str]:
    def figure(record: Record) -> str:
        found = record[split]
        recalls = {k: f"{v:.2f}" for k, v in found["recall"].items() if k != "disgust"}
        return (
            f"{percent(found['accuracy_without_disgust'])} of "
            f"{found['num_faces_without_disgust']:,} faces; recall: {joined(recalls)}; "
            f"calibration error {found['calibration_error']:.3f}"
        )

    return figure


def changes(record: Record) -> str:
    return joined(
        {
            name: percent(row["accuracy_without_disgust"])
            for name, row in record["validation_variants"].items()
        }
    )


def backbone_speed(record: Record) -> str:
    times = record["cpu_ms_per_picture_by_threads_and_batch"]
    return joined({name: f"{by_threads['1']['8']:.1f} ms" for name, by_threads in times.items()})


def people(fps: float) -> Callable[[Record], str]:
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


def decode(record: Record) -> str:
    kinds = {}
    for kind in ("full sampling", "1 per second", "key frames"):
        ratios = {name: f"{x:.2f} x" for name, x in record[kind]["times_bare"].items()}
        del ratios["bare"]
        kinds[kind] = f"({joined(ratios)})"
    return joined(kinds)


def detect(record: Record) -> str:
    sides = record["ms_per_picture"].items()
    return joined(
        {
            f"{side} pixels": f"{ways['libfacedetection']['cpu_ms']:.0f} ms (bare "
            f"{ways['bare libfacedetection']['cpu_ms']:.0f})"
            for side, ways in sides
        }
    )


def embed(record: Record) -> str:
    rates = record["pictures_per_second"]
    return (
        f"{rates['ours']:,} images/s, {record['ours_over_bare']:.2f} x the bare loop; largest "
        f"difference of a vector {record['largest_difference']:g}"
    )


def extraction(record: Record) -> str:
    rate = record["ways"]["project"]["frames_per_second"]
    ratios = {name: f"{x:.2f} x" for name, x in record["project_over"].items()}
    return f"{rate:.2f} frames/s; over {joined(ratios)}"


def cascade(record: Record) -> str:
    return joined(
        {
            name: f"{percent(row['share_of_time'], 0)} of the CPU time "
            f"({row['faces_cascade']} of {row['faces_full']} faces)"
            for name, row in record["results"].items()
        }
    )


def scale(record: Record) -> str:
    return joined(
        {
            f"{row['segments']:,} segments": f"{row['seconds']:.0f} s "
            f"({row['driver_peak_mb']:.0f} MB)"
            for row in record["found"]
        }
    )


def resume(record: Record) -> str:
    found = record["found"]
    return (
        f"plan {found['planning_seconds']} s, read the log {found['log_seconds']} s, until the "
        f"last segments are written {found['until_done_seconds']} s; driver "
        f"{found['driver_peak_mb']:.0f} MB"
    )


def s3_bytes(record: Record) -> str:
    return "; ".join(
        f"{run['nodes']} node{'s' * (run['nodes'] > 1)}: {run['bytes_over_object']:.2f} x, "
        f"{run['requests']['GET']} ranges"
        for run in record["runs"]
    )


def index(record: Record) -> str:
    rates = record["objects_per_second"]
    return f"{rates['ours']:,} objects/s, {record['ours_over_bare']:.2f} x the bare paginator"


def memory(record: Record) -> str:
    return joined({name: f"{row['child_peak_mb']} MB" for name, row in record.items() if row})


def long_video(record: Record) -> str:
    rows = sorted(record["runs"], key=lambda run: run["minutes"])
    return "; ".join(
        f"{run['minutes']:g} min: {run['seconds']:.0f} s, peak MB {joined(run['peak_mb'])}"
        for run in rows
    )


def startup(record: Record) -> str:
    return "; ".join(
        f"{name.replace('_', ' ')}: {joined(value) if isinstance(value, dict) else value}"
        for name, value in record.items()
    )


def training(record: Record) -> str:
    seconds = record["train_seconds"]
    plain = seconds["plain"]
    return f"plain loop {plain:.1f} s; " + joined(
        {
            name: f"{value:.1f} s ({value / plain:.2f} x)"
            for name, value in seconds.items()
            if name in ("mapped", "memory")
        }
    )


def workers(record: Record) -> str:
    worst = max(record["greatest_relative_difference"].values())
    return f"losses differ by {worst:.1e} at most (relative)"


def head_epoch(record: Record) -> str:
    heads = {name: f"{value:.1f} s" for name, value in record["cpu_seconds_of_heads"].items()}
    return f"fit over a plain loop {record['fit_over_plain_loop']:.2f} x; {joined(heads)}"


def heads(record: Record) -> str:
    return f"{record['cpu_minutes_of_one_seed']} CPU minutes per seed"


def heads_grid(record: Record) -> str:
    return (
        f"{record['trials']} trials in {record['minutes']} min (limit {record['limit_minutes']}); "
        f"a trial's own memory {record['own_memory_of_a_trial_mb']} MB"
    )


def search(record: Record) -> str:
    return (
        f"{percent(record['share_of_epochs'], 0)} of the epochs "
        f"({percent(record['share_of_epochs_most'], 0)} at most); test accuracy "
        f"{percent(record['test_accuracy_asha'])}, in full {percent(record['test_accuracy_none'])}"
    )


def cluster(record: Record) -> str:
    compared = record["compared"]
    worst = max(value for name, value in compared.items() if name.endswith("_max_difference"))
    equal = all(value for name, value in compared.items() if name.endswith("_equal"))
    return (
        f"tables equal: {'yes' if equal else 'no'}; largest difference of a vector, weight, loss "
        f"or confidence {worst:g}; {compared['segments']} segments of {compared['videos']} videos"
    )


def kills(record: Record) -> str:
    runs, cases = record.get("runs", []), record.get("cases", [])
    lost, doubled = (sum(row[name] for row in runs + cases) for name in ("lost", "doubled"))
    return (
        f"{len(runs)} kills and {len(cases)} cases of two writers: {lost} rows lost, "
        f"{doubled} doubled"
    )


def media(record: Record) -> str:
    return (
        f"{record['files']} files: {record['not_one_row']} without exactly one row, "
        f"{len(record['unexpected'])} with a status that it may not have, {record['hangs']} hangs, "
        f"{record['crashes']} crashes of a job"
    )


def storage(record: Record) -> str:
    return f"{record['injected']} faults, {record['survived']} survived"
