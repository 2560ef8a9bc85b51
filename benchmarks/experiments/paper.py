"""The paper's experiments as tuned comparisons: what each command runs."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.costs import measure_costs, read_costs, write_costs
from benchmarks.harness.progress import counted
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import run_sweep
from benchmarks.methods import Method
from benchmarks.problems import digits, gan, robot
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import ROSENBROCK, ROSENBROCK_START, rosenbrock
from metalr_optax import clipped_product, get_memory, linspace_kernels, paper_sgd

GRID_BOUND = 10.0  # of the notebook's 100 local models
_GRID_MODELS = 100


class Experiment(NamedTuple):
    """What one command compares methods on; tuples have an entry for each problem."""

    stem: str  # of its files
    load: Callable[[pathlib.Path | None], list[Problem]]  # folder of all of MNIST
    measured: tuple[str, ...]  # what every problem measures
    published: tuple[float | None, ...]  # the paper's: updates over those of Adam
    yardsticks: Callable[[Problem], dict[str, float]] = lambda _: {}


EXPERIMENTS = {
    "mnist": Experiment(
        "mnist_tuned",
        lambda folder: [
            digits.load_pair(name, folder) for name in (digits.BATCHES, digits.ONLINE)
        ],
        ("share of test errors", "share of test errors"),
        (None, None),
    ),
    "rnn": Experiment(
        "rnn",
        lambda _: [robot.load_problem(name) for name in (robot.ABSOLUTE, robot.CHANGE)],
        ("NMSE of the next state", "NMSE of the change of qd"),
        (0.37, None),
        yardsticks=lambda problem: robot.simple_scores(problem.data),
    ),
    gan.NAME: Experiment(
        "gan", lambda _: [gan.load_problem()], ("convergence measure",), (0.19,)
    ),
    ROSENBROCK: Experiment("rosenbrock", lambda _: [rosenbrock()], ("loss",), (None,)),
}


def run(
    experiment: Experiment,
    out: pathlib.Path,
    problems: Sequence[Problem],
    methods: Sequence[Method],
    seeds: int,
    trials: int,
    say: Callable[[str], None],
) -> None:
    """Run what is missing, then time the methods; rows and times stay in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{experiment.stem}.csv")
    if store.runs:
        say(f"{len(store.runs)} runs are done: going on from there")
    tell = counted(say, len(problems) * len(methods))
    for problem in problems:
        run_sweep(problem, store, methods, seeds, trials, tell)
    say("timing all methods")
    path = cost_path(experiment, out)
    known = read_costs(path) if path.exists() else []
    new = [one for problem in problems for one in measure_costs(problem, methods)]
    # What is known of other methods is kept.
    write_costs(list({one[:2]: one for one in [*known, *new]}.values()), path)


def cost_path(experiment: Experiment, out: pathlib.Path) -> pathlib.Path:
    """Return where times and bytes are."""
    return out / f"{experiment.stem}_cost.csv"


class Descent(NamedTuple):
    """One run: where it was at first and after every update, and its rates."""

    points: np.ndarray  # [updates + 1, 2]
    losses: np.ndarray  # [updates + 1]
    rates: np.ndarray  # [updates + 1, 2, local models]


def descend() -> Descent:
    """Run the notebook's setting: base rate 0.001, stepped by Adam(0.001)."""
    method = Method(
        "notebook",
        lambda rate: paper_sgd(
            initial=rate,
            kernels=linspace_kernels(GRID_BOUND, _GRID_MODELS),
            memory_optimizer=optax.adam(1e-3),
            signal=clipped_product,
        ),
        {},
        {"rate": 1e-3},
        judged=lambda state, params: (params, get_memory(state)),
    )
    names = ("x1", "x2")
    problem = rosenbrock()
    first = {
        name: jnp.float32(x) for name, x in zip(names, ROSENBROCK_START, strict=True)
    }

    def see(data: None, judged: Any, extra: Any) -> Any:
        params, memory = judged
        return (
            jnp.stack([params[name] for name in names]),
            problem.measure(data, params, extra),
            jnp.stack([memory[name].rates for name in names]),
        )

    exact = problem._replace(start=lambda *_: (first, ()), measure=see, every=1)
    rate = method.default["rate"]
    seen, _, _ = make_runner(exact, method)(
        None, jnp.array([[rate]]), jnp.arange(1), None
    )
    begin = (
        np.array(ROSENBROCK_START),
        np.asarray(problem.measure(None, first, ())),
        np.full((2, _GRID_MODELS), rate, np.float32),
    )
    points, losses, rates = (
        np.concatenate([one[None], np.asarray(later)[0]])
        for one, later in zip(begin, seen, strict=True)
    )
    return Descent(points, losses, rates)
