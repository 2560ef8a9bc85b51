"""What came out of the suite, as Markdown and one picture."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.figure
import numpy as np

from benchmarks.experiments.suite import OURS, VARIANTS, Variant, from_start, rows_of
from benchmarks.harness.costs import Cost
from benchmarks.methods import LABELS
from benchmarks.reporting.paper_figures import COLORS
from benchmarks.reporting.paper_tables import (
    format_measure,
    format_number,
    format_updates,
)
from benchmarks.reporting.statistics import (
    Comparison,
    Outcome,
    fixed,
    median,
    most_tuned,
    paired_test,
)

_BY_NAME = {one.method.name: one for one in (*OURS, *VARIANTS)}
# What changes one thing, and what it is changed from.
_PAIRS = (
    ("memory_sgd_m21", "memory_sgd"),
    ("memory_adam_m21", "memory_adam"),
    ("memory_sgd_m21_sampled", "memory_sgd_m21"),
    ("memory_adam_sampled", "memory_adam"),
)
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


def format_suite(comparison: Comparison, costs: Sequence[Cost]) -> str:
    """Return the table of one problem."""
    adam, sgd = (most_tuned(comparison, name) for name in ("adam", "sgd"))
    cost = {one.method: one for one in costs if one.problem == comparison.problem.name}
    lines = [
        f"**{comparison.problem.name}**: target {comparison.target:.4g}, "
        f"{len(comparison.seeds())} seeds, {comparison.problem.horizon} updates\n",
        "| method | updates to the target | over tuned Adam | end | over tuned SGD "
        "| ruined | ms an update | bytes a parameter |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, name, found in rows_of(comparison):
        updates = adam and ratio(median(found.updates), median(adam.updates))
        end = median(found.finals)
        ends = sgd and ratio(end, median(sgd.finals))
        paid = cost.get(name)
        lines.append(
            f"| {label} | {format_updates(found)} | {updates or ''} "
            f"| {format_measure(end)} | {ends or ''} "
            f"| {(sgd and ruined(found, sgd)) or ''} "
            + (
                f"| {paid.milliseconds:.3g} | {paid.state_bytes:.3g} |"
                if paid
                else "| | |"
            )
        )
    return "\n".join(lines)


def ruined(found: Outcome, tuned: Outcome) -> int:
    """Return how many runs end above ten times the end of a tuned one, or nowhere."""
    ends = found.finals
    return int((~np.isfinite(ends) | (ends > 10.0 * median(tuned.finals))).sum())


def ratio(one: float, other: float) -> str:
    """Return a ratio; both sides of it where one is not finite."""
    if np.isfinite(one) and np.isfinite(other) and other > 0:
        return f"{one / other:.2f}"
    return f"{format_number(one)} / {format_number(other)}"


class Measure(NamedTuple):
    """What one of our optimizers is measured by, over a baseline tuned per task."""

    one: Variant
    what: str
    baseline: str
    value: Callable[[Outcome], float]
    bounds: tuple[float, float]  # on how many tasks is it at most that?


MEASURES = (
    Measure(
        OURS[0],
        "updates to the target, over tuned Adam",
        "adam",
        lambda found: median(found.updates),
        (1.0, 1.5),
    ),
    Measure(
        OURS[1],
        "end, over tuned SGD",
        "sgd",
        lambda found: median(found.finals),
        (1.0, 1.05),
    ),
)


def format_starts(comparisons: Sequence[Comparison]) -> str:
    """Return both optimizers from every base rate, over the tuned baseline."""
    return "\n\n".join(_starts(comparisons, measure) for measure in MEASURES)


def _starts(comparisons: Sequence[Comparison], measure: Measure) -> str:
    one, value = measure.one, measure.value
    heads = " | ".join(f"from {start:g}" for start in one.starts)
    lines = [f"| {one.label}: {measure.what} | {heads} | ruined |"]
    lines.append("|---|" + "---|" * (len(one.starts) + 1))
    for comparison in comparisons:
        tuned = most_tuned(comparison, measure.baseline)
        found = from_starts(comparison, one)
        if tuned is None or found is None:
            continue
        cells = " | ".join(ratio(value(mine), value(tuned)) for mine in found)
        lost, runs = count_ruined(comparison, one)
        lines.append(f"| {comparison.problem.name} | {cells} | {lost} of {runs} |")
    for bound in measure.bounds:
        cells = " | ".join(count_within(comparisons, measure, bound))
        lines.append(f"| *tasks of at most {bound:g}* | {cells} | |")
    return "\n".join(lines)


def count_within(
    comparisons: Sequence[Comparison], measure: Measure, bound: float
) -> list[str]:
    """Return from every start on how many tasks the measure is at most a bound."""
    over = []
    for comparison in comparisons:
        tuned = most_tuned(comparison, measure.baseline)
        found = from_starts(comparison, measure.one)
        if tuned is not None and found is not None:
            best = measure.value(tuned)
            # Never where tuned never gets there either is no success.
            values = [measure.value(mine) for mine in found]
            over.append([v / best if np.isfinite(v) else np.inf for v in values])
    counts = (np.array(over).reshape(-1, len(measure.one.starts)) <= bound).sum(axis=0)
    return [f"{count} of {len(over)}" for count in counts]


def count_ruined(comparison: Comparison, one: Variant) -> tuple[int, int]:
    """Return how many runs are ruined, of how many, from all starts."""
    sgd, found = most_tuned(comparison, "sgd"), from_starts(comparison, one)
    if sgd is None or found is None:
        return 0, 0
    return sum(ruined(mine, sgd) for mine in found), sum(len(m.finals) for m in found)


def from_starts(comparison: Comparison, one: Variant) -> list[Outcome] | None:
    """Return the runs from every base rate, or None unless all are there."""
    found = [from_start(comparison, one, start) for start in one.starts]
    known = [runs for runs in found if runs is not None]
    return known if len(known) == len(found) else None


def format_pairs(comparisons: Sequence[Comparison]) -> str:
    """Return the ends of what differs in one thing, seed by seed, from 0.001."""
    heads = [f"{_plain(a)} : {_plain(b)}" for a, b in _PAIRS]
    lines = [
        f"| end, ratio of medians (lower : higher) | {' | '.join(heads)} |",
        "|---|" + "---|" * len(_PAIRS),
    ]
    for comparison in comparisons:
        cells = []
        for names in _PAIRS:
            pair = [from_start(comparison, _BY_NAME[name], 1e-3) for name in names]
            known = [found for found in pair if found is not None]
            cells.append(_compare_ends(*known) if len(known) == len(pair) else "")
        lines.append(f"| {comparison.problem.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _compare_ends(one: Outcome, other: Outcome) -> str:
    test = paired_test(one.finals, other.finals)
    over = ratio(median(one.finals), median(other.finals))
    text = f"{over} ({test.wins} : {test.losses})"
    return f"**{text}**" if test.p < 0.05 else text


def _plain(name: str) -> str:
    return _BY_NAME[name].label.replace("**", "")


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
    one: Variant | None = _BY_NAME.get(name)
    if one is not None:
        return from_start(comparison, one, 1e-3)
    if name in ("sgd", "momentum", "adam"):
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
        kind = "best of 20 rates" if name in ("sgd", "momentum", "adam") else "fixed"
        label = _plain(name) if name in _BY_NAME else LABELS[name].replace("**", "")
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
