"""Tables and the picture of the paper's experiments: tuned methods compared."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness.choose import BUDGETS, load_targets
from benchmarks.harness.costs import read_costs
from benchmarks.harness.store import Frame, read_setting
from benchmarks.methods import (
    BASELINES,
    COLORS,
    LABELS,
    METHODS,
    WITH_MEMORY,
    Method,
    plain,
    sample_settings,
)
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
QUESTIONS = (
    "untuned, beside Adam at 0.001",
    "tuned, beside the best tuned baseline",
    "M=20 beside M=1, untuned",
    "reloaded beside new",
)
_DRAWN = ("sgd", "momentum", "adam", "paper_sgd", "paper_adam", "prodigy")
_NEVER = 1.25  # horizons: where what never got there is drawn


def load(folder: pathlib.Path, stem: str) -> dict[str, Frame]:
    """Return the judged rows of every problem of a file."""
    found = raw.load(folder / f"{stem}.csv.gz")
    parts = {str(name): some for name, some in found.groupby("problem", sort=False)}
    known = [*PROBLEMS[stem], *(name for name in parts if name not in PROBLEMS[stem])]
    return {name: parts[name] for name in known if name in parts}


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
    parts += ["Who needs fewer updates, seed by seed:", tests_table(rows)]
    parts.append("Spaces and settings:")
    return "\n\n".join([*parts, settings_table(rows)])


def methods_table(rows: Frame, costs: Frame) -> str:
    """Return the comparison of all methods."""
    paid, lines = costs.set_index("method"), []
    for name in METHODS:
        usual, best = fixed(rows, name), tuned(rows, name)
        if usual.empty:
            continue
        each = [raw.format_updates(tuned(rows, name, [budget])) for budget in BUDGETS]
        cost = paid["milliseconds"].get(name, np.nan)
        lines.append(
            {
                "method": LABELS[name],
                "one fixed setting": raw.format_updates(usual),
                **dict(zip(("1 trial", "5 trials", "20 trials"), each, strict=True)),
                "end, fixed": raw.format_end(usual),
                "end, most trials": raw.format_end(best),
                "ms per update": f"{cost:.3g}",
                "ms to the target, most trials": raw.format_number(
                    median(best["updates"]) * cost
                ),
                "state, bytes per parameter": (
                    f"{paid['state_bytes'].get(name, np.nan):.2f}"
                ),
            }
        )
    return raw.table(lines)


def reloaded_table(rows: Frame) -> str:
    """Return new, reloaded and control memories: updates, then the end."""
    lines = []
    for start, label in STARTS.items():
        line = {"start of the memory": label}
        for name in WITH_MEMORY:
            found = fixed(rows, name, start)
            end = f"; end {raw.format_end(found)}" if len(found) else ""
            line[LABELS[name]] = raw.format_updates(found) + end
        lines.append(line)
    return raw.table(lines)


def best_baseline(rows: Frame) -> str:
    """Return the tuned baseline with the fewest updates, then the lowest end."""

    def rank(name: str) -> tuple[float, float]:
        found = tuned(rows, name)
        ranks = median(found["updates"]), median(found["end"])
        return ranks if len(found) else (np.inf, np.inf)

    return min(BASELINES, key=rank)


def pairs_of(rows: Frame) -> list[tuple[str, Frame, Frame]]:
    """Return what is compared: a label, the runs of one and of the other."""
    name = best_baseline(rows)
    rival = tuned(rows, name)
    label = f"{plain(LABELS[name])}, {''.join(rival['setting'][:1])}, tuned"
    adam = fixed(rows, "adam")
    pairs = [("paper_sgd : Adam at 0.001", fixed(rows, "paper_sgd"), adam)]
    for one in PAPERS:
        pairs += [
            (f"{one} : {label}", fixed(rows, one), rival),
            (f"{one}, tuned : {label}", tuned(rows, one), rival),
        ]
    for one in PAPERS:
        single, old = f"{one}_m1", fixed(rows, one, "reloaded")
        pairs += [
            (f"{one}, M=20 : M=1", fixed(rows, one), fixed(rows, single)),
            (f"{one}, tuned, M=20 : M=1", tuned(rows, one), tuned(rows, single)),
            (f"{one}, reloaded, M=20 : M=1", old, fixed(rows, single, "reloaded")),
        ]
        for start in ("fresh", "shuffled", "unrelated"):
            other = fixed(rows, one, start)
            pairs.append((f"{one}, reloaded : {STARTS[start]}", old, other))
        still = fixed(rows, one, "frozen")
        for text, other in (
            ("M=1, neither learning on", fixed(rows, single, "frozen")),
            (STARTS["constant"], fixed(rows, one, "constant")),
        ):
            pairs.append((f"{one}, reloaded, not learning on : {text}", still, other))
    return [pair for pair in pairs if len(pair[1]) and len(pair[2])]


def tests_table(rows: Frame) -> str:
    """Return medians, seeds better, worse and equal, and p of all pairs."""
    lines = []
    for label, one, other in pairs_of(rows):
        test = raw.paired_test(one["updates"], other["updates"])
        a, b = median(one["updates"]), median(other["updates"])
        lines.append(
            {
                "one : other": label,
                "updates": f"{raw.format_number(a)} : {raw.format_number(b)}",
                "end": f"{raw.format_end(one)} : {raw.format_end(other)}",
                "better": str(test.wins),
                "worse": str(test.losses),
                "equal": str(test.ties),
                "p": raw.bold_if(f"{test.p:.2g}", test),
            }
        )
    return raw.table(lines)


def settings_table(rows: Frame) -> str:
    """Return the spaces, the fixed settings and what the trials chose."""
    lines = []
    for method in METHODS.values():
        usual = fixed(rows, method.name)
        if usual.empty:
            continue
        space = [f"{name} {x:g} to {y:g}" for name, (x, y) in method.space.items()]
        line = {"method": LABELS[method.name], "space, log-uniform": ", ".join(space)}
        line["fixed"] = usual["setting"].iloc[0]
        for budget, head in zip(BUDGETS, ("1", "5", "20 trials"), strict=True):
            found = tuned(rows, method.name, [budget])
            chosen = "".join(found["setting"][:1])
            line[head] = chosen + edge(method, chosen) if chosen else ""
        lines.append(line)
    text = raw.table(lines)
    note = "\n\n\\* the lowest or the highest that is ever tried"
    return text + note if "*" in text.replace("**", "") else text


def edge(method: Method, setting: str) -> str:
    """Return a mark if a number is the lowest or highest of all that may be tried."""
    tried = pd.DataFrame(sample_settings(method, max(BUDGETS)))
    chosen = pd.Series(read_setting(setting))
    at_edge = (chosen == tried.min()) | (chosen == tried.max())
    return " \\*" if at_edge.any() else ""


def rivals(rows: Frame, name: str) -> list[tuple[Frame, Frame]]:
    """Return the pairs of the four questions."""
    usual = fixed(rows, name)
    return [
        (usual, fixed(rows, "adam")),
        (tuned(rows, name), tuned(rows, best_baseline(rows))),
        (usual, fixed(rows, f"{name}_m1")),
        (fixed(rows, name, "reloaded"), usual),
    ]


def answers(problems: dict[str, Frame]) -> str:
    """Return the table that answers the four questions."""
    return raw.table(
        {
            "problem": f"{problem}, {name}",
            **{
                question: raw.paired(*pair)
                for question, pair in zip(QUESTIONS, rivals(rows, name), strict=True)
            },
        }
        for problem, rows in problems.items()
        for name in PAPERS
    )


def counts(problems: dict[str, Frame]) -> str:
    """Return the answers counted over problems and bases."""
    clear: dict[str, list[int]] = {question: [] for question in QUESTIONS}
    for rows in problems.values():
        for name in PAPERS:
            for question, pair in zip(QUESTIONS, rivals(rows, name), strict=True):
                if len(pair[0]) and len(pair[1]):
                    updates = [one["updates"] for one in pair]
                    clear[question].append(raw.is_clear(raw.paired_test(*updates)))
    heads = {"clearly faster": 1, "clearly slower": -1, "no clear difference": 0}
    return raw.table(
        {"": question, **{head: str(found.count(x)) for head, x in heads.items()}}
        for question, found in clear.items()
    )


def draw_problems(
    problems: dict[str, Frame], measured: dict[str, str], path: pathlib.Path
) -> None:
    """Draw curves of fixed settings and of the best trials, and all updates."""
    # An inch is the legend's, so that rows of methods have room beside it.
    figure, grid = draw.panels(len(problems), 3, (5.0, 4.2 + 1 / len(problems)))
    for axes, (name, rows) in zip(grid, problems.items(), strict=True):
        target = load_targets()[name]
        for axis, title, choose in (
            (axes[0], "one fixed setting each", fixed),
            (axes[1], "best of the trials", tuned),
        ):
            for method in _DRAWN:
                _draw_curves(axis, choose(rows, method), method, target)
            axis.axhline(target, color="black", linewidth=0.8, linestyle=":")
            axis.set(yscale="log", xlabel="updates", title=f"{name}: {title}")
        axes[0].set_ylabel(measured.get(name, "measure"))
        _share_limits(axes[:2])
        _draw_updates(axes[2], rows)
    draw.save(figure, path, legend=5)


def _draw_curves(axis: Any, found: Frame, name: str, target: float) -> None:
    if found.empty:
        return
    every = found["every"].iloc[0]
    # A share of errors can be 0, which no log axis shows.
    courses = draw.bands(np.stack(found["curve"]))
    low, middle, high = (np.maximum(one, target / 100) for one in courses)
    updates = every * np.arange(1, len(middle) + 1)
    axis.plot(updates, middle, color=COLORS[name], label=plain(LABELS[name]))
    axis.fill_between(updates, low, high, color=COLORS[name], alpha=0.2, linewidth=0)


def _share_limits(axes: Sequence[Any]) -> None:
    """Show the same range on all axes, without the peaks of what diverged."""
    values = np.concatenate([line.get_ydata() for axis in axes for line in axis.lines])
    values = values[np.isfinite(values) & (values > 0)]
    for axis in axes:
        axis.set_ylim(values.min() / 1.2, np.quantile(values, 0.99) * 1.5)


def _draw_updates(axis: Any, rows: Frame) -> None:
    """Draw the median updates to the target of every method, and the quartiles."""
    horizon = len(rows["curve"].iloc[0]) * rows["every"].iloc[0]
    kinds: tuple[tuple[str, str, str, Callable[..., Frame]], ...] = (
        ("fixed", "D", "white", fixed),
        ("best of the trials", "o", "black", tuned),
        ("reloaded", "s", "#D55E00", lambda rows, name: fixed(rows, name, "reloaded")),
    )
    for index, (kind, marker, color, choose) in enumerate(kinds):
        for place, name in enumerate(METHODS):
            found = choose(rows, name)
            if found.empty:
                continue
            bounds = np.minimum(raw.quartiles(found["updates"]), _NEVER * horizon)
            height = place + 0.22 * (index - 1)
            axis.plot(bounds[[0, 2]], [height] * 2, color="#888888", linewidth=1)
            axis.plot(bounds[1], height, marker, color=color, mec="black", label=kind)
    axis.axvline(1.1 * horizon, color="black", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", ylim=(len(METHODS) - 0.4, -1.0))
    axis.set(xlabel="updates to the target", title="right of the line: never")
    ticks = [digit * 10.0**power for power in range(5) for digit in (1, 3)]
    draw.use_numbers(axis.xaxis, ticks)
    axis.set_yticks(range(len(METHODS)), [plain(LABELS[name]) for name in METHODS])
