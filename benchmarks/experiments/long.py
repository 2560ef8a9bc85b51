"""One default on long runs, beside baselines with and without a decay.

Constant: Adam and momentum, each with the best of 20 rates for the task, chosen by its
end on a seed that nothing else uses. Decay: the same with a rate that falls linearly to
zero over the run, chosen anew. As they come: Prodigy, also with that decay, and
schedule-free AdamW. AdamW has the rate of the best Adam and a decay of weights of .01.
Ours start from 1e-5 and .001, with and without a linear factor; memory_adam without
one also from 1e-6 and 1e-4.
"""

import csv
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.harness import costs
from benchmarks.harness.progress import counted
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import (
    TUNING_SEED,
    Key,
    Runs,
    Store,
    find,
    read_runs,
    write_csv,
    write_setting,
)
from benchmarks.harness.sweep import (
    Trainer,
    lowest_trial,
    median_end,
    run_methods,
    target_of,
)
from benchmarks.methods import METHODS, Method, sample_settings
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem
from metalr_optax import memory_adam, memory_sgd

STEM = "long"
TARGETS = pathlib.Path(__file__).parents[1] / "long_targets.csv"
RATES = (1e-5, 1e-3)
ALL_RATES = (1e-6, 1e-5, 1e-4, 1e-3)  # of memory_adam at a constant factor
TRIALS = 20
SEEDS = 3
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
    methods = []
    for name in ("adam", "momentum"):
        method = METHODS[name]
        decayed = method._replace(
            name=f"{name}, decay",
            make=lambda rate, make=method.make: make(falling(problem.horizon, rate)),
        )
        methods += [method, decayed]
    return methods


def fixed_methods(problem: Problem) -> list[Method]:
    """Return the optimizers that run as they come."""
    factor = falling(problem.horizon)
    decayed = METHODS["prodigy"]._replace(
        name="prodigy, decay",
        make=lambda rate: optax.contrib.prodigy(lambda count: rate * factor(count)),
    )
    return [METHODS["prodigy"], decayed, METHODS["schedule_free"]]


def our_methods(problem: Problem) -> list[Method]:
    """Return the defaults, with and without a linear factor."""
    factor = falling(problem.horizon)
    methods = []
    for name, make in {"memory_adam": memory_adam, "memory_sgd": memory_sgd}.items():
        constant = Method(
            name, lambda rate, make=make: make(initial=rate), {}, {"rate": 1e-3}
        )
        decayed = constant._replace(
            name=f"{name}, decay",
            make=lambda rate, make=make: make(factor, initial=rate),
        )
        methods += [constant, decayed]
    return methods


def _missing(runs: Runs, problem: Problem, method: Method) -> int:
    """Return how many trials and seeds of a tuned method are not there."""
    texts = [write_setting(one) for one in sample_settings(method, TRIALS)]
    missing = sum(
        Key(problem.name, method.name, "fresh", text, TUNING_SEED) not in runs
        for text in texts
    )
    if missing:
        return missing + SEEDS
    return max(0, SEEDS - len(_best_runs(runs, problem, method)))


def _best_runs(runs: Runs, problem: Problem, method: Method) -> Runs:
    best = write_setting(lowest_trial(runs, problem, method, TRIALS))
    return find(runs, problem.name, method.name, "fresh", best)


