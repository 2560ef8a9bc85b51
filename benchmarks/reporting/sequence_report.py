"""What came out of the MNIST pairs: raw rows, a table and a picture."""

import csv
import pathlib

import matplotlib.figure
import numpy as np

from benchmarks.experiments.sequence import META_RATES, TASKS, Run
from benchmarks.harness.rows import write_csv

GOAL = 0.98
COLUMNS = (
    "task",
    "method",
    "meta_rate",
    "seed",
    "update",
    "test_accuracy",
    "train_loss",
)
LAST_TASK = f"{TASKS[-1][0]} vs {TASKS[-1][1]}"

# Mean updates on the last task, read off the paper's figure 1 (right), +-3 %; its
# horizon is 25 updates, so 24.7 means all but never.
PAPER = {
    ("sgd", None): 24.7,
    ("adam", None): 14.4,
    ("new", 0.1): 11.7,
    ("new", 0.01): 14.6,
    ("new", 0.001): 17.8,
    ("reloaded", 0.1): 3.2,
    ("reloaded", 0.01): 3.4,
    ("reloaded", 0.001): 4.7,
}
LEGEND = {
    "sgd": "SGD at 0.001",
    "adam": "Adam at 0.001",
    "new": "new memory",
    "reloaded": "reloaded memory",
    "frozen": "reloaded, not learning on",
    "constant": "constant: mean rate of each layer",
    "shuffled": "shuffled within each layer, learning on",
    "new_m1": "new, one local model (M=1)",
    "reloaded_m1": "reloaded, one local model (M=1)",
}
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLORS = {
    "sgd": "#999999",
    "adam": "#0072B2",
    "new": "#E69F00",
    "reloaded": "#009E73",
    "constant": "#56B4E9",
    "shuffled": "#CC79A7",
    "reloaded_m1": "#D55E00",
}


def updates_to_goal(run: Run) -> np.ndarray:
    """Return per seed the updates until the goal; a miss counts as horizon + 1."""
    reached = run.accuracies >= GOAL
    horizon = reached.shape[1]
    return np.where(reached.any(1), reached.argmax(1) + 1, horizon + 1)


def write_rows(runs: list[Run], path: pathlib.Path) -> None:
    """Write one row per task, method, meta rate, seed and update."""
    write_csv(
        path,
        COLUMNS,
        (
            (
                run.task,
                run.method,
                "" if run.meta_rate is None else run.meta_rate,
                seed,
                update + 1,
                f"{accuracy:.5g}",
                f"{run.losses[seed, update]:.5g}",
            )
            for run in runs
            for (seed, update), accuracy in np.ndenumerate(run.accuracies)
        ),
    )


def read_rows(path: pathlib.Path) -> list[Run]:
    """Read back what `write_rows` wrote."""
    grouped: dict[tuple, list[dict[str, str]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            key = row["task"], row["method"], row["meta_rate"]
            grouped.setdefault(key, []).append(row)
    runs = []
    for (task, method, meta_rate), rows in grouped.items():
        shape = int(rows[-1]["seed"]) + 1, int(rows[-1]["update"])
        accuracies = np.array([float(row["test_accuracy"]) for row in rows])
        losses = np.array([float(row["train_loss"]) for row in rows])
        rate = float(meta_rate) if meta_rate else None
        runs.append(
            Run(task, method, rate, accuracies.reshape(shape), losses.reshape(shape))
        )
    return runs


def format_table(runs: list[Run]) -> str:
    """Return the updates to the goal on the last task, beside the paper's figures."""
    last = [run for run in runs if run.task == LAST_TASK]
    seeds, horizon = last[0].accuracies.shape
    lines = [
        f"Updates until {GOAL:.0%} test accuracy on {LAST_TASK}, {seeds} seeds; "
        f"a miss counts as {horizon + 1}",
        f"{'method':<40}{'meta rate':>10}{'mean':>7}{'median':>8}{'misses':>8}"
        f"{'paper, mean':>13}",
    ]
    for run in last:
        updates = updates_to_goal(run)
        meta_rate = "" if run.meta_rate is None else f"{run.meta_rate:g}"
        paper = PAPER.get((run.method, run.meta_rate), "")
        lines.append(
            f"{LEGEND[run.method]:<40}{meta_rate:>10}{updates.mean():>7.1f}"
            f"{np.median(updates):>8.1f}{(updates > horizon).sum():>8}{paper:>13}"
        )
    return "\n".join(line.rstrip() for line in lines)


def draw(runs: list[Run], path: pathlib.Path) -> None:
    """Draw the paper's four panels: a curve per task, and the updates to the goal."""
    figure = matplotlib.figure.Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
    for axis, pair in zip(axes, TASKS, strict=False):
        _draw_curves(
            axis, [run for run in runs if run.task == f"{pair[0]} vs {pair[1]}"]
        )
        axis.set_title(f"digits {pair[0]} vs {pair[1]}")
    axes[0].set_ylabel("test accuracy, median and quartiles")
    _draw_updates(axes[-1], [run for run in runs if run.task == LAST_TASK])
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110, facecolor="white")


def _draw_curves(axis, runs: list[Run]) -> None:
    """Draw the median and the quartiles over seeds, at the middle meta rate."""
    for run in runs:
        if run.method not in ("sgd", "adam", "new", "reloaded"):
            continue
        if run.meta_rate not in (None, META_RATES[1]):
            continue
        low, median, high = np.quantile(run.accuracies, (0.25, 0.5, 0.75), axis=0)
        updates = np.arange(1, len(median) + 1)
        color = COLORS[run.method]
        axis.plot(updates, median, color=color, label=LEGEND[run.method])
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


def _draw_updates(axis, runs: list[Run]) -> None:
    """Draw the mean updates to the goal by meta rate, the paper's as diamonds."""
    methods = list(COLORS)
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        places, means, papers = [], [], []
        for group, meta_rate in enumerate(META_RATES):
            for run in runs:
                if run.method == method and run.meta_rate in (None, meta_rate):
                    places.append(group + (index + 0.5) * width - 0.4)
                    means.append(updates_to_goal(run).mean())
                    papers.append(PAPER.get((method, run.meta_rate), np.nan))
        axis.bar(places, means, width * 0.9, color=COLORS[method], label=LEGEND[method])
        axis.plot(places, papers, "D", color="white", markeredgecolor="black", ms=5)
    axis.plot(
        [], [], "D", color="white", markeredgecolor="black", label="paper (figure 1)"
    )
    axis.set_xticks(range(len(META_RATES)), [f"{rate:g}" for rate in META_RATES])
    axis.set_xlabel("meta rate")
    axis.set_ylabel(f"mean updates to {GOAL:.0%}")
    axis.set_title(f"digits {LAST_TASK}: updates needed, less is better")
