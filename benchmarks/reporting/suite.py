"""Tables and pictures of one default from five base rates, on eleven tasks."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import methods
from benchmarks.harness.choose import load_targets, tried
from benchmarks.harness.costs import read_costs
from benchmarks.harness.store import TUNING_SEED, Frame, read_setting
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
# Ours over tuned Adam's updates or tuned SGD's ends: a bound, and what it means.
HEADLINES = {
    ("memory_adam", 1.0): "reaches the target as soon as tuned Adam, or sooner",
    ("memory_adam", 1.5): "reaches it within 1.5 times those updates",
    ("memory_sgd", 1.0): "ends as low as tuned SGD, or lower",
    ("memory_sgd", 1.05): "ends within 5 % of it, or lower",
}
_PROFILED = (*OURS, *BASELINES, "prodigy", "mechanize", "paper_adam")
_SHOWN = ("noisy teacher", "classes", "gan", "language", "residual", "rosenbrock")
_LIMITS = (0.8, 30.0)  # ends are drawn between these multiples of the best one


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures."""
    tasks, costs = raw.by_problem(folder / "suite.csv.gz"), read_costs(folder)
    draw_starts(tasks, folder / "suite_starts.png", _SHOWN, 3)
    draw_starts(tasks, folder / "suite_starts_all.png", tuple(tasks), 4)
    draw_profile(tasks, folder / "suite.png")
    costs = costs[costs["experiment"] == "suite"].set_index(["problem", "method"])
    parts = [task_table(name, rows, costs.loc[name]) for name, rows in tasks.items()]
    return {
        "headlines": headlines(tasks),
        "variants": variants(tasks),
        "tasks": "\n\n".join(parts),
    }


def variants(tasks: dict[str, Frame]) -> str:
    """Return the ends of variants over those of what they change."""
    heads = {" : ".join(plain(LABELS[name]) for name in pair): pair for pair in PAIRS}
    return raw.table(
        {"end, ratio of medians (lower : higher)": task}
        | {
            head: raw.paired(fixed(rows, one), fixed(rows, other), "end")
            for head, (one, other) in heads.items()
        }
        for task, rows in tasks.items()
    )


def headlines(tasks: dict[str, Frame]) -> str:
    """Return on how many tasks a default does as well as what is tuned per task."""
    lines = []
    for (name, bound), text in HEADLINES.items():
        value, rival = ("updates", "adam") if "adam" in name else ("end", "sgd")
        line = {"from a rate of": f"`{name}` {text}"}
        best = np.array([median(tuned(x, rival)[value]) for x in tasks.values()])
        for rate in methods.BASE_RATES:
            ours = [median(from_rate(x, name, rate)[value]) for x in tasks.values()]
            # Never where tuned never gets there either is no success.
            within = np.isfinite(ours) & (ours <= bound * best)
            is_run = rate in OURS[name]
            line[f"{rate:g}"] = (
                f"{within.sum()} of {len(tasks)}" if is_run else "refused"
            )
        lines.append(line)
    return raw.table(lines)


def ruined(found: Frame, rows: Frame) -> int:
    """Return how many runs end above ten times the end of tuned SGD, or nowhere."""
    bound = 10.0 * median(tuned(rows, "sgd")["end"])
    return int((~np.isfinite(found["end"]) | (found["end"] > bound)).sum())


def runs_of(rows: Frame) -> dict[str, tuple[str, Frame]]:
    """Return label -> method and runs on a task: ours, tuned, variants and peers."""
    found = {
        f"{LABELS[name]} from {rate:g}": (name, from_rate(rows, name, rate))
        for name, rates in OURS.items()
        for rate in rates
    }
    for name in BASELINES:
        best, trials = tuned(rows, name), len(tried(rows, methods.METHODS[name]))
        label = f"{LABELS[name]}, best of {trials}, {''.join(best['setting'][:1])}"
        found[label] = name, best
    for name in (*methods.VARIANTS, *methods.PEERS):
        rate = " from 0.001" if name in methods.VARIANTS else ""
        found[LABELS[name] + rate] = name, fixed(rows, name)
    return {label: (name, x) for label, (name, x) in found.items() if len(x)}


