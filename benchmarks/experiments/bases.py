"""`learn_rates` around nine optimizers, beside each at the best of seven rates."""

from collections.abc import Callable
from typing import Any

import optax
from optax import contrib

from benchmarks.experiments.long import average, falling
from benchmarks.harness.command import Arguments, Parser, Say, add_tasks
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import Trainer, from_rates, run_methods, tune
from benchmarks.methods import USUAL, Method
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem
from benchmarks.reporting import bases
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


def variants(
    name: str, make: Callable[..., Any], problem: Problem, space: Any
) -> list[Method]:
    """Return an optimizer at a constant rate, with a decay and with averaged weights.

    Args:
      name: of the optimizer.
      make: (factor, rate) -> optimizer.
      problem: whose length the decay has.
      space: the rates that are tried; none for an optimizer that runs as it comes.
    """
    constant = Method(name, lambda rate: make(1.0, rate), space, USUAL)
    factor = falling(problem.horizon)
    decayed = constant._replace(
        name=f"{name}, decay", make=lambda rate: make(factor, rate)
    )
    return [constant, decayed, average(constant)]


def scaled(factor: Any, rate: Any) -> Any:
    """Return a rate times a factor, which may be a schedule."""
    return (lambda count: rate * factor(count)) if callable(factor) else rate * factor


def add_arguments(parser: Parser) -> None:
    """Add what may be asked."""
    add_tasks(parser, bases.TASKS)


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `bases.csv.gz`."""
    store = Store(arguments.out / "bases.csv.gz")
    tell = counted(say, len(arguments.tasks) * len(_BASES))
    for task in arguments.tasks:
        problem = LONG[task]()
        for name, (make, low, high) in _BASES.items():
            own = variants(
                name,
                lambda factor, rate, make=make: make(scaled(factor, rate)),
                problem,
                {"rate": (low, high)},
            )
            for method in own:
                tune(Trainer(problem, method, store), arguments.seeds, _TRIALS)
            ours = variants(
                f"memory, {name}",
                lambda factor, rate, make=make: learn_rates(
                    make(1.0), factor, initial=rate
                ),
                problem,
                {},
            )
            jobs = from_rates(bases.RATES, arguments.seeds)
            run_methods(problem, store, [(method, jobs) for method in ours])
            tell(f"{task}: {name}")


report = bases.report
