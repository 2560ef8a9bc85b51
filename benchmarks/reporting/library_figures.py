"""What the rate at the start does to the end of a run, task by task."""

import pathlib
from collections.abc import Sequence

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from benchmarks.experiments.suite import OURS, from_start
from benchmarks.harness.store import TUNING_SEED, final, read_setting
from benchmarks.reporting.paper_figures import COLORS
from benchmarks.reporting.statistics import Comparison, quartiles

_BASELINES = {"adam": ("Adam", "--", "o"), "momentum": ("SGD, momentum .9", ":", "s")}
_OURS = {"memory_adam": "#E69F00", "memory_sgd": "#009E73"}
# Ends are drawn between these multiples of the best one.
_LIMITS = (0.8, 30.0)
_COLUMNS = 4


def draw_starts(comparisons: Sequence[Comparison], path: pathlib.Path) -> None:
    """Draw how every task ends over the rate that it was started with."""
    rows = -(-(len(comparisons) + 1) // _COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(11, 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    cells = grid.ravel()
    for axes, comparison in zip(cells, comparisons, strict=False):
        _draw_task(axes, comparison)
    for axes in cells[len(comparisons) :]:
        axes.axis("off")
    low, high = _LIMITS
    cells[0].set(xscale="log", yscale="log", ylim=(low, high * 1.2))
    cells[0].set_yticks([1, 3, 10, 30], ["1", "3", "10", "30 or more"])
    cells[0].yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    for axes in cells[max(0, len(comparisons) - _COLUMNS) : len(comparisons)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("learning rate at the start")
    for row in grid:
        row[0].set_ylabel("end / best end")
    cells[len(comparisons)].legend(
        *cells[0].get_legend_handles_labels(), loc="center", frameon=False
    )
    figure.savefig(path, dpi=110, facecolor="white")


def trial_ends(comparison: Comparison, name: str) -> dict[float, float]:
    """Return rate -> end of a baseline's trials, one run each, by rate."""
    ends = {
        read_setting(key.setting)["rate"]: final(curve)
        for key, curve in comparison.runs.items()
        if (key.problem, key.method) == (comparison.problem.name, name)
        and key.seed == TUNING_SEED
    }
    return dict(sorted(ends.items()))


def start_ends(
    comparison: Comparison, name: str
) -> dict[float, tuple[float, float, float]]:
    """Return rate -> (low, median, high) of the ends of one of ours, by rate."""
    (one,) = (one for one in OURS if one.method.name == name)
    found = {start: from_start(comparison, one, start) for start in one.starts}
    return {
        start: quartiles(runs.finals)
        for start, runs in found.items()
        if runs is not None
    }


def _draw_task(axes, comparison: Comparison) -> None:
    tried = {name: trial_ends(comparison, name) for name in _BASELINES}
    started = {name: start_ends(comparison, name) for name in _OURS}
    medians = [middle for ends in started.values() for _, middle, _ in ends.values()]
    best = min([*medians, *(end for ends in tried.values() for end in ends.values())])
    for name, (label, dash, mark) in _BASELINES.items():
        axes.plot(
            list(tried[name]),
            np.clip(np.array(list(tried[name].values())) / best, *_LIMITS),
            color=COLORS[name],
            linestyle=dash,
            linewidth=1,
            marker=mark,
            markersize=3,
            label=f"{label}, at this rate",
        )
    for name, color in _OURS.items():
        ends = np.array(list(started[name].values())).T / best
        low, middle, high = np.clip(ends, *_LIMITS)
        rates = list(started[name])
        axes.plot(
            rates,
            middle,
            color=color,
            linewidth=2.5,
            marker="D",
            label=f"{name}, started at it",
        )
        axes.fill_between(rates, low, high, color=color, alpha=0.25, linewidth=0)
    axes.set_title(comparison.problem.name, fontsize="medium")
