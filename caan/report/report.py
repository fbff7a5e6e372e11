"""Write the report folder: figures, tables, plots and strips of frames of one run of labels."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caan import storage
from caan.metrics import ReliabilityBin
from caan.report import evaluation, page
from caan.report.config import ReportConfig
from caan.report.evaluation import NO_LABEL, STATUS_WORDS, UNTRAINED, EvaluatedVideo, Row
from caan.report.label_run import LabelRun
from caan.report.strips import StripMaker
from caan.schema import UNCERTAIN

UNFINISHED = "the run of jobs.label was not complete when this report was written: run it again."


def write_report(
    output: str, manifest: pa.Table, label_run: LabelRun, config: ReportConfig
) -> dict[str, Any]:
    """Write a whole report folder and return the content of its metrics.json.

    Raises:
        InputError: manifest and labels do not match.
    """
    emotions = evaluation.label_set(
        label_run.labels, label_run.run, evaluation.true_labels(manifest)
    )
    marked = manifest.filter(pc.is_valid(manifest["face_box"]))["video_id"].to_pylist()
    videos = evaluation.join_labels(
        manifest, label_run.labels, label_run.frame_scores(marked), emotions
    )
    figures = evaluation.score(videos, emotions)
    figures["split"] = config.split
    figures["is_complete"] = bool(label_run.run.get("is_complete", True))
    figures["random_weights"] = random_weights(label_run)
    write_plots(output, videos, figures)
    strips = write_strips(output, videos, label_run, emotions, config)
    storage.write_bytes(storage.join(output, "labels.csv"), labels_csv(videos, emotions).encode())
    storage.write_bytes(
        storage.join(output, "report.md"), report_markdown(figures, strips).encode()
    )
    storage.write_bytes(
        storage.join(output, "report.html"),
        report_page(output, videos, figures, label_run, strips, config).encode(),
    )
    storage.write_json(storage.join(output, "metrics.json"), figures)
    return figures


def random_weights(label_run: LabelRun) -> list[str]:
    """Fingerprints of networks with random weights (`vgg16:random:0`) that a label run names."""
    found: set[str] = set()
    pending: list[Any] = [label_run.run, label_run.labels["model_id"].unique().to_pylist()]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and ":random:" in value:
            found.add(value)
    return sorted(found)


def write_plots(output: str, videos: Sequence[EvaluatedVideo], figures: dict[str, Any]) -> None:
    """Write the PNG plots for these figures, and list their names in `figures["images"]`."""
    from caan.report import plots

    predictions = [video for video in videos if video.predicted is not None]
    images = {
        "labels.png": plots.distribution_plot(
            {name: n for name, n in figures["labels"].items() if n or name != UNCERTAIN}
        ),
        "confidence.png": plots.confidence_plot(evaluation.confidences(predictions)),
    }
    if "all_videos" in figures:
        summary = figures["all_videos"]
        bins = [ReliabilityBin(**_filled(part)) for part in figures["reliability"]]
        matrix = np.array(summary["confusion_matrix"])
        images["confusion.png"] = plots.confusion_plot(matrix, summary["emotions"])
        images["per_emotion.png"] = plots.per_emotion_plot(summary["per_emotion"])
        if figures["expected_calibration_error"] is not None:
            images["reliability.png"] = plots.reliability_plot(
                bins, figures["expected_calibration_error"]
            )
    for name, content in images.items():
        storage.write_bytes(storage.join(output, name), content)
    figures["pictures"] = sorted(images)


def _filled(part: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a reliability bin from JSON, with nan for None."""
    return {name: float("nan") if value is None else value for name, value in part.items()}


