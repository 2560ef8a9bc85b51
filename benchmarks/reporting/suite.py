"""Tables and pictures of one default from five base rates, on eleven tasks."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness.choose import tried
from benchmarks.harness.costs import read_costs
from benchmarks.harness.store import Frame, read_setting
from benchmarks.methods import (
    BASE_RATES,
    BASELINES,
    COLORS,
    LABELS,
    METHODS,
    OURS,
    PEERS,
    VARIANTS,
    plain,
)
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import fixed, from_rate, median, paired, tuned

# What changes one thing, and what it is changed from.
PAIRS = (
    ("memory_sgd_m21", "memory_sgd"),
    ("memory_adam_m21", "memory_adam"),
    ("memory_sgd_m21_sampled", "memory_sgd_m21"),
    ("memory_adam_sampled", "memory_adam"),
)
# Ours: what is measured, over which tuned baseline, and on how many tasks it is within.
SCORES = {"memory_adam": ("updates", "adam"), "memory_sgd": ("end", "sgd")}
HEADLINES = (
    ("memory_adam", 1.0, "reaches the target as soon as tuned Adam, or sooner"),
    ("memory_adam", 1.5, "reaches it within 1.5 times those updates"),
    ("memory_sgd", 1.0, "ends as low as tuned SGD, or lower"),
    ("memory_sgd", 1.05, "ends within 5 % of it, or lower"),
)
_PROFILED = (*OURS, *BASELINES, "prodigy", "mechanize", "paper_adam")
_SHOWN = ("noisy teacher", "classes", "gan", "language", "residual", "rosenbrock")
_LIMITS = (0.8, 30.0)  # ends are drawn between these multiples of the best one


def load(folder: pathlib.Path) -> dict[str, Frame]:
    """Return the judged rows of every task that is there."""
    return raw.by_problem(folder / "suite.csv.gz")


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures."""
    tasks, costs = load(folder), read_costs(folder)
    draw_starts(tasks, folder / "suite_starts.png", _SHOWN, 3)
    draw_starts(tasks, folder / "suite_starts_all.png", tuple(tasks), 4)
    draw_profile(tasks, folder / "suite.png")
    costs = costs[costs["experiment"] == "suite"]
    return {
        "headlines": headlines(tasks),
        "variants": variants(tasks),
        "tasks": "\n\n".join(
            task_table(rows, costs[costs["problem"] == name])
            for name, rows in tasks.items()
        ),
        "versions": raw.versions(pd.concat(tasks.values())),
    }


def variants(tasks: dict[str, Frame]) -> str:
    """Return the ends of variants over those of what they change."""
    heads = [" : ".join(plain(LABELS[name]) for name in pair) for pair in PAIRS]
    return raw.table(
        {"end, ratio of medians (lower : higher)": task}
        | {
            head: paired(fixed(rows, one), fixed(rows, other), "end")
            for head, (one, other) in zip(heads, PAIRS, strict=True)
        }
        for task, rows in tasks.items()
    )


def headlines(tasks: dict[str, Frame]) -> str:
    """Return on how many tasks a default does as well as what is tuned per task."""
    lines = []
    for name, bound, text in HEADLINES:
        value, baseline = SCORES[name]
        line = {"from a rate of": f"`{name}` {text}"}
        best = [median(tuned(x, baseline)[value]) for x in tasks.values()]
        for rate in BASE_RATES:
            ours = [median(from_rate(x, name, rate)[value]) for x in tasks.values()]
            # Never where tuned never gets there either is no success.
            within = np.isfinite(ours) & (ours <= bound * np.array(best))
            line[f"{rate:g}"] = f"{within.sum()} of {len(tasks)}"
            if rate not in OURS[name]:
                line[f"{rate:g}"] = "refused"
        lines.append(line)
    return raw.table(lines)


def ruined(found: Frame, rows: Frame) -> int:
    """Return how many runs end above ten times the end of tuned SGD, or nowhere."""
    bound = 10.0 * median(tuned(rows, "sgd")["end"])
    return int((~np.isfinite(found["end"]) | (found["end"] > bound)).sum())


def task_table(rows: Frame, costs: Frame) -> str:
    """Return every base rate of ours, tuned baselines, variants and peers on a task."""
    adam, sgd = (
        median(tuned(rows, "adam")["updates"]),
        median(tuned(rows, "sgd")["end"]),
    )
    found = [
        (f"{LABELS[name]} from {rate:g}", name, from_rate(rows, name, rate))
        for name, rates in OURS.items()
        for rate in rates
    ]
    for name in BASELINES:
        best, trials = tuned(rows, name), len(tried(rows, METHODS[name]))
        label = f"{LABELS[name]}, best of {trials}, {''.join(best['setting'][:1])}"
        found.append((label, name, best))
    found += [(f"{LABELS[x]} from 0.001", x, fixed(rows, x)) for x in VARIANTS]
    found += [(LABELS[name], name, fixed(rows, name)) for name in PEERS]
    paid = costs.set_index("method")
    lines = [
        {
            "method": label,
            "updates to the target": raw.format_updates(one),
            "over tuned Adam": raw.ratio(median(one["updates"]), adam),
            "end": raw.format_end(one),
            "over tuned SGD": raw.ratio(median(one["end"]), sgd),
            "ruined": str(ruined(one, rows) or ""),
            "ms an update": f"{paid['milliseconds'].get(name, np.nan):.3g}",
            "bytes a parameter": f"{paid['state_bytes'].get(name, np.nan):.3g}",
        }
        for label, name, one in found
        if len(one)
    ]
    first = rows.iloc[0]
    seeds = rows.loc[rows["seed"] < raw.TUNING_SEED, "seed"].nunique()
    updates = len(first["curve"]) * first["every"]
    target = raw.choose.load_targets()[first["problem"]]
    head = (
        f"**{first['problem']}**: target {target:.4g}, {seeds} seeds, {updates} updates"
    )
    return f"{head}\n\n{raw.table(lines)}"


