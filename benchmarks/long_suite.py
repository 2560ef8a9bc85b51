"""One default on long runs, beside baselines with and without a decay.

Constant: Adam and momentum, each with the best of 20 rates for the task, chosen by its
end on a seed that nothing else uses. Decay: the same with a rate that falls linearly to
zero over the run, chosen anew. As they come: Prodigy, also with that decay, and
schedule-free AdamW. AdamW has the rate of the best Adam and a decay of weights of .01.
Ours start from 1e-5 and .001, with and without a linear factor.
"""

import csv
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.long_problems import LONG
from benchmarks.methods import METHODS, Method, sample_settings
from benchmarks.problem import Problem, make_runner
from benchmarks.rows import write_csv
from benchmarks.runs import (
    TUNING_SEED,
    Key,
    Runs,
    final,
    find,
    read_runs,
    write_setting,
)
from benchmarks.sweep import Store, Trainer
from metalr_optax import memory_adam, memory_sgd

STEM = "long"
TARGETS = pathlib.Path(__file__).parent / "long_targets.csv"
STARTS = (1e-5, 1e-3)
TRIALS = 20
_SEEDS = 3
_COLUMNS = (
    "problem",
    "target",
    "adam_end",
    "adam_decay_end",
    "momentum_end",
    "momentum_decay_end",
)
_DECAYS_WEIGHTS = ("language, long", "classes, long", "residual, long", "noisy labels")


def falling(horizon: int, rate: Any = 1.0) -> optax.Schedule:
    """Return a rate that falls linearly to zero over a run."""
    return optax.linear_schedule(rate, 0.0, horizon)


def tuned_methods(problem: Problem) -> list[Method]:
    """Return the baselines whose rate is tuned, those of Adam first."""
    known = {method.name: method for method in METHODS}
    methods = []
    for name, make in (
        ("adam", optax.adam),
        ("momentum", lambda rate: optax.sgd(rate, momentum=0.9)),
    ):
        methods.append(known[name])
        methods.append(
            known[name]._replace(
                name=f"{name}, decay",
                make=lambda rate, make=make: make(falling(problem.horizon, rate)),
            )
        )
    return methods


def fixed_methods(problem: Problem) -> list[Method]:
    """Return the optimizers that run as they come."""
    known = {method.name: method for method in METHODS}
    factor = falling(problem.horizon)
    decayed = known["prodigy"]._replace(
        name="prodigy, decay",
        make=lambda rate: optax.contrib.prodigy(lambda count: rate * factor(count)),
    )
    return [known["prodigy"], decayed, known["schedule_free"]]


def our_methods(problem: Problem) -> list[Method]:
    """Return the defaults, with and without a linear factor."""
    factor = falling(problem.horizon)
    makers = {"memory_adam": memory_adam, "memory_sgd": memory_sgd}
    methods = []
    for name, make in makers.items():
        methods += [
            Method(name, lambda rate, m=make: m(initial=rate), {}, {"rate": 1e-3}),
            Method(
                f"{name}, decay",
                lambda rate, m=make: m(factor, initial=rate),
                {},
                {"rate": 1e-3},
            ),
        ]
    return methods


def best_rate(runs: Runs, problem: Problem, method: Method) -> dict[str, float]:
    """Return the setting with the lowest end of all trials."""

    def end(setting: dict[str, float]) -> float:
        text = write_setting(setting)
        return final(runs[Key(problem.name, method.name, "fresh", text, TUNING_SEED)])

    return min(sample_settings(method, TRIALS), key=end)


def _missing(runs: Runs, problem: Problem, method: Method) -> int:
    """Return how many trials and seeds of a tuned method are not there."""
    jobs = [(one, TUNING_SEED) for one in sample_settings(method, TRIALS)]
    texts = [(write_setting(one), seed) for one, seed in jobs]
    missing = sum(
        Key(problem.name, method.name, "fresh", *one) not in runs for one in texts
    )
    if missing:
        return missing + _SEEDS
    best = write_setting(best_rate(runs, problem, method))
    return max(0, _SEEDS - len(find(runs, problem.name, method.name, "fresh", best)))