def task_table(task: str, rows: Frame, costs: Frame) -> str:
    """Return every base rate of ours, tuned baselines, variants and peers on a task."""
    adam = median(tuned(rows, "adam")["updates"])
    sgd = median(tuned(rows, "sgd")["end"])
    lines = raw.table(
        {
            "method": label,
            "updates to the target": raw.format_updates(found),
            "over tuned Adam": raw.ratio(median(found["updates"]), adam),
            "end": raw.format_end(found),
            "over tuned SGD": raw.ratio(median(found["end"]), sgd),
            "ruined": str(ruined(found, rows) or ""),
            "ms an update": f"{costs['milliseconds'][name]:.3g}",
            "bytes a parameter": f"{costs['state_bytes'][name]:.3g}",
        }
        for label, (name, found) in runs_of(rows).items()
    )
    first, seeds = rows.iloc[0], rows[rows["seed"] < TUNING_SEED]["seed"].nunique()
    return (
        f"**{task}**: target {load_targets()[task]:.4g}, {seeds} seeds, "
        f"{len(first['curve']) * first['every']} updates\n\n{lines}"
    )


def failures(tasks: dict[str, Frame]) -> dict[str, str]:
    """Return the runs of the defaults that diverged, and where others failed."""
    ours = {
        task: pd.concat(from_rate(rows, x, rate) for x in OURS for rate in OURS[x])
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
        pairs = [(fixed(x, many), fixed(x, single)) for x in tasks.values()]
        signs = [raw.judge(*pair, "end") for pair in pairs]
        counted.append(
            f"`{single}` ends clearly lower on {signs.count(1)}, higher on "
            f"{signs.count(-1)} of {np.isfinite(signs).sum()} tasks"
        )
    return "; ".join(counted)


def draw_starts(
    tasks: dict[str, Frame], path: pathlib.Path, shown: Sequence[str], columns: int
) -> None:
    """Draw how tasks end over the rate that they were started with."""
    names = [name for name in shown if name in tasks] or list(tasks)
    figure, panels = draw.task_panels(
        names, columns, (3.6, 2.7), sharex=True, sharey=True
    )
    for name, axes in panels.items():
        _draw_ends(axes, tasks[name])
    axes.set(xscale="log", yscale="log", ylim=(_LIMITS[0], _LIMITS[1] * 1.2))
    draw.use_numbers(axes.yaxis, [1, 3, 10, 30])
    figure.supxlabel("learning rate at the start")
    figure.supylabel("final loss / best final loss")
    draw.save(figure, path, legend=4)


def _draw_ends(axes: Any, rows: Frame) -> None:
    courses = {}  # [rates, quartiles of ends]
    for name in ("adam", "momentum"):
        trials = tried(rows, methods.METHODS[name]).reset_index()
        rates = trials["setting"].map(lambda text: read_setting(text)["rate"])
        ends = trials["end"].set_axis(rates).sort_index()
        courses[name] = pd.DataFrame({number: ends for number in range(3)})
    for name, rates in OURS.items():
        ends = {rate: from_rate(rows, name, rate)["end"] for rate in rates}
        known = {rate: raw.quartiles(x) for rate, x in ends.items() if len(x)}
        courses[name] = pd.DataFrame(known, index=range(3)).T
    best = min(ends[1].min() for ends in courses.values() if len(ends))
    for name, ends in courses.items():
        low, middle, high = (ends / best).clip(*_LIMITS).to_numpy().T
        width, style = (3.0, "-") if name in OURS else (1.2, "--")
        label, color = plain(LABELS[name]), COLORS[name]
        axes.plot(ends.index, middle, style, color=color, linewidth=width, label=label)
        axes.fill_between(ends.index, low, high, color=color, alpha=0.25, linewidth=0)


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
        label, width = plain(LABELS[name]) + tail, 3.0 if name in OURS else 1.5
        axes.plot(
            factors, share, style, color=COLORS[name], linewidth=width, label=label
        )
    axes.set_xscale("log", base=2)
    draw.use_numbers(axes.xaxis, [1, 2, 4, 8])
    axes.set(ylim=(0, 1.02), ylabel="share of tasks")
    axes.set_xlabel("updates to the target / those of the best method")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    draw.save(figure, path)
