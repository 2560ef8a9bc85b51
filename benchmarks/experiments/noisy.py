"""Small, noisy data: weight decay, averages, decays, and a validation set.

Every run is judged twice, by either half of what the task holds out: one chooses the
best checkpoint, the other is the test.
"""

from typing import Any

from benchmarks.experiments.long import average, falling
from benchmarks.harness.command import Arguments, Parser, Say, add_tasks
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import from_rates, run_methods
from benchmarks.methods import METHODS, Method
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem
from benchmarks.reporting import noisy
from benchmarks.reporting.long import RATES
from metalr_optax import memory_adam

TIME = "5 minutes"


def halves(problem: Problem) -> list[Problem]:
    """Return a problem judged by every second held-out example, and by the others."""
    return [
        problem._replace(
            name=f"{problem.name}, {half}",
            data=problem.data._replace(
                judged_inputs=problem.data.judged_inputs[first::2],
                judged_labels=problem.data.judged_labels[first::2],
            ),
        )
        for first, half in enumerate(noisy.HALVES)
    ]


def methods(horizon: int) -> list[Method]:
    """Return what is compared: ours, and Adam at usual rates."""
    decay = {"learning_rate": falling(horizon)}
    ours: dict[str, Any] = {
        "memory_adam": {},
        "weight decay .01": {"weight_decay": 0.01},
        "weight decay .1": {"weight_decay": 0.1},
        "linear decay": decay,
        "weight decay .1, linear decay": {"weight_decay": 0.1, **decay},
    }
    found = [
        Method(name, lambda rate, some=some: memory_adam(initial=rate, **some), {}, {})
        for name, some in ours.items()
    ]
    return [*found, average(found[0]), average(found[2]), METHODS["adam"]]


def add_arguments(parser: Parser) -> None:
    """Add what may be asked."""
    add_tasks(parser, noisy.TASKS)


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `noisy.csv.gz`."""
    store = Store(arguments.out / "noisy.csv.gz")
    for task in arguments.tasks:
        for problem in halves(LONG[task]()):
            jobs: Any = from_rates(RATES, arguments.seeds)
            usual = from_rates((*RATES, 1e-4), arguments.seeds)
            pairs = [
                (method, usual if method.name == "adam" else jobs)
                for method in methods(problem.horizon)
            ]
            run_methods(problem, store, pairs)
            say(problem.name)


report = noisy.report
