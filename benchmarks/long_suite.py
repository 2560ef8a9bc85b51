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

import numpy as np
import optax

from benchmarks.long_problems import LONG
from benchmarks.methods import METHODS, Method, sample_settings
from benchmarks.problem import Problem
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


def run_baselines(
    out: pathlib.Path, names: Sequence[str], report: Callable[[str], None]
) -> None:
    """Tune the baselines, and run the best on the seeds of the comparison.

    Adam of all tasks first. What is in `long.csv` is not run again.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{STEM}.csv")
    problems = [LONG[name]() for name in names]
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


def ends(runs: Runs, problem: str, method: str, setting: str) -> np.ndarray:
    """Return the ends [seeds] of one setting."""
    found = find(runs, problem, method, "fresh", setting)
    return np.array([final(curve) for curve in found.values()])


def write_targets(folder: pathlib.Path, names: Sequence[str] = tuple(LONG)) -> None:
    """Write what the tuned baselines end at, medians over seeds, to be committed."""
    runs = read_runs(folder / f"{STEM}.csv")
    rows = []
    for name in names:
        problem = LONG[name]()
        for method in tuned_methods(problem):
            keys = [key for key in runs if key[:2] == (name, method.name)]
            if sum(key.seed == TUNING_SEED for key in keys) < TRIALS:
                continue
            text = write_setting(best_rate(runs, problem, method))
            found = ends(runs, name, method.name, text)
            if len(found) == _SEEDS:
                rows.append((name, method.name, text, f"{np.median(found):.4g}"))
    write_csv(TARGETS, ("problem", "method", "setting", "end"), rows)


def load_targets() -> dict[tuple[str, str], float]:
    """Return what tuned baselines end at: (problem, method) -> end."""
    with open(TARGETS, newline="") as file:
        return {
            (row["problem"], row["method"]): float(row["end"])
            for row in csv.DictReader(file)
        }
