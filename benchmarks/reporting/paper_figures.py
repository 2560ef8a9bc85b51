"""Pictures of the paper's experiments: tuned comparisons, and each its own."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import matplotlib.cm
import matplotlib.colors
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from benchmarks.experiments.paper import GRID_BOUND, Descent
from benchmarks.experiments.sequence import AUTHORS, META_RATES, TASKS, TaskRun
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import read_setting
from benchmarks.harness.sweep import BUDGETS
from benchmarks.methods import LABELS, METHODS, plain
from benchmarks.problems.gan import generate
from benchmarks.problems.tasks import rosenbrock_height
from benchmarks.reporting.paper_tables import (
    GOAL,
    LAST_TASK,
    PAPER_UPDATES,
    SEQUENCE_LABELS,
    updates_to_goal,
)
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
SEQUENCE_COLORS = {
    "sgd": "#999999",
    "adam": "#0072B2",
    "new": "#E69F00",
    "reloaded": "#009E73",
    "new" + AUTHORS: "#E69F00",
    "reloaded" + AUTHORS: "#009E73",
    "constant": "#56B4E9",
    "shuffled": "#CC79A7",
    "reloaded_m1": "#D55E00",
}


_CURVES = ("sgd", "adam", "new", "reloaded", "new" + AUTHORS, "reloaded" + AUTHORS)
_DIGITS = 8  # rows and columns of digits that a generator drew
_NEVER = 1.25  # horizons: where what never got there is drawn


def draw_comparisons(
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
        [plain(label) for label in labels],
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
        for place, method in enumerate(METHODS.values()):
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
    axis.set_yticks(range(len(METHODS)), [plain(LABELS[name]) for name in METHODS])
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


def draw_sequence(runs: list[TaskRun], path: pathlib.Path) -> None:
    """Draw the paper's four panels: a curve per task, and the updates to the goal."""
    figure = matplotlib.figure.Figure(figsize=(14, 4.4), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 2.2))
    for axis, pair in zip(axes, TASKS, strict=False):
        _draw_accuracies(
            axis, [run for run in runs if run.task == f"{pair[0]} vs {pair[1]}"]
        )
        axis.set_title(f"digits {pair[0]} vs {pair[1]}")
    axes[0].set_ylabel("test accuracy, median and quartiles")
    _draw_goals(axes[-1], [run for run in runs if run.task == LAST_TASK])
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110, facecolor="white")


def _draw_accuracies(axis, runs: list[TaskRun]) -> None:
    """Draw the median and the quartiles over seeds, at the middle meta rate.

    Memories that Adam steps are dashed, without quartiles: those would hide the others.
    """
    for run in runs:
        if run.method not in _CURVES:
            continue
        if run.meta_rate not in (None, META_RATES[1]):
            continue
        low, median, high = np.quantile(run.accuracies, (0.25, 0.5, 0.75), axis=0)
        updates = np.arange(1, len(median) + 1)
        color, is_authors = SEQUENCE_COLORS[run.method], run.method.endswith(AUTHORS)
        axis.plot(updates, median, color=color, linestyle="--" if is_authors else "-")
        if not is_authors:
            axis.fill_between(updates, low, high, color=color, alpha=0.2, linewidth=0)
    axis.axhline(GOAL, color="black", linewidth=0.8, linestyle=":")
    axis.text(
        0.98,
        GOAL - 0.01,
        f"{GOAL:.0%}",
        ha="right",
        va="top",
        transform=axis.get_yaxis_transform(),
    )
    axis.set_ylim(0.45, 1.01)
    axis.set_xlabel(f"updates (meta rate {META_RATES[1]:g})")


def _draw_goals(axis, runs: list[TaskRun]) -> None:
    """Draw the mean updates to the goal by meta rate, the paper's as diamonds."""
    methods = list(SEQUENCE_COLORS)
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        places, means, papers = [], [], []
        for group, meta_rate in enumerate(META_RATES):
            for run in runs:
                if run.method == method and run.meta_rate in (None, meta_rate):
                    places.append(group + (index + 0.5) * width - 0.4)
                    means.append(updates_to_goal(run).mean())
                    figure = method.removesuffix(AUTHORS), run.meta_rate
                    papers.append(PAPER_UPDATES.get(figure, np.nan))
        color, label = SEQUENCE_COLORS[method], SEQUENCE_LABELS[method]
        bars = axis.bar(places, means, width * 0.9, color=color, label=label)
        if method.endswith(AUTHORS):
            for bar in bars:
                bar.set(hatch="////", edgecolor="white", linewidth=0)
        axis.plot(places, papers, "D", color="white", markeredgecolor="black", ms=5)
    axis.plot(
        [], [], "D", color="white", markeredgecolor="black", label="paper (figure 1)"
    )
    axis.plot([], [], "k--", label="curves of memories that Adam steps")
    axis.set_xticks(range(len(META_RATES)), [f"{rate:g}" for rate in META_RATES])
    axis.set_xlabel("meta rate")
    axis.set_ylabel(f"mean updates to {GOAL:.0%}")
    axis.set_title(f"digits {LAST_TASK}: updates needed, less is better")


