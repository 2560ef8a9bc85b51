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


def save(figure: Any, path: pathlib.Path, legend: int = 0) -> None:
    """Write a picture, with a legend of so many columns above it of all its labels."""
    handles = {}
    for axes in figure.axes if legend else ():
        found = zip(*axes.get_legend_handles_labels(), strict=True)
        handles |= {label: handle for handle, label in found}
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper center",
            ncols=legend,
            frameon=False,
        )
    figure.savefig(path, dpi=100, facecolor="white")


def use_numbers(axis: Any, ticks: list[float]) -> None:
    """Label a logarithmic axis with plain numbers."""
    axis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def bands(curves: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the quartiles and the median of curves [runs, measures]; inf counts."""
    curves = np.where(np.isfinite(curves), curves, np.inf)
    low, middle, high = (
        np.quantile(curves, share, axis=0, method="nearest")
        for share in (0.25, 0.5, 0.75)
    )
    return low, middle, high
