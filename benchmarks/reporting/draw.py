"""What all pictures share: their size, their font, colours from `methods`."""

import pathlib
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.ticker
import numpy as np

# At least 10 points where a page shows a picture of three panels at its own width.
matplotlib.rcParams.update(
    {"font.size": 15, "axes.titlesize": 15, "figure.labelsize": 15}
)


def panels(rows: int, columns: int, size: tuple[float, float], **more: Any) -> Any:
    """Return a figure and its axes [rows, columns], each of the size in inches."""
    figure = matplotlib.figure.Figure(
        figsize=(columns * size[0], rows * size[1]), layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def task_panels(
    names: list[str], columns: int, size: tuple[float, float], **more: Any
) -> tuple[Any, dict[str, Any]]:
    """Return a figure, and the axes of every task."""
    figure, grid = panels(-(-len(names) // columns), columns, size, **more)
    for number, axes in enumerate(grid.flat):
        if number >= len(names):
            axes.axis("off")
            continue
        axes.set_title(names[number].removesuffix(", long"))
        if "sharex" in more:  # the last of every column has numbers
            axes.tick_params(labelbottom=number >= len(names) - columns)
    return figure, dict(zip(names, grid.flat, strict=False))


def save(
    figure: Any, path: pathlib.Path, legend: int = 0, dpi: int = 100, **more: Any
) -> None:
    """Write a picture, with a legend of so many columns above it of all its labels."""
    handles = {
        handle.get_label(): handle
        for axes in figure.axes
        for handle in axes.get_legend_handles_labels()[0]
    }
    if legend and handles:
        style = {"loc": "outside upper center", "ncols": legend, "frameon": False}
        figure.legend(handles=list(handles.values()), **style, **more)
    figure.savefig(path, dpi=dpi, facecolor="white")


def use_numbers(axis: Any, ticks: list[float]) -> None:
    """Label a logarithmic axis with plain numbers."""
    axis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def draw_runs(
    axis: Any, runs: Any, floor: float = 0.0, band: bool = True, **style: Any
) -> None:
    """Draw the median of runs over their updates, and quartiles; inf is a value."""
    curves = np.stack(runs["curve"])
    curves = np.where(np.isfinite(curves), np.maximum(curves, floor), np.inf)
    low, middle, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0, method="nearest")
    updates = runs["every"].iloc[0] * np.arange(1, len(middle) + 1)
    (line,) = axis.plot(updates, middle, **style)
    if band:
        color = line.get_color()
        axis.fill_between(updates, low, high, color=color, alpha=0.2, linewidth=0)
