"""One default on long runs, beside baselines with and without a decay.

Constant: Adam and momentum, each with the best of 20 rates for the task, chosen by its
end on a seed that nothing else uses. Decay: the same with a rate that falls linearly to
zero over the run, chosen anew, and with averaged weights, chosen for these. NAdam
warms up for a twentieth of the run and then falls along a cosine, the best of 20 too.
As they come: Prodigy, also with that decay, and schedule-free AdamW. AdamW has the rate
of the best Adam and a decay of weights of .01. Ours start from 1e-5 and .001, with and
without a linear factor and with averaged weights; memory_adam without a factor also
from 1e-6 and 1e-4.
"""

from collections.abc import Callable
from typing import Any

import optax

from benchmarks.harness.command import Arguments, Parser, Say, add_tasks
from benchmarks.harness.costs import add_costs
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store, read_setting
from benchmarks.harness.sweep import Trainer, from_rates, run_methods, seeds_of, tune
from benchmarks.methods import METHODS, USUAL, Method
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem
from benchmarks.reporting import long
from metalr_optax import average_weights, averaged_weights, memory_adam, memory_sgd

TIME = "5 hours; with --baselines half a day on one core, with --costs minutes"
_DECAYS_WEIGHTS = ("language, long", "classes, long", "residual, long", "noisy labels")
_ADAMW = Method("adamw", lambda rate: optax.adamw(rate, weight_decay=1e-2), {}, {})
_OURS = {"memory_adam": memory_adam, "memory_sgd": memory_sgd}


def falling(horizon: int, rate: Any = 1.0) -> optax.Schedule:
    """Return a rate that falls linearly to zero over a run."""
    return optax.linear_schedule(rate, 0.0, horizon)


def cosine(horizon: int, rate: Any) -> optax.Schedule:
    """Return a rate that warms up for a twentieth of a run and falls to zero."""
    factor = optax.warmup_cosine_decay_schedule(0.0, 1.0, horizon // 20, horizon)
    return lambda count: rate * factor(count)


def average(method: Method) -> Method:
    """Return a method whose averaged weights are judged."""
    return method._replace(
        name=f"{method.name}, average",
        make=lambda rate: optax.chain(method.make(rate), average_weights()),
        judged=averaged_weights,
    )


def endings(constant: Method, decayed: Callable[..., Any]) -> list[Method]:
    """Return a method as it is, with a decay (rate -> optimizer), and averaged."""
    decay = constant._replace(name=f"{constant.name}, decay", make=decayed)
    return [constant, decay, average(constant)]


def tuned_methods(problem: Problem) -> list[Method]:
    """Return the baselines whose rate is tuned, those of Adam first."""
    adam = METHODS["adam"]
    nadam = adam._replace(
        name="nadam, cosine",
        make=lambda rate: optax.nadam(cosine(problem.horizon, rate)),
    )
    methods = []
    for name in ("adam", "momentum"):
        make = METHODS[name].make
        methods += endings(
            METHODS[name],
            lambda rate, make=make: make(falling(problem.horizon, rate)),
        )
    return [*methods, nadam]


def fixed_methods(problem: Problem) -> list[Method]:
    """Return the optimizers that run as they come."""
    factor = falling(problem.horizon)
    decayed = METHODS["prodigy"]._replace(
        name="prodigy, decay",
        make=lambda rate: optax.contrib.prodigy(lambda count: rate * factor(count)),
    )
    return [METHODS["prodigy"], decayed, METHODS["schedule_free"]]


def our_methods(problem: Problem) -> list[Method]:
    """Return the defaults: constant, with a linear factor, with averaged weights."""
    factor = falling(problem.horizon)
    methods = []
    for name, make in _OURS.items():
        constant = Method(name, lambda rate, make=make: make(initial=rate), {}, USUAL)
        methods += endings(constant, lambda rate, make=make: make(factor, initial=rate))
    return methods


def add_arguments(parser: Parser) -> None:
    """Add what may be asked."""
    add_tasks(parser, LONG)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--baselines", action="store_true", help="tune those: hours")
    what.add_argument("--costs", action="store_true", help="only time an update")


def run(arguments: Arguments, say: Say) -> None:
    """Run ours from every base rate, and what runs as it comes; or what is asked."""
    store = Store(arguments.out / "long.csv.gz")
    tell = counted(say, len(arguments.tasks))
    for name in arguments.tasks:
        problem = LONG[name]()
        if arguments.baselines:
            run_baselines(problem, store, say)
        elif arguments.costs:
            methods = tuned_methods(problem) + fixed_methods(problem)
            methods += our_methods(problem)
            constant = [one for one in methods if "," not in one.name]
            add_costs(arguments.out, "long", problem, constant)
        else:
            run_ours(problem, store, arguments.seeds)
        tell(f"{name}: done")


def run_ours(problem: Problem, store: Store, seeds: int) -> None:
    """Run ours from every base rate, and what runs as it comes."""
    pairs = [(one, seeds_of(one.default, seeds)) for one in fixed_methods(problem)]
    for method in our_methods(problem):
        is_wide = method.name in ("memory_adam", "memory_adam, average")
        rates = long.ALL_RATES if is_wide else long.RATES
        pairs.append((method, from_rates(rates, seeds)))
    run_methods(problem, store, pairs)


def run_baselines(problem: Problem, store: Store, say: Say) -> None:
    """Tune the baselines, and run the best on the seeds of the comparison."""
    for method in tuned_methods(problem):
        (text,) = tune(Trainer(problem, method, store), long.SEEDS)
        if method.name == "adam" and problem.name in _DECAYS_WEIGHTS:
            jobs = seeds_of(read_setting(text), long.SEEDS)
            Trainer(problem, _ADAMW, store).run(jobs)
        say(f"{problem.name}: {method.name}, {text}")


report = long.report
