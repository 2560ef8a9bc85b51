"""What experiments are asked on the command line, and the comparison of the paper's."""

import argparse
from collections.abc import Callable, Iterable, Sequence

from benchmarks.harness.choose import BUDGETS, TRIALS
from benchmarks.harness.costs import add_costs
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import run_sweep
from benchmarks.methods import BASELINES, METHODS, WITH_MEMORY
from benchmarks.problems.problem import Problem

Parser, Arguments = argparse.ArgumentParser, argparse.Namespace
Say = Callable[[str], None]


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_seeds(parser: Parser, seeds: int = 3) -> None:
    """Add --seeds."""
    parser.add_argument("--seeds", type=positive, default=seeds, help="paired runs")


def add_tasks(parser: Parser, tasks: Iterable[str]) -> None:
    """Add --seeds and --tasks."""
    add_seeds(parser)
    all_of = {"choices": list(tasks), "default": list(tasks)}
    parser.add_argument("--tasks", nargs="+", help="which", **all_of)


def add_trials(parser: Parser) -> None:
    """Add --trials."""
    text = "settings that are tried to tune a method"
    parser.add_argument("--trials", type=int, choices=BUDGETS, default=5, help=text)


def add_comparison(parser: Parser) -> None:
    """Add what a comparison of tuned methods may be asked."""
    add_seeds(parser)
    add_trials(parser)
    names = {"choices": list(METHODS), "default": [*BASELINES, *WITH_MEMORY, "prodigy"]}
    parser.add_argument("--methods", nargs="+", help="what to compare", **names)
    text = "the published comparison: 10 seeds, 20 trials, all methods"
    parser.add_argument("--full", action="store_true", help=text)


def compare(
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
