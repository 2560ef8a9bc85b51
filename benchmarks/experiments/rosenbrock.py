"""Two numbers go down a curved valley: tuned methods compared."""

import argparse
from collections.abc import Callable

from benchmarks.harness import arguments as asked
from benchmarks.harness.compare import compare
from benchmarks.problems import tasks
from benchmarks.reporting import rosenbrock

TIME = "1 minute; with --full as published, 3 minutes"
add_arguments = asked.add_comparison


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run what is missing in `rosenbrock.csv.gz`."""
    compare("rosenbrock", [tasks.rosenbrock()], arguments, say)


report = rosenbrock.report
