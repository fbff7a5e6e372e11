"""The plots of a report; each function returns the bytes of a PNG file.

Matplotlib imports for a second: import this module only where a plot is drawn.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from caan.metrics import ReliabilityBin
from caan.report.colours import EMOTION_COLOURS, OTHER_COLOUR
from caan.report.strips import StripFrame

INK = "#23272e"
MUTED = "#6b717a"


def confusion_plot(matrix: np.ndarray, emotions: Sequence[str]) -> bytes:
    """Plot a confusion matrix as in the paper's Table 5: row percentages, counts, no label.

    `matrix` is int64 [K, K] or [K, K + 1] (see `caan.metrics`); an empty last column is left out.
    """
    columns = list(emotions)
    if matrix.shape[1] > len(emotions) and matrix[:, -1].any():
        columns.append("no label")
    counts = matrix[:, : len(columns)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 0.8 * len(columns) + 2
    figure = Figure(figsize=(size, 0.68 * len(emotions) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        axes.text(
            j,
            i,
            f"{100 * shares[i, j]:.1f}%\n{count}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if shares[i, j] > 0.5 else (INK if count else "#a9aeb5"),
        )
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(emotions)), emotions)
    axes.set_xlabel("predicted", color=MUTED)
    axes.set_ylabel("true", color=MUTED)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure)


def per_emotion_plot(per_emotion: Mapping[str, Mapping[str, float | int | None]]) -> bytes:
    """Plot recall, precision and F1 of each emotion from `summarise(...)["per_emotion"]`."""
    names = list(per_emotion)
    figure = Figure(figsize=(1.05 * len(names) + 2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    colours = {"recall": "#3b74b4", "precision": "#9dbfe0", "f1": "#23272e"}
    for i, (figure_name, colour) in enumerate(colours.items()):
        heights = [100 * (per_emotion[name][figure_name] or 0.0) for name in names]
        places = np.arange(len(names)) + (i - 1) * 0.27
        bars = axes.bar(places, heights, 0.25, color=colour, label=figure_name)
        axes.bar_label(bars, fmt="%.0f", fontsize=7, color=MUTED)
    axes.set_xticks(
        range(len(names)), [f"{name}\nn={per_emotion[name]['num_videos']}" for name in names]
    )
    axes.set_ylabel("%", color=MUTED)
    axes.set_ylim(0, 108)
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)
    _bare(axes)
    return _png(figure)


def distribution_plot(counts: Mapping[str, int]) -> bytes:
    """Plot the number of videos with each label as horizontal bars, in the order given."""
    figure = Figure(figsize=(6, 0.38 * len(counts) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    colours = [EMOTION_COLOURS.get(name, OTHER_COLOUR) for name in counts]
    bars = axes.barh(list(counts), list(counts.values()), 0.7, color=colours)
    axes.bar_label(bars, padding=3, fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("videos", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _bare(axes)
    return _png(figure)


def confidence_plot(confidence: Sequence[float]) -> bytes:
    """Plot a histogram of the labels' confidence, 0..1."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(confidence, bins=20, range=(0, 1), color="#3b74b4", rwidth=0.92)
    axes.set_xlabel("confidence", color=MUTED)
    axes.set_ylabel("videos", color=MUTED)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, 1)
    _bare(axes)
    return _png(figure)


def reliability_plot(bins: Sequence[ReliabilityBin], calibration_error: float) -> bytes:
    """Plot accuracy against confidence per bin; on the diagonal the two are equal."""
    figure = Figure(figsize=(4.2, 4.4), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color="#a9aeb5", linewidth=1, linestyle="--")
    width = 1 / len(bins)
    filled = [b for b in bins if b.num_videos]
    lower = [b.lower for b in filled]
    heights = [b.accuracy for b in filled]
    axes.bar(lower, heights, 0.94 * width, align="edge", color="#9dbfe0", label="accuracy")
    axes.plot(
        [b.mean_confidence for b in filled], heights, "o", color="#23272e", markersize=4,
        label="at mean confidence",
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_ylabel("accuracy", color=MUTED)
    axes.set_title(f"expected calibration error {calibration_error:.3f}", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    counts.bar([b.lower for b in bins], [b.num_videos for b in bins], 0.94 * width, align="edge",
               color="#c9ced5")  # fmt: skip
    counts.set_ylabel("videos", color=MUTED)
    counts.set_xlabel("confidence", color=MUTED)
    _bare(axes)
    _bare(counts)
    return _png(figure)


def strip_plot(frames: Sequence[StripFrame], title: str) -> bytes:
    """Plot frames in time order; below each, its emotion score as a bar and its own label.

    The bars are scaled to the strip's highest score, because the weights of a long video are small.
    Source: the paper's Figure 5.
    """
    shapes = [frame.image.shape for frame in frames if frame.image is not None]
    aspect = shapes[0][0] / shapes[0][1] if shapes else 0.5625
    height = 1.5 * aspect
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02)
    figure = Figure(figsize=(1.6 * len(frames) + 0.2, height + 1.45), layout=layout)
    grid = figure.subplots(2, len(frames), height_ratios=(height, 0.75), squeeze=False)
    # Matplotlib reads `$` as the start of a formula.
    wrapped = textwrap.shorten(title, 26 * len(frames) + 20, placeholder=" ...")
    figure.suptitle(wrapped.replace("$", r"\$"), fontsize=10, color=INK, x=0.01, ha="left")
    highest = max((frame.emotion_score for frame in frames), default=0.0) or 1.0
    for column, frame in enumerate(frames):
        top, bottom = grid[0, column], grid[1, column]
        _draw_image(top, frame)
        colour = EMOTION_COLOURS.get(frame.label, OTHER_COLOUR)
        bottom.barh([0], [1], 0.5, color="#e8eaed")
        bottom.barh([0], [frame.emotion_score / highest], 0.5, color=colour)
        bottom.text(0.5, -0.85, f"{frame.emotion_score:.3f}", ha="center", va="center",
                    fontsize=9, color=INK)  # fmt: skip
        bottom.text(0.5, -1.7, frame.label, ha="center", va="center", fontsize=9, color=colour)
        bottom.set(xlim=(0, 1), ylim=(-2.2, 0.4))
        bottom.axis("off")
    return _png(figure)


def _draw_image(axes: Axes, frame: StripFrame) -> None:
    axes.set_title(f"{frame.pts_seconds:.1f} s", fontsize=8, color=MUTED, pad=2)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if frame.image is None:
        axes.set_facecolor("#eef0f2")
        axes.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=8, color=MUTED,
                  transform=axes.transAxes)  # fmt: skip
        return
    height, width = frame.image.shape[:2]
    axes.imshow(frame.image)
    if frame.box is not None:
        x0, y0, x1, y1 = frame.box
        axes.add_patch(
            Rectangle(
                (x0 * width, y0 * height),
                (x1 - x0) * width,
                (y1 - y0) * height,
                fill=False,
                linewidth=1.2,
                edgecolor=EMOTION_COLOURS.get(frame.label, OTHER_COLOUR),
            )
        )


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c9ced5")
    axes.tick_params(length=0, labelsize=9, colors=INK)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()
