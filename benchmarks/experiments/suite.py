"""One default from five base rates, beside tuned baselines, on eleven tasks.

Nothing is tuned per task: `memory_sgd` and `memory_adam` as they are, with a base rate
that is wrong by up to four decades (`memory_adam` refuses to begin above .01). Beside
them are SGD, momentum and Adam, each with the best of 20 rates for that task (AdamW
without a decay is Adam), and the fixed settings of optimizers that need no rate.
Variants change one thing: how many local models a layer has, how many coordinates are
judged.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import optax

from benchmarks.harness.costs import measure_costs, write_costs
from benchmarks.harness.store import read_runs, write_setting
from benchmarks.harness.sweep import (
    Store,
    Trainer,
    in_threads,
    load_targets,
    sweep,
    trials_done,
)
from benchmarks.methods import BASELINES, LABELS, METHODS, Method
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting.statistics import (
    METHOD,
    Comparison,
    Outcome,
    fixed,
    most_tuned,
)
from benchmarks.reporting.statistics import outcome as find_outcome
from metalr_optax import logspace_kernels, memory_adam, memory_sgd

STARTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PEERS = ("prodigy", "dowg", "mechanize", "schedule_free", "paper_sgd", "paper_adam")
STEM = "suite"
_MANY = logspace_kernels(8.0, 20, smallest=0.02)
_SAMPLE = 256  # coordinates of a tensor that give evidence


class Variant(NamedTuple):
    """One of our optimizers, and the base rates that it is tried from."""

    method: Method
    label: str
    starts: tuple[float, ...]


def _variant(
    name: str,
    label: str,
    make: Callable[[float], optax.GradientTransformation],
    starts: tuple[float, ...] = (1e-3,),
) -> Variant:
    return Variant(Method(name, make, {}, {"rate": 1e-3}), label, starts)


OURS = (
    _variant(
        "memory_adam",
        "**memory_adam**",
        lambda rate: memory_adam(initial=rate),
        STARTS[:-1],
    ),
    _variant(
        "memory_sgd", "**memory_sgd**", lambda rate: memory_sgd(initial=rate), STARTS
    ),
)
VARIANTS = (
    _variant(
        "memory_sgd_m21",
        "memory_sgd, M=21",
        lambda rate: memory_sgd(initial=rate, kernels=_MANY),
        STARTS,
    ),
    _variant(
        "memory_adam_m21",
        "memory_adam, M=21",
        lambda rate: memory_adam(initial=rate, kernels=_MANY),
    ),
    _variant(
        "memory_sgd_m21_sampled",
        f"memory_sgd, M=21, {_SAMPLE} in the sample",
        lambda rate: memory_sgd(initial=rate, kernels=_MANY, evidence_sample=_SAMPLE),
    ),
    _variant(
        "memory_adam_sampled",
        f"memory_adam, {_SAMPLE} in the sample",
        lambda rate: memory_adam(initial=rate, evidence_sample=_SAMPLE),
    ),
)


class Row(NamedTuple):
    """How one start, or one method, did on a problem."""

    label: str
    method: str
    found: Outcome


def run_suite(
    out: pathlib.Path,
    names: Sequence[str],
    seeds: int,
    trials: int,
    report: Callable[[str], None],
) -> list[Comparison]:
    """Run what is missing in `suite.csv` and return what is known of each problem."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    tuned = [method for method in METHODS if method.name in BASELINES]
    peers = [
        Variant(method, LABELS[method.name], tuple(method.default.values())[:1])
        for method in METHODS
        if method.name in PEERS
    ]
    comparisons, costs = [], []
    for name in names:
        problem = SUITE[name]()
        sweep(problem, store, tuned, seeds, trials, report)

        def run(one: Variant, problem=problem) -> None:
            settings = [{**one.method.default, "rate": start} for start in one.starts]
            jobs = [(setting, seed) for setting in settings for seed in range(seeds)]
            Trainer(problem, one.method, store, min(seeds, 5)).run(jobs)

        in_threads(run, (*OURS, *VARIANTS, *peers), store)
        costs += measure_costs(
            problem, [*tuned, *(one.method for one in (*OURS, *VARIANTS, *peers))]
        )
        report(f"{name}: all starts are done")
        comparisons.append(Comparison(problem, load_targets()[name], store.runs))
    write_costs(costs, out / f"{STEM}_cost.csv")
    return comparisons


def load_suite(folder: pathlib.Path) -> list[Comparison]:
    """Return what `suite.csv` in a folder knows of every problem."""
    runs, targets = read_runs(folder / f"{STEM}.csv"), load_targets()
    return [Comparison(load(), targets[name], runs) for name, load in SUITE.items()]


def from_start(comparison: Comparison, one: Variant, start: float) -> Outcome | None:
    """Return the paired runs of one of ours from a base rate."""
    setting = write_setting({"rate": start})
    return find_outcome(comparison, one.method, "fresh", setting)


def rows_of(comparison: Comparison) -> list[Row]:
    """Return every start of ours, every tuned baseline, variant and peer."""
    rows = [
        (f"{one.label} from {start:g}", one.method.name, from_start(*case))
        for one in OURS
        for start in one.starts
        for case in [(comparison, one, start)]
    ]
    for name in BASELINES:
        found = most_tuned(comparison, name)
        done = trials_done(comparison.runs, comparison.problem, METHOD[name])
        rate = "" if found is None else f", {found.setting}"
        rows.append((f"{LABELS[name]}, best of {done}{rate}", name, found))
    rows += [
        (f"{one.label} from 0.001", one.method.name, from_start(comparison, one, 1e-3))
        for one in VARIANTS
    ]
    rows += [(LABELS[name], name, fixed(comparison, name)) for name in PEERS]
    return [Row(label, name, found) for label, name, found in rows if found is not None]
