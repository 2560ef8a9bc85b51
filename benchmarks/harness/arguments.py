"""What several experiments are asked on the command line."""

import argparse

from benchmarks.harness.choose import BUDGETS, TRIALS
from benchmarks.methods import BASELINES, METHODS, WITH_MEMORY


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


def add_trials(parser: argparse.ArgumentParser) -> None:
    """Add --trials."""
    parser.add_argument(
        "--trials",
        type=int,
        choices=BUDGETS,
        default=5,
        help="settings that are tried to tune a method",
    )


def add_comparison(parser: argparse.ArgumentParser) -> None:
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


def fill_in(arguments: argparse.Namespace) -> None:
    """Set what --full stands for."""
    if arguments.full:
        arguments.seeds, arguments.trials = 10, TRIALS
        arguments.methods = list(METHODS)
