"""`learn_rates` around nine optimizers, beside each at the best of seven rates."""

from collections.abc import Callable
from typing import Any

import optax
from optax import contrib

from benchmarks.experiments.long import endings, falling
from benchmarks.harness.command import Arguments, Parser, Say, add_tasks
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import Trainer, from_rates, run_methods, tune
from benchmarks.methods import USUAL, Method
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem
from benchmarks.reporting import bases
from benchmarks.reporting.long import RATES
from metalr_optax import learn_rates

TIME = "1 hour on one core"
_TRIALS = 7
# How a base is made from a rate, and between which rates the seven are.
_BASES: dict[str, tuple[Callable[..., Any], float, float]] = {
    "adamw": (optax.adamw, 1e-5, 1e-1),
    "nadam": (optax.nadam, 1e-5, 1e-1),
    "adabelief": (optax.adabelief, 1e-5, 1e-1),
    "rmsprop": (optax.rmsprop, 1e-5, 1e-1),
    "lion": (optax.lion, 1e-6, 1e-2),
    "adafactor": (optax.adafactor, 1e-4, 1.0),
    "muon": (contrib.muon, 1e-4, 1.0),
    "momentum": (lambda rate: optax.sgd(rate, momentum=0.9), 1e-5, 1.0),
    "sgd": (optax.sgd, 1e-4, 10.0),
}


def both(
    name: str, problem: Problem, make: Callable[..., Any], low: float, high: float
) -> tuple[list[Method], list[Method]]:
    """Return a base whose rate is tuned, and `learn_rates` around it as it comes."""
    own = Method(name, make, {"rate": (low, high)}, USUAL)

    def learned(factor: Any, rate: Any) -> Any:
        return learn_rates(make(1.0), factor, initial=rate)

    ours = Method(f"memory, {name}", lambda rate: learned(1.0, rate), {}, USUAL)
    horizon = problem.horizon
    return (
        endings(own, lambda rate: make(falling(horizon, rate))),
        endings(ours, lambda rate: learned(falling(horizon), rate)),
    )


def add_arguments(parser: Parser) -> None:
    """Add what may be asked."""
    add_tasks(parser, bases.TASKS)


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `bases.csv.gz`."""
    store = Store(arguments.out / "bases.csv.gz")
    tell = counted(say, len(arguments.tasks) * len(_BASES))
    for task in arguments.tasks:
        problem = LONG[task]()
        for name, base in _BASES.items():
            own, ours = both(name, problem, *base)
            for method in own:
                tune(Trainer(problem, method, store), arguments.seeds, _TRIALS)
            jobs = from_rates(RATES, arguments.seeds)
            run_methods(problem, store, [(method, jobs) for method in ours])
            tell(f"{task}: {name}")


report = bases.report
