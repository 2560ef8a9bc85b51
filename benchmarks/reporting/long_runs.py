"""What long runs end at: tables, a sentence and a picture, from the raw rows."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from benchmarks.experiments import layer_rates, long, search
from benchmarks.harness.costs import Cost
from benchmarks.harness.store import (
    TUNING_SEED,
    Runs,
    final,
    find,
    read_runs,
    write_setting,
)
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem


class Table(NamedTuple):
    """Methods that share a table, by the head of their column."""

    heads: dict[str, str]
    over: tuple[str, str]  # whose ends are divided in the last column
    ratio: str


# A run that is there is done: heights at which nobody would go on for what is left.
SOLVED = {
    "agent": 0.02,
    "quadratic, long": 1e-6,
    "mnist online, long": 0.005,
    "physics": 1e-3,
    "rosenbrock, long": 1e-3,
}
CONSTANT = Table(
    {
        "adam": "Adam, best",
        "momentum": "momentum, best",
        "prodigy": "Prodigy",
        "schedule_free": "schedule-free",
        "memory_adam": "**memory_adam**",
        "memory_sgd": "**memory_sgd**",
    },
    ("memory_adam", "adam"),
    "memory_adam / Adam",
)
DECAYED = Table(
    {
        "adam, decay": "Adam, best",
        "momentum, decay": "momentum, best",
        "prodigy, decay": "Prodigy",
        "memory_adam, decay": "**memory_adam**",
        "memory_sgd, decay": "**memory_sgd**",
    },
    ("memory_adam, decay", "adam, decay"),
    "memory_adam / Adam",
)
_RIVALS = {
    "adam": "the best constant Adam",
    "adam, decay": "the best decayed Adam",
    "momentum": "the best constant momentum",
    "prodigy": "Prodigy",
}
_TUNED = ("adam", "momentum")  # not run again with ours
_LINES = {
    "adam": ("Adam, best constant rate", "#0072B2", "-"),
    "adam, decay": ("Adam, best rate, decayed", "#0072B2", ":"),
    "momentum": ("momentum, best constant rate", "#000000", "-"),
    "prodigy": ("Prodigy", "#CC79A7", "-"),
    "memory_adam": ("memory_adam (band: all runs)", "#E69F00", "-"),
    "memory_adam, decay": ("memory_adam, decayed", "#E69F00", ":"),
    "memory_sgd": ("memory_sgd", "#009E73", "-"),
}
# Judged by a share of failures, which comes to 0.
_SHARES = ("agent", "mnist online, long")
_MISSING = "\N{EN DASH}"
_CLOSE, _NEAR = 1.02, 1.1
_SEEDS = range(long.SEEDS)
_BANDED = "memory_adam"
_COLUMNS = 5
_DECADES = 30.0  # an axis that is shorter has more numbers than powers of ten


def load(folder: pathlib.Path) -> Runs:
    """Return the raw rows of a folder."""
    return read_runs(folder / f"{long.STEM}.csv")


def load_beside(published: pathlib.Path, out: pathlib.Path) -> Runs:
    """Return the rows of a folder, beside the baselines that were published.

    Only those: the published rows of ours may be of another rule.
    """
    runs = load(published)
    tuned = {key: runs[key] for key in runs if key.method.partition(",")[0] in _TUNED}
    return tuned | load(out)


def curves_of(
    runs: Runs, name: str, method: str, rates: Sequence[float] = long.RATES
) -> np.ndarray | None:
    """Return the curves [runs, measures] of a method on a task, from all its starts.

    Ours start from `rates`; of all others there is one setting. None unless all starts
    are there with the same seeds, at least those of the comparison.
    """
    starts = {write_setting({"rate": rate}) for rate in rates}
    is_ours = method.startswith("memory")
    found: dict[str, dict[int, np.ndarray]] = {}
    for key, curve in runs.items():
        if (key.problem, key.method) != (name, method) or key.seed >= TUNING_SEED:
            continue
        if not is_ours or key.setting in starts:
            found.setdefault(key.setting, {})[key.seed] = curve
    seeds = {frozenset(curves) for curves in found.values()}
    expected = len(starts) if is_ours else 1
    if len(found) != expected or len(seeds) != 1 or not seeds.pop() >= set(_SEEDS):
        return None
    return np.stack([curve for curves in found.values() for curve in curves.values()])


def end_of(
    runs: Runs, name: str, method: str, rates: Sequence[float] = long.RATES
) -> float | None:
    """Return the median end of a method on a task; None unless all runs are there."""
    curves = curves_of(runs, name, method, rates)
    return None if curves is None else float(np.median([final(one) for one in curves]))


def format_ends(runs: Runs, table: Table) -> str:
    """Return a table of ends: a row per task, its lowest in bold.

    A method without any run has no column.
    """
    there = {key.method for key in runs if key.seed < TUNING_SEED}
    heads = {name: head for name, head in table.heads.items() if name in there}
    has_ratio = there >= set(table.over)
    titles = [*heads.values(), *([table.ratio] if has_ratio else [])]
    lines = [
        f"| task | updates | {' | '.join(titles)} |",
        "|---|---|" + "---|" * len(titles),
    ]
    for name, load_problem in LONG.items():
        ends = {method: end_of(runs, name, method) for method in heads}
        cells = _cells(list(ends.values()))
        if has_ratio:
            cells.append(_ratio(*(ends[method] for method in table.over)))
        task = _short(name), str(load_problem().horizon)
        lines.append(f"| {' | '.join([*task, *cells])} |")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name.removesuffix(", long")


def _cells(ends: list[float | None]) -> list[str]:
    lowest = min((end for end in ends if end is not None), default=np.inf)
    cells = []
    for end in ends:
        if end is None:
            cells.append(_MISSING)
        elif not np.isfinite(end):
            cells.append("diverged")
        else:
            cells.append(f"**{end:.3g}**" if end == lowest else f"{end:.3g}")
    return cells


def _ratio(one: float | None, other: float | None) -> str:
    if one is None or other is None or not np.isfinite([one, other]).all():
        return _MISSING
    return f"{one / other:.3g}" if other > 0 else _MISSING


def find_ratios(
    runs: Runs,
    ours: str,
    rival: str,
    solved: Mapping[str, float] = SOLVED,
    rates: Sequence[float] = long.RATES,
) -> dict[str, float]:
    """Return task -> end of ours over that of a rival; what is solved is level.

    Only of tasks where both are known. Infinite where ours diverged.
    """
    ratios = {}
    for name in LONG:
        one, other = (end_of(runs, name, method, rates) for method in (ours, rival))
        if one is None or other is None:
            continue
        floor = solved.get(name, np.finfo(float).tiny)
        ratios[name] = max(one, floor) / max(other, floor) if one < np.inf else np.inf
    return ratios


def format_costs(costs: Sequence[Cost]) -> str:
    """Return a table of what an update takes beside Adam's, and what a state keeps."""
    names = list(dict.fromkeys(one.method for one in costs))
    lines = [
        "| task | Adam, ms | " + " | ".join(names[1:]) + " |",
        "|---|---|" + "---|" * len(names[1:]),
    ]
    ratios: dict[str, list[float]] = {name: [] for name in names[1:]}
    for task in dict.fromkeys(one.problem for one in costs):
        took = {one.method: one for one in costs if one.problem == task}
        first = took[names[0]].milliseconds
        for name in names[1:]:
            ratios[name].append(took[name].milliseconds / first)
        cells = [f"{first:.3g}", *(f"{ratios[name][-1]:.2f}" for name in names[1:])]
        lines.append(f"| {_short(task)} | " + " | ".join(cells) + " |")
    medians = [f"{float(np.median(one)):.2f}" for one in ratios.values()]
    lines.append("| *median* | | " + " | ".join(medians) + " |")
    states = ([one.state_bytes for one in costs if one.method == n] for n in names)
    sizes = [f"{float(np.median(one)):.1f}" for one in states]
    lines.append("| *bytes of state a parameter* | " + " | ".join(sizes) + " |")
    return "\n".join(lines)


