"""Tables and pictures of the paper's first experiment."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness.store import Frame
from benchmarks.methods import COLORS
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw

COLUMNS = ["task", "method", "meta_rate", "seed", "update", "test_accuracy"]
COLUMNS += ["train_loss"]
AUTHORS = ", adam"  # ends the name of a method whose memory Adam steps
META_RATES = (0.1, 0.01, 0.001)
GOAL, LAST = 0.98, "1 vs 4"
# Mean updates on the last task, read off the paper's figure 1 (right), +-3 %; its
# horizon is 25 updates, so 24.7 means all but never. SGD and Adam have no meta rate.
PAPER = {
    "sgd": {0.0: 24.7},
    "adam": {0.0: 14.4},
    "new": {0.1: 11.7, 0.01: 14.6, 0.001: 17.8},
    "reloaded": {0.1: 3.2, 0.01: 3.4, 0.001: 4.7},
}
LABELS = {
    "sgd": "SGD at 0.001",
    "adam": "Adam at 0.001",
    "new": "new memory, equation 6",
    "reloaded": "reloaded memory, equation 6",
    "new, adam": "new memory, Adam (authors' code)",
    "reloaded, adam": "reloaded memory, Adam (authors' code)",
    "frozen": "reloaded, not learning on",
    "constant": "constant: mean rate of each layer",
    "shuffled": "shuffled within each layer, learning on",
    "new_m1": "new, one local model (M=1)",
    "reloaded_m1": "reloaded, one local model (M=1)",
}
_LINES = {
    "sgd": (COLORS["sgd"], "-"),
    "adam": (COLORS["adam"], "-"),
    "new": ("#8C6D31", "-"),
    "new, adam": ("#8C6D31", "--"),
    "reloaded": (COLORS["paper_sgd"], "-"),
    "reloaded, adam": (COLORS["paper_sgd"], "--"),
}


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the picture."""
    rows = pd.read_csv(folder / "mnist.csv")
    draw_tasks(rows, folder / "mnist.png")
    paper = {f"{x}, paper": " | ".join(map(str, PAPER[x].values())) for x in PAPER}
    return {**means(rows), **paper, "steps until 98 % on 1 vs 4": methods_table(rows)}


def updates_to_goal(rows: Frame) -> Frame:
    """Return (method, meta rate, seed) -> updates to the goal on the last task.

    A miss counts as horizon + 1; what has no meta rate has 0.
    """
    last = rows[rows["task"] == LAST].fillna({"meta_rate": 0.0})
    reached = last["update"].where(last["test_accuracy"] >= GOAL)
    keys = [last["method"], last["meta_rate"], last["seed"]]
    return reached.groupby(keys, sort=False).min().fillna(last["update"].max() + 1)


def of_paper(method: str, rate: float) -> float:
    """Return the paper's figure, nan where it has none."""
    return PAPER.get(method.removesuffix(AUTHORS), {}).get(rate, np.nan)


def summarize(rows: Frame) -> Frame:
    """Return (method, meta rate) -> updates to the goal, misses, the paper's figure."""
    updates = updates_to_goal(rows)
    groups = updates.groupby(["method", "meta_rate"], sort=False)
    misses = groups.agg(lambda found: (found > rows["update"].max()).sum())
    summary = groups.agg(["mean", "median", "size"]).assign(misses=misses)
    return summary.assign(paper=[of_paper(*key) for key in summary.index])


def means(rows: Frame) -> dict[str, str]:
    """Return what memories need on the last task, by meta rate."""
    found = summarize(rows).loc[["reloaded", "new", "reloaded, adam", "new, adam"]]
    notes = [
        f" ({misses:.0f} of {size:.0f} never)" if misses else ""
        for misses, size in found[["misses", "size"]].to_numpy()
    ]
    cells = found["mean"].map("{:.1f}".format) + notes
    return cells.unstack()[list(META_RATES)].agg(" | ".join, axis=1).to_dict()


def methods_table(rows: Frame) -> str:
    """Return the updates to the goal of all methods, beside the paper's."""
    found = summarize(rows).reset_index()
    cells = {
        "method": found["method"].map(LABELS),
        "meta rate": found["meta_rate"].map("{:g}".format).replace("0", ""),
        "mean": found["mean"].map("{:.1f}".format),
        "median": found["median"].map("{:.1f}".format),
        "misses": found["misses"].map(str),
        "paper, mean": raw.write_cells(found["paper"], "{}"),
    }
    return raw.table(pd.DataFrame(cells))


def draw_tasks(rows: Frame, path: pathlib.Path) -> None:
    """Draw the paper's four panels: a curve per task, and the updates to the goal."""
    figure, grid = draw.panels(2, 2, (5.2, 3.3))
    shown = rows[rows["meta_rate"].isna() | (rows["meta_rate"] == META_RATES[1])]
    for axis, (task, some) in zip(grid.flat, shown.groupby("task"), strict=False):
        for name, (color, dash) in _LINES.items():
            found = some[some["method"] == name].groupby("update")["test_accuracy"]
            axis.plot(found.median(), dash, color=color, label=LABELS[name])
            # Those that Adam steps without quartiles, which would hide the others.
            if dash == "-":
                low, high = found.quantile(0.25), found.quantile(0.75)
                axis.fill_between(low.index, low, high, color=color, alpha=0.2)
        axis.axhline(GOAL, color="black", linewidth=0.8, linestyle=":")
        axis.set(ylim=(0.45, 1.01), xlabel="steps", title=f"digits {task}")
        axis.set_ylabel("test accuracy")
    _draw_goals(grid[1, 1], summarize(rows))
    draw.save(figure, path, legend=2)


def _draw_goals(axis: Any, summary: Frame) -> None:
    """Draw the mean updates to the goal by meta rate, the paper's as diamonds."""
    for name, (color, dash) in _LINES.items():
        # What has no meta rate needs the same at all.
        found = summary.loc[name].reindex(META_RATES, method="nearest")
        axis.plot(found["mean"], dash, color=color, label=LABELS[name])
        if dash == "-":
            axis.plot(found["paper"], "D", color=color, mec="black")
    axis.plot([], [], "D", color="white", mec="black", label="the paper (figure 1)")
    axis.set(xscale="log", xlabel="meta rate", title=f"digits {LAST}: steps needed")
    draw.use_numbers(axis.xaxis, list(META_RATES))
    axis.set_ylabel("mean steps")
