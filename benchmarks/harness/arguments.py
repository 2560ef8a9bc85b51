"""What several experiments are asked on the command line."""

import argparse
from collections.abc import Callable, Iterable

from benchmarks.harness.choose import BUDGETS

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
    names = list(tasks)
    parser.add_argument(
        "--tasks", nargs="+", choices=names, default=names, help="which"
    )


def add_trials(parser: Parser) -> None:
    """Add --trials."""
    parser.add_argument(
        "--trials",
        type=int,
        choices=BUDGETS,
        default=5,
        help="settings that are tried to tune a method",
    )
