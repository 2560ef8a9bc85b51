"""What raw rows say: runs of a setting, quartiles, paired tests, cells of tables."""

import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.harness import choose
from benchmarks.harness.store import TUNING_SEED, Frame, read_rows, write_setting
from benchmarks.methods import LIBRARY, METHODS

SIGNIFICANT = 0.05
RESULTS = pathlib.Path(__file__).parents[1] / "results"


def load(path: pathlib.Path) -> Frame:
    """Return a row a run, with its updates to the problem's target and its end."""
    rows, targets = read_rows(path), choose.load_targets()
    updates = [
        choose.updates_to(curve, targets.get(problem, np.nan), every)
        for problem, curve, every in rows[["problem", "curve", "every"]].to_numpy()
    ]
    return rows.assign(updates=updates, end=[choose.final(x) for x in rows["curve"]])


def by_problem(path: pathlib.Path) -> dict[str, Frame]:
    """Return the judged runs of every problem of a file."""
    return dict(iter(load(path).groupby("problem", sort=False)))


def find(rows: Frame, method: str, setting: str, start: str = "fresh") -> Frame:
    """Return the runs of one setting that are compared, by seed."""
    is_same = (rows["method"] == method) & (rows["setting"] == setting)
    is_same &= (rows["start"] == start) & (rows["seed"] < TUNING_SEED)
    return rows[is_same].set_index("seed").sort_index()


def from_rate(rows: Frame, method: str, rate: float) -> Frame:
    """Return the runs of a method from a base rate."""
    return find(rows, method, write_setting({"rate": rate}))


def fixed(rows: Frame, name: str, start: str = "fresh") -> Frame:
    """Return the runs of a method at its one fixed setting."""
    setting = dict((METHODS | LIBRARY)[name].default)
    if "meta" in setting and start in ("frozen", "constant"):
        setting["meta"] = 0.0
    return find(rows, name, write_setting(setting), start)


def tuned(rows: Frame, name: str, *budgets: int) -> Frame:
    """Return the runs of a method at the best of the most of its trials there are."""
    known = budgets or reversed(choose.BUDGETS)
    settings = (choose.best_trial(rows, METHODS[name], budget) for budget in known)
    return find(rows, name, next(filter(None, settings), ""))


def quartiles(values: Any) -> np.ndarray:
    """Return the quartiles and the median as [low, median, high]; inf is a value.

    Nan of nothing.
    """
    if not len(values):
        return np.full(3, np.nan)
    low, high = (
        np.quantile(values, (0.25, 0.5, 0.75), method=method)
        for method in ("lower", "higher")
    )
    return (low + high) / 2


def median(values: Any) -> float:
    """Return the median, where inf is a value; nan of nothing."""
    return float(quartiles(values)[1])


def soonest(candidates: Iterable[Frame]) -> Frame:
    """Return the runs with the fewest updates, then the lowest end."""
    return min(
        candidates, key=lambda x: (x.empty, median(x["updates"]), median(x["end"]))
    )


def count_seeds(first: Frame, second: Frame) -> tuple[int, int]:
    """Return at how many seeds the first is lower, and higher; ties are left out."""
    gaps = first - second
    return int((gaps < 0).sum()), int((gaps > 0).sum())


def sign_test(wins: int, losses: int) -> float:
    """Return p of the two-sided sign test of so many seeds lower and higher."""
    tail = stats.binom.cdf(min(wins, losses), wins + losses, 0.5)
    return min(1.0, 2.0 * float(tail))


def judge(first: Frame, second: Frame, value: str = "updates") -> float:
    """Return 1 where the first is clearly lower, -1 where higher, else 0.

    Nan where there is nothing to compare.
    """
    wins, losses = count_seeds(first[value], second[value])
    is_clear = sign_test(wins, losses) < SIGNIFICANT
    return np.sign(wins - losses) * is_clear if len(first) and len(second) else np.nan


def bold_if_clear(text: str, wins: int, losses: int) -> str:
    """Return a text in bold where the test of so many seeds is clear."""
    return f"**{text}**" if sign_test(wins, losses) < SIGNIFICANT else text


def paired(first: Frame, second: Frame, value: str = "updates") -> str:
    """Return the ratio of medians, and seeds lower : higher; bold where p < .05."""
    if first.empty or second.empty:
        return ""
    wins, losses = count_seeds(first[value], second[value])
    text = f"{ratio(first, second, value)} ({wins} : {losses})"
    return bold_if_clear(text, wins, losses)


def ratio(first: Frame, second: Frame, value: str = "updates") -> str:
    """Return the ratio of medians; both sides of it where one is not finite."""
    over, under = median(first[value]), median(second[value])
    if np.isfinite(over) and np.isfinite(under) and under > 0:
        return f"{over / under:.2f}"
    return f"{format_number(over)} / {format_number(under)}"


def format_number(value: float) -> str:
    """Return a number of updates or milliseconds."""
    if not np.isfinite(value):
        return "never"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def format_end(found: Frame) -> str:
    """Return the median end, where infinity stands for what is not finite."""
    end = "" if found.empty else f"{median(found['end']):.3g}"
    return end.replace("inf", "not finite")


def format_updates(found: Frame) -> str:
    """Return the median, the quartiles and the misses of updates to the target."""
    if found.empty:
        return ""
    low, middle, high = map(format_number, quartiles(found["updates"]))
    missed = int(np.isinf(found["updates"]).sum())
    text = middle if low == high else f"{middle} [{low}, {high}]"
    return text + (f", {missed} missed" if 0 < missed < len(found) else "")


def write_cells(numbers: Frame, form: str = "{:.2f}", missing: str = "") -> Frame:
    """Return numbers as text; what is not finite is missing."""
    return numbers.map(lambda x: form.format(x) if np.isfinite(x) else missing)


def table(rows: Iterable[dict[str, Any]] | Frame) -> str:
    """Return rows as a Markdown table; what is missing is blank."""
    text = pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True)
    # As narrow as what is in it: rows of these tables are long.
    return re.sub(" +", " ", re.sub(":?-{3,}:?", "---", text))
