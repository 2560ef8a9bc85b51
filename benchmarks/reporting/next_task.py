"""Tables and a picture of what a memory of a whole run is worth on the next task."""

import itertools
import pathlib

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

    Fresh are those from the base rate with the fewest updates, then the lowest end.
    """
    from benchmarks.experiments.next_task import MOVES

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
            fresh = raw.soonest(from_rate(here, method, rate) for rate in FRESH)
            if len(runs[SCHEDULE]):
                found[method][move.kind, move.label] = runs | adam | {"fresh": fresh}
    return {method: moves for method, moves in found.items() if moves}


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables of both methods and what they count up to; draw them."""
    moves = load(folder)
    draw_starts(moves, folder / "next_task.png")
    parts = [
        f"### {method}\n\n{moves_tables(found)}\n\n{pooled_table(found)}"
        for method, found in moves.items()
    ]
    return {"counts": counts(moves), "tables": "\n\n".join(parts)}


def moves_tables(moves: Moves) -> str:
    """Return updates to the target; then every start over a fresh memory, and ends."""
    updates, over = [], []
    for (_, label), runs in moves.items():
        texts = {start: raw.format_updates(found) for start, found in runs.items()}
        best = "".join(runs["fresh"]["setting"][:1]).removeprefix("rate=")
        line = {
            "first task to second": label,
            "tuned Adam": texts["adam"],
            "Adam, rate of the first task": texts["first rate"],
            "best fresh memory": f"{texts['fresh']}; from {best}",
            "memory with its schedule": texts[SCHEDULE],
        }
        updates.append(line)
        line = {"first task to second": label}
        for start in STARTS:
            line[f"{start} : fresh"] = paired(runs[start], runs["fresh"])
        for other in ("fresh", ONE_RATE):
            text = paired(runs[SCHEDULE], runs[other], "end")
            line[f"end, schedule : {other}"] = text
        over.append(line)
    return f"{raw.table(updates)}\n\n{raw.table(over)}"


def pooled_table(moves: Moves) -> str:
    """Return sign tests over the seeds of every class of moves, and of all."""
    lines = []
    for kind in (*CLASSES, "all"):
        some = [runs for (own, _), runs in moves.items() if kind in ("all", own)]
        line = {"seeds lower : higher, p": f"{kind} ({len(some)})"}
        rivals = itertools.product((ONE_RATE, "mean", "fresh"), ("updates", "end"))
        for other, value in rivals:
            counted = [
                raw.count_seeds(runs[SCHEDULE][value], runs[other][value])
                for runs in some
            ]
            wins, losses = np.reshape(counted, (-1, 2)).sum(axis=0)
            text = f"{wins:g} : {losses:g}, {raw.sign_test(wins, losses):.2g}"
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


def counts(moves: dict[str, Moves]) -> str:
    """Return on how many moves the memory saves or loses, and fresh is level."""
    lines = []
    for method, found in moves.items():
        updates = medians(found)
        fresh = updates["fresh"].where(np.isfinite)
        signs = [raw.judge(runs[SCHEDULE], runs["fresh"]) for runs in found.values()]
        saved, level = (
            updates[SCHEDULE] <= SAVED * fresh,
            fresh <= LEVEL * updates["adam"],
        )
        heads = {
            f"at most {SAVED:g} of the updates of the best fresh memory": saved.sum(),
            "clearly faster (p < .05)": signs.count(1),
            "clearly slower": signs.count(-1),
            "the best fresh one within 10 % of tuned Adam, or ahead": level.sum(),
        }
        cells = {head: f"{number} of {len(found)}" for head, number in heads.items()}
        lines.append({"on how many moves": f"`{method}`", **cells})
    return raw.table(lines)


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
    figure.supxlabel("updates to the target / those of the best fresh memory")
    draw.save(figure, path, legend=3)
