"""Tables and a picture of what a memory of a whole run is worth on the next task."""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import matplotlib.figure
import matplotlib.ticker
import numpy as np
from scipy import stats

from benchmarks.experiments import next_task
from benchmarks.harness.store import TUNING_SEED, read_runs, write_setting
from benchmarks.harness.sweep import load_targets, lowest_trial, trials_done
from benchmarks.methods import METHODS, Method
from benchmarks.problems.next_tasks import CLASSES, Move
from benchmarks.reporting.paper_tables import format_paired, format_updates
from benchmarks.reporting.statistics import (
    SIGNIFICANT,
    Comparison,
    Outcome,
    SignTest,
    find_outcome,
    median,
    most_tuned,
    paired_test,
)

SAVED, LEVEL = 0.8, 1.1  # of a fresh memory's updates, and of tuned Adam's
_COLORS = ("#D55E00", "#0072B2", "#56B4E9", "#CC79A7", "#009E73", "#999999")
_MARKS = "osD^vx"
_LIMITS = (0.3, 3.0)


class Step(NamedTuple):
    """A move from tasks to the next, and what is known of the next."""

    move: Move
    comparison: Comparison


class Pair(NamedTuple):
    """What is compared seed by seed, and by what."""

    label: str
    one: Callable[[Step, Method], Outcome | None]
    other: Callable[[Step, Method], Outcome | None]
    value: Callable[[Outcome], np.ndarray]


def load(folder: pathlib.Path) -> list[Step]:
    """Return what `next_task.csv` in a folder knows, by the seeds of each move."""
    runs, targets = read_runs(folder / f"{next_task.STEM}.csv"), load_targets()
    steps = []
    for make in next_task.MOVES.values():
        move = make()
        some = {
            key: curve
            for key, curve in runs.items()
            if key.seed < move.seeds or key.seed == TUNING_SEED
        }
        comparison = Comparison(move.second, targets[move.second.name], some)
        steps.append(Step(move, comparison))
    return sorted(steps, key=lambda step: CLASSES.index(step.move.kind))


def from_memory(step: Step, method: Method, start: str) -> Outcome | None:
    """Return the runs that began with a memory of the first task, or a control."""
    return find_outcome(step.comparison, method, start, write_setting(method.default))


def scheduled(step: Step, method: Method) -> Outcome | None:
    """Return the runs that began with the memory as it is."""
    return from_memory(step, method, next_task.SCHEDULE)


def one_rate(step: Step, method: Method) -> Outcome | None:
    """Return the runs that began with the last rates and no schedule."""
    return from_memory(step, method, next_task.ONE_RATE)


def best_fresh(step: Step, method: Method) -> Outcome | None:
    """Return the runs from the base rate with the fewest updates, the lowest end."""
    found = [
        find_outcome(step.comparison, method, "fresh", write_setting({"rate": rate}))
        for rate in next_task.FRESH
    ]
    known = [one for one in found if one is not None]
    return min(known, key=_rank, default=None)


def _rank(found: Outcome) -> tuple[float, float]:
    return median(found.updates), median(found.finals)


def first_rate(step: Step) -> Outcome | None:
    """Return Adam at the rate that ended lowest on the first task."""
    adam, first, runs = METHODS["adam"], step.move.first[-1], step.comparison.runs
    if trials_done(runs, first, adam) < next_task.TRIALS:
        return None
    setting = lowest_trial(runs, first, adam, next_task.TRIALS)
    return find_outcome(step.comparison, adam, "fresh", write_setting(setting))


def at_mean(step: Step, method: Method) -> Outcome | None:
    """Return the runs that began with each layer at the mean of its schedule."""
    return from_memory(step, method, "mean")


def _updates(found: Outcome) -> np.ndarray:
    return found.updates


def _ends(found: Outcome) -> np.ndarray:
    return found.finals


OVER_FRESH = Pair("updates, schedule : fresh", scheduled, best_fresh, _updates)
PAIRS = (
    Pair("updates, schedule : one rate", scheduled, one_rate, _updates),
    Pair("end, schedule : one rate", scheduled, one_rate, _ends),
    Pair("updates, schedule : mean", scheduled, at_mean, _updates),
    Pair("end, schedule : mean", scheduled, at_mean, _ends),
    OVER_FRESH,
    Pair("end, schedule : fresh", scheduled, best_fresh, _ends),
)


def format_all(steps: Sequence[Step]) -> str:
    """Return the tables of both methods, and what they count up to."""
    parts = []
    for method in next_task.LEARNERS:
        known = [step for step in steps if scheduled(step, method) is not None]
        parts += [f"### {method.name}", format_updates_of(known, method)]
        parts += [format_controls(known, method), format_pooled(known, method)]
        parts += [count(known, method)]
    return "\n\n".join(parts)


