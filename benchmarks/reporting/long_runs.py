"""What long runs end at: tables, a sentence and a picture, from the raw rows."""

import pathlib

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from benchmarks.experiments import long
from benchmarks.harness.store import TUNING_SEED, Runs, final, read_runs
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem

# A run that is there is done: nobody would go on for what is left.
SOLVED = {
    "agent": 0.02,
    "quadratic, long": 1e-6,
    "mnist online, long": 0.005,
    "physics": 1e-3,
    "rosenbrock, long": 0.01,
}
CONSTANT = {
    "adam": "Adam, best",
    "momentum": "momentum, best",
    "prodigy": "Prodigy",
    "schedule_free": "schedule-free",
    "memory_adam": "**memory_adam**",
    "memory_sgd": "**memory_sgd**",
}
DECAYED = {
    "adam, decay": "Adam, best",
    "momentum, decay": "momentum, best",
    "prodigy, decay": "Prodigy",
    "memory_adam, decay": "**memory_adam**",
    "memory_sgd, decay": "**memory_sgd**",
}
_LINES = {
    "adam": ("Adam, best constant rate", "#0072B2", "-"),
    "adam, decay": ("Adam, best rate, decayed", "#0072B2", ":"),
    "momentum": ("momentum, best constant rate", "#000000", "-"),
    "prodigy": ("Prodigy", "#CC79A7", "-"),
    "memory_adam": ("memory_adam", "#E69F00", "-"),
    "memory_adam, decay": ("memory_adam, decayed", "#E69F00", ":"),
    "memory_sgd": ("memory_sgd", "#009E73", "-"),
}
# Judged by a share of failures, which comes to 0.
_SHARES = ("agent", "mnist online, long")
_CLOSE, _NEAR = 1.02, 1.1
_COLUMNS = 5


def load(*folders: pathlib.Path) -> Runs:
    """Return the raw rows of folders; what a later one has stands for the same."""
    runs: Runs = {}
    for folder in folders:
        runs.update(read_runs(folder / f"{long.STEM}.csv"))
    return runs


def curves_of(runs: Runs, name: str, method: str) -> np.ndarray | None:
    """Return the curves [runs, measures] of a method on a task, from all its starts.

    Of a tuned one there is one start, its best rate. None unless all starts are there
    with the same number of seeds.
    """
    found: dict[str, list[np.ndarray]] = {}
    for key, curve in runs.items():
        if (key.problem, key.method) == (name, method) and key.seed < TUNING_SEED:
            found.setdefault(key.setting, []).append(curve)
    starts = len(long.RATES) if method.startswith("memory") else 1
    is_whole = len(found) == starts and len({len(one) for one in found.values()}) == 1
    return np.concatenate(list(found.values())) if is_whole else None


def end_of(runs: Runs, name: str, method: str) -> float | None:
    """Return the median end of a method on a task; None unless all runs are there."""
    curves = curves_of(runs, name, method)
    return None if curves is None else float(np.median([final(one) for one in curves]))


