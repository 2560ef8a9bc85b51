"""Pictures of what the library's own optimizers do: base rates, tasks, speed."""

import pathlib
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from benchmarks.experiments import layer_rates, noise_floor
from benchmarks.experiments.speed import MEMORIES, Measurement
from benchmarks.harness.store import TUNING_SEED, final, read_setting
from benchmarks.methods import BASELINES, LABELS, OURS, OURS_BY_NAME, plain
from benchmarks.reporting.library_tables import from_rate
from benchmarks.reporting.paper_figures import COLORS
from benchmarks.reporting.statistics import (
    Comparison,
    Outcome,
    fixed,
    median,
    most_tuned,
    quartiles,
)

# Okabe and Ito's palette, brown for its yellow: told apart by colour-blind readers too.
SPEED_COLORS = {
    "sgd": "#999999",
    "momentum": "#000000",
    "adam": "#0072B2",
    "dowg": "#56B4E9",
    "prodigy": "#8C6D31",
    "schedule_free_adamw": "#CC79A7",
    "memory_sgd": "#009E73",
    "memory_adam": "#E69F00",
    "paper_sgd": "#117733",
    "paper_adam": "#D55E00",
}
_PROFILED = {
    "memory_adam": "#E69F00",
    "memory_sgd": "#009E73",
    "adam": COLORS["adam"],
    "momentum": COLORS["momentum"],
    "sgd": COLORS["sgd"],
    "prodigy": COLORS["prodigy"],
    "mechanize": "#56B4E9",
    "paper_adam": "#D55E00",
}
_BASELINES = {"adam": ("Adam", "--", "o"), "momentum": ("SGD, momentum .9", ":", "s")}
_OURS = {"memory_adam": "#E69F00", "memory_sgd": "#009E73"}
# Ends are drawn between these multiples of the best one.
_LIMITS = (0.8, 30.0)
_COLUMNS = 4


def draw_base_rates(comparisons: Sequence[Comparison], path: pathlib.Path) -> None:
    """Draw how every task ends over the rate that it was started with."""
    rows = -(-(len(comparisons) + 1) // _COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(11, 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    cells = grid.ravel()
    for axes, comparison in zip(cells, comparisons, strict=False):
        _draw_ends(axes, comparison)
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


def base_rate_ends(
    comparison: Comparison, name: str
) -> dict[float, tuple[float, float, float]]:
    """Return rate -> (low, median, high) of the ends of one of ours, by rate."""
    (one,) = (one for one in OURS if one.method.name == name)
    found = {rate: from_rate(comparison, one, rate) for rate in one.rates}
    return {
        rate: quartiles(runs.finals) for rate, runs in found.items() if runs is not None
    }


def _draw_ends(axes, comparison: Comparison) -> None:
    tried = {name: trial_ends(comparison, name) for name in _BASELINES}
    started = {name: base_rate_ends(comparison, name) for name in _OURS}
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


def profile(comparisons: Sequence[Comparison]) -> dict[str, np.ndarray]:
    """Return method -> [tasks], median updates over those of the best one there."""
    updates: dict[str, list[float]] = {name: [] for name in _PROFILED}
    for comparison in comparisons:
        for name, values in updates.items():
            found = _usual(comparison, name)
            values.append(np.inf if found is None else median(found.updates))
    table = np.array(list(updates.values()))
    best = table.min(axis=0)
    with np.errstate(invalid="ignore"):
        over = np.where(np.isfinite(table), table / best, np.inf)
    return dict(zip(updates, over, strict=True))


def _usual(comparison: Comparison, name: str) -> Outcome | None:
    one = OURS_BY_NAME.get(name)
    if one is not None:
        return from_rate(comparison, one, 1e-3)
    if name in BASELINES:
        return most_tuned(comparison, name)
    return fixed(comparison, name)


def draw_profile(comparisons: Sequence[Comparison], path: pathlib.Path) -> None:
    """Draw on which share of the tasks a method is within a factor of the best."""
    figure = matplotlib.figure.Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    factors = np.geomspace(1.0, 8.0, 200)
    for name, over in profile(comparisons).items():
        share = (over[:, None] <= factors).mean(axis=0)
        ours = name in ("memory_adam", "memory_sgd")
        kind = "best of 20 rates" if name in BASELINES else "fixed"
        one = OURS_BY_NAME.get(name)
        label = plain(LABELS[name] if one is None else one.label)
        axes.plot(
            factors,
            share,
            color=_PROFILED[name],
            linewidth=2.5 if ours else 1.5,
            linestyle="--" if kind != "fixed" else "-",
            label=f"{label}, {kind}",
        )
    axes.set_xscale("log", base=2)
    ticks = (1, 2, 4, 8)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("updates to the target, over those of the best method")
    axes.set_ylabel("share of tasks")
    axes.set_title(f"{len(comparisons)} tasks, medians over seeds")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110, facecolor="white")


