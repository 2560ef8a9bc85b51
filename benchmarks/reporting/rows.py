"""What raw rows say: runs of a setting, quartiles, paired tests, cells of tables."""

import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.harness import choose
from benchmarks.harness.store import TUNING_SEED, Frame, read_rows, write_setting
from benchmarks.methods import LIBRARY, METHODS

SIGNIFICANT = 0.05
RESULTS = pathlib.Path(__file__).parents[1] / "results"


class SignTest(NamedTuple):
    """A paired comparison: a sign test, ties left out."""

    wins: int
    losses: int
    ties: int
    p: float


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
    problems = load(path).groupby("problem", sort=False)
    return {str(name): some for name, some in problems}


def find(rows: Frame, method: str, setting: str, start: str = "fresh") -> Frame:
    """Return the runs of one setting by seed; none unless every seed is there."""
    is_paired = (rows["seed"] < TUNING_SEED).to_numpy()
    is_same = (rows["method"] == method) & (rows["setting"] == setting)
    found = rows[is_paired & is_same & (rows["start"] == start)].sort_values("seed")
    every = set(rows["seed"].to_numpy()[is_paired])
    return found if set(found["seed"]) == every else found.iloc[:0]


def from_rate(rows: Frame, method: str, rate: float) -> Frame:
    """Return the runs of a method from a base rate."""
    return find(rows, method, write_setting({"rate": rate}))


def fixed(rows: Frame, name: str, start: str = "fresh") -> Frame:
    """Return the runs of a method at its one fixed setting."""
    setting = dict((METHODS | LIBRARY)[name].default)
    if "meta" in setting and start in ("frozen", "constant"):
        setting["meta"] = 0.0
    return find(rows, name, write_setting(setting), start)


def tuned(rows: Frame, name: str, budgets: Iterable[int] = choose.BUDGETS) -> Frame:
    """Return the runs of a method at the best of the most of its trials there are."""
    for budget in sorted(budgets, reverse=True):
        setting = choose.best_trial(rows, METHODS[name], budget)
        found = find(rows, name, setting)
        if len(found):
            return found
    return rows.iloc[:0]


def quartiles(values: Any) -> tuple[float, float, float]:
    """Return the quartiles and the median as (low, median, high); inf is a value."""
    low, high = (
        np.quantile(values, (0.25, 0.5, 0.75), method=method)
        for method in ("lower", "higher")
    )
    first, middle, last = (low + high) / 2
    return float(first), float(middle), float(last)


def median(values: Any) -> float:
    """Return the median, where inf is a value; nan of nothing."""
    return quartiles(values)[1] if len(values) else np.nan


def sign_test(wins: int, losses: int, ties: int = 0) -> SignTest:
    """Return the two-sided test of so many seeds lower and higher."""
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return SignTest(wins, losses, ties, float(p))


def paired_test(one: Any, other: Any) -> SignTest:
    """Test whether one measure [seeds] is lower than the other, seed by seed."""
    seeds = min(len(one), len(other))
    a, b = np.asarray(one)[:seeds], np.asarray(other)[:seeds]
    wins, losses = int((a < b).sum()), int((a > b).sum())
    return sign_test(wins, losses, seeds - wins - losses)


def is_clear(test: SignTest) -> int:
    """Return 1 where the first is clearly lower, -1 where higher, else 0."""
    if test.p >= SIGNIFICANT:
        return 0
    return 1 if test.wins > test.losses else -1


def format_number(value: float) -> str:
    """Return a number of updates or milliseconds."""
    if not np.isfinite(value):
        return "never"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def format_end(found: Frame) -> str:
    """Return the median end, where infinity stands for what is not finite."""
    end = median(found["end"])
    if np.isnan(end):
        return ""
    return f"{end:.3g}" if np.isfinite(end) else "not finite"


def format_updates(found: Frame) -> str:
    """Return the median, the quartiles and the misses of updates to the target."""
    if found.empty:
        return ""
    low, middle, high = quartiles(found["updates"])
    missed = int(np.isinf(found["updates"]).sum())
    text = format_number(middle)
    if low != high:
        text += f" [{format_number(low)}, {format_number(high)}]"
    return text + (f", {missed} missed" if 0 < missed < len(found) else "")


def ratio(one: float, other: float) -> str:
    """Return a ratio; both sides of it where one is not finite."""
    if np.isfinite(one) and np.isfinite(other) and other > 0:
        return f"{one / other:.2f}"
    return f"{format_number(one)} / {format_number(other)}"


def bold_if(text: str, test: SignTest) -> str:
    """Return a text in bold where its test is clear."""
    return f"**{text}**" if is_clear(test) else text


def paired(one: Frame, other: Frame, value: str = "updates") -> str:
    """Return the ratio of medians, and seeds lower : higher; bold where p < .05."""
    if one.empty or other.empty:
        return ""
    test = paired_test(one[value], other[value])
    text = ratio(median(one[value]), median(other[value]))
    return bold_if(f"{text} ({test.wins} : {test.losses})", test)


def table(rows: Iterable[dict[str, Any]] | Frame) -> str:
    """Return rows as a Markdown table; what is missing is blank."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    text = frame.fillna("").to_markdown(index=False, disable_numparse=True)
    # As narrow as what is in it: rows of these tables are long.
    return re.sub(" +", " ", re.sub(":?-{3,}:?", "---", text))


def versions(rows: Frame) -> str:
    """Return which versions of the package made the rows of memories, or all rows."""
    is_ours = rows["method"].str.startswith(("memory", "paper"))
    found = rows[is_ours] if is_ours.any() else rows
    return ", ".join(sorted(set(found["version"])))
