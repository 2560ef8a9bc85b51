"""Pictures of a comparison."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from benchmarks.harness.sweep import BUDGETS
from benchmarks.methods import LABELS, METHODS
from benchmarks.reporting.statistics import (
    Comparison,
    Outcome,
    fixed,
    most_tuned,
    quartiles,
    transferred,
    tuned,
)

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLORS = {
    "sgd": "#999999",
    "momentum": "#000000",
    "adam": "#0072B2",
    "paper_sgd": "#009E73",
    "paper_adam": "#E69F00",
    "prodigy": "#CC79A7",
}


_NEVER = 1.25  # horizons: where what never got there is drawn


def _plain(label: str) -> str:
    return label.replace("**", "")


def draw(
    comparisons: Sequence[Comparison], measured: Sequence[str], path: pathlib.Path
) -> None:
    """Draw curves of fixed settings and of the best trials, and all updates."""
    rows = len(comparisons)
    figure = matplotlib.figure.Figure(figsize=(13, 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, width_ratios=(1, 1, 1.15), squeeze=False)
    for axes, comparison, label in zip(grid, comparisons, measured, strict=True):
        draw_row(axes, comparison, label)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        [_plain(label) for label in labels],
        loc="outside lower center",
        ncols=7,
        frameon=False,
    )
    figure.savefig(path, dpi=100, facecolor="white")


def draw_row(axes, comparison: Comparison, label: str) -> None:
    """Draw one problem on three axes."""
    for axis, title, choose in (
        (axes[0], "one fixed setting each", fixed),
        (axes[1], "best of the trials", most_tuned),
    ):
        for name, color in COLORS.items():
            found = choose(comparison, name)
            if found is not None:
                _draw_curves(axis, comparison, found, color, LABELS[name])
        axis.axhline(comparison.target, color="black", linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        axis.set_xlabel("updates")
        axis.set_title(f"{comparison.problem.name}: {title}")
    axes[0].set_ylabel(f"{label}\nmedian and quartiles")
    _share_limits(axes[:2])
    _draw_updates(axes[2], comparison)


def _draw_curves(
    axis, comparison: Comparison, found: Outcome, color: str, label: str
) -> None:
    curves = np.where(np.isfinite(found.curves), found.curves, np.inf)
    low, middle, high = (
        np.quantile(curves, share, axis=0, method="nearest")
        for share in (0.25, 0.5, 0.75)
    )
    every = comparison.problem.every
    # A share of errors can be 0, which no log axis shows.
    floor = comparison.target / 100
    updates = every * np.arange(1, len(middle) + 1)
    low, middle, high = (np.maximum(one, floor) for one in (low, middle, high))
    axis.plot(updates, middle, color=color, label=label)
    axis.fill_between(updates, low, high, color=color, alpha=0.2, linewidth=0)


def _share_limits(axes) -> None:
    """Show the same range on all axes, without the peaks of what diverged."""
    values = np.concatenate([line.get_ydata() for axis in axes for line in axis.lines])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = values.min(), np.quantile(values, 0.99)
    for axis in axes:
        axis.set_ylim(low / 1.2, high * 1.5)


def _draw_updates(axis, comparison: Comparison) -> None:
    """Draw the median updates to the target of every method, and the quartiles."""
    horizon = comparison.problem.horizon
    kinds: list[tuple[str, str, str, Callable]] = [("fixed", "D", "white", fixed)]
    for budget, color in zip(BUDGETS, ("#BBBBBB", "#777777", "#000000"), strict=True):
        choose = functools.partial(tuned, budget=budget)
        kinds.append((f"{budget} trial{'s' * (budget > 1)}", "o", color, choose))
    reloaded = functools.partial(transferred, start="reloaded")
    kinds.append(("reloaded", "s", "#D55E00", reloaded))
    for index, (kind, marker, color, choose) in enumerate(kinds):
        for place, method in enumerate(METHODS):
            if kind == "reloaded" and not method.has_memory:
                continue
            found = choose(comparison, method.name)
            if found is None:
                continue
            low, middle, high = np.minimum(quartiles(found.updates), _NEVER * horizon)
            height = place + 0.15 * (index - 2)
            axis.plot([low, high], [height, height], color="#888888", linewidth=1)
            axis.plot(
                middle,
                height,
                marker,
                color=color,
                markeredgecolor="black",
                markersize=5,
                label=kind if place == (3 if kind == "reloaded" else 0) else None,
            )
    _finish(axis, comparison)


def _finish(axis, comparison: Comparison) -> None:
    horizon = comparison.problem.horizon
    axis.axvline(1.1 * horizon, color="black", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axis.set_xlim(right=1.6 * horizon)
    axis.text(_NEVER * horizon, -1.0, "never", ha="center", fontsize="small")
    axis.set_ylim(len(METHODS) - 0.4, -2.0)
    axis.set_yticks(range(len(METHODS)), [_plain(LABELS[one.name]) for one in METHODS])
    axis.set_xlabel("updates to the target, less is better")
    axis.set_title(f"target {comparison.target:.3g}, median and quartiles")
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.4, -0.13),
        ncols=5,
        frameon=False,
        fontsize="small",
        handletextpad=0.1,
        columnspacing=1.0,
    )
