"""The results of a search: a table of its trials, a plot over each option, and the report."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from matplotlib.figure import Figure

from caan import storage

DEPTH, MODALITY = "model.scorer_depth", "model.modality"


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """One trial of a search."""

    trial_id: str
    """Its name within the search."""
    settings: Mapping[str, Any]
    """Its value of each option that was searched."""
    epochs: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    """The metrics of each epoch, as `caan.training.loop.fit` reports them."""
    error: str = ""
    """Why it failed; empty if it did not."""

    def best(self, metric: str) -> Mapping[str, float] | None:
        """The metrics of its best epoch, chosen as `fit` does; None if there is none."""
        known = [row for row in self.epochs if np.isfinite(row.get(metric, np.nan))]
        return max(known, key=lambda row: _key(row, metric), default=None)


def _key(row: Mapping[str, float], metric: str) -> tuple[float, float]:
    return row[metric], -row.get("validation_loss", 0.0)


def ranked(trials: Sequence[SearchTrial], metric: str) -> list[SearchTrial]:
    """The trials that have a result, best first; ties go to the lower validation loss."""
    keys = {trial.trial_id: trial.best(metric) for trial in trials}
    scored = [trial for trial in trials if keys[trial.trial_id] is not None]
    return sorted(scored, key=lambda t: _key(keys[t.trial_id] or {}, metric), reverse=True)


def trials_table(trials: Sequence[SearchTrial], metric: str) -> pa.Table:
    """One row per trial: its options, its best epoch and that epoch's metrics, its cost, its error.

    An option whose values are of several types is a column of JSON texts.
    """
    options = list(dict.fromkeys(name for trial in trials for name in trial.settings))
    columns: dict[str, Any] = {"trial_id": [trial.trial_id for trial in trials]}
    columns["status"] = [
        "failed" if trial.error else ("ok" if trial.epochs else "unfinished") for trial in trials
    ]
    for option in options:
        columns[option] = _plain([trial.settings.get(option) for trial in trials])
    best = [trial.best(metric) for trial in trials]
    for name in ("validation_uar", "validation_accuracy", "validation_loss", "train_loss"):
        columns[name] = pa.array([row.get(name) if row else None for row in best], pa.float64())
    columns["best_epoch"] = pa.array([int(row["epoch"]) if row else None for row in best])
    columns["num_epochs"] = [len(trial.epochs) for trial in trials]
    columns["seconds"] = [sum(row.get("seconds", 0.0) for row in trial.epochs) for trial in trials]
    columns["error"] = [trial.error or None for trial in trials]
    return pa.table(columns)


def _plain(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 and kinds <= {int, float, bool, str}:
        return values
    return [json.dumps(value) for value in values]


def slices_plot(trials: Sequence[SearchTrial], metric: str) -> bytes:
    """Each trial's best result over each option, one panel per option, as a PNG."""
    scored = ranked(trials, metric)
    options = list(dict.fromkeys(name for trial in scored for name in trial.settings))
    columns = min(3, len(options))
    rows = -(-len(options) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    heights = [(trial.best(metric) or {})[metric] for trial in scored]
    for panel, option in zip(panels, options, strict=False):
        values: list[Any] = [trial.settings.get(option) for trial in scored]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            panel.plot(values, heights, "o", color="#3b74b4", markersize=4, alpha=0.7)
            positive = [v for v in values if v > 0]
            if len(positive) == len(values) and max(values) >= 30 * min(values):
                panel.set_xscale("log")
            elif all(isinstance(v, int) for v in values) and len(set(values)) <= 6:
                panel.set_xticks(sorted(set(values)))
        else:
            names = [str(value) for value in values]
            order = {name: place for place, name in enumerate(sorted(set(names)))}
            places = [order[name] for name in names]
            panel.plot(places, heights, "o", color="#3b74b4", markersize=4, alpha=0.7)
            panel.set_xticks(range(len(order)), list(order), fontsize=8)
            panel.margins(x=0.2)
        panel.set_xlabel(option, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(figure.axes)[len(options) :]:
        panel.set_visible(False)
    for row in range(rows):
        figure.axes[row * columns].set_ylabel(metric, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def depth_slice(trials: Sequence[SearchTrial], metric: str) -> list[str]:
    """Markdown lines of the paper's Table 2: results by modality and depth of the emotion score.

    A cell is the mean over all trials of that modality and depth, and how many there are.
    Source: the paper's Table 2.
    """
    cells: dict[tuple[str, int], list[float]] = {}
    for trial in ranked(trials, metric):
        if DEPTH in trial.settings:
            place = (str(trial.settings.get(MODALITY, "all")), int(trial.settings[DEPTH]))
            cells.setdefault(place, []).append((trial.best(metric) or {})[metric])
    if not cells:
        return []
    depths = sorted({depth for _, depth in cells})
    lines = [
        "## Depth of the emotion score (the paper's Table 2)",
        "",
        f"Mean {metric} of the validation videos, in percent, and the number of trials.",
        "",
        "| | " + " | ".join(f"{depth} layer{'s' * (depth > 1)}" for depth in depths) + " |",
        "|---" * (len(depths) + 1) + "|",
    ]
    for modality in dict.fromkeys(name for name, _ in cells):
        row = [cells.get((modality, depth), []) for depth in depths]
        shown = [f"{100 * np.mean(cell):.1f} ({len(cell)})" if cell else "-" for cell in row]
        lines.append(f"| {modality} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def report_markdown(trials: Sequence[SearchTrial], metric: str, num_videos: int) -> str:
    """The report of a search; `num_videos` validation videos chose among its trials."""
    order = ranked(trials, metric)
    failed = [trial for trial in trials if trial.error]
    num_epochs = sum(len(trial.epochs) for trial in trials)
    lines = [
        "# Search",
        "",
        f"{len(trials)} trials, {len(failed)} failed, {num_epochs} epochs in all. Chosen by "
        f"{metric} on {num_videos} validation videos, which the best of many trials flatters: "
        "measure the model on a test split.",
        "",
    ]
    if order:
        best = order[0].best(metric) or {}
        lines += [
            f"## Best: {100 * best[metric]:.1f}% (epoch {int(best['epoch']) + 1})",
            "",
            *[f"- `{name}`: {_shown(value)}" for name, value in order[0].settings.items()],
            "",
            "The complete model is in `model/`.",
            "",
            "![Results over each option](slices.png)",
            "",
            *depth_slice(trials, metric),
            "## Best ten",
            "",
        ]
        options = list(order[0].settings)
        lines.append(f"| {metric} | epochs | " + " | ".join(f"`{name}`" for name in options) + " |")
        lines.append("|---" * (len(options) + 2) + "|")
        for trial in order[:10]:
            score = (trial.best(metric) or {})[metric]
            shown = " | ".join(_shown(trial.settings.get(name)) for name in options)
            lines.append(f"| {100 * score:.1f} | {len(trial.epochs)} | {shown} |")
        lines.append("")
    if failed:
        lines += ["## Failed trials", ""]
        lines += [f"- {trial.trial_id}: {trial.error}" for trial in failed] + [""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_search(output: str, trials: Sequence[SearchTrial], metric: str, num_videos: int) -> None:
    """Write trials.parquet, trials.csv, slices.png and report.md; local or s3://."""
    table = trials_table(trials, metric)
    storage.write_table(table, storage.join(output, "trials.parquet"))
    text = io.BytesIO()
    pyarrow.csv.write_csv(table, text)
    storage.write_bytes(storage.join(output, "trials.csv"), text.getvalue())
    if ranked(trials, metric):
        storage.write_bytes(storage.join(output, "slices.png"), slices_plot(trials, metric))
    report = report_markdown(trials, metric, num_videos)
    storage.write_bytes(storage.join(output, "report.md"), report.encode())
