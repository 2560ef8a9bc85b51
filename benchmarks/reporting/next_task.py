"""Tables and a picture of what a memory of a whole run is worth on the next task."""

import functools
import pathlib
from typing import Any

import numpy as np

from benchmarks.harness import choose
from benchmarks.harness.store import TUNING_SEED, Frame
from benchmarks.methods import METHODS
from benchmarks.problems.next_tasks import CLASSES
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import find, fixed, from_rate, median, paired, tuned

FRESH = (1e-6, 1e-5, 1e-4, 1e-3)
SCHEDULE, ONE_RATE = "schedule", "one rate"
STARTS = (SCHEDULE, ONE_RATE, "mean", "shuffled", "frozen", "unrelated")
LEARNERS = ("memory_adam", "memory_sgd")
SAVED, LEVEL = 0.8, 1.1  # of a fresh memory's updates, and of tuned Adam's
OVER_FRESH = ("updates, schedule : fresh", "fresh", "updates")
PAIRS = (
    ("updates, schedule : one rate", ONE_RATE, "updates"),
    ("end, schedule : one rate", ONE_RATE, "end"),
    ("updates, schedule : mean", "mean", "updates"),
    ("end, schedule : mean", "mean", "end"),
    OVER_FRESH,
    ("end, schedule : fresh", "fresh", "end"),
)
# What starts in gray tones is beside: the schedule and its one rate are what counts.
_MARKS = dict(zip(STARTS, "osD^vx", strict=True))
_COLORS = ("#D55E00", "#0072B2", "#56B4E9", "#CC79A7", "#009E73", "#999999")
_LIMITS = (0.3, 3.0)
Starts = dict[str, Frame]  # start -> its runs on one move


def load(folder: pathlib.Path, method: str) -> dict[str, Starts]:
    """Return label -> start -> runs of a method on each move, and those of Adam.

    Fresh are those from the base rate with the fewest updates, then the lowest end.
    """
    moves, rows = labels(), raw.load(folder / "next_task.csv.gz")
    found = {}
    for label, (_, first, second, seeds) in moves.items():
        here = rows[rows["problem"] == second]
        some = here[(here["seed"] < seeds) | (here["seed"] == TUNING_SEED)]
        runs = {start: fixed(some, method, start) for start in STARTS}
        fresh = [from_rate(some, method, rate) for rate in FRESH]
        known = [one for one in fresh if len(one)] or fresh[:1]
        runs["fresh"] = min(
            known, key=lambda one: (median(one["updates"]), median(one["end"]))
        )
        runs["adam"] = tuned(some, "adam")
        before = rows[rows["problem"] == first]
        rate = choose.lowest_trial(before, METHODS["adam"], choose.TRIALS)
        runs["first rate"] = find(some, "adam", rate)
        if len(runs[SCHEDULE]):
            found[label] = runs
    return found


