"""One default from five base rates, beside tuned baselines, on ten tasks that differ.

The rule is `agreement_steps` with one rate per layer, on directions of Adam and of SGD
with momentum .9. Nothing is tuned per task: only the base rate is given, wrong by up to
four decades. Beside it are SGD, momentum and Adam, each with the best of 20 rates for
that task, and the fixed settings of optimizers that need no rate.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import optax

from benchmarks.comparison import Comparison, Outcome, fixed, median, most_tuned
from benchmarks.comparison import outcome as find_outcome
from benchmarks.comparison_report import format_measure, format_updates
from benchmarks.methods import BASELINES, LABELS, METHODS, Method
from benchmarks.runs import write_setting
from benchmarks.suite_problems import SUITE
from benchmarks.sweep import Store, Trainer, load_targets, sweep
from metalr_optax import agreement_steps, linspace_kernels, raw_product, scale_by_memory

STARTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PEERS = ("prodigy", "dowg", "mechanize", "schedule_free")
STEM = "suite"


def _settling(
    inner: optax.GradientTransformation,
) -> Callable[..., optax.GradientTransformation]:
    return lambda rate: optax.chain(
        scale_by_memory(
            rate,
            inner=inner,
            kernels=linspace_kernels(1.0, num=1),
            memory_optimizer=agreement_steps(),
            signal=raw_product,
            rate_bounds=(1e-9, 10.0),
        ),
        optax.scale(-1.0),
    )


OURS = {
    "adam": Method(
        "settling_adam", _settling(optax.scale_by_adam()), {}, {"rate": 1e-3}
    ),
    "sgd": Method("settling_momentum", _settling(optax.trace(0.9)), {}, {"rate": 1e-3}),
}


class Row(NamedTuple):
    """How one start, or one method, did on a problem."""

    label: str
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
    targets = load_targets()
    chosen = [method for method in METHODS if method.name in BASELINES]
    peers = [method for method in METHODS if method.name in PEERS]
    comparisons = []
    for name in names:
        problem = SUITE[name]()
        sweep(problem, store, chosen, seeds, trials, report)
        jobs = [({"rate": start}, seed) for start in STARTS for seed in range(seeds)]
        for method in OURS.values():
            Trainer(problem, method, store, seeds).run(jobs)
        for method in peers:
            jobs = [(method.default, seed) for seed in range(seeds)]
            Trainer(problem, method, store, seeds).run(jobs)
        report(f"{name}: all starts are done")
        comparisons.append(Comparison(problem, targets[name], store.runs))
    return comparisons


def rows_of(comparison: Comparison) -> list[Row]:
    """Return every start of ours, every tuned baseline and every peer."""
    rows = []
    for base, method in OURS.items():
        for start in STARTS:
            setting = write_setting({"rate": start})
            found = find_outcome(comparison, method, "fresh", setting)
            if found is not None:
                rows.append(Row(f"**{method.name}**, {base}, from {start:g}", found))
    for name in BASELINES:
        found = most_tuned(comparison, name)
        if found is not None:
            rows.append(Row(f"{LABELS[name]}, {found.setting}", found))
    for name in PEERS:
        found = fixed(comparison, name)
        if found is not None:
            rows.append(Row(LABELS[name], found))
    return rows


def format_suite(comparison: Comparison) -> str:
    """Return the table of one problem as Markdown."""
    tuned = {name: most_tuned(comparison, name) for name in ("adam", "sgd")}
    lines = [
        f"{comparison.problem.name}: target {comparison.target:.4g}, "
        f"{len(comparison.seeds())} seeds\n",
        "| method | updates to the target | over tuned Adam | end | over tuned SGD |",
        "|---|---|---|---|---|",
    ]
    for label, found in rows_of(comparison):
        adam, sgd = tuned["adam"], tuned["sgd"]
        updates = _ratio(found.updates, adam.updates) if adam else ""
        end = median(found.finals)
        ends = _ratio(found.finals, sgd.finals) if sgd else ""
        lines.append(
            f"| {label} | {format_updates(found)} | {updates} "
            f"| {format_measure(end)} | {ends} |"
        )
    return "\n".join(lines)


def _ratio(one: np.ndarray, other: np.ndarray) -> str:
    """Return the ratio of medians; nothing where neither is finite."""
    a, b = median(one), median(other)
    if np.isfinite(a) and np.isfinite(b) and b > 0:
        return f"{a / b:.2f}"
    return (
        "" if np.isfinite(a) == np.isfinite(b) else ("0" if np.isfinite(a) else "inf")
    )
