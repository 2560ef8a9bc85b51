"""The experiments that compare methods, and how one is run from start to end."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.harness.costs import Cost, measure_costs, read_costs, write_costs
from benchmarks.harness.store import read_runs
from benchmarks.harness.sweep import Store, load_targets, sweep
from benchmarks.methods import Method
from benchmarks.problems import digit_pairs, gan, robot, rosenbrock
from benchmarks.problems.problem import Problem
from benchmarks.reporting import (
    gan_figure,
    paper_figures,
    paper_tables,
    rosenbrock_figure,
    verdicts,
)
from benchmarks.reporting.statistics import Comparison, lowest_end


def _draw_nothing(comparisons: list[Comparison], path: pathlib.Path) -> None:
    """Most experiments have no picture of their own."""


class Experiment(NamedTuple):
    """What one command compares methods on; tuples have an entry for each problem."""

    about: str  # a title, an empty line, a description
    stem: str  # of its files
    load: Callable[[pathlib.Path | None], list[Problem]]  # folder of all of MNIST
    measured: tuple[str, ...]  # what every problem measures
    paper: tuple[float | None, ...]  # updates of the memory over those of Adam
    own_picture: str = ""
    draw: Callable[[list[Comparison], pathlib.Path], None] = _draw_nothing
    yardsticks: Callable[[Problem], dict[str, float]] = lambda _: {}


def _draw_digits(comparisons: list[Comparison], path: pathlib.Path) -> None:
    gan_figure.draw_digits(comparisons[0], path)


def _draw_descent(comparisons: list[Comparison], path: pathlib.Path) -> None:
    del comparisons
    rosenbrock_figure.draw_descent(rosenbrock.descend(), path)


EXPERIMENTS = {
    "mnist": Experiment(
        str(digit_pairs.__doc__),
        "mnist_tuned",
        lambda folder: [
            digit_pairs.load_problem(name, folder)
            for name in (digit_pairs.BATCHES, digit_pairs.ONLINE)
        ],
        ("share of test errors", "share of test errors"),
        (None, None),
    ),
    "rnn": Experiment(
        str(robot.__doc__),
        "rnn",
        lambda _: [robot.load_problem(name) for name in (robot.ABSOLUTE, robot.CHANGE)],
        ("NMSE of the next state", "NMSE of the change of qd"),
        (0.37, None),
        yardsticks=lambda problem: robot.simple_scores(problem.data),
    ),
    "gan": Experiment(
        str(gan.__doc__),
        "gan",
        lambda _: [gan.load_problem()],
        ("convergence measure",),
        (0.19,),
        "gan_digits.png",
        _draw_digits,
    ),
    "rosenbrock": Experiment(
        str(rosenbrock.__doc__),
        "rosenbrock",
        lambda _: [rosenbrock.load_problem()],
        ("loss",),
        (None,),
        "rosenbrock_path.png",
        _draw_descent,
    ),
}


def run_experiment(
    experiment: Experiment,
    out: pathlib.Path,
    methods: Sequence[Method],
    seeds: int,
    trials: int,
    data_dir: pathlib.Path | None,
    report: Callable[[str], None],
) -> None:
    """Run what is missing, time the methods, write rows and pictures, report tables."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    store = Store(out / f"{experiment.stem}.csv")
    problems = experiment.load(data_dir)

    def progress(text: str) -> None:
        report(f"[{time.perf_counter() - start:5.0f} s] {text}")

    if store.runs:
        progress(f"{len(store.runs)} runs are done: going on from there")
    for problem in problems:
        sweep(problem, store, methods, seeds, trials, progress)
    progress("timing all methods")
    costs = _update_costs(experiment, out, problems, methods)
    comparisons = load_comparisons(experiment, out, problems)
    paper_figures.draw(comparisons, experiment.measured, out / f"{experiment.stem}.png")
    experiment.draw(comparisons, out / experiment.own_picture)
    for text in describe(experiment, comparisons, costs):
        report(f"\n{text}")
    report(f"\nWrote {store.path} and pictures in {out}.")


def _update_costs(
    experiment: Experiment,
    out: pathlib.Path,
    problems: Sequence[Problem],
    methods: Sequence[Method],
) -> list[Cost]:
    """Time methods; keep what is known of others."""
    path = cost_path(experiment, out)
    known = read_costs(path) if path.exists() else []
    new = [one for problem in problems for one in measure_costs(problem, methods)]
    kept = {one[:2]: one for one in [*known, *new]}
    write_costs(list(kept.values()), path)
    return list(kept.values())


def cost_path(experiment: Experiment, out: pathlib.Path) -> pathlib.Path:
    """Return where times and bytes are."""
    return out / f"{experiment.stem}_cost.csv"


def load_costs(experiment: Experiment, out: pathlib.Path) -> list[Cost]:
    """Return times and bytes."""
    return read_costs(cost_path(experiment, out))


def load_comparisons(
    experiment: Experiment, out: pathlib.Path, problems: Sequence[Problem]
) -> list[Comparison]:
    """Return the raw rows of an experiment beside its targets."""
    runs, targets = read_runs(out / f"{experiment.stem}.csv"), load_targets()
    return [Comparison(problem, targets[problem.name], runs) for problem in problems]


def describe(
    experiment: Experiment, comparisons: Sequence[Comparison], costs: Sequence[Cost]
) -> list[str]:
    """Return all tables and verdicts of every problem as Markdown."""
    return [
        _describe(experiment, comparison, paper, costs)
        for comparison, paper in zip(comparisons, experiment.paper, strict=True)
    ]


def _describe(
    experiment: Experiment,
    comparison: Comparison,
    paper: float | None,
    costs: Sequence[Cost],
) -> str:
    problem = comparison.problem
    count = len(comparison.seeds())
    parts = [
        f"### {problem.name}",
        f"Updates to a target of {comparison.target:.4g} or less within "
        f"{problem.horizon}, measured every {problem.every}; {count} seeds: median "
        "[quartiles], runs that missed.",
        paper_tables.format_table(comparison, costs),
    ]
    scores = experiment.yardsticks(problem)
    if scores:
        text = ", ".join(f"{name} {score:.2g}" for name, score in scores.items())
        parts.append(
            f"The same measure without a network: {text}. The lowest median end of any "
            f"network above: {lowest_end(comparison):.2g}."
        )
    if problem.related is not None:
        parts += [
            "With a memory learned on the related task, at the fixed setting:",
            paper_tables.format_transfer(comparison),
        ]
    sentences = verdicts.verdicts(comparison, paper)
    parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    return "\n\n".join(parts)