def draw_layer_rates(rows: list[layer_rates.Row], path: pathlib.Path) -> None:
    """Draw the rate of every layer over updates, a panel per task."""
    tasks = dict.fromkeys(one.task for one in rows)
    figure = matplotlib.figure.Figure(figsize=(13, 3.6), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    colors = matplotlib.colormaps["viridis"]
    for axes, task in zip(panels, tasks, strict=True):
        courses: dict[str, list[layer_rates.Row]] = {}
        for one in rows:
            if one.task == task:
                courses.setdefault(one.layer, []).append(one)
        for number, course in enumerate(courses.values()):
            color = colors(number / max(len(courses) - 1, 1))
            updates, rates = zip(*(one[2:] for one in course), strict=True)
            axes.plot(updates, rates, color=color, linewidth=1.0)
        title = f"{task.removesuffix(', long')}: {len(courses)} layers"
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log")
        axes.set_xlabel("updates")
    panels[0].set_yscale("log")
    panels[0].set_ylabel("learning rate of a layer")
    figure.savefig(path, dpi=110, facecolor="white")


def draw_noise_floor(rows: list[noise_floor.Row], path: pathlib.Path) -> None:
    """Draw the agreement over the rate, and what two rules make of it over updates."""
    figure = matplotlib.figure.Figure(figsize=(13, 3.6), layout="constrained")
    still, rates, distances = figure.subplots(1, 3)
    points = [one for one in rows if one.what == noise_floor.AGREEMENT]
    at = np.array([one.at for one in points])
    still.plot(at, -at / 2, color="#0072B2", label="-rate x curvature / 2")
    still.plot(at, [one.value for one in points], "o", color="black", label="measured")
    still.set_xscale("log")
    still.set_xlabel("rate x curvature")
    still.set_title("agreement of a gradient with the last one, at rest", fontsize=10)
    still.legend(frameon=False)
    for name, color in zip(noise_floor.GAINS, ("#D55E00", "#E69F00"), strict=True):
        course = [one for one in rows if one.what == name]
        updates = [one.at for one in course]
        rates.plot(updates, [one.value for one in course], color=color, label=name)
        distances.plot(updates, [one.distance for one in course], color=color)
    for axes, title in (
        (rates, "rate of the layer"),
        (distances, "distance of its flat half from where it should be"),
    ):
        axes.set_xscale("log")
        axes.set_xlabel("updates")
        axes.set_title(title, fontsize=10)
    rates.set_yscale("log")
    rates.legend(frameon=False)
    distances.set_ylim(bottom=0.0)
    figure.savefig(path, dpi=110, facecolor="white")


def draw_speed(measurements: list[Measurement], path: pathlib.Path) -> None:
    """Draw the ratio to Adam by size and by M, and the bytes of state."""
    figure = matplotlib.figure.Figure(figsize=(13, 4), layout="constrained")
    by_size, by_kernels, state = figure.subplots(1, 3)
    single = [one for one in measurements if one.case == "update" and one.leaves == 1]
    _draw_sizes(by_size, state, single)
    _draw_kernels(by_kernels, single)
    for axis in (by_size, by_kernels):
        axis.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("log")
        axis.set_ylabel("time of an update / clip and base")
    figure.legend(
        *by_size.get_legend_handles_labels(), loc="outside lower center", ncols=5
    )
    figure.savefig(path, dpi=110, facecolor="white")


def _draw_sizes(axes, state, single: list[Measurement]) -> None:
    """Draw every method at its usual M: ratios by size, and the bytes of state."""
    usual = dict(MEMORIES)
    for method, color in SPEED_COLORS.items():
        num = usual.get(method, 0)
        ours = [one for one in single if (one.method, one.kernels) == (method, num)]
        points = {one.size: one for one in ours}
        sizes = sorted(points)
        ratios = [points[size].clipped_ratio for size in sizes]
        axes.plot(sizes, ratios, "o-", color=color, label=method)
        if points:
            largest = points[max((s for s in sizes if s <= 10**7), default=sizes[0])]
            bar = state.barh(method, largest.state_bytes, color=color)
            state.bar_label(bar, fmt="%.2g", padding=3)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("parameters (memory_: M = 1, paper_: M = 20)")
    state.set_xlim(0, 18)
    state.set_xlabel("bytes of state per parameter")
    state.invert_yaxis()


def _draw_kernels(axes, single: list[Measurement]) -> None:
    """Draw the ratio of a landscape by its number of local models."""
    for size, style in ((10**6, "o-"), (10**7, "s--")):
        points = {
            one.kernels: one.clipped_ratio
            for one in single
            if one.size == size and one.method == "paper_sgd"
        }
        axes.plot(
            sorted(points),
            [points[num] for num in sorted(points)],
            style,
            color=SPEED_COLORS["paper_sgd"],
            label=f"{size:,} parameters",
        )
    axes.set_xlim(0.8, 1250)  # also where nothing was measured
    axes.set_ylim(0, None)
    axes.set_xlabel("local models in the memory of paper_sgd, M")
    axes.legend(loc="center right", frameon=False)
