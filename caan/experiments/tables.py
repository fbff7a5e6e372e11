"""Write the paper's Tables 2 to 6 from the results of trials, as Markdown, CSV and plots."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from caan import storage
from caan.experiments.results import Results, against, bootstrap
from caan.experiments.trials import FROM_POOL5
from caan.report import plots

REFERENCE = "caan"
"""System that differences are taken to."""

PAPER_TABLES = Path(__file__).parent / "paper_tables.csv"
"""Every system of each table, and what the paper prints for it."""

WITHOUT_POOL5 = (
    "The single branches score from fc6 only: those from pool5 were not run, and need features of "
    "`jobs.extract --pool5 both`."
)
"""Sentence of the report if no trial read pool5 maps."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One system's place in a table."""

    title: str
    """Name in the paper."""
    system: str
    """Name in `caan.experiments.trials.SYSTEMS`."""
    printed: str = ""
    """Accuracy printed in the paper, in percent; empty: none is printed."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of the paper's tables."""

    name: str
    """Name of its CSV file, without the ending."""
    title: str
    """Heading in report.md."""
    note: str
    """How it differs from the paper's table; may be empty."""
    lines: tuple[Line, ...]
    """Its systems, in the paper's order."""


def _lines(table: str) -> tuple[Line, ...]:
    """The lines that paper_tables.csv has of a table."""
    rows = csv.DictReader(io.StringIO(PAPER_TABLES.read_text()))
    return tuple(
        Line(title=row["title"], system=row["system"], printed=row["printed"])
        for row in rows
        if row["table"] == table
    )


TABLES = (
    Table(
        name="table2",
        title="Table 2: layers of the emotion score",
        note="The paper starts the face and context branches at pool5, so their rows that score "
        "from fc6 are no exact counterpart of its figures.",
        lines=_lines("table2"),
    ),
    Table(
        name="table3",
        title="Table 3: average against attention",
        note="",
        lines=_lines("table3"),
    ),
    Table(
        name="table4",
        title="Table 4: other methods",
        note="The paper's figures are on HEIV. The last three systems are not in its table.",
        lines=_lines("table4"),
    ),
    Table(
        name="table6",
        title="Table 6: classical encoders",
        note="The paper's figures are on Ekman-6 / VideoEmotion-8.",
        lines=_lines("table6"),
    ),
)

HEADER = (
    "system", "accuracy", "deviation", "low", "high", "uar", "difference", "difference_low",
    "difference_high", "mcnemar_p", "epochs_run", "num_trials", "paper",
)  # fmt: skip


def write_report(output: str, results: Mapping[str, Results], label_set: Sequence[str]) -> None:
    """Write report.md, a CSV file per table and the plots to the folder `output`.

    A table lists the systems that have results, and a table without any is left out. Differences
    are to `REFERENCE`; without its results those columns are empty.

    Args:
        output: local folder or s3:// prefix.
        results: results of the trials by system; at least one.
        label_set: the emotions, in the order of the confusion matrices.
    """
    parts = [_opening(results)]
    for table in TABLES:
        lines = [line for line in table.lines if line.system in results]
        if not lines:
            continue
        rows = [_row(line, results) for line in lines]
        _write_csv(output, table.name, HEADER, rows)
        parts.append(f"## {table.title}\n\n{table.note}\n\n" + _markdown(rows))
        if table.name == "table4" and REFERENCE in results:
            parts.append(_confusion(output, results[REFERENCE], label_set))
    parts.append(_rules(output, results))
    storage.write_bytes(storage.join(output, "accuracy.png"), _plot(results))
    parts.append("![accuracy of every system](accuracy.png)")
    storage.write_bytes(storage.join(output, "report.md"), "\n\n".join(parts).encode() + b"\n")