def failures(tasks: dict[str, Frame]) -> dict[str, str]:
    """Return the runs of the defaults that diverged, and where others failed."""
    ours = {
        task: pd.concat(
            [from_rate(rows, name, rate) for name in OURS for rate in OURS[name]]
        )
        for task, rows in tasks.items()
    }
    curves = [curve for runs in ours.values() for curve in runs["curve"]]
    diverged = sum(not np.isfinite(curve).all() for curve in curves)
    lost = {task: ruined(runs, tasks[task]) for task, runs in ours.items()}
    return {
        "runs of the two defaults that diverged": f"{diverged} of {len(curves)}",
        "that ended above ten times tuned SGD": ", ".join(
            f"{number} on {name}" for name, number in lost.items() if number
        ),
    }


def landscapes(tasks: dict[str, Frame]) -> str:
    """Return on how many tasks twenty-one local models end lower or higher than one."""
    counted = []
    for many, single in PAIRS[:2]:
        pairs = [(fixed(rows, many), fixed(rows, single)) for rows in tasks.values()]
        clear = [
            raw.is_clear(raw.paired_test(one["end"], other["end"]))
            for one, other in pairs
            if len(one) and len(other)
        ]
        counted.append(
            f"`{single}` ends clearly lower on {clear.count(1)}, higher on "
            f"{clear.count(-1)} of {len(clear)} tasks"
        )
    return "; ".join(counted)


def draw_starts(
    tasks: dict[str, Frame], path: pathlib.Path, shown: Sequence[str], columns: int
) -> None:
    """Draw how tasks end over the rate that they were started with."""
    names = [name for name in shown if name in tasks] or list(tasks)
    figure, grid = draw.draw_grid(
        *(names, columns, (3.6, 2.7)),
        lambda axes, name: _draw_ends(axes, tasks[name]),
        sharex=True,
        sharey=True,
    )
    limits = _LIMITS[0], _LIMITS[1] * 1.2
    grid[0, 0].set(xscale="log", yscale="log", ylim=limits)
    draw.use_numbers(grid[0, 0].yaxis, [1, 3, 10, 30])
    figure.supxlabel("learning rate at the start")
    figure.supylabel("final loss / best final loss")
    draw.save(figure, path, legend=4)


def _draw_ends(axes: Any, rows: Frame) -> None:
    courses: dict[str, Frame] = {}  # rate -> quartiles of ends
    for name in ("adam", "momentum"):
        trials = tried(rows, METHODS[name])
        rates = [read_setting(text)["rate"] for text in trials.index]
        ends = pd.Series(trials["end"].to_numpy(), rates).sort_index()
        courses[name] = pd.DataFrame({number: ends for number in range(3)})
    for name, rates in OURS.items():
        found = {rate: from_rate(rows, name, rate)["end"] for rate in rates}
        known = {rate: raw.quartiles(one) for rate, one in found.items() if len(one)}
        courses[name] = pd.DataFrame(known, index=range(3)).T
    best = min(ends[1].min() for ends in courses.values() if len(ends))
    for name, ends in courses.items():
        ends = (ends / best).clip(*_LIMITS)
        width, style = (3.0, "-") if name in OURS else (1.2, "--")
        label, color = plain(LABELS[name]), COLORS[name]
        axes.plot(ends[1], style, color=color, linewidth=width, label=label)
        more = {"color": color, "alpha": 0.25, "linewidth": 0}
        axes.fill_between(ends.index, ends[0], ends[2], **more)


def profile(tasks: dict[str, Frame]) -> Frame:
    """Return [tasks, methods], median updates over those of the best one there."""
    best = {name: tuned if name in BASELINES else fixed for name in _PROFILED}
    updates = pd.DataFrame(
        {name: median(find(rows, name)["updates"]) for name, find in best.items()}
        for rows in tasks.values()
    ).fillna(np.inf)
    return updates.div(updates.min(axis=1), axis=0).fillna(np.inf)


def draw_profile(tasks: dict[str, Frame], path: pathlib.Path) -> None:
    """Draw on which share of the tasks a method is within a factor of the best."""
    figure, ((axes,),) = draw.panels(1, 1, (11.0, 5.0))
    factors = np.geomspace(1.0, 8.0, 200)
    for name, over in profile(tasks).items():
        share = (over.to_numpy()[:, None] <= factors).mean(axis=0)
        tail, style = (", best of 20 rates", "--") if name in BASELINES else ("", "-")
        label, width = plain(LABELS[str(name)]) + tail, 3.0 if name in OURS else 1.5
        color = COLORS[str(name)]
        axes.plot(factors, share, style, color=color, linewidth=width, label=label)
    axes.set_xscale("log", base=2)
    draw.use_numbers(axes.xaxis, [1, 2, 4, 8])
    axes.set(ylim=(0, 1.02), ylabel="share of tasks")
    axes.set_xlabel("updates to the target / those of the best method")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    draw.save(figure, path)