def seconds_a_run(problem: Problem) -> float:
    """Return how long Adam takes: one stretch of a run, once it is compiled."""
    adam = next(one for one in METHODS if one.name == "adam")
    runner = make_runner(problem._replace(horizon=problem.every), adam)
    arguments = problem.data, np.array([[1e-3]], np.float32), np.array([0]), None
    jax.block_until_ready(runner(*arguments))
    begin = time.perf_counter()
    jax.block_until_ready(runner(*arguments))
    return (time.perf_counter() - begin) * (problem.horizon // problem.every)


def foretell(
    runs: Runs, problems: Sequence[Problem], report: Callable[[str], None]
) -> None:
    """Report how long a run of each problem takes, and how long all that is missing."""
    total = 0.0
    for problem in problems:
        methods = tuned_methods(problem)
        missing = sum(_missing(runs, problem, method) for method in methods)
        if missing:
            seconds = seconds_a_run(problem)
            total += missing * seconds
            report(f"{problem.name}: {missing} runs of {seconds:.1f} s")
    report(f"all baselines: about {total / 60:.0f} min")


def run_baselines(
    out: pathlib.Path, names: Sequence[str], report: Callable[[str], None]
) -> None:
    """Tune the baselines, and run the best on the seeds of the comparison.

    Says first how long it will take. Adam of all tasks comes before what decays. What
    is in `long.csv` is not run again.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    problems = [LONG[name]() for name in names]
    foretell(store.runs, problems, report)
    for number in range(len(tuned_methods(problems[0]))):
        for problem in problems:
            method = tuned_methods(problem)[number]
            begin = time.perf_counter()
            trainer = Trainer(problem, method, store, 1)
            settings = sample_settings(method, TRIALS)
            trainer.run([(one, TUNING_SEED) for one in settings])
            best = best_rate(store.runs, problem, method)
            trainer.run([(best, seed) for seed in range(_SEEDS)])
            if method.name == "adam" and problem.name in _DECAYS_WEIGHTS:
                adamw = Method(
                    "adamw", lambda rate: optax.adamw(rate, weight_decay=1e-2), {}, {}
                )
                jobs = [(best, seed) for seed in range(_SEEDS)]
                Trainer(problem, adamw, store, 1).run(jobs)
            spent = time.perf_counter() - begin
            text = write_setting(best)
            report(f"{problem.name}: {method.name}, {text}, in {spent:.0f} s")


def run_long(
    out: pathlib.Path,
    names: Sequence[str],
    seeds: int,
    report: Callable[[str], None],
    starts: Sequence[float] = STARTS,
) -> None:
    """Run ours from every start, and what runs as it comes."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    for name in names:
        problem = LONG[name]()
        begin = time.perf_counter()
        for method in our_methods(problem):
            jobs = [({"rate": one}, seed) for one in starts for seed in range(seeds)]
            Trainer(problem, method, store, 1).run(jobs)
        for method in fixed_methods(problem):
            jobs = [(method.default, seed) for seed in range(seeds)]
            Trainer(problem, method, store, 1).run(jobs)
        report(f"{name}: all runs are done, in {time.perf_counter() - begin:.0f} s")


def best_curves(runs: Runs, problem: Problem, method: Method) -> np.ndarray | None:
    """Return the curves [seeds, measures] of the best rate; None until all are there.

    All are the trials, and the seeds of the comparison.
    """
    if _missing(runs, problem, method):
        return None
    text = write_setting(best_rate(runs, problem, method))
    found = find(runs, problem.name, method.name, "fresh", text)
    return np.stack(list(found.values()))


def target(runs: Runs, problem: Problem) -> float | None:
    """Return what the best constant rate has at three quarters of the horizon.

    The median over seeds, as `sweep.baseline_target`; None until both are tuned.
    """
    constant = [one for one in tuned_methods(problem) if "decay" not in one.name]
    curves = [best_curves(runs, problem, method) for method in constant]
    known = [one for one in curves if one is not None]
    if len(known) < len(constant):
        return None
    best = min(known, key=lambda one: np.median([final(curve) for curve in one]))
    at = problem.horizon * 3 // 4 // problem.every - 1
    return float(np.median(best[:, at]))


def write_targets(
    folder: pathlib.Path,
    names: Sequence[str] = tuple(LONG),
    path: pathlib.Path = TARGETS,
) -> None:
    """Write targets and what the tuned baselines end at, medians over seeds.

    What is not yet known is left empty, so that nothing depends on half a sweep.
    """
    runs = read_runs(folder / f"{STEM}.csv")
    rows = []
    for name in names:
        problem = LONG[name]()
        values = [target(runs, problem)]
        for method in tuned_methods(problem):
            curves = best_curves(runs, problem, method)
            known = curves is not None
            values.append(np.median([final(one) for one in curves]) if known else None)
        texts = ["" if value is None else f"{value:.4g}" for value in values]
        rows.append((name, *texts))
    write_csv(path, _COLUMNS, rows)


def load_targets(path: pathlib.Path = TARGETS) -> dict[str, dict[str, float]]:
    """Return what is known of a problem: its target, and ends such as adam_end."""
    with open(path, newline="") as file:
        return {
            row["problem"]: {
                column: float(row[column]) for column in _COLUMNS[1:] if row[column]
            }
            for row in csv.DictReader(file)
        }
