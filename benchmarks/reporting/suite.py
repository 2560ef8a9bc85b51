"""Tables and pictures of one default from five base rates, on eleven tasks."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import methods
from benchmarks.harness.choose import tried
from benchmarks.harness.costs import read_costs
from benchmarks.harness.store import Frame, read_setting
from benchmarks.methods import BASELINES, COLORS, LABELS, OURS, plain
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import fixed, from_rate, median, tuned

# What changes one thing, and what it is changed from.
PAIRS = (
    ("memory_sgd_m21", "memory_sgd"),
    ("memory_adam_m21", "memory_adam"),
    ("memory_sgd_m21_sampled", "memory_sgd_m21"),
    ("memory_adam_sampled", "memory_adam"),
)
# Ours, the tuned baseline and the value that it is judged by, within which percentage.
_SCORES = (
    ("memory_adam", "adam", "updates", (100, 150)),
    ("memory_sgd", "sgd", "end", (100, 105)),
)
_PROFILED = (*OURS, *BASELINES, "prodigy", "mechanize", "paper_adam")
_SHOWN = ("noisy teacher", "classes", "gan", "language", "residual", "rosenbrock")
_LIMITS = (0.8, 30.0)  # ends are drawn between these multiples of the best one


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures."""
    tasks, costs = raw.by_problem(folder / "suite.csv.gz"), read_costs(folder)
    shown = [name for name in _SHOWN if name in tasks] or list(tasks)
    draw_starts(tasks, folder / "suite_starts.png", shown, 3)
    draw_starts(tasks, folder / "suite_starts_all.png", list(tasks), 4)
    draw_profile(tasks, folder / "suite.png")
    costs = costs[costs["experiment"] == "suite"].set_index(["problem", "method"])
    tables = {task: task_table(rows, costs.loc[task]) for task, rows in tasks.items()}
    return {**headlines(tasks), "variants": variants(tasks), **tables}


def variants(tasks: dict[str, Frame]) -> str:
    """Return the ends of variants over those of what they change, from .001."""
    rate = methods.USUAL["rate"]
    heads = {" : ".join(plain(LABELS[name]) for name in pair): pair for pair in PAIRS}
    return raw.table(
        {"end, ratio of medians (lower : higher)": task}
        | {
            head: raw.paired(
                from_rate(rows, one, rate), from_rate(rows, other, rate), "end"
            )
            for head, (one, other) in heads.items()
        }
        for task, rows in tasks.items()
    )


def medians(tasks: dict[str, Frame], value: str, find: Any, *which: Any) -> Any:
    """Return the median of a value [tasks] of the runs that are found."""
    return np.array([median(find(rows, *which)[value]) for rows in tasks.values()])


def headlines(tasks: dict[str, Frame]) -> dict[str, str]:
    """Return on how many tasks a default does as well as what is tuned per task."""
    counted = {}
    for name, rival, value, bounds in _SCORES:
        best = medians(tasks, value, tuned, rival)
        ours = [medians(tasks, value, from_rate, name, rate) for rate in OURS[name]]
        for bound in bounds:
            # Never where tuned never gets there either is no success.
            within = np.isfinite(ours) & (ours <= bound / 100 * best)
            cells = [f"{number} of {len(tasks)}" for number in within.sum(axis=1)]
            counted[f"{name} within {bound} %"] = " | ".join(cells)
    return counted


def ruined(found: Frame, rows: Frame) -> int:
    """Return how many runs end above ten times the end of tuned SGD, or nowhere."""
    bound = 10.0 * median(tuned(rows, "sgd")["end"])
    return int((~np.isfinite(found["end"]) | (found["end"] > bound)).sum())