def format_updates_of(steps: Sequence[Step], method: Method) -> str:
    """Return updates to the target: baselines, a fresh memory, one from before."""
    lines = [
        "| first task to second | tuned Adam | Adam, rate of the first task "
        "| best fresh memory | memory with its schedule | over fresh |",
        "|---|---|---|---|---|---|",
    ]
    for step in steps:
        fresh, ours = best_fresh(step, method), scheduled(step, method)
        rate = fresh.setting.removeprefix("rate=") if fresh else ""
        cells = [
            step.move.label,
            format_updates(most_tuned(step.comparison, "adam")),
            format_updates(first_rate(step)),
            f"{format_updates(fresh)}; from {rate}",
            format_updates(ours),
            _paired(ours, fresh, _updates),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_controls(steps: Sequence[Step], method: Method) -> str:
    """Return every start over the best fresh memory, then ends with a schedule."""
    heads = " | ".join(next_task.STARTS)
    lines = [
        f"| over fresh | {heads} | end, schedule over fresh | over one rate |",
        "|---|" + "---|" * (len(next_task.STARTS) + 2),
    ]
    for step in steps:
        fresh, ours = best_fresh(step, method), scheduled(step, method)
        cells = [
            _paired(from_memory(step, method, start), fresh, _updates)
            for start in next_task.STARTS
        ]
        cells += [
            _paired(ours, other, _ends) for other in (fresh, one_rate(step, method))
        ]
        lines.append(f"| {step.move.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _paired(
    one: Outcome | None, other: Outcome | None, value: Callable[[Outcome], np.ndarray]
) -> str:
    return (
        "" if one is None or other is None else format_paired(value(one), value(other))
    )


def pool(tests: Iterable[SignTest]) -> SignTest:
    """Return one sign test over the seeds of several."""
    wins, losses, ties = np.sum([one[:3] for one in tests], axis=0, dtype=int)
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return SignTest(int(wins), int(losses), int(ties), float(p))


def judge(step: Step, method: Method, pair: Pair) -> SignTest | None:
    """Return the paired test on one move, or None unless both are there."""
    one, other = pair.one(step, method), pair.other(step, method)
    known = one is not None and other is not None
    return paired_test(pair.value(one), pair.value(other)) if known else None


def format_pooled(steps: Sequence[Step], method: Method) -> str:
    """Return sign tests over the seeds of every class of moves, and of all."""
    lines = [
        f"| seeds lower : higher, p | {' | '.join(pair.label for pair in PAIRS)} |",
        "|---|" + "---|" * len(PAIRS),
    ]
    groups = {kind: [one for one in steps if one.move.kind == kind] for kind in CLASSES}
    for label, some in {**groups, "all": steps}.items():
        cells = []
        for pair in PAIRS:
            tests = [judge(step, method, pair) for step in some]
            known = [one for one in tests if one is not None]
            cells.append(_say_test(pool(known)) if known else "")
        lines.append(f"| {label} ({len(some)}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _say_test(test: SignTest) -> str:
    text = f"{test.wins} : {test.losses}, {test.p:.2g}"
    return f"**{text}**" if test.p < SIGNIFICANT else text


def count(steps: Sequence[Step], method: Method) -> str:
    """Return on how many moves the memory saves or loses, and fresh is level."""
    number, saved, won, lost, level = 0, 0, 0, 0, 0
    for step in steps:
        test = judge(step, method, OVER_FRESH)
        fresh, ours = best_fresh(step, method), scheduled(step, method)
        adam = most_tuned(step.comparison, "adam")
        if test is None or fresh is None or ours is None or adam is None:
            continue
        number, usual = number + 1, median(fresh.updates)
        saved += median(ours.updates) <= SAVED * usual < np.inf
        level += usual <= LEVEL * median(adam.updates) and usual < np.inf
        clear = test.p < SIGNIFICANT
        won += clear and test.wins > test.losses
        lost += clear and test.wins < test.losses
    return (
        f"Of {number} moves the memory with its schedule needs at most {SAVED:g} "
        f"of the updates of the best fresh one on {saved}. It is clearly faster on "
        f"{won} and clearly slower on {lost} (sign test, p < .05). The best fresh one "
        f"is within 10 % of tuned Adam, or ahead, on {level}."
    )


def draw(steps: Sequence[Step], path: pathlib.Path) -> None:
    """Draw updates over those of the best fresh memory, for every start."""
    known = [
        any(scheduled(step, method) for method in next_task.LEARNERS) for step in steps
    ]
    steps = [step for step, is_known in zip(steps, known, strict=True) if is_known]
    figure = matplotlib.figure.Figure(
        figsize=(11, 1.5 + 0.55 * len(steps)), layout="constrained"
    )
    columns = len(next_task.LEARNERS)
    (grid,) = figure.subplots(1, columns, sharey=True, squeeze=False)
    for axes, method in zip(grid, next_task.LEARNERS, strict=True):
        _draw_starts(axes, steps, method)
        axes.set(title=method.name, xlabel="updates / those of the best fresh memory")
    grid[0].set_yticks(range(len(steps)), [step.move.label for step in steps])
    grid[0].set_ylim(max(len(steps), 1) - 0.5, -0.5)
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=6
    )
    figure.savefig(path, dpi=110, facecolor="white")


def _draw_starts(axes, steps: Sequence[Step], method: Method) -> None:
    axes.axvline(1.0, color="black", linewidth=0.8)
    for number, start in enumerate(next_task.STARTS):
        places = [
            (_over_fresh(step, method, start), row + 0.14 * (number - 2.5))
            for row, step in enumerate(steps)
        ]
        x, y = np.array(places, float).reshape(-1, 2).T
        axes.plot(
            np.clip(x, *_LIMITS),
            y,
            _MARKS[number],
            color=_COLORS[number],
            markersize=5,
            label=start,
        )
    low, high = _LIMITS
    axes.set(xscale="log", xlim=(low / 1.1, high * 1.1))
    axes.set_xticks([low, 0.5, 1, 2, high], ["0.3", "0.5", "1", "2", "3, never"])
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    for row in range(1, len(steps)):
        axes.axhline(row - 0.5, color="#DDDDDD", linewidth=0.8)


def _over_fresh(step: Step, method: Method, start: str) -> float:
    """Return the ratio of medians; nan where neither gets there or rows are missing."""
    fresh, found = best_fresh(step, method), from_memory(step, method, start)
    if fresh is None or found is None:
        return np.nan
    one, other = median(found.updates), median(fresh.updates)
    return np.nan if np.isinf(one) and np.isinf(other) else one / other
