"""What the raw rows of a comparison say: medians, quartiles, misses, paired tests."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.harness.store import (
    TUNING_SEED,
    Runs,
    final,
    find,
    read_runs,
    updates_to,
    write_setting,
)
from benchmarks.harness.sweep import BUDGETS, best_trial, load_targets, trials_done
from benchmarks.methods import METHODS, Method
from benchmarks.problems.problem import Problem

SIGNIFICANT = 0.05


class Outcome(NamedTuple):
    """All paired runs of one setting; seeds in order."""

    setting: str
    curves: np.ndarray  # [seeds, horizon / every]
    updates: np.ndarray  # [seeds] to the target; inf for never
    finals: np.ndarray  # [seeds] median of the last five measures


class Comparison(NamedTuple):
    """One problem, judged by one target."""

    problem: Problem
    target: float
    runs: Runs

    def seeds(self) -> set[int]:
        """Return the seeds that methods are compared on."""
        return {
            key.seed
            for key in self.runs
            if key.problem == self.problem.name and key.seed < TUNING_SEED
        }


class SignTest(NamedTuple):
    """A paired comparison of updates to the target: a sign test, ties left out."""

    wins: int
    losses: int
    ties: int
    p: float


def load_comparisons(
    path: pathlib.Path, problems: Iterable[Problem]
) -> list[Comparison]:
    """Return what a file of raw rows knows of some problems, beside their targets."""
    runs, targets = read_runs(path), load_targets()
    return [Comparison(problem, targets[problem.name], runs) for problem in problems]


def find_outcome(
    comparison: Comparison, method: Method, start: str, setting: str
) -> Outcome | None:
    """Return the runs of one setting, or None unless every seed is there."""
    problem, target, runs = comparison
    chosen = find(runs, problem.name, method.name, start, setting)
    if not chosen or {key.seed for key in chosen} != comparison.seeds():
        return None
    curves = np.stack(list(chosen.values()))
    return Outcome(
        setting,
        curves,
        np.array([updates_to(curve, target, problem.every) for curve in curves]),
        np.array([final(curve) for curve in curves]),
    )


def fixed(comparison: Comparison, name: str) -> Outcome | None:
    """Return the runs of a method at its one fixed setting."""
    method = METHODS[name]
    return find_outcome(comparison, method, "fresh", write_setting(method.default))


def tuned(comparison: Comparison, name: str, budget: int) -> Outcome | None:
    """Return the runs of a method at the best of its first `budget` trials."""
    method, (problem, target, runs) = METHODS[name], comparison
    if trials_done(runs, problem, method) < budget:
        return None
    setting = best_trial(runs, problem, method, budget, target)
    return find_outcome(comparison, method, "fresh", write_setting(setting))


def most_tuned(comparison: Comparison, name: str) -> Outcome | None:
    """Return the runs of a method at the best of as many trials as were made."""
    for budget in reversed(BUDGETS):
        found = tuned(comparison, name, budget)
        if found is not None:
            return found
    return None


def transferred(comparison: Comparison, name: str, start: str) -> Outcome | None:
    """Return the runs that began with a memory of another task, or a control of it."""
    method = METHODS[name]
    still = start in ("frozen", "constant")
    setting = {**method.default, "meta": 0.0} if still else method.default
    return find_outcome(comparison, method, start, write_setting(setting))


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Return the quartiles and the median as (low, median, high); inf is a value."""
    low, high = (
        np.quantile(values, (0.25, 0.5, 0.75), method=method)
        for method in ("lower", "higher")
    )
    first, middle, last = (low + high) / 2
    return float(first), float(middle), float(last)


def median(values: np.ndarray) -> float:
    """Return the median; inf is a value."""
    return quartiles(values)[1]


def sign_test(one: Outcome, other: Outcome) -> SignTest:
    """Test whether one needs fewer updates than the other, seed by seed."""
    return paired_test(one.updates, other.updates)


def paired_test(one: np.ndarray, other: np.ndarray) -> SignTest:
    """Test whether one measure [seeds] is lower than the other, seed by seed."""
    seeds = min(len(one), len(other))
    a, b = one[:seeds], other[:seeds]
    wins, losses = int((a < b).sum()), int((a > b).sum())
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return SignTest(wins, losses, seeds - wins - losses, float(p))


def lowest_end(comparison: Comparison) -> float:
    """Return the lowest median end of any method, at its fixed setting or tuned."""
    ends = [
        median(found.finals)
        for name in METHODS
        for found in (fixed(comparison, name), most_tuned(comparison, name))
        if found is not None
    ]
    return min(ends)


def best_of(comparison: Comparison, names: Sequence[str]) -> str:
    """Return the tuned method with the fewest updates, then the lowest end."""

    def rank(name: str) -> tuple[float, float]:
        found = most_tuned(comparison, name)
        if found is None:
            return np.inf, np.inf
        return median(found.updates), median(found.finals)

    return min(names, key=rank)


def compare_ends(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return (low, mean, high) of the ratio of paired ends, an interval of 95 %.

    Where an end is 0, such as an error of nothing, of the difference instead.
    """
    is_ratio = bool((one > 0).all() and (other > 0).all())
    gaps = np.log(one) - np.log(other) if is_ratio else one - other
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    found = gaps.mean() + np.array([-half, 0.0, half])
    low, mean, high = np.exp(found) if is_ratio else found
    return float(low), float(mean), float(high)