def task_table(rows: Frame, costs: Frame) -> str:
    """Return every base rate of ours, tuned baselines, variants and peers on a task."""
    runs = {
        f"{LABELS[name]} from {rate:g}": from_rate(rows, name, rate)
        for name, rates in OURS.items()
        for rate in rates
    }
    for name in BASELINES:
        best, trials = tuned(rows, name), len(tried(rows, methods.METHODS[name]))
        runs[f"{LABELS[name]}, best of {trials}, {best['setting'].iloc[0]}"] = best
    runs |= {f"{LABELS[x]} from 0.001": fixed(rows, x) for x in methods.VARIANTS}
    runs |= {LABELS[name]: fixed(rows, name) for name in methods.PEERS}
    adam, sgd = tuned(rows, "adam"), tuned(rows, "sgd")
    return raw.table(
        {
            "method": label,
            "steps to the target": raw.format_updates(found),
            "over tuned Adam": raw.ratio(found, adam),
            "end": raw.format_end(found),
            "over tuned SGD": raw.ratio(found, sgd, "end"),
            "ruined": str(ruined(found, rows) or ""),
            "ms per step": f"{median(costs['milliseconds'][found['method']]):.3g}",
            "bytes a parameter": f"{median(costs['state_bytes'][found['method']]):.3g}",
        }
        for label, found in runs.items()
        if len(found)
    )


def draw_starts(
    tasks: dict[str, Frame], path: pathlib.Path, shown: list[str], columns: int
) -> None:
    """Draw how tasks end over the rate that they were started with."""
    shared = {"sharex": True, "sharey": True}
    figure, panels = draw.task_panels(shown, columns, (3.6, 2.7), **shared)
    for name, axes in panels.items():
        courses = ends_by_rate(tasks[name])
        best = np.nanmin([ends[1].min() for ends in courses.values()])
        for method, ends in courses.items():
            low, middle, high = np.clip(ends / best, *_LIMITS).to_numpy().T
            width, dash = (3.0, "-") if method in OURS else (1.2, "--")
            style = {"color": COLORS[method], "label": plain(LABELS[method])}
            axes.plot(ends.index, middle, dash, linewidth=width, **style)
            style = {"color": COLORS[method], "alpha": 0.25, "linewidth": 0}
            axes.fill_between(ends.index, low, high, **style)
    axes.set(xscale="log", yscale="log", ylim=(_LIMITS[0], _LIMITS[1] * 1.2))
    draw.use_numbers(axes.yaxis, [1, 3, 10, 30])
    figure.supxlabel("learning rate at the start")
    figure.supylabel("final loss / best final loss")
    draw.save(figure, path, legend=4)


def ends_by_rate(rows: Frame) -> dict[str, Frame]:
    """Return the quartiles of ends [rates, 3] of every trial, and of ours."""
    courses = {}
    for name in ("adam", "momentum"):
        ends = tried(rows, methods.METHODS[name])["end"]
        rates = [read_setting(text)["rate"] for text in ends.index]
        courses[name] = pd.DataFrame({x: ends.to_numpy() for x in range(3)}, rates)
    for name, rates in OURS.items():
        ends = [raw.quartiles(from_rate(rows, name, rate)["end"]) for rate in rates]
        courses[name] = pd.DataFrame(ends, rates)
    return {name: ends.sort_index() for name, ends in courses.items()}


def profile(tasks: dict[str, Frame]) -> Frame:
    """Return [tasks, methods], median updates over those of the best one there."""
    best = {name: tuned if name in BASELINES else fixed for name in _PROFILED}
    found = {name: medians(tasks, "updates", best[name], name) for name in best}
    updates = pd.DataFrame(found).fillna(np.inf)
    return updates.div(updates.min(axis=1), axis=0).fillna(np.inf)


def draw_profile(tasks: dict[str, Frame], path: pathlib.Path) -> None:
    """Draw on which share of the tasks a method is within a factor of the best."""
    figure, ((axes,),) = draw.panels(1, 1, (11.0, 5.0))
    factors = np.geomspace(1.0, 8.0, 200)
    for name, over in profile(tasks).items():
        share = (over.to_numpy()[:, None] <= factors).mean(axis=0)
        tail, dash = (", best of 20 rates", "--") if name in BASELINES else ("", "-")
        style = {"color": COLORS[name], "label": plain(LABELS[name]) + tail}
        width = 3.0 if name in OURS else 1.5
        axes.plot(factors, share, dash, linewidth=width, **style)
    axes.set_xscale("log", base=2)
    draw.use_numbers(axes.xaxis, [1, 2, 4, 8])
    axes.set(ylim=(0, 1.02), ylabel="share of tasks")
    axes.set_xlabel("steps to the target / those of the best method")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    draw.save(figure, path)