def format_starts(runs: Runs) -> str:
    """Return a table of the ends of memory_adam over the best Adam's, by its start."""
    columns = [
        find_ratios(runs, "memory_adam", "adam", {}, (rate,)) for rate in long.ALL_RATES
    ]
    heads = " | ".join(f"{rate:g}" for rate in long.ALL_RATES)
    lines = [f"| from | {heads} |", "|---|" + "---|" * len(columns)]
    for name in LONG:
        cells = [f"{one[name]:.3g}" if name in one else _MISSING for one in columns]
        lines.append(f"| {_short(name)} | {' | '.join(cells)} |")
    for text, bound in (("2 %", _CLOSE), ("10 %", _NEAR)):
        cells = [
            f"{sum(x <= bound for x in one.values())} of {len(one)}" for one in columns
        ]
        lines.append(f"| *within {text}, or lower* | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_search(folder: pathlib.Path) -> str:
    """Return a table of ends of variants over the default's, from both starts.

    Of a share of failures, which comes to 0, the ends themselves.
    """
    runs = read_runs(folder / f"{search.STEM}.csv")
    lines = [
        f"| variant | {' | '.join(_short(name) for name in search.TASKS)} |",
        "|---|" + "---|" * len(search.TASKS),
    ]
    usual, *_ = search.VARIANTS
    for variant in search.VARIANTS:
        cells = []
        for task in search.TASKS:
            one, other = (
                _median_ends(runs, task, name, search.RATES)
                for name in (variant, usual)
            )
            if task in _SHARES:
                other = [None if end is None else 1.0 for end in one]
            pairs = zip(one, other, strict=True)
            cells.append(", ".join(_ratio(*pair) for pair in pairs))
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median_ends(
    runs: Runs, task: str, method: str, rates: Sequence[float]
) -> list[float | None]:
    """Return the median end from each start; None where nothing was run."""
    found = (
        find(runs, task, method, "fresh", write_setting({"rate": rate}))
        for rate in rates
    )
    return [
        float(np.median([final(curve) for curve in curves.values()]))
        if curves
        else None
        for curves in found
    ]


def say_lowest(rows: Sequence[layer_rates.Row]) -> str:
    """Say how far below its highest the rate of any layer ended, by task."""
    shares: dict[str, float] = {}
    highest: dict[tuple[str, str], float] = {}
    for one in rows:
        layer = one.task, one.layer
        highest[layer] = max(highest.get(layer, 0.0), one.rate)
        share = one.rate / highest[layer]
        shares[one.task] = min(shares.get(one.task, 1.0), share)
    return ", ".join(f"{_short(task)} {share:.2g}" for task, share in shares.items())


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
        counts, bare, total = _count(runs, *pair)
        cells = [
            f"{one} of {total}"
            + (f" ({other} by the bare ends)" if one > other else "")
            for one, other in zip(counts, bare, strict=True)
        ]
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _count(runs: Runs, ours: str, rival: str) -> tuple[list[int], list[int], int]:
    """Return on how many tasks ours is within 2 and 10 %, by the bare ends, of all."""
    level, bare = (
        list(find_ratios(runs, ours, rival, one).values()) for one in (SOLVED, {})
    )
    counts, strict = (
        [sum(x <= bound for x in ratios) for bound in (_CLOSE, _NEAR)]
        for ratios in (level, bare)
    )
    return counts, strict, len(level)


def say(runs: Runs, ours: str, rival: str) -> str:
    """Say on how many tasks ours ends where a rival does, and where it does not."""
    ratios = find_ratios(runs, ours, rival)
    if not ratios:
        return ""
    (close, near), bare, total = _count(runs, ours, rival)
    missed = [
        f"{_short(name)} ({f'{x:.2f} times its end' if x < np.inf else 'diverged'})"
        for name, x in ratios.items()
        if x > _CLOSE
    ]
    text = (
        f"`{ours}` ends within 2 % of {_RIVALS[rival]}, or lower, on {close} of "
        f"{total} tasks, within 10 % on {near}"
    )
    if bare != [close, near]:
        text += f" (by the bare ends, on {bare[0]} and {bare[1]})"
    text += "."
    return f"{text} Behind it on: {', '.join(missed)}." if missed else text


def say_order(runs: Runs, ours: str, rival: str) -> str:
    """Say on how many tasks the median end of ours is lower than that of a rival."""
    ratios = list(find_ratios(runs, ours, rival).values())
    if not ratios:
        return ""
    ahead, behind = sum(x < 1 for x in ratios), sum(x > 1 for x in ratios)
    return (
        f"By the medians `{ours}` ends ahead of {_RIVALS[rival]} on {ahead} of "
        f"{len(ratios)} tasks, behind it on {behind}, level on "
        f"{len(ratios) - ahead - behind}."
    )


def describe(runs: Runs) -> str:
    """Return both tables and the sentences as Markdown."""
    tables = (format_ends(runs, table) for table in (CONSTANT, DECAYED))
    return "\n\n".join([*tables, say_all(runs)])


def say_all(runs: Runs) -> str:
    """Return a list of what is known beside constant rates, decays and Prodigy."""
    sentences = (
        say(runs, "memory_adam", "adam"),
        say_order(runs, "memory_adam", "prodigy"),
        say(runs, "memory_adam, decay", "adam, decay"),
        say(runs, "memory_sgd", "momentum"),
    )
    return "\n".join(f"- {sentence}" for sentence in sentences if sentence)


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
    labels = [label for label, _, _ in _LINES.values() if label in handles]
    legend = cells[len(LONG)].legend(
        [handles[label] for label in labels],
        labels,
        loc="upper left",
        frameon=False,
        fontsize=9,
    )
    legend.set_in_layout(False)  # it is wider than its column
    figure.supylabel("measure, lower is better", fontsize=8)
    figure.savefig(path, dpi=110, facecolor="white")


def _draw_panel(axes, runs: Runs, problem: Problem) -> None:
    updates = problem.every * np.arange(1, problem.horizon // problem.every + 1)
    shown = []
    for method, (label, color, dash) in _LINES.items():
        curves = curves_of(runs, problem.name, method)
        if curves is None:
            continue
        # A run that broke is above all others, and no line is drawn where most did.
        curves = np.where(np.isfinite(curves), curves, np.inf)
        middle = np.median(curves, axis=0)
        width = 1.8 if method.startswith("memory") else 1.0
        axes.plot(updates, middle, color=color, linestyle=dash, lw=width, label=label)
        shown.append(middle)
        if method == _BANDED:
            shown += [curves.min(axis=0), curves.max(axis=0)]
    finite = [curve for curve in shown if np.isfinite(curve).all()]
    if finite:
        _limit(axes, np.stack(finite), problem.name in _SHARES)
    _draw_band(axes, updates, curves_of(runs, problem.name, _BANDED))
    axes.set_title(_short(problem.name), fontsize=9)
    axes.tick_params(labelsize=7)


def _draw_band(axes, updates: np.ndarray, curves: np.ndarray | None) -> None:
    """Draw from the lowest to the highest of all runs, as far as there is room."""
    if curves is None:
        return
    curves = np.where(np.isfinite(curves), curves, np.inf)
    inside = np.clip(curves, *axes.get_ylim())
    low, high = inside.min(axis=0), inside.max(axis=0)
    axes.fill_between(
        updates, low, high, color=_LINES[_BANDED][1], alpha=0.25, linewidth=0
    )


def _limit(axes, curves: np.ndarray, is_share: bool) -> None:
    """Show from the lowest measure up to where learning begins, if need be by decades.

    Every end is inside. A share of errors that is 0 has no place on such an axis.
    """
    tenth = max(1, curves.shape[1] // 10)
    begin = float(np.median(curves[:, :tenth].max(axis=1)))
    low, high = float(curves.min()), max(begin, float(curves[:, -tenth:].max()))
    if is_share:
        axes.set_ylim(-0.05 * high, 1.05 * high)
    elif low < high / 4:
        low = max(low, 1e-12)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * 1.2)
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        if high < _DECADES * low:
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
    else:
        last = float(curves[:, -tenth:].max())
        high = max(low + 0.6 * (high - low), 1.02 * last)
        axes.set_ylim(low - 0.05 * (high - low), high)
