"""The comparison of tuned methods on the problems of one experiment."""

from collections.abc import Callable, Sequence

from benchmarks.harness.arguments import (
    Arguments,
    Parser,
    Say,
    add_seeds,
    add_trials,
)
from benchmarks.harness.choose import TRIALS
from benchmarks.harness.costs import add_costs
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import run_sweep
from benchmarks.methods import BASELINES, METHODS, WITH_MEMORY
from benchmarks.problems.problem import Problem


def add_arguments(parser: Parser) -> None:
    """Add what a comparison of tuned methods may be asked."""
    add_seeds(parser)
    add_trials(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=[*BASELINES, *WITH_MEMORY, "prodigy"],
        help="what to compare",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="the published comparison: 10 seeds, 20 trials, all methods",
    )


def run(
    stem: str, load: Callable[[], Sequence[Problem]], arguments: Arguments, say: Say
) -> None:
    """Run what is missing, then time the methods; rows and times stay in a folder."""
    seeds, trials, names = arguments.seeds, arguments.trials, arguments.methods
    if arguments.full:
        seeds, trials, names = 10, TRIALS, METHODS
    methods = [METHODS[name] for name in METHODS if name in names]
    say(
        f"{len(methods)} methods, {seeds} seeds, {trials} trials; "
        f"what is done stays in {arguments.out}: stop when you like, the same command "
        "goes on"
    )
    store, problems = Store(arguments.out / f"{stem}.csv.gz"), load()
    if store.runs:
        say(f"{len(store.runs)} runs are done: going on from there")
    tell = counted(say, len(problems) * len(methods))
    for problem in problems:
        run_sweep(problem, store, methods, seeds, trials, tell)
    say("timing all methods")
    for problem in problems:
        add_costs(arguments.out, stem, problem, methods)