def format_ends(runs: Runs, methods: dict[str, str]) -> str:
    """Return a table of ends: a row per task, its lowest in bold."""
    ends = {name: [end_of(runs, name, method) for method in methods] for name in LONG}
    known = [
        any(row[i] is not None for row in ends.values()) for i in range(len(methods))
    ]
    heads = [
        label for label, there in zip(methods.values(), known, strict=True) if there
    ]
    lines = [
        f"| task | updates | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(heads),
    ]
    for name, row in ends.items():
        shown = [end for end, there in zip(row, known, strict=True) if there]
        lowest = min((end for end in shown if end is not None), default=None)
        cells = [_cell(end, end == lowest) for end in shown]
        task = name.removesuffix(", long")
        lines.append(f"| {task} | {LONG[name]().horizon} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(end: float | None, is_lowest: bool) -> str:
    if end is None:
        return "-"
    text = "diverged" if not np.isfinite(end) else f"{end:.3g}"
    return f"**{text}**" if is_lowest else text


def find_ratios(runs: Runs, ours: str, rival: str) -> dict[str, float]:
    """Return task -> our end over that of a rival, of all tasks that both have run."""
    ratios = {}
    for name in LONG:
        one, other = (end_of(runs, name, method) for method in (ours, rival))
        if one is not None and other is not None:
            ratios[name] = one / max(other, SOLVED.get(name, 0.0))
    return ratios


def format_counts(runs: Runs) -> str:
    """Return on how many tasks ours end where a rival does, a line per rival."""
    lines = [
        "| on how many tasks | within 2 %, or lower | within 10 % |",
        "|---|---|---|",
    ]
    for said, pair in (
        (
            "`memory_adam` ends where the best constant Adam does",
            ("memory_adam", "adam"),
        ),
        (
            "with a linear decay, where the best decayed Adam does",
            ("memory_adam, decay", "adam, decay"),
        ),
        ("`memory_adam` ends where Prodigy does", ("memory_adam", "prodigy")),
    ):
        ratios = find_ratios(runs, *pair).values()
        cells = [
            f"{sum(one <= bound for one in ratios)} of {len(ratios)}"
            for bound in (_CLOSE, _NEAR)
        ]
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def say(runs: Runs, ours: str, rival: str) -> str:
    """Say on how many tasks ours ends where a rival does, and where it does not."""
    ratios = find_ratios(runs, ours, rival)
    close, near = (
        sum(x <= bound for x in ratios.values()) for bound in (_CLOSE, _NEAR)
    )
    missed = [
        f"{name.removesuffix(', long')} ({ratio:.2f} times its end)"
        for name, ratio in ratios.items()
        if ratio > _CLOSE
    ]
    text = (
        f"`{ours}` ends within 2 % of `{rival}`, or lower, on {close} of {len(ratios)} "
        f"tasks, within 10 % on {near}."
    )
    return f"{text} Behind it on: {', '.join(missed)}." if missed else text


def describe(runs: Runs) -> str:
    """Return both tables and the sentences as Markdown."""
    tables = (format_ends(runs, methods) for methods in (CONSTANT, DECAYED))
    return "\n\n".join([*tables, say_all(runs)])


def say_all(runs: Runs) -> str:
    """Return the sentences on constant rates, on decays, and beside Prodigy."""
    pairs = (
        ("memory_adam", "adam"),
        ("memory_adam, decay", "adam, decay"),
        ("memory_adam", "prodigy"),
        ("memory_sgd", "momentum"),
    )
    return "\n".join(f"- {say(runs, *pair)}" for pair in pairs)


def draw(runs: Runs, path: pathlib.Path) -> None:
    """Draw the measure over updates, a panel per task: medians of all runs."""
    rows = -(-(len(LONG) + 1) // _COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(13, 2.3 * rows), layout="constrained")
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, load_problem in zip(cells, LONG.values(), strict=False):
        _draw_panel(axes, runs, load_problem())
    handles: dict[str, object] = {}
    for axes in cells[: len(LONG)]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for axes in cells[len(LONG) - _COLUMNS : len(LONG)]:
        axes.set_xlabel("updates", fontsize=8)
    for axes in cells[len(LONG) :]:
        axes.axis("off")
    cells[len(LONG)].legend(
        handles.values(), handles.keys(), loc="upper left", frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=110, facecolor="white")


def _draw_panel(axes, runs: Runs, problem: Problem) -> None:
    updates = problem.every * np.arange(1, problem.horizon // problem.every + 1)
    shown = []
    for method, (label, color, dash) in _LINES.items():
        curves = curves_of(runs, problem.name, method)
        if curves is None:
            continue
        middle = np.median(curves, axis=0)
        width = 1.8 if method.startswith("memory") else 1.0
        axes.plot(updates, middle, color=color, linestyle=dash, lw=width, label=label)
        if np.isfinite(middle).all():
            shown.append(middle)
    axes.set_title(problem.name.removesuffix(", long"), fontsize=9)
    axes.tick_params(labelsize=7)
    if shown:
        _limit(axes, np.stack(shown), problem.name in _SHARES)


def _limit(axes, curves: np.ndarray, is_share: bool) -> None:
    """Show from the lowest measure up to where learning begins, if need be by decades.

    Every end is inside. A share of errors that is 0 has no place on such an axis.
    """
    tenth = max(1, curves.shape[1] // 10)
    begin = float(np.median(curves[:, :tenth].max(axis=1)))
    low, high = float(curves.min()), max(begin, float(curves[:, -tenth:].max()))
    if is_share:
        axes.set_ylim(-0.05 * high, high)
    elif low < high / 4:
        low = max(low, 1e-12)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.2)
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    else:
        last = float(curves[:, -tenth:].max())
        high = max(low + 0.6 * (high - low), 1.02 * last)
        axes.set_ylim(low - 0.05 * (high - low), high)
