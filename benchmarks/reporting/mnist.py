"""Tables and pictures of the paper's first experiment."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness.store import Frame
from benchmarks.methods import COLORS
from benchmarks.reporting import comparison, draw
from benchmarks.reporting import rows as raw

COLUMNS = [
    *("task", "method", "meta_rate", "seed", "update"),
    *("test_accuracy", "train_loss"),
]
AUTHORS = ", adam"  # ends the name of a method whose memory Adam steps
META_RATES = (0.1, 0.01, 0.001)
GOAL, LAST = 0.98, "1 vs 4"
# Mean updates on the last task, read off the paper's figure 1 (right), +-3 %; its
# horizon is 25 updates, so 24.7 means all but never. SGD and Adam have no meta rate.
PAPER = {
    "sgd": (24.7,),
    "adam": (14.4,),
    "new": (11.7, 14.6, 17.8),
    "reloaded": (3.2, 3.4, 4.7),
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
_SHOWN = {
    "sgd": COLORS["sgd"],
    "adam": COLORS["adam"],
    "new": "#8C6D31",
    "reloaded": COLORS["paper_sgd"],
}


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures. The tuned comparison may be missing."""
    rows = pd.read_csv(folder / "mnist.csv")
    draw_tasks(rows, folder / "mnist.png")
    seeds, horizon = rows["seed"].nunique(), rows["update"].max()
    found = {
        "seeds": f"{seeds}",
        "rules": rules_table(rows),
        "table": f"Updates until {GOAL:.0%} test accuracy on {LAST}, {seeds} seeds; "
        f"a miss counts as {horizon + 1}:\n\n{methods_table(rows)}",
    }
    if (folder / "mnist_tuned.csv.gz").exists():
        found |= comparison.report(folder, "mnist_tuned")
    return found


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
    found = PAPER.get(method.removesuffix(AUTHORS), ())
    index = META_RATES.index(rate) if rate else 0
    return found[index] if index < len(found) else np.nan


def rules_table(rows: Frame) -> str:
    """Return what both rules of a memory need on the last task."""
    updates, lines = updates_to_goal(rows).sort_index(), []
    never = rows["update"].max() + 1
    for start in ("reloaded", "new"):
        for method in (start, start + AUTHORS):
            line = {"meta rate": LABELS[method]}
            for rate in META_RATES:
                found = updates[method, rate]
                missed = (found == never).sum()
                line[f"{rate:g}"] = f"{found.mean():.1f}"
                if missed:
                    line[f"{rate:g}"] += f" ({missed} of {len(found)} never)"
            lines.append(line)
        paper = {f"{rate:g}": f"{of_paper(start, rate)}" for rate in META_RATES}
        lines.append({"meta rate": f"{start} memory, the paper's figure 1", **paper})
    return raw.table(lines)


def methods_table(rows: Frame) -> str:
    """Return the updates to the goal of all methods, beside the paper's."""
    updates, never = updates_to_goal(rows), rows["update"].max() + 1
    lines = []
    for (method, rate), found in updates.groupby(level=[0, 1], sort=False):
        paper = of_paper(str(method), rate)
        lines.append(
            {
                "method": LABELS[str(method)],
                "meta rate": f"{rate:g}" if rate else "",
                "mean": f"{found.mean():.1f}",
                "median": f"{found.median():.1f}",
                "misses": str((found == never).sum()),
                "paper, mean": "" if np.isnan(paper) else f"{paper}",
            }
        )
    return raw.table(lines)


def draw_tasks(rows: Frame, path: pathlib.Path) -> None:
    """Draw the paper's four panels: a curve per task, and the updates to the goal."""
    figure, grid = draw.panels(2, 2, (5.2, 3.3))
    rate = META_RATES[1]
    for axis, (task, some) in zip(grid.flat, rows.groupby("task"), strict=False):
        for method, color in _SHOWN.items():
            for name, dash in ((method, "-"), (method + AUTHORS, "--")):
                is_one = (some["method"] == name) & some["meta_rate"].isin(
                    (np.nan, rate)
                )
                found = some[is_one].groupby("update")["test_accuracy"]
                # Those that Adam steps without quartiles, which would hide the others.
                if len(found) and dash == "-":
                    bounds = found.quantile(0.25), found.quantile(0.75)
                    axis.fill_between(bounds[0].index, *bounds, color=color, alpha=0.2)
                axis.plot(found.median(), dash, color=color)
        axis.axhline(GOAL, color="black", linewidth=0.8, linestyle=":")
        axis.set(ylim=(0.45, 1.01), xlabel="updates", title=f"digits {task}")
        axis.set_ylabel("test accuracy")
    _draw_goals(grid[1, 1], updates_to_goal(rows).groupby(level=[0, 1]).mean())
    draw.save(figure, path, legend=2)


def _draw_goals(axis: Any, means: Frame) -> None:
    """Draw the mean updates to the goal by meta rate, the paper's as diamonds."""
    bars = [
        (m, x, r) for m, x in _SHOWN.items() for r in ("", AUTHORS) if m + r in LABELS
    ]
    for number, (method, color, rule) in enumerate(bars):
        name, width = method + rule, 0.8 / len(bars)
        places = np.arange(len(META_RATES)) + (number + 0.5) * width - 0.4
        rates = META_RATES if method in ("new", "reloaded") else [0.0] * len(places)
        heights = [means.get((name, rate), np.nan) for rate in rates]
        hatch = "////" if rule else ""
        more = {
            "color": color,
            "label": LABELS[name],
            "hatch": hatch,
            "edgecolor": "white",
        }
        axis.bar(places, heights, width * 0.9, **more, linewidth=0)
        paper = [of_paper(method, rate) for rate in rates]
        label = "the paper (figure 1)" if number == 0 else None
        axis.plot(places, paper, "D", color="white", mec="black", ms=5, label=label)
    axis.set_xticks(range(len(META_RATES)), [f"{rate:g}" for rate in META_RATES])
    axis.set(xlabel="meta rate", ylabel=f"mean updates to {GOAL:.0%}")
    axis.set_title(f"digits {LAST}: updates needed")
