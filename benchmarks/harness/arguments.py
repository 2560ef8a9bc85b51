"""What several experiments are asked on the command line."""

import argparse

from benchmarks.harness.choose import BUDGETS, TRIALS
from benchmarks.methods import BASELINES, METHODS, WITH_MEMORY

# What a comparison tries unless it is asked for more.
FEW_TRIALS, FEW_METHODS = 5, [*BASELINES, *WITH_MEMORY, "prodigy"]


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_seeds(parser: argparse.ArgumentParser, seeds: int = 3) -> None:
    """Add --seeds."""
    parser.add_argument("--seeds", type=positive, default=seeds, help="paired runs")


def add_tasks(parser: argparse.ArgumentParser, tasks: list[str]) -> None:
    """Add --tasks."""
    parser.add_argument(
        "--tasks", nargs="+", choices=tasks, default=tasks, help="which"
    )


def add_trials(parser: argparse.ArgumentParser, where: str = "") -> None:
    """Add --trials."""
    parser.add_argument(
        "--trials",
        type=int,
        choices=BUDGETS,
        default=FEW_TRIALS,
        help=f"settings that are tried to tune a method{where}",
    )


def add_comparison(
    parser: argparse.ArgumentParser, seeds: int = 3, where: str = ""
) -> None:
    """Add what a comparison of tuned methods may be asked."""
    add_seeds(parser, seeds)
    add_trials(parser, where)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=FEW_METHODS,
        help=f"what to compare{where}",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="the published comparison: 10 seeds, 20 trials, all methods",
    )


def fill_in(arguments: argparse.Namespace) -> None:
    """Set what --full stands for."""
    if arguments.full:
        arguments.seeds, arguments.trials = 10, TRIALS
        arguments.methods = list(METHODS)
