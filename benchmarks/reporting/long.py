"""What long runs end at: tables and pictures, from the raw rows."""

import pathlib
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness.costs import read_costs
from benchmarks.harness.store import KEY, TUNING_SEED, Frame, write_setting
from benchmarks.methods import COLORS
from benchmarks.problems.long_tasks import LONG
from benchmarks.reporting import draw
from benchmarks.reporting import rows as raw

RATES = (1e-5, 1e-3)
ALL_RATES = (1e-6, 1e-5, 1e-4, 1e-3)  # of memory_adam at a constant factor
SEEDS = 3
# A run that is there is done: heights at which nobody would go on for what is left.
SOLVED = {
    "agent": 0.02,
    "quadratic, long": 1e-6,
    "mnist online, long": 0.005,
    "physics": 1e-3,
    "rosenbrock, long": 1e-3,
}
CONSTANT = {
    "adam": "Adam, best",
    "momentum": "momentum, best",
    "prodigy": "Prodigy",
    "schedule_free": "schedule-free",
    "memory_adam": "**memory_adam**",
    "memory_sgd": "**memory_sgd**",
}
DECAYED = {f"{x}, decay": head for x, head in CONSTANT.items() if x != "schedule_free"}
AVERAGED = {
    "adam, decay": "Adam, best decayed",
    "adam, average": "Adam, averaged",
    "momentum, average": "momentum, averaged",
    "nadam, cosine": "NAdam, cosine",
    "schedule_free": "schedule-free",
    "memory_adam, average": "**memory_adam**, averaged",
    "memory_sgd, average": "**memory_sgd**, averaged",
}
# Judged by a share of failures, which comes to 0.
SHARES = ("agent", "mnist online, long")
MISSING = "\N{EN DASH}"
# Ours and rivals: on how many tasks do they end where those do?
COUNTED = (
    ("memory_adam", "adam"),
    ("memory_adam, decay", "adam, decay"),
    ("memory_adam", "prodigy"),
    ("memory_sgd", "momentum"),
    ("memory_adam, average", "adam, decay"),
    ("memory_adam, average", "adam, average"),
    ("memory_adam, average", "prodigy, decay"),
    ("memory_adam, average", "schedule_free"),
)
_SHOWN = ["language, long", "residual, long", "autoencoder", "physics", "gan, long"]
_SHOWN += ["noisy labels"]
Lines = dict[str, tuple[str, str]]  # method -> label and dash
_LINES = {
    "adam": ("Adam, best of 20 constant rates", "-"),
    "adam, decay": ("Adam, best of 20 decayed rates", ":"),
    "memory_adam": ("memory_adam", "-"),
    "memory_adam, decay": ("memory_adam, decayed", ":"),
    "memory_adam, average": ("memory_adam, averaged", "-."),
}
_ALL_LINES = _LINES | {
    "momentum": ("momentum, best of 20 rates", "-"),
    "prodigy": ("Prodigy", "-"),
    "memory_sgd": ("memory_sgd", "-"),
}