@functools.cache
def labels() -> dict[str, tuple[str, str, str, int]]:
    """Return label -> class, last first task, second task and seeds of every move."""
    from benchmarks.experiments.next_task import MOVES

    moves = sorted(
        (make() for make in MOVES.values()), key=lambda x: CLASSES.index(x.kind)
    )
    return {
        one.label: (one.kind, one.first[-1].name, one.second.name, one.seeds)
        for one in moves
    }


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables of both methods and what they count up to; draw them."""
    moves = {method: load(folder, method) for method in LEARNERS}
    draw_starts(moves, folder / "next_task.png")
    parts = []
    for method, found in moves.items():
        parts += [f"### {method}", updates_table(found)]
        parts += [controls_table(found), pooled_table(found)]
    rows = raw.load(folder / "next_task.csv.gz")
    return {
        "counts": counts(moves),
        "tables": "\n\n".join(parts),
        "versions": raw.versions(rows),
    }


def updates_table(moves: dict[str, Starts]) -> str:
    """Return updates to the target: baselines, a fresh memory, one from before."""
    return raw.table(
        {
            "first task to second": label,
            "tuned Adam": raw.format_updates(runs["adam"]),
            "Adam, rate of the first task": raw.format_updates(runs["first rate"]),
            "best fresh memory": raw.format_updates(runs["fresh"])
            + "; from "
            + "".join(runs["fresh"]["setting"][:1]).removeprefix("rate="),
            "memory with its schedule": raw.format_updates(runs[SCHEDULE]),
            "over fresh": paired(runs[SCHEDULE], runs["fresh"]),
        }
        for label, runs in moves.items()
    )


def controls_table(moves: dict[str, Starts]) -> str:
    """Return every start over the best fresh memory, then ends with a schedule."""
    return raw.table(
        {
            "over fresh": label,
            **{start: paired(runs[start], runs["fresh"]) for start in STARTS},
            "end, schedule over fresh": paired(runs[SCHEDULE], runs["fresh"], "end"),
            "over one rate": paired(runs[SCHEDULE], runs[ONE_RATE], "end"),
        }
        for label, runs in moves.items()
    )


def judge(runs: Starts, other: str, value: str) -> raw.SignTest | None:
    """Return the paired test of the schedule on a move; None unless both are there."""
    if runs[SCHEDULE].empty or runs[other].empty:
        return None
    return raw.paired_test(runs[SCHEDULE][value], runs[other][value])


def pooled_table(moves: dict[str, Starts]) -> str:
    """Return sign tests over the seeds of every class of moves, and of all."""
    lines = []
    for kind in (*CLASSES, "all"):
        some = [runs for x, runs in moves.items() if kind in ("all", labels()[x][0])]
        line = {"seeds lower : higher, p": f"{kind} ({len(some)})"}
        for head, other, value in PAIRS:
            tests = [judge(runs, other, value) for runs in some]
            known = [one for one in tests if one is not None]
            test = raw.sign_test(
                sum(x.wins for x in known), sum(x.losses for x in known)
            )
            text = raw.bold_if(f"{test.wins} : {test.losses}, {test.p:.2g}", test)
            line[head] = text if known else ""
        lines.append(line)
    return raw.table(lines)


def counts(moves: dict[str, dict[str, Starts]]) -> str:
    """Return on how many moves the memory saves or loses, and fresh is level."""
    lines = []
    for method, found in moves.items():
        known = [
            runs for runs in found.values() if len(runs["fresh"]) and len(runs["adam"])
        ]
        tests = [
            raw.paired_test(x[SCHEDULE]["updates"], x["fresh"]["updates"])
            for x in known
        ]
        clear = [raw.is_clear(test) for test in tests]
        ours, fresh, adam = (
            np.array([median(runs[start]["updates"]) for runs in known])
            for start in (SCHEDULE, "fresh", "adam")
        )
        saved = (ours <= SAVED * fresh) & (SAVED * fresh < np.inf)
        level = (fresh <= LEVEL * adam) & (fresh < np.inf)
        total = f" of {len(known)}"
        lines.append(
            {
                "on how many moves": f"`{method}`",
                f"at most {SAVED:g} of the updates of the best fresh memory": (
                    f"{saved.sum()}{total}"
                ),
                "clearly faster (p < .05)": f"{clear.count(1)}{total}",
                "clearly slower": f"{clear.count(-1)}{total}",
                "the best fresh one within 10 % of tuned Adam, or ahead": (
                    f"{level.sum()}{total}"
                ),
            }
        )
    return raw.table(lines)


def draw_starts(moves: dict[str, dict[str, Starts]], path: pathlib.Path) -> None:
    """Draw updates over those of the best fresh memory, for every start."""
    names = list(dict.fromkeys(label for found in moves.values() for label in found))
    size = 5.2, 1.2 + 0.5 * len(names)
    figure, (grid,) = draw.panels(1, len(moves), size, sharey=True)
    for axes, (method, found) in zip(grid, moves.items(), strict=True):
        _draw_method(axes, names, found)
        axes.set_title(method)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(max(len(names), 1) - 0.5, -0.5)
    figure.supxlabel("updates to the target / those of the best fresh memory")
    draw.save(figure, path, legend=3)


def _draw_method(axes: Any, names: list[str], found: dict[str, Starts]) -> None:
    axes.axvline(1.0, color="black", linewidth=0.8)
    for number, (start, mark) in enumerate(_MARKS.items()):
        over = [
            median(found[x][start]["updates"]) / median(found[x]["fresh"]["updates"])
            for x in names
            if x in found
        ]
        heights = np.arange(len(names)) + 0.14 * (number - 2.5)
        heights = heights[[x in found for x in names]]
        shown = np.clip(over, *_LIMITS)
        axes.plot(
            shown, heights, mark, color=_COLORS[number], markersize=6, label=start
        )
    low, high = _LIMITS
    axes.set(xscale="log", xlim=(low / 1.1, high * 1.1))
    draw.use_numbers(axes.xaxis, [low, 0.5, 1.0, 2.0, high])
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, color="#DDDDDD", linewidth=0.8)