def report_page(
    output: str,
    videos: Sequence[EvaluatedVideo],
    figures: Mapping[str, Any],
    label_run: LabelRun,
    strips: Sequence["Strip"],
    config: ReportConfig,
) -> str:
    """The HTML page, with timelines of up to `config.num_timelines` videos."""
    chosen = choose_videos(videos, figures["label_set"], config.num_timelines)
    video_ids = [video.row["video_id"] for video in chosen]
    return page.build_page(
        videos,
        figures,
        frame_scores=label_run.frame_scores(video_ids),
        windows=label_run.windows(video_ids),
        strips={strip.video_id: strip.frames for strip in strips},
        previews=label_run.previews(output),
    )


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One written strip."""

    video_id: str
    """The video."""
    path: str
    """Path of its PNG, relative to the report."""
    title: str
    """File name, prediction and truth."""
    frames: list[dict[str, Any]]
    """The frames for the HTML page, from `page.strip_data`."""


def write_strips(
    output: str,
    videos: Sequence[EvaluatedVideo],
    label_run: LabelRun,
    emotions: Sequence[str],
    config: ReportConfig,
) -> list[Strip]:
    """Write `strips/<video_id>.png` for the chosen videos."""
    from caan.report import plots

    storage.delete(storage.join(output, "strips"))  # of an earlier report
    chosen = choose_videos(videos, emotions, config.num_strips)
    video_ids = [video.row["video_id"] for video in chosen]
    scores: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for score in label_run.frame_scores(video_ids).sort_by("pts_seconds").to_pylist():
        scores[score["video_id"], score["person_id"]].append(score)
    strips = []
    with StripMaker(config.strips) as maker:
        for video in chosen:
            assert video.scored is not None
            video_id = video.row["video_id"]
            frames = maker.frames(video.row, scores[video_id, video.scored["person_id"]])
            if not frames:
                continue
            path, title = f"strips/{video_id}.png", strip_title(video)
            storage.write_bytes(storage.join(output, path), plots.strip_plot(frames, title))
            data = page.strip_data(frames)
            strips.append(Strip(video_id=video_id, path=path, title=title, frames=data))
    return strips


def choose_videos(
    videos: Sequence[EvaluatedVideo], emotions: Sequence[str], count: int
) -> list[EvaluatedVideo]:
    """Choose up to `count` videos: of each emotion the one with the highest confidence, and so on.

    Uncertain videos count for the withheld emotion. Videos without any emotion are not chosen.
    """
    queues = []
    for emotion in emotions:
        found = [video for video in videos if video.guess == emotion]
        queues.append(sorted(found, key=lambda v: -evaluation.confidences([v])[0]))
    rounds = range(max((len(queue) for queue in queues), default=0))
    return [queue[i] for i in rounds for queue in queues if i < len(queue)][:count]


def strip_title(video: EvaluatedVideo) -> str:
    """File name, prediction with confidence, truth if known, and effect of the context."""
    name = video.row["uri"].rpartition("/")[2]
    title = f"{name} · {video.predicted or UNCERTAIN} {evaluation.confidences([video])[0]:.2f}"
    title = title if video.truth is None else f"{title} (true: {video.truth})"
    told = evaluation.context_told(video.scored or {})
    return f"{title} · {told}" if told else title


def labels_csv(videos: Sequence[EvaluatedVideo], emotions: Sequence[str]) -> str:
    """All people of all videos as CSV; a video without people has one line."""
    columns = (
        *("video_id", "uri", "split", "true_label", "person_id", "is_main", "is_scored", "label"),
        *("right", "confidence", "num_frames", "num_faces", "start_seconds", "end_seconds"),
        *("status", "error", "model_id", "label_without_context", "context_effect"),
    )
    buffer = io.StringIO()
    writer = csv.DictWriter(
        buffer, [*columns, *(f"p_{name}" for name in emotions)], extrasaction="ignore"
    )
    writer.writeheader()
    for video in videos:
        for person in video.people or ({"status": video.status},):
            line = dict(person)
            line |= {"video_id": video.row["video_id"], "uri": video.row["uri"]}
            line |= {"split": video.row["split"], "true_label": video.truth}
            line["is_scored"] = person is video.scored
            if person is video.scored and video.truth is not None:
                line["right"] = video.right
            probabilities = person.get("probabilities", {})
            line |= {f"p_{name}": probabilities.get(name) for name in emotions}
            writer.writerow(line)
    return buffer.getvalue()


def report_markdown(figures: Mapping[str, Any], strips: Sequence[Strip]) -> str:
    """The report as Markdown, with relative links to plots and strips."""
    of_split = f" of the split `{figures['split']}`" if figures["split"] else ""
    lines = ["# Report", "", f"{figures['num_videos']} videos{of_split}.", ""]
    if not figures["is_complete"]:
        lines += [f"**Unfinished**: {UNFINISHED}", ""]
    if figures["random_weights"]:
        lines += [
            f"**Random weights**: {', '.join(figures['random_weights'])}. {UNTRAINED}",
            "",
        ]
    if "all_videos" in figures:
        lines += _accuracy_lines(figures)
    else:
        lines += ["The manifest has no labels, so there is no accuracy.", ""]
    lines += ["## Labels", "", "![labels](labels.png)", ""]
    if figures["confidence"]:
        spread = figures["confidence"]
        lines += [
            f"Confidence: mean {spread['mean']:.2f}, median {spread['median']:.2f}, 80% of the "
            f"videos within {spread['p10']:.2f} to {spread['p90']:.2f}.",
            "",
            "![confidence](confidence.png)",
            "",
        ]
    lines += ["## Statuses", "", "| status | videos | meaning |", "|---|---:|---|"]
    for status, count in figures["statuses"].items():
        lines.append(f"| {status} | {count} | {STATUS_WORDS.get(status, '')} |")
    lines += [f"| **sum** | **{figures['num_videos']}** | every manifest row |", ""]
    if strips:
        lines += [
            "## Strips",
            "",
            "Frames in time order with their emotion scores. The bars are scaled to the highest "
            "score of the strip.",
            "",
        ]
        for strip in strips:
            title = strip.title.replace("[", "(").replace("]", ")")
            lines += [f"![{title}]({strip.path})", ""]
    return "\n".join(lines)


def _accuracy_lines(figures: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Accuracy",
        "",
        "| counted | videos | right | accuracy | 95% interval | UAR | macro-F1 |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for name, key in (
        (f"all labelled videos ({NO_LABEL} is wrong)", "all_videos"),
        ("videos with a prediction", "predicted_videos"),
    ):
        s = figures[key]
        low, high = s["accuracy_interval_95"]
        lines.append(
            f"| {name} | {s['num_videos']} | {s['num_right']} | {_percent(s['accuracy'])} | "
            f"{_percent(low)} to {_percent(high)} | {_percent(s['uar'])} | "
            f"{_percent(s['macro_f1'])} |"
        )
    lines.append("")
    if (error := figures["expected_calibration_error"]) is not None:
        lines += [
            f"Expected calibration error: {error:.3f}, over all videos with probabilities, "
            "including those whose label was withheld.",
            "",
        ]
    lines += _abstaining_lines(figures)
    for name in ("confusion", "per_emotion", "reliability"):
        if f"{name}.png" in figures["pictures"]:
            lines += [f"![{name}]({name}.png)", ""]
    for column, values in figures["slices"].items():
        lines += [
            f"| {column} | videos | accuracy | 95% interval | UAR |",
            "|---|---:|---:|---|---:|",
        ]
        for value, s in values.items():
            low, high = s["accuracy_interval_95"]
            lines.append(
                f"| {value} | {s['num_videos']} | {_percent(s['accuracy'])} | {_percent(low)} to "
                f"{_percent(high)} | {_percent(s['uar'])} |"
            )
        lines.append("")
    return lines


def _abstaining_lines(figures: Mapping[str, Any]) -> list[str]:
    """Table of coverage and accuracy by --abstain-below, one line per distinct coverage."""
    lines = [
        f"{_percent(figures['coverage'])} of the labelled videos have a label "
        f"({figures['labels'][UNCERTAIN]} are `{UNCERTAIN}`). Other limits give:",
        "",
        "| --abstain-below | videos with a label | accuracy among them |",
        "|---:|---:|---:|",
    ]
    shown = None
    for row in figures["abstaining"]:
        if row["coverage"] != shown and row["accuracy"] is not None:
            lines.append(
                f"| {row['abstain_below']:.2f} | {_percent(row['coverage'])} | "
                f"{_percent(row['accuracy'])} |"
            )
        shown = row["coverage"]
    return [*lines, ""]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}%"


def summary_line(figures: Mapping[str, Any]) -> str:
    """The figures that a job prints at its end, as one line of JSON."""
    brief = {"videos": figures["num_videos"], "statuses": figures["statuses"]}
    if "all_videos" in figures:
        brief |= {name: figures["all_videos"][name] for name in ("accuracy", "uar", "macro_f1")}
    return json.dumps(brief)
