"""Tables and pictures of one default from five base rates, on eleven tasks."""

import pathlib
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
# Ours: what is measured, over which baseline; on how many tasks it is at most that.
SCORES = {
    "memory_adam": ("updates", "adam", {1.0: "1", 1.5: "1.5"}),
    "memory_sgd": ("end", "sgd", {1.0: "1", 1.05: "1.05"}),
}
_TITLES = {
    "updates": "updates to the target, over tuned Adam",
    "end": "end, over tuned SGD",
}
_PROFILED = (*OURS, *BASELINES, "prodigy", "mechanize", "paper_adam")
_SHOWN = ("noisy teacher", "classes", "gan", "language", "residual", "rosenbrock")
_LIMITS = (0.8, 30.0)  # ends are drawn between these multiples of the best one


def load(folder: pathlib.Path) -> dict[str, Frame]:
    """Return the judged rows of every task that is there."""
    found = raw.load(folder / "suite.csv.gz")
    return {str(name): some for name, some in found.groupby("problem", sort=False)}


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures."""
    tasks, costs = load(folder), read_costs(folder)
    draw_starts(tasks, folder / "suite_starts.png", _SHOWN, 3)
    draw_starts(tasks, folder / "suite_starts_all.png", tuple(tasks), 4)
    draw_profile(tasks, folder / "suite.png")
    costs = costs[costs["experiment"] == "suite"]
    return {
        "headlines": headlines(tasks),
        "scores": "\n\n".join(score_table(tasks, name) for name in SCORES),
        "variants": raw.table(
            {
                "end, ratio of medians (lower : higher)": name,
                **{
                    f"{plain(LABELS[a])} : {plain(LABELS[b])}": paired(
                        fixed(rows, a), fixed(rows, b), "end"
                    )
                    for a, b in PAIRS
                },
            }
            for name, rows in tasks.items()
        ),
        "tasks": "\n\n".join(
            task_table(rows, costs[costs["problem"] == name])
            for name, rows in tasks.items()
        ),
        "versions": raw.versions(pd.concat(tasks.values())),
    }


def scores(rows: Frame, name: str) -> tuple[list[float], float]:
    """Return the score from every base rate, and that of the tuned baseline."""
    value, baseline, _ = SCORES[name]
    ours = [median(from_rate(rows, name, rate)[value]) for rate in OURS[name]]
    return ours, median(tuned(rows, baseline)[value])


def count_within(tasks: dict[str, Frame], name: str, bound: float) -> list[str]:
    """Return from every base rate on how many tasks the score is at most a bound."""
    over = []
    for rows in tasks.values():
        ours, best = scores(rows, name)
        # Never where tuned never gets there either is no success.
        over.append([x / best if np.isfinite(x) else np.inf for x in ours])
    counts = (np.array(over) <= bound).sum(axis=0)
    return [f"{count} of {len(over)}" for count in counts]


def ruined(found: Frame, rows: Frame) -> int:
    """Return how many runs end above ten times the end of tuned SGD, or nowhere."""
    bound = 10.0 * median(tuned(rows, "sgd")["end"])
    return int((~np.isfinite(found["end"]) | (found["end"] > bound)).sum())


def from_all(rows: Frame, name: str) -> Frame:
    """Return the runs of one of ours from all base rates."""
    return pd.concat([from_rate(rows, name, rate) for rate in OURS[name]])


def score_table(tasks: dict[str, Frame], name: str) -> str:
    """Return one of ours from every base rate, over the tuned baseline."""
    value, _, bounds = SCORES[name]
    head, heads = (
        f"{LABELS[name]}: {_TITLES[value]}",
        [f"from {x:g}" for x in OURS[name]],
    )
    lines = []
    for task, rows in tasks.items():
        ours, best = scores(rows, name)
        cells = [raw.ratio(one, best) for one in ours]
        found = from_all(rows, name)
        lost = f"{ruined(found, rows)} of {len(found)}"
        lines.append(
            {head: task, **dict(zip(heads, cells, strict=True)), "ruined": lost}
        )
    for bound, text in bounds.items():
        cells = count_within(tasks, name, bound)
        lines.append(
            {head: f"*tasks of at most {text}*", **dict(zip(heads, cells, strict=True))}
        )
    return raw.table(lines)


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


def headlines(tasks: dict[str, Frame]) -> str:
    """Return on how many tasks a default does as well as what is tuned per task."""
    lines = []
    for name, bound, text in (
        ("memory_adam", 1.0, "reaches the target as soon as tuned Adam, or sooner"),
        ("memory_adam", 1.5, "reaches it within 1.5 times those updates"),
        ("memory_sgd", 1.0, "ends as low as tuned SGD, or lower"),
        ("memory_sgd", 1.05, "ends within 5 % of it, or lower"),
    ):
        cells = count_within(tasks, name, bound)
        cells += ["refused"] * (len(BASE_RATES) - len(cells))
        heads = [f"{rate:g}" for rate in BASE_RATES]
        line = {"from a rate of": f"`{name}` {text}"}
        lines.append(line | dict(zip(heads, cells, strict=True)))
    return raw.table(lines)


def failures(tasks: dict[str, Frame]) -> dict[str, str]:
    """Return the runs of the defaults that diverged, and where others failed."""
    runs = {name: [from_all(rows, one) for one in OURS] for name, rows in tasks.items()}
    every = pd.concat([one for some in runs.values() for one in some])
    diverged = sum(not np.isfinite(curve).all() for curve in every["curve"])
    lost = {
        name: sum(ruined(one, tasks[name]) for one in some)
        for name, some in runs.items()
    }
    return {
        "runs of the two defaults that diverged": f"{diverged} of {len(every)}",
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
    tasks: dict[str, Frame], path: pathlib.Path, shown: tuple, columns: int
) -> None:
    """Draw how tasks end over the rate that they were started with."""
    names = [name for name in shown if name in tasks]
    count = -(-len(names) // columns)
    figure, grid = draw.panels(count, columns, (3.6, 2.7), sharex=True, sharey=True)
    for axes, name in zip(grid.ravel(), names, strict=False):
        _draw_ends(axes, tasks[name])
        axes.set_title(name)
    for axes in grid.ravel()[len(names) :]:
        axes.axis("off")
    for axes in grid.ravel()[max(0, len(names) - columns) : len(names)]:
        axes.tick_params(labelbottom=True)
    first = grid[0, 0]
    first.set(xscale="log", yscale="log", ylim=(_LIMITS[0], _LIMITS[1] * 1.2))
    draw.use_numbers(first.yaxis, [1, 3, 10, 30])
    figure.supxlabel("learning rate at the start")
    figure.supylabel("final loss / best final loss")
    draw.save(figure, path, legend=4)


def _draw_ends(axes, rows: Frame) -> None:
    courses: dict[str, Any] = {}
    for name in ("adam", "momentum"):
        trials = tried(rows, METHODS[name])
        rates = [read_setting(text)["rate"] for text in trials.index]
        ends = pd.Series(trials["end"].to_numpy(), rates).sort_index()
        courses[name] = ends.index.to_numpy(float), *[ends.to_numpy()] * 3
    for name, rates in OURS.items():
        found = [from_rate(rows, name, rate)["end"] for rate in rates]
        known = [raw.quartiles(one) for one in found if len(one)]
        courses[name] = rates[: len(known)], *np.array(known).reshape(-1, 3).T
    best = min(middle.min(initial=np.inf) for _, _, middle, _ in courses.values())
    for name, (rates, *ends) in courses.items():
        low, middle, high = (np.clip(one / best, *_LIMITS) for one in ends)
        width, style = (3.0, "-") if name in OURS else (1.2, "--")
        label, color = plain(LABELS[name]), COLORS[name]
        axes.plot(rates, middle, style, color=color, linewidth=width, label=label)
        axes.fill_between(rates, low, high, color=color, alpha=0.25, linewidth=0)


def profile(tasks: dict[str, Frame]) -> Frame:
    """Return [tasks, methods], median updates over those of the best one there."""
    updates = pd.DataFrame(
        {
            method: [
                median(
                    (tuned if method in BASELINES else fixed)(one, method)["updates"]
                )
                for one in tasks.values()
            ]
            for method in _PROFILED
        }
    ).fillna(np.inf)
    return updates.div(updates.min(axis=1), axis=0).fillna(np.inf)


def draw_profile(tasks: dict[str, Frame], path: pathlib.Path) -> None:
    """Draw on which share of the tasks a method is within a factor of the best."""
    figure, ((axes,),) = draw.panels(1, 1, (11.0, 5.0))
    factors = np.geomspace(1.0, 8.0, 200)
    for name, over in profile(tasks).items():
        share = (over.to_numpy()[:, None] <= factors).mean(axis=0)
        name, is_tuned = str(name), name in BASELINES
        axes.plot(
            factors,
            share,
            "--" if is_tuned else "-",
            color=COLORS[name],
            linewidth=3.0 if name in OURS else 1.5,
            label=plain(LABELS[name]) + ", best of 20 rates" * is_tuned,
        )
    axes.set_xscale("log", base=2)
    draw.use_numbers(axes.xaxis, [1, 2, 4, 8])
    axes.set(ylim=(0, 1.02), ylabel="share of tasks")
    axes.set_xlabel("updates to the target / those of the best method")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    draw.save(figure, path)
