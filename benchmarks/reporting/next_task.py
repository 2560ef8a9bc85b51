"""Tables and a picture of what a memory of a whole run is worth on the next task."""

import functools
import pathlib
from typing import Any

import numpy as np
import pandas as pd

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
# The schedule and its one rate are what counts.
_LOOKS = {
    SCHEDULE: ("o", "#D55E00"),
    ONE_RATE: ("s", "#0072B2"),
    "mean": ("D", "#56B4E9"),
    "shuffled": ("^", "#CC79A7"),
    "frozen": ("v", "#009E73"),
    "unrelated": ("x", "#999999"),
}
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
        parts += [f"### {method}", moves_table(found), pooled_table(found)]
    rows = raw.load(folder / "next_task.csv.gz")
    return {
        "counts": counts(moves),
        "tables": "\n\n".join(parts),
        "versions": raw.versions(rows),
    }


def moves_table(moves: dict[str, Starts]) -> str:
    """Return updates to the target; then every start over a fresh memory, and ends."""
    cells = pd.DataFrame(
        {
            "first task to second": label,
            "tuned Adam": raw.format_updates(runs["adam"]),
            "Adam, rate of the first task": raw.format_updates(runs["first rate"]),
            "best fresh memory": raw.format_updates(runs["fresh"])
            + "; from "
            + "".join(runs["fresh"]["setting"][:1]).removeprefix("rate="),
            "memory with its schedule": raw.format_updates(runs[SCHEDULE]),
            **{
                f"{start} : fresh": paired(runs[start], runs["fresh"])
                for start in STARTS
            },
            "end, schedule : fresh": paired(runs[SCHEDULE], runs["fresh"], "end"),
            "end, schedule : one rate": paired(runs[SCHEDULE], runs[ONE_RATE], "end"),
        }
        for label, runs in moves.items()
    )
    updates, over = cells.iloc[:, :5], cells.drop(columns=cells.columns[1:5])
    return f"{raw.table(updates)}\n\n{raw.table(over)}"


def judge(runs: Starts, other: str, value: str) -> raw.SignTest:
    """Return the paired test of the schedule on a move."""
    return raw.paired_test(runs[SCHEDULE][value], runs[other][value])


def pooled_table(moves: dict[str, Starts]) -> str:
    """Return sign tests over the seeds of every class of moves, and of all."""
    lines = []
    for kind in (*CLASSES, "all"):
        some = [runs for x, runs in moves.items() if kind in ("all", labels()[x][0])]
        line = {"seeds lower : higher, p": f"{kind} ({len(some)})"}
        for other in (ONE_RATE, "mean", "fresh"):
            for value in ("updates", "end"):
                tests = [judge(runs, other, value) for runs in some]
                wins, losses = sum(x.wins for x in tests), sum(x.losses for x in tests)
                test = raw.sign_test(wins, losses)
                text = raw.bold_if(f"{wins} : {losses}, {test.p:.2g}", test)
                line[f"{value}, schedule : {other}"] = text
        lines.append(line)
    return raw.table(lines)


def counts(moves: dict[str, dict[str, Starts]]) -> str:
    """Return on how many moves the memory saves or loses, and fresh is level."""
    lines = []
    for method, found in moves.items():
        known = [runs for runs in found.values() if len(runs["adam"])]
        tests = [judge(runs, "fresh", "updates") for runs in known]
        clear = [raw.is_clear(test) for test in tests]
        ours, fresh, adam = (
            np.array([median(runs[start]["updates"]) for runs in known])
            for start in (SCHEDULE, "fresh", "adam")
        )
        saved = (ours <= SAVED * fresh) & np.isfinite(fresh)
        level = (fresh <= LEVEL * adam) & np.isfinite(fresh)
        heads = {
            f"at most {SAVED:g} of the updates of the best fresh memory": saved.sum(),
            "clearly faster (p < .05)": clear.count(1),
            "clearly slower": clear.count(-1),
            "the best fresh one within 10 % of tuned Adam, or ahead": level.sum(),
        }
        cells = {head: f"{number} of {len(known)}" for head, number in heads.items()}
        lines.append({"on how many moves": f"`{method}`", **cells})
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
    heights = np.array([number for number, x in enumerate(names) if x in found])
    low, high = _LIMITS
    for number, (start, (mark, color)) in enumerate(_LOOKS.items()):
        over = [
            median(runs[start]["updates"]) / median(runs["fresh"]["updates"])
            for runs in found.values()
        ]
        places = heights + 0.14 * (number - 2.5)
        axes.plot(
            np.clip(over, low, high),
            places,
            mark,
            color=color,
            markersize=6,
            label=start,
        )
    axes.set(xscale="log", xlim=(low / 1.1, high * 1.1))
    draw.use_numbers(axes.xaxis, [low, 0.5, 1.0, 2.0, high])
    axes.hlines(np.arange(1, len(names)) - 0.5, low, high, color="#DDDDDD")