def _opening(results: Mapping[str, Results]) -> str:
    record = next(iter(results.values())).records[0]
    seeds = sorted({r["seed"] for r in next(iter(results.values())).records})
    splits = sorted({r["split"] for r in next(iter(results.values())).records})
    return (
        "# The paper's tables on this data\n\n"
        f"{len(splits)} division(s) of the videos, seeds {', '.join(map(str, seeds))}; the first "
        f"has {record['num_train']} training, {record['num_validation']} validation and "
        f"{record['num_test']} test videos, {record['num_test_without_frames']} of these without a "
        "frame to judge, which count as wrong. Accuracies are percent: mean, standard deviation "
        "over seeds, 95% interval by bootstrap over videos and seeds. Differences are to CAAN, "
        "paired by video and seed; p is McNemar's exact test of each seed, their median. With "
        "several divisions a video may count more than once, which makes intervals and p too "
        "small. The column paper is what was printed, on its own data: no target."
        + ("" if FROM_POOL5.keys() & results.keys() else f" {WITHOUT_POOL5}")
    )


def _row(line: Line, results: Mapping[str, Results]) -> list[str]:
    own = results[line.system]
    mean, deviation, uar = own.figures()
    low, high = bootstrap(own.right_SV.astype(float))
    cells = [line.title, *(_percent(x) for x in (mean, deviation, low, high, uar))]
    if REFERENCE in results and line.system != REFERENCE:
        found = against(results[REFERENCE], own)
        cells += [_percent(found["difference"]), *(_percent(x) for x in found["interval"])]
        cells.append(f"{found['mcnemar_p']:.4f}")
    else:
        cells += ["", "", "", ""]
    epochs = [record["epochs_run"] for record in own.records]
    return [*cells, f"{np.mean(epochs):.1f}", str(len(own.records)), line.printed]


def _confusion(output: str, own: Results, label_set: Sequence[str]) -> str:
    matrices = [np.array(r["rules"][r["rule"]]["confusion_matrix"]) for r in own.records]
    matrix = np.sum(matrices, axis=0)
    columns = [*label_set, "no label"]
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rows = [
        [label, *(f"{x:.2f}" for x in row)] for label, row in zip(label_set, shares, strict=True)
    ]
    _write_csv(output, "table5", ("true", *columns), rows)
    storage.write_bytes(
        storage.join(output, "confusion.png"), plots.confusion_plot(matrix, label_set)
    )
    return (
        "## Table 5: confusion of CAAN\n\nTrue by predicted emotion, percent, all trials.\n\n"
        + _markdown(rows, ("true", *columns))
        + "\n\n![confusion](confusion.png)\n\nThe paper's diagonal on HEIV, anger to surprise: "
        "38.10, 55.81, 57.45, 47.06, 42.86, 54.10, 62.82."
    )


def _rules(output: str, results: Mapping[str, Results]) -> str:
    header = ("system", "head", "frames", "centroids", "svm", "context_changed", "seconds")
    rows = []
    for name, own in results.items():
        offered = own.records[0]["rules"]
        cells = [_percent(own.figures(r)[0]) if r in offered else "" for r in header[1:5]]
        changed = [
            r["context_changed_labels"]
            for r in own.records
            if r["context_changed_labels"] is not None
        ]
        seconds = np.mean([record["seconds"] for record in own.records])
        cells += [_percent(float(np.mean(changed))) if changed else "", f"{seconds:.1f}"]
        rows.append([name, *cells])
    _write_csv(output, "rules", header, rows)
    return (
        "## Prediction rules\n\nMean accuracy by the head on R, the frames' softmax weighted by "
        "emotion score, and class centroids. context_changed: share of test videos whose label "
        "changes when the context is replaced by its training mean. seconds: of one trial.\n\n"
        + _markdown(rows, header)
    )


def _plot(results: Mapping[str, Results]) -> bytes:
    order = sorted(results, key=lambda name: results[name].figures()[0])
    means = [100 * results[name].figures()[0] for name in order]
    intervals = [bootstrap(results[name].right_SV.astype(float)) for name in order]
    figure = Figure(figsize=(6.5, 0.3 * len(order) + 1), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(order, means, 0.7, color="#9dbfe0")
    for place, (low, high) in enumerate(intervals):
        axes.plot([100 * low, 100 * high], [place, place], color=plots.INK, linewidth=1)
    axes.set_xlabel("accuracy, % (95% interval)", color=plots.MUTED)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.2f}"


def _markdown(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _write_csv(
    output: str, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    storage.write_bytes(storage.join(output, f"{name}.csv"), text.getvalue().encode())
