"""Tables and a picture of what a memory of a whole run is worth on the next task."""

import itertools
import pathlib

import numpy as np
import pandas as pd

from benchmarks.harness import choose
from benchmarks.harness.store import TUNING_SEED, Frame
from benchmarks.methods import METHODS
from benchmarks.problems.next_tasks import CLASSES, MOVES
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import find, fixed, from_rate, median, paired, tuned

FRESH = (1e-6, 1e-5, 1e-4, 1e-3)
SCHEDULE, ONE_RATE = "schedule", "one rate"
# The schedule and its one rate are what counts.
_LOOKS = {
    SCHEDULE: ("o", "#D55E00"),
    ONE_RATE: ("s", "#0072B2"),
    "mean": ("D", "#56B4E9"),
    "shuffled": ("^", "#CC79A7"),
    "frozen": ("v", "#009E73"),
    "unrelated": ("x", "#999999"),
}
STARTS = tuple(_LOOKS)
LEARNERS = ("memory_adam", "memory_sgd")
SAVED, LEVEL = 0.8, 1.1  # of a fresh memory's updates, and of tuned Adam's
_LIMITS = (0.3, 3.0)
Moves = dict[tuple[str, str], dict[str, Frame]]  # class, label -> start -> runs


def load(folder: pathlib.Path) -> dict[str, Moves]:
    """Return the runs on each move with every memory, and those of Adam.

    Fresh are those from the base rate with the fewest updates, then the lowest end;
    default are those from the rate that the optimizers start with.
    """
    rows = raw.load(folder / "next_task.csv.gz")
    found: dict[str, Moves] = {method: {} for method in LEARNERS}
    moves = [make() for make in MOVES.values()]
    for move in sorted(moves, key=lambda move: CLASSES.index(move.kind)):
        here = rows[rows["problem"] == move.second.name]
        here = here[(here["seed"] < move.seeds) | (here["seed"] == TUNING_SEED)]
        before = rows[rows["problem"] == move.first[-1].name]
        there = choose.lowest_trial(before, METHODS["adam"], choose.TRIALS)
        adam = {"adam": tuned(here, "adam"), "first rate": find(here, "adam", there)}
        for method in LEARNERS:
            runs = {start: fixed(here, method, start) for start in STARTS}
            runs["fresh"] = raw.soonest(from_rate(here, method, x) for x in FRESH)
            runs["default"] = fixed(here, method)
            if len(runs[SCHEDULE]):
                found[method][move.kind, move.label] = runs | adam
    return {method: moves for method, moves in found.items() if moves}


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables of both methods and what they count up to; draw them."""
    moves = load(folder)
    draw_starts(moves, folder / "next_task.png")
    tables = {method: " | ".join(counts(found)) for method, found in moves.items()}
    for method, found in moves.items():
        tables[f"steps of {method}"] = updates_table(found)
        tables[f"{method} over fresh"] = over_fresh_table(found)
        tables[f"seeds of {method}"] = pooled_table(found)
    return tables


def updates_table(moves: Moves) -> str:
    """Return updates to the target."""
    return raw.table(
        {
            "first task to second": label,
            "tuned Adam": raw.format_updates(runs["adam"]),
            "Adam, rate of the first task": raw.format_updates(runs["first rate"]),
            "best fresh memory": raw.format_updates(runs["fresh"])
            + runs["fresh"]["setting"].iloc[0].replace("rate=", "; from "),
            "memory with its schedule": raw.format_updates(runs[SCHEDULE]),
        }
        for (_, label), runs in moves.items()
    )


def over_fresh_table(moves: Moves) -> str:
    """Return the updates from every start over those of a fresh memory, and ends."""
    return raw.table(
        {
            "first task to second": label,
            **{f"{x} : fresh": paired(runs[x], runs["fresh"]) for x in STARTS},
            "end, schedule : fresh": paired(runs[SCHEDULE], runs["fresh"], "end"),
            "end, schedule : one rate": paired(runs[SCHEDULE], runs[ONE_RATE], "end"),
        }
        for (_, label), runs in moves.items()
    )


def pooled_table(moves: Moves) -> str:
    """Return sign tests over the seeds of every class of moves, and of all."""
    lines = []
    rivals = list(itertools.product((ONE_RATE, "mean", "fresh"), ("updates", "end")))
    for kind in (*CLASSES, "all"):
        some = [runs for (own, _), runs in moves.items() if kind in ("all", own)]
        line = {"seeds lower : higher, p": f"{kind} ({len(some)})"}
        for other, value in rivals:
            pairs = [(runs[SCHEDULE][value], runs[other][value]) for runs in some]
            counted = np.array([raw.count_seeds(*pair) for pair in pairs])
            wins, losses = counted.reshape(-1, 2).sum(axis=0, dtype=int)
            text = f"{wins} : {losses}, {raw.sign_test(wins, losses):.2g}"
            text = raw.bold_if_clear(text, wins, losses)
            line[f"{value}, schedule : {other}"] = text
        lines.append(line)
    return raw.table(lines)


def medians(moves: Moves) -> Frame:
    """Return the median updates [moves, starts]."""
    return pd.DataFrame(
        {start: median(found["updates"]) for start, found in runs.items()}
        for runs in moves.values()
    )


def counts(moves: Moves) -> list[str]:
    """Return the share of a fresh memory's updates, and on how many moves it saves.

    Then on how many it wins and loses, and a fresh one is level with Adam.
    """
    updates = medians(moves)
    fresh = updates["fresh"].where(np.isfinite)
    signs = [raw.judge(runs[SCHEDULE], runs["fresh"]) for runs in moves.values()]
    saved = (updates[SCHEDULE] <= SAVED * fresh).sum()
    level = (fresh <= LEVEL * updates["adam"]).sum()
    numbers = saved, signs.count(1), signs.count(-1), level
    return [*shares(updates), *(f"{number} of {len(moves)}" for number in numbers)]


def shares(updates: Frame) -> list[str]:
    """Return the median of updates over those of a fresh memory: default, and best.

    A move on which neither gets to the target counts for nothing.
    """
    ratios = [updates[SCHEDULE] / updates[other] for other in ("default", "fresh")]
    return [f"{ratio.median():.2f}" for ratio in ratios]


def draw_starts(moves: dict[str, Moves], path: pathlib.Path) -> None:
    """Draw updates over those of the best fresh memory, for every start."""
    names = [label for _, label in moves[LEARNERS[0]]]
    size, (low, high) = (5.2, 1.2 + 0.5 * len(names)), _LIMITS
    figure, (grid,) = draw.panels(1, len(moves), size, sharey=True)
    for axes, (method, found) in zip(grid, moves.items(), strict=True):
        updates = medians(found)
        axes.axvline(1.0, color="black", linewidth=0.8)
        for number, (start, (mark, color)) in enumerate(_LOOKS.items()):
            over = (updates[start] / updates["fresh"]).clip(low, high)
            places = over.index + 0.14 * (number - 2.5)
            axes.plot(over, places, mark, color=color, markersize=6, label=start)
        axes.set(title=method, xscale="log", xlim=(low / 1.1, high * 1.1))
        draw.use_numbers(axes.xaxis, [low, 0.5, 1.0, 2.0, high])
        axes.hlines(np.arange(1, len(names)) - 0.5, low, high, color="#DDDDDD")
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("steps to the target / those of the best fresh memory")
    draw.save(figure, path, legend=3)
