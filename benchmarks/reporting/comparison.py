"""Tables and the picture of the paper's experiments: tuned methods compared."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness.choose import load_targets
from benchmarks.harness.costs import read_costs
from benchmarks.harness.store import Frame
from benchmarks.methods import BASELINES, COLORS, LABELS, METHODS, WITH_MEMORY, plain
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import fixed, median, tuned

PAPERS = ("paper_sgd", "paper_adam")
STARTS = {
    "fresh": "new",
    "reloaded": "reloaded, learning on",
    "frozen": "reloaded, not learning on",
    "constant": "mean rate of each layer, not learning on",
    "shuffled": "shuffled within each layer, learning on",
    "unrelated": "from an unrelated task, learning on",
}
_MEASURES = {
    "mnist batches": "share of errors",
    "mnist online": "share of errors",
    "rnn absolute": "error of the next state",
    "rnn change": "error of the change",
    "gan": "convergence measure",
}
_DRAWN = ("sgd", "momentum", "adam", "paper_sgd", "paper_adam", "prodigy")
_NEVER = 1.25  # horizons: where what never got there is drawn


def load(folder: pathlib.Path, stem: str) -> dict[str, Frame]:
    """Return the judged rows of every problem of a file, in the order of names."""
    return dict(sorted(raw.by_problem(folder / f"{stem}.csv.gz").items()))


def report(folder: pathlib.Path, stem: str) -> dict[str, str]:
    """Return the tables of all problems; draw their picture."""
    problems, costs = load(folder, stem), read_costs(folder)
    costs = costs[costs["experiment"] == stem].set_index(["problem", "method"])
    draw_problems(problems, folder / f"{stem}.png")
    tables = {"answers": answers(problems)}
    for name, rows in problems.items():
        tables[name] = methods_table(rows, costs.loc[name])
        tables[f"{name}, reloaded"] = reloaded_table(rows)
    return tables


def overall(folder: pathlib.Path) -> dict[str, str]:
    """Return what all experiments of the paper say."""
    stems = ("mnist_tuned", "rnn", "gan", "rosenbrock")
    problems = {x: rows for stem in stems for x, rows in load(folder, stem).items()}
    return {"answers": answers(problems), "counts": counts(problems)}


def methods_table(rows: Frame, costs: Frame) -> str:
    """Return the comparison of all methods."""
    rival = best_baseline(rows)
    return raw.table(
        {
            "method": LABELS[name],
            "one fixed setting": raw.format_updates(fixed(rows, name)),
            "1 trial": raw.format_updates(tuned(rows, name, 1)),
            "5 trials": raw.format_updates(tuned(rows, name, 5)),
            "20 trials": raw.format_updates(tuned(rows, name, 20)),
            "end, fixed": raw.format_end(fixed(rows, name)),
            "end, most trials": raw.format_end(best := tuned(rows, name)),
            "chosen by the most trials": "".join(best["setting"][:1]),
            "beside the best tuned baseline": raw.paired(best, rival),
            "ms per step": f"{(cost := costs['milliseconds'][name]):.3g}",
            "ms to the target": raw.format_number(cost * median(best["updates"])),
            "state, bytes per parameter": f"{costs['state_bytes'][name]:.2f}",
        }
        for name in METHODS
        if name in set(rows["method"])
    )


def reloaded_table(rows: Frame) -> str:
    """Return new, reloaded and control memories, and the reloaded ones beside each."""
    return raw.table(
        {
            "memory": LABELS[name],
            "start": label,
            "steps": raw.format_updates(found),
            "end": raw.format_end(found),
            "reloaded, beside it": raw.paired(fixed(rows, name, "reloaded"), found),
        }
        for name in WITH_MEMORY
        for start, label in STARTS.items()
        if len(found := fixed(rows, name, start))
    )


def best_baseline(rows: Frame) -> Frame:
    """Return the tuned baseline with the fewest updates, then the lowest end."""
    return raw.soonest(tuned(rows, name) for name in BASELINES)


def questions(rows: Frame, name: str) -> dict[str, tuple[Frame, Frame]]:
    """Return what is compared with what, to answer what the paper claims."""
    usual, best, single = fixed(rows, name), tuned(rows, name), f"{name}_m1"
    return {
        "untuned, beside Adam at 0.001": (usual, fixed(rows, "adam")),
        "tuned, beside the best tuned baseline": (best, best_baseline(rows)),
        "M=20 beside M=1, untuned": (usual, fixed(rows, single)),
        "M=20 beside M=1, tuned": (best, tuned(rows, single)),
        "reloaded beside new": (fixed(rows, name, "reloaded"), usual),
    }


def answers(problems: dict[str, Frame]) -> str:
    """Return the table that answers the questions."""
    return raw.table(
        {"problem": f"{problem}, {name}"}
        | {text: raw.paired(*pair) for text, pair in questions(rows, name).items()}
        for problem, rows in problems.items()
        for name in PAPERS
    )


def counts(problems: dict[str, Frame]) -> str:
    """Return the answers counted over problems and bases."""
    signs = pd.DataFrame(
        {text: raw.judge(*pair) for text, pair in questions(rows, name).items()}
        for rows in problems.values()
        for name in PAPERS
    )
    heads = {"clearly faster": 1, "clearly slower": -1, "no clear difference": 0}
    counted = pd.DataFrame({head: (signs == x).sum() for head, x in heads.items()})
    return raw.table(counted.astype(str).reset_index(names=""))


def draw_problems(problems: dict[str, Frame], path: pathlib.Path) -> None:
    """Draw curves of fixed settings and of the best trials, and all updates."""
    # An inch is the legend's, so that rows of methods have room beside it.
    figure, grid = draw.panels(len(problems), 3, (5.0, 4.2 + 1 / len(problems)))
    titles = {"one fixed setting each": fixed, "best of the trials": tuned}
    for (*axes, last), (name, rows) in zip(grid, problems.items(), strict=True):
        target = load_targets()[name]
        for axis, (title, choose) in zip(axes, titles.items(), strict=True):
            for method in _DRAWN:
                if len(found := choose(rows, method)):
                    # A share of errors can be 0, which no log axis shows.
                    style = {"color": COLORS[method], "label": plain(LABELS[method])}
                    draw.draw_runs(axis, found, floor=target / 100, **style)
            axis.axhline(target, color="black", linewidth=0.8, linestyle=":")
            axis.set(yscale="log", xlabel="steps", title=f"{name}: {title}")
        axes[0].set_ylabel(_MEASURES.get(name, "loss"))
        # The same range on both, without the peaks of what diverged.
        ends = np.concatenate([x.get_ydata() for axis in axes for x in axis.lines])
        ends = ends[np.isfinite(ends)]
        limits = ends.min() / 1.2, np.quantile(ends, 0.99) * 1.5
        for axis in axes:
            axis.set_ylim(limits)
        _draw_updates(last, rows)
    draw.save(figure, path, legend=5)


def _draw_updates(axis: Any, rows: Frame) -> None:
    """Draw the median updates to the target of every method, and the quartiles."""
    horizon = len(rows["curve"].iloc[0]) * rows["every"].iloc[0]
    kinds = {
        "fixed": ("D", "white", fixed),
        "best of the trials": ("o", "black", tuned),
        "reloaded": ("s", "#D55E00", lambda rows, name: fixed(rows, name, "reloaded")),
    }
    for index, (kind, (marker, color, choose)) in enumerate(kinds.items()):
        found = [choose(rows, name)["updates"] for name in METHODS]
        places = [place for place, x in enumerate(found) if len(x)]
        heights = np.array(places) + 0.22 * (index - 1)
        spans = [np.minimum(raw.quartiles(found[x]), _NEVER * horizon) for x in places]
        low, middle, high = np.reshape(spans, (-1, 3)).T
        axis.hlines(heights, low, high, color="#888888", linewidth=1)
        axis.plot(middle, heights, marker, color=color, mec="black", label=kind)
    axis.axvline(1.1 * horizon, color="black", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", ylim=(len(METHODS) - 0.4, -1.0))
    axis.set(xlabel="steps to the target", title="right of the line: never")
    ticks = [digit * 10.0**power for power in range(5) for digit in (1, 3)]
    draw.use_numbers(axis.xaxis, ticks)
    axis.set_yticks(range(len(METHODS)), [plain(LABELS[name]) for name in METHODS])
