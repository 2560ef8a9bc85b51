"""BEGAN learns to draw digits: tuned methods compared."""

import argparse
from collections.abc import Callable

from benchmarks.harness import arguments as asked
from benchmarks.harness.compare import compare
from benchmarks.problems import gan as problem
from benchmarks.reporting import gan

TIME = "5 minutes; with --full as published, half an hour"
add_arguments = asked.add_comparison


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run what is missing in `gan.csv.gz`."""
    compare("gan", [problem.load_problem()], arguments, say)


report = gan.report
