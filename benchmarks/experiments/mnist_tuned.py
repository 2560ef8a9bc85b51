"""Digits 1 vs 4, in batches or one at a time: tuned methods compared."""

import argparse
import functools
from collections.abc import Callable

from benchmarks.harness import arguments as asked
from benchmarks.harness.compare import compare
from benchmarks.problems.digits import BATCHES, ONLINE, load_pair
from benchmarks.reporting import comparison

TIME = "10 minutes; with --full as published, 1 hour"
add_arguments = asked.add_comparison


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run what is missing in `mnist_tuned.csv.gz`."""
    problems = [load_pair(name) for name in (BATCHES, ONLINE)]
    compare("mnist_tuned", problems, arguments, say)


report = functools.partial(comparison.report, stem="mnist_tuned")
