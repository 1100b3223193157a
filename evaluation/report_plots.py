"""Plots of the report as small SVG images: values with intervals, lines, matrices; each in panels."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

# Okabe and Ito's colours, which most colour-blind people can tell apart, and a marker each for those who cannot.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 5.2  # inches, for columns that fit a phone
Point = tuple[float, float | None, float | None]  # a value and its interval, where it has one


def _panels(titles: Sequence[str], heights: Sequence[float], columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(titles) // columns)
    tall = [max(heights[row * columns : (row + 1) * columns]) for row in range(rows)]
    figure = Figure(figsize=(WIDTH, sum(tall)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, height_ratios=tall).flat)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    return figure, axes


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One legend for all panels, above them."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        columns = min(len(handles), 3)
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=columns, fontsize=8, frameon=False
        )


def _svg(figure: Any) -> str:
    """Give a data URI, the same for the same plot; words stay words."""
    import matplotlib

    data = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()


def interval_plot(
    panels: dict[str, dict[str, dict[str, Point]]], label: str, *, bar: float | None = None, columns: int = 1
) -> str:
    """Draw values with intervals, a line a name and a colour a series; returns a data URI.

    Parameters
    ----------
    panels
        By title, by series, by name.
    label
        Of the axis.
    bar
        Where to draw the bar that is wanted.
    columns
        Panels side by side.
    """
    names = {
        title: list(dict.fromkeys(name for found in some.values() for name in found)) for title, some in panels.items()
    }
    styles = list(dict.fromkeys(what for series in panels.values() for what in series))  # one in all panels
    heights = [0.9 + len(names[title]) * (0.14 + 0.09 * len(series)) for title, series in panels.items()]
    figure, axes = _panels(list(panels), heights, columns)
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        for number, (what, found) in enumerate(series.items()):
            places = [names[title].index(name) + (number - (len(series) - 1) / 2) * 0.6 / len(series) for name in found]
            values = [value for value, _, _ in found.values()]
            below, above = zip(*(_reach(point) for point in found.values()), strict=True) if found else ((), ())
            axis.errorbar(
                values,
                places,
                xerr=[below, above],
                fmt=MARKERS[styles.index(what) % len(MARKERS)],
                color=COLOURS[styles.index(what) % len(COLOURS)],
                markersize=4,
                linewidth=1.2,
                label=what,
            )
        if bar is not None:
            axis.axvline(bar, color="black", linestyle="--", linewidth=1, label="the bar")
        axis.set_yticks(range(len(names[title])), names[title])
        axis.set_ylim(len(names[title]) - 0.5, -0.5)
        axis.set_xlabel(label, fontsize=8)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    _legend(figure, axes)
    return _svg(figure)


def _reach(point: Point) -> tuple[float, float]:
    value, low, high = point
    return (0.0 if low is None else max(0.0, value - low), 0.0 if high is None else max(0.0, high - value))


def line_plot(
    panels: dict[str, dict[str, list[tuple[float, Point]]]],
    labels: tuple[str, str],
    *,
    lines: dict[str, dict[str, float]] | None = None,
    upright: dict[str, float] | None = None,
    columns: int = 1,
) -> str:
    """Draw series of points with bands as wide as their intervals; returns a data URI.

    Parameters
    ----------
    panels
        By title, by series: places on the axis with their points.
    labels
        Of both axes.
    lines, upright
        Level lines by title and words, and upright ones, by words, in every panel.
    columns
        Panels side by side.
    """
    figure, axes = _panels(list(panels), [2.4] * len(panels), columns)
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        for number, (what, points) in enumerate(series.items()):
            colour = COLOURS[number % len(COLOURS)]
            places, values = [place for place, _ in points], [point[0] for _, point in points]
            marker = MARKERS[number % len(MARKERS)] if len(points) < 12 else None
            axis.plot(places, values, marker=marker, color=colour, markersize=4, linewidth=1.2, label=what)
            if all(point[1] is not None and point[2] is not None for _, point in points):
                low, high = [point[1] for _, point in points], [point[2] for _, point in points]
                axis.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        for number, (words, level) in enumerate((lines or {}).get(title, {}).items()):
            axis.axhline(level, color="#555555", linestyle=("--", ":", "-.")[number % 3], linewidth=1, label=words)
        for words, place in (upright or {}).items():
            axis.axvline(place, color="#555555", linestyle="--", linewidth=1, label=words)
        axis.set_xlabel(labels[0], fontsize=8)
        axis.set_ylabel(labels[1], fontsize=8)
        axis.grid(color="#dddddd", linewidth=0.6)
    _legend(figure, axes)
    return _svg(figure)


def matrix_plot(panels: dict[str, np.ndarray], names: Sequence[str]) -> str:
    """Draw confusion matrices (classes, classes), rows what is shown, as shares of their rows; returns a data URI."""
    figure, axes = _panels(list(panels), [2.9] * len(panels), len(panels))
    size = 7 if len(names) < 6 else 5
    for axis, counts in zip(axes, panels.values(), strict=True):
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
        # Squares and not a picture: an image inside an SVG would be a bitmap.
        axis.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="#dddddd", linewidth=0.3)
        for row, column in np.ndindex(shares.shape):
            if (share := shares[row, column]) >= 0.005:
                colour = "white" if share > 0.55 else "black"
                place = (column + 0.5, row + 0.5)
                axis.text(*place, f"{share:.0%}", ha="center", va="center", fontsize=size, color=colour)
        axis.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90, fontsize=size + 1)
        axis.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=size + 1)
        axis.invert_yaxis()
        axis.set_aspect("equal")
        axis.set_xlabel("taken for", fontsize=8)
    axes[0].set_ylabel("shows", fontsize=8)
    return _svg(figure)