def seconds_a_run(problem: Problem) -> float:
    """Return how long Adam takes: one stretch of a run, once it is compiled."""
    runner = make_runner(problem._replace(horizon=problem.every), METHODS["adam"])
    arguments = problem.data, np.array([[1e-3]], np.float32), np.array([0]), None
    jax.block_until_ready(runner(*arguments))
    begin = time.perf_counter()
    jax.block_until_ready(runner(*arguments))
    return (time.perf_counter() - begin) * (problem.horizon // problem.every)


def foretell(
    runs: Runs, problems: Sequence[Problem], say: Callable[[str], None]
) -> None:
    """Say how long a run of each problem takes, and how long all that is missing."""
    total = 0.0
    for problem in problems:
        methods = tuned_methods(problem)
        missing = sum(_missing(runs, problem, method) for method in methods)
        if missing:
            seconds = seconds_a_run(problem)
            total += missing * seconds
            say(f"{problem.name}: {missing} runs of {seconds:.1f} s")
    say(f"all baselines: about {total / 60:.0f} min")


def run_baselines(
    out: pathlib.Path, names: Sequence[str], say: Callable[[str], None]
) -> None:
    """Tune the baselines, and run the best on the seeds of the comparison.

    Says first how long it will take. Adam of all tasks comes before what decays. What
    is in `long.csv` is not run again.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    problems = [LONG[name]() for name in names]
    foretell(store.runs, problems, say)
    for number in range(len(tuned_methods(problems[0]))):
        for problem in problems:
            method = tuned_methods(problem)[number]
            begin = time.perf_counter()
            best = _tune(problem, method, store)
            if method.name == "adam" and problem.name in _DECAYS_WEIGHTS:
                _decay_weights(problem, best, store)
            spent = time.perf_counter() - begin
            text = write_setting(best)
            say(f"{problem.name}: {method.name}, {text}, in {spent:.0f} s")


def _tune(problem: Problem, method: Method, store: Store) -> dict[str, float]:
    """Run all trials, and the best one on the seeds; return its setting."""
    trainer = Trainer(problem, method, store, 1)
    trainer.run([(one, TUNING_SEED) for one in sample_settings(method, TRIALS)])
    best = lowest_trial(store.runs, problem, method, TRIALS)
    trainer.run([(best, seed) for seed in range(SEEDS)])
    return best


def _decay_weights(problem: Problem, setting: dict[str, float], store: Store) -> None:
    adamw = Method("adamw", lambda rate: optax.adamw(rate, weight_decay=1e-2), {}, {})
    jobs = [(setting, seed) for seed in range(SEEDS)]
    Trainer(problem, adamw, store, 1).run(jobs)


def measure(
    out: pathlib.Path, names: Sequence[str], say: Callable[[str], None]
) -> None:
    """Time an update of every task with every method: minutes, alone on the machine."""
    measured, tell = [], counted(say, len(names))
    for name in names:
        problem = LONG[name]()
        methods = [*tuned_methods(problem), *fixed_methods(problem)]
        methods += our_methods(problem)
        plain = [one for one in methods if "decay" not in one.name]
        measured += costs.measure_costs(problem, plain)
        tell(f"{name}: timed")
    costs.write_costs(measured, out / f"{STEM}_cost.csv")


def run(
    out: pathlib.Path,
    names: Sequence[str],
    seeds: int,
    say: Callable[[str], None],
    rates: Sequence[float] | None = None,
) -> None:
    """Run ours from every base rate, and what runs as it comes."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    tell = counted(say, len(names))
    for name in names:
        problem = LONG[name]()
        pairs = []
        for method in our_methods(problem):
            starts = rates or (ALL_RATES if method.name == "memory_adam" else RATES)
            jobs = [({"rate": one}, seed) for one in starts for seed in range(seeds)]
            pairs.append((method, jobs))
        pairs += [
            (method, [(method.default, seed) for seed in range(seeds)])
            for method in fixed_methods(problem)
        ]
        run_methods(problem, store, pairs, 1)
        tell(f"{name}: all runs are done")


def best_curves(runs: Runs, problem: Problem, method: Method) -> np.ndarray | None:
    """Return the curves [seeds, measures] of the best rate; None until all are there.

    All are the trials, and the seeds of the comparison.
    """
    if _missing(runs, problem, method):
        return None
    return np.stack(list(_best_runs(runs, problem, method).values()))


def find_target(runs: Runs, problem: Problem) -> float | None:
    """Return what the best constant rate has at three quarters of the horizon.

    As `sweep.baseline_target`; None until both are tuned.
    """
    constant = [one for one in tuned_methods(problem) if "decay" not in one.name]
    curves = [best_curves(runs, problem, method) for method in constant]
    known = [one for one in curves if one is not None]
    if len(known) < len(constant):
        return None
    return target_of(min(known, key=median_end), problem)


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
        values = [find_target(runs, problem)]
        for method in tuned_methods(problem):
            curves = best_curves(runs, problem, method)
            values.append(None if curves is None else median_end(curves))
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