def load(folder: pathlib.Path) -> Frame:
    """Return the judged rows of a folder, elsewhere beside the published baselines.

    Only those: the published rows of ours may be of another rule.
    """
    rows = raw.load(folder / "long.csv.gz")
    if folder.resolve() != raw.RESULTS:
        published = raw.load(raw.RESULTS / "long.csv.gz")
        is_tuned = published["method"].str.match("adam|momentum|nadam")
        rows = pd.concat([published[is_tuned], rows]).drop_duplicates(KEY, keep="last")
    return rows[rows["seed"] < TUNING_SEED]


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures."""
    rows, costs = load(folder), read_costs(folder)
    runs, ends = from_starts(rows), ends_of(rows)
    draw_tasks(runs, _SHOWN, _LINES, folder / "long.png", 3)
    draw_tasks(runs, list(LONG), _ALL_LINES, folder / "long_all.png", 4)
    updates = (rows["every"] * rows["curve"].map(len)).groupby(rows["problem"]).first()
    return {
        **{f"{ours} over {x}": count(ends, ours, x) for ours, x in COUNTED},
        "constant": ends_table(updates, ends, CONSTANT),
        "decayed": ends_table(updates, ends, DECAYED),
        "averaged": ends_table(updates, ends, AVERAGED),
        "starts": starts_table(rows, "memory_adam", "adam"),
        "averaged starts": starts_table(rows, "memory_adam, average", "adam, decay"),
        "costs": costs_table(costs[costs["experiment"] == "long"]),
    }


def short(name: str) -> str:
    """Return the name of a task without what all of them share."""
    return name.removesuffix(", long")


def from_starts(rows: Frame, rates: tuple[float, ...] = RATES) -> Frame:
    """Return the runs of ours from some rates, and of others at their one setting.

    Only of what was run from all starts with all seeds.
    """
    texts = [write_setting({"rate": rate}) for rate in rates]
    is_ours = rows["method"].str.startswith("memory")
    rows = rows[~is_ours | rows["setting"].isin(texts)]
    setting = ["problem", "method", "setting"]
    rows = rows[rows.groupby(setting)["seed"].transform("nunique") >= SEEDS]
    starts = rows.groupby(setting[:2])["setting"].transform("nunique")
    needed = np.where(rows["method"].str.startswith("memory"), len(rates), 1)
    return rows[starts == needed]


def ends_of(rows: Frame, rates: tuple[float, ...] = RATES) -> Frame:
    """Return median ends [tasks, methods]; nan unless all runs are there."""
    found = from_starts(rows, rates).groupby(["problem", "method"])["end"].median()
    return found.unstack().reindex(list(LONG))


def ends_table(updates: Frame, ends: Frame, heads: dict[str, str]) -> str:
    """Return a table of ends: a row per task, its lowest in bold, and a ratio.

    Of our Adam and of Adam. A method without any run has no column.
    """
    ends = ends[[name for name in heads if name in ends]]
    cells = raw.write_cells(ends, "{:.3g}", "diverged").mask(ends.isna(), MISSING)
    cells = cells.mask(ends.eq(ends.min(axis=1), axis=0), "**" + cells + "**")
    (ours,) = (name for name in heads if name.startswith("memory_adam"))
    if ours in ends:
        finite, rival = ends.where(np.isfinite), next(iter(heads))
        over = finite[ours] / finite[rival]
        cells["memory_adam / Adam"] = raw.write_cells(over, "{:.3g}", MISSING)
    cells.insert(0, "steps", updates.map(str))
    return _table(cells.rename(columns=heads), "task")


def _table(cells: Frame, head: str) -> str:
    """Return cells [tasks, ...] as a table of short names."""
    return raw.table(cells.rename(index=short).reset_index(names=head))


def find_ratios(ends: Frame, ours: str, rival: str, *, bare: bool = False) -> Frame:
    """Return task -> end of ours over that of a rival; what is solved is level.

    Only of tasks where both are known. Infinite where ours diverged.
    """
    ends = ends.reindex(columns=[ours, rival]).dropna()
    floors = pd.Series({} if bare else SOLVED, ends.index, float)
    ends = ends.clip(lower=floors.fillna(np.finfo(float).tiny), axis=0)
    return (ends[ours] / ends[rival]).where(ends[ours] < np.inf, np.inf)


def count(ends: Frame, ours: str, rival: str) -> str:
    """Return on how many tasks ours end where a rival does, within 2 % and 10 %."""
    level, strict = (find_ratios(ends, ours, rival, bare=x) for x in (False, True))
    cells = []
    for bound in (1.02, 1.1):
        within, bare = (level <= bound).sum(), (strict <= bound).sum()
        note = f" ({bare} without tolerances)" if within > bare else ""
        cells.append(f"{within} of {len(level)}{note}")
    return " | ".join(cells if len(level) else [MISSING, MISSING])


def starts_table(rows: Frame, ours: str, rival: str) -> str:
    """Return the ends of ours over the rival's, by its start."""
    ratios = pd.DataFrame(index=list(LONG))
    for rate in ALL_RATES:
        over = find_ratios(ends_of(rows, (rate,)), ours, rival, bare=True)
        ratios[f"{rate:g}"] = over
    # What is over the smallest number is over an end of 0.
    cells = ratios.mask(ratios < 1e-100, 0).map("{:.3g}".format)
    cells = cells.replace("nan", MISSING)
    for text, bound in {"2 %": 1.02, "10 %": 1.1}.items():
        within, there = (ratios <= bound).sum(), ratios.count().map(" of {}".format)
        cells.loc[f"*within {text}, or lower*"] = within.map(str) + there
    return _table(cells, "from")


def costs_table(costs: Frame) -> str:
    """Return what an update takes beside Adam's, and what a state keeps."""
    if costs.empty:
        return ""
    order = costs["method"].unique()
    times = costs.pivot_table("milliseconds", "problem", "method", sort=False)[order]
    over = times.div(times["adam"], axis=0)
    over.loc["*median*"] = over.median()
    cells = over.map("{:.2f}".format)
    cells["adam"] = times["adam"].map("{:.3g}".format)
    sizes = costs.groupby("method")["state_bytes"].median()[order]
    cells.loc["*bytes of state a parameter*"] = sizes.map("{:.1f}".format)
    return _table(cells.rename(columns={"adam": "Adam, ms"}), "task")


def draw_tasks(
    runs: Frame, shown: list[str], lines: Lines, path: pathlib.Path, columns: int
) -> None:
    """Draw the measure over updates, a panel per task: medians of all runs."""
    figure, panels = draw.task_panels(shown, columns, (3.8, 2.7))
    for task, axes in panels.items():
        some = runs[runs["problem"] == task]
        for name, (label, dash) in lines.items():
            if len(found := some[some["method"] == name]):
                width = 2.5 if name.startswith("memory") else 1.3
                style = {"color": COLORS[name.partition(",")[0]], "label": label}
                draw.draw_runs(axes, found, band=False, ls=dash, lw=width, **style)
        _limit(axes, task in SHARES)
    figure.supxlabel("steps")
    figure.supylabel("test loss or error")
    draw.save(figure, path, legend=2 if columns == 3 else 4)


def _limit(axes: Any, is_share: bool) -> None:
    """Show from the lowest measure up to where learning begins, if need be by decades.

    Every end is inside. A share of errors that is 0 has no place on such an axis.
    """
    curves = [line.get_ydata() for line in axes.lines]
    curves = np.array([curve for curve in curves if np.isfinite(curve).all()])
    if not len(curves):
        return
    tenth = max(1, curves.shape[1] // 10)
    begin = float(np.median(curves[:, :tenth].max(axis=1)))
    last = float(curves[:, -tenth:].max())
    low, high = float(curves.min()), max(begin, last)
    if low < high / 4 and not is_share:
        axes.set(yscale="log", ylim=(max(low, 1e-12) / 1.5, high * 1.2))
        if high < 30 * low:
            ticks = [x * 10.0**y for y in range(-5, 3) for x in (1, 2, 5)]
            draw.use_numbers(axes.yaxis, ticks)
    else:
        low, high = (0.0, high) if is_share else (low, 0.4 * low + 0.6 * high)
        high = max(high, 1.02 * last)
        axes.set_ylim(low - 0.05 * (high - low), 1.05 * high)