def draw_digits(comparison: Comparison, path: pathlib.Path) -> None:
    """Train seed 0 of four settings again; draw what each generator then makes.

    Above each is the spread of its images over that of real ones: 0 means that the
    generator draws a single digit, which the measure of the game does not see.
    """
    problem = comparison.problem
    count = _DIGITS * _DIGITS
    real = np.asarray(problem.data.judged)[:count]
    panels = {"real": real}
    for name in ("adam", "paper_sgd"):
        for kind, choose in (("fixed", fixed), ("best trial", most_tuned)):
            found = choose(comparison, name)
            if found is not None:
                setting = jnp.array([list(read_setting(found.setting).values())])
                runner = make_runner(problem, METHODS[name])
                _, params, _ = runner(problem.data, setting, jnp.arange(1), None)
                params = jax.tree.map(lambda leaf: leaf[0], params)
                drawn = np.asarray(generate(params, problem.data.latents[:count]))
                spread = drawn.std(0).mean() / real.std(0).mean()
                panels[f"{name}, {kind}\nspread {spread:.2f}"] = drawn
    figure = matplotlib.figure.Figure(
        figsize=(2.6 * len(panels), 3.3), layout="constrained"
    )
    for axis, (title, images) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        grid = images.reshape(_DIGITS, _DIGITS, 28, 28).swapaxes(1, 2)
        axis.imshow(
            grid.reshape(28 * _DIGITS, 28 * _DIGITS), cmap="gray", vmin=0, vmax=1
        )
        axis.set_title(title, fontsize="medium")
        axis.axis("off")
    figure.savefig(path, dpi=100, facecolor="white")


def draw_descent(descent: Descent, path: pathlib.Path) -> None:
    """Draw the surface with the path, the loss, and both landscapes over time."""
    figure = matplotlib.figure.Figure(figsize=(13, 3.4), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.15, 1, 1.1, 1.25))
    _draw_path(figure, axes[0], descent)
    axes[1].plot(descent.losses, color="#009E73")
    axes[1].set_yscale("log")
    axes[1].set_xlabel("updates")
    axes[1].set_title("loss")
    # A memory starts at 0.001 and may go up to 1.
    norm = matplotlib.colors.LogNorm(1e-5, descent.rates.max())
    for axis, name, rates in zip(
        axes[2:], ("x1", "x2"), descent.rates.swapaxes(0, 1), strict=True
    ):
        axis.imshow(
            np.maximum(rates, 1e-5).T,
            aspect="auto",
            origin="lower",
            extent=(0, len(rates) - 1, -GRID_BOUND, GRID_BOUND),
            norm=norm,
            cmap="viridis",
        )
        axis.set_xlabel("updates")
        axis.set_ylabel(f"gradient of {name}, clipped")
        axis.set_title(f"memory of {name}: {rates.shape[1]} rates")
    colors = matplotlib.cm.ScalarMappable(norm, "viridis")
    figure.colorbar(colors, ax=axes[-1], label="learning rate")
    figure.savefig(path, dpi=100, facecolor="white")


def _draw_path(figure, axis, descent: Descent) -> None:
    x1, x2 = np.meshgrid(np.linspace(-2.2, 2.2, 200), np.linspace(-1.5, 3.5, 200))
    surface = np.asarray(rosenbrock_height(x1, x2))
    levels = np.geomspace(0.1, surface.max(), 12)
    shown = axis.contourf(
        x1, x2, surface, levels, norm=matplotlib.colors.LogNorm(), cmap="Greys"
    )
    figure.colorbar(shown, ax=axis, format="%.1g", label="loss")
    axis.plot(*descent.points.T, ".-", color="#009E73", linewidth=1, markersize=4)
    axis.plot(*descent.points[0], "o", color="#0072B2", label="start")
    axis.plot(1.0, 1.0, "*", color="#D55E00", markersize=12, label="minimum (1, 1)")
    axis.set_xlim(-2.2, 2.2)
    axis.set_ylim(-1.5, 3.5)
    axis.set_xlabel("x1")
    axis.set_ylabel("x2")
    axis.legend(fontsize="small", loc="lower left")
    axis.set_title(f"surface and path, {len(descent.points) - 1} updates")
