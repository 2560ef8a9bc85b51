"""Ten digits from five rates: Adam keeps the rate it is given, ours learns it."""

import optax

from benchmarks.harness.command import Arguments, Say, add_seeds
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import from_rates, run_methods
from benchmarks.methods import LIBRARY, METHODS
from benchmarks.problems.networks import Cnn
from benchmarks.problems.tasks import digit_classes
from benchmarks.reporting import starts
from metalr_optax import average_weights, averaged_weights, memory_adam

TIME = "2 minutes; with --seeds 5 as published, 4 minutes"
add_arguments = add_seeds
_STEPS, _EVERY = 400, 10
_METHODS = (
    METHODS["adam"],
    LIBRARY["memory_adam"],
    METHODS["adam"]._replace(
        name="adam, decay",
        make=lambda rate: optax.adam(optax.linear_schedule(rate, 0.0, _STEPS)),
    ),
    LIBRARY["memory_adam"]._replace(
        name="memory_adam, averaged",
        make=lambda rate: optax.chain(memory_adam(initial=rate), average_weights()),
        judged=averaged_weights,
    ),
)


def run(arguments: Arguments, say: Say) -> None:
    """Run what is missing in `starts.csv.gz`."""
    problem = digit_classes(starts.PROBLEM, Cnn((8,), 64))
    problem = problem._replace(horizon=_STEPS, every=_EVERY)
    store = Store(arguments.out / "starts.csv.gz")
    jobs = from_rates(starts.RATES, arguments.seeds)
    run_methods(problem, store, [(method, jobs) for method in _METHODS])
    say(f"{len(_METHODS) * len(jobs)} runs are done")


report = starts.report
