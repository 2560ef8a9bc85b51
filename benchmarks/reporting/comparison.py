"""Tables and the picture of the paper's experiments: tuned methods compared."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness.choose import BUDGETS, load_targets
from benchmarks.harness.costs import read_costs
from benchmarks.harness.store import Frame
from benchmarks.methods import BASELINES, COLORS, LABELS, METHODS, WITH_MEMORY, plain
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import fixed, median, tuned

PAPERS = ("paper_sgd", "paper_adam")
PROBLEMS = {  # file -> problems in it, and what they measure
    "mnist_tuned": {
        "mnist batches": "share of errors",
        "mnist online": "share of errors",
    },
    "rnn": {
        "rnn absolute": "error of the next state",
        "rnn change": "error of the change",
    },
    "gan": {"gan": "convergence measure"},
    "rosenbrock": {"rosenbrock": "loss"},
}
STARTS = {
    "fresh": "new",
    "reloaded": "reloaded, learning on",
    "frozen": "reloaded, not learning on",
    "constant": "mean rate of each layer, not learning on",
    "shuffled": "shuffled within each layer, learning on",
    "unrelated": "from an unrelated task, learning on",
}
_DRAWN = ("sgd", "momentum", "adam", "paper_sgd", "paper_adam", "prodigy")
_NEVER = 1.25  # horizons: where what never got there is drawn


def load(folder: pathlib.Path, stem: str) -> dict[str, Frame]:
    """Return the judged rows of every problem of a file, in the order of `PROBLEMS`."""
    parts, known = raw.by_problem(folder / f"{stem}.csv.gz"), PROBLEMS[stem]
    return {name: parts[name] for name in {**known, **parts} if name in parts}


def report(folder: pathlib.Path, stem: str) -> dict[str, str]:
    """Return the tables of all problems; draw their picture."""
    problems, costs = load(folder, stem), read_costs(folder)
    draw_problems(problems, PROBLEMS[stem], folder / f"{stem}.png")
    costs = costs[costs["experiment"] == stem]
    return {
        "answers": answers(problems),
        "problems": "\n\n".join(
            describe(name, rows, costs[costs["problem"] == name])
            for name, rows in problems.items()
        ),
        "versions": raw.versions(pd.concat(problems.values())),
    }


def describe(name: str, rows: Frame, costs: Frame) -> str:
    """Return all tables of a problem as Markdown."""
    first, seeds = rows.iloc[0], rows[rows["seed"] < raw.TUNING_SEED]["seed"].nunique()
    horizon = len(first["curve"]) * first["every"]
    parts = [
        f"## {name}",
        f"Updates to a target of {load_targets()[name]:.4g} or less within {horizon}, "
        f"measured every {first['every']}; {seeds} seeds: median [quartiles], runs "
        "that missed.",
        methods_table(rows, costs),
    ]
    if (rows["start"] == "reloaded").any():
        parts.append("With a memory learned on the related task, at the fixed setting:")
        parts.append(reloaded_table(rows))
    return "\n\n".join(parts)


def methods_table(rows: Frame, costs: Frame) -> str:
    """Return the comparison of all methods."""
    paid, rival, lines = costs.set_index("method"), best_baseline(rows), []
    for name in METHODS:
        usual, best = fixed(rows, name), tuned(rows, name)
        if usual.empty:
            continue
        cost, size = (
            paid[one].get(name, np.nan) for one in ("milliseconds", "state_bytes")
        )
        line = {"method": LABELS[name], "one fixed setting": raw.format_updates(usual)}
        for budget in BUDGETS:
            found = raw.format_updates(tuned(rows, name, [budget]))
            line["1 trial" if budget == 1 else f"{budget} trials"] = found
        line |= {
            "end, fixed": raw.format_end(usual),
            "end, most trials": raw.format_end(best),
            "chosen by the most trials": "".join(best["setting"][:1]),
            "beside the best tuned baseline": raw.paired(best, rival),
            "ms per update": f"{cost:.3g}",
            "ms to the target": raw.format_number(median(best["updates"]) * cost),
            "state, bytes per parameter": f"{size:.2f}",
        }
        lines.append(line)
    return raw.table(lines)


def reloaded_table(rows: Frame) -> str:
    """Return new, reloaded and control memories, and the reloaded ones beside each."""
    return raw.table(
        {
            "memory": LABELS[name],
            "start": label,
            "updates": raw.format_updates(found),
            "end": raw.format_end(found),
            "reloaded, beside it": raw.paired(fixed(rows, name, "reloaded"), found),
        }
        for name in WITH_MEMORY
        for start, label in STARTS.items()
        if len(found := fixed(rows, name, start))
    )


def best_baseline(rows: Frame) -> Frame:
    """Return the tuned baseline with the fewest updates, then the lowest end."""

    def rank(found: Frame) -> tuple[float, float]:
        ranks = median(found["updates"]), median(found["end"])
        return ranks if len(found) else (np.inf, np.inf)

    return min((tuned(rows, name) for name in BASELINES), key=rank)


def questions(rows: Frame, name: str) -> dict[str, tuple[Frame, Frame]]:
    """Return what is compared with what, to answer what the paper claims."""
    usual, single = fixed(rows, name), f"{name}_m1"
    return {
        "untuned, beside Adam at 0.001": (usual, fixed(rows, "adam")),
        "tuned, beside the best tuned baseline": (
            tuned(rows, name),
            best_baseline(rows),
        ),
        "M=20 beside M=1, untuned": (usual, fixed(rows, single)),
        "M=20 beside M=1, tuned": (tuned(rows, name), tuned(rows, single)),
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
    heads = {1: "clearly faster", -1: "clearly slower", 0: "no clear difference"}
    clear = [
        (text, heads[raw.is_clear(raw.paired_test(a["updates"], b["updates"]))])
        for rows in problems.values()
        for name in PAPERS
        for text, (a, b) in questions(rows, name).items()
        if len(a) and len(b)
    ]
    answered = pd.DataFrame(clear, columns=["question", "answer"])
    counted = pd.crosstab(answered["question"], answered["answer"])
    order = list(dict.fromkeys(text for text, _ in clear))
    cells = counted.reindex(index=order, columns=list(heads.values()), fill_value=0)
    return raw.table(cells.astype(str).reset_index(names=""))


def draw_problems(
    problems: dict[str, Frame], measured: dict[str, str], path: pathlib.Path
) -> None:
    """Draw curves of fixed settings and of the best trials, and all updates."""
    # An inch is the legend's, so that rows of methods have room beside it.
    figure, grid = draw.panels(len(problems), 3, (5.0, 4.2 + 1 / len(problems)))
    titles = {"one fixed setting each": fixed, "best of the trials": tuned}
    for axes, (name, rows) in zip(grid, problems.items(), strict=True):
        target = load_targets()[name]
        for axis, (title, choose) in zip(axes, titles.items(), strict=False):
            for method in _DRAWN:
                if len(found := choose(rows, method)):
                    # A share of errors can be 0, which no log axis shows.
                    style = {"color": COLORS[method], "label": plain(LABELS[method])}
                    draw.draw_runs(axis, found, floor=target / 100, **style)
            axis.axhline(target, color="black", linewidth=0.8, linestyle=":")
            axis.set(yscale="log", xlabel="updates", title=f"{name}: {title}")
        axes[0].set_ylabel(measured.get(name, "measure"))
        _share_limits(axes[:2])
        _draw_updates(axes[2], rows)
    draw.save(figure, path, legend=5)


def _share_limits(axes: Sequence[Any]) -> None:
    """Show the same range on all axes, without the peaks of what diverged."""
    values = np.concatenate([line.get_ydata() for axis in axes for line in axis.lines])
    values = values[np.isfinite(values)]
    for axis in axes:
        axis.set_ylim(values.min() / 1.2, np.quantile(values, 0.99) * 1.5)


def _draw_updates(axis: Any, rows: Frame) -> None:
    """Draw the median updates to the target of every method, and the quartiles."""
    horizon = len(rows["curve"].iloc[0]) * rows["every"].iloc[0]
    kinds: dict[str, tuple[str, str, Callable[..., Frame]]] = {
        "fixed": ("D", "white", fixed),
        "best of the trials": ("o", "black", tuned),
        "reloaded": ("s", "#D55E00", lambda rows, name: fixed(rows, name, "reloaded")),
    }
    for index, (kind, (marker, color, choose)) in enumerate(kinds.items()):
        found = [choose(rows, name)["updates"] for name in METHODS]
        bounds = {
            place + 0.22 * (index - 1): raw.quartiles(one)
            for place, one in enumerate(found)
            if len(one)
        }
        heights = list(bounds)
        spans = np.minimum(list(bounds.values()), _NEVER * horizon).reshape(-1, 3)
        axis.hlines(heights, spans[:, 0], spans[:, 2], color="#888888", linewidth=1)
        style = {"color": color, "mec": "black", "label": kind}
        axis.plot(spans[:, 1], heights, marker, **style)
    axis.axvline(1.1 * horizon, color="black", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", ylim=(len(METHODS) - 0.4, -1.0))
    axis.set(xlabel="updates to the target", title="right of the line: never")
    ticks = [digit * 10.0**power for power in range(5) for digit in (1, 3)]
    draw.use_numbers(axis.xaxis, ticks)
    axis.set_yticks(range(len(METHODS)), [plain(LABELS[name]) for name in METHODS])
