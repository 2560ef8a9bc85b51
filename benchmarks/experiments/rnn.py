"""An LSTM learns the dynamics of a real arm: tuned methods compared."""

import argparse
from collections.abc import Callable

from benchmarks.harness import arguments as asked
from benchmarks.harness.compare import compare
from benchmarks.problems import robot
from benchmarks.reporting import rnn

TIME = "10 minutes; with --full as published, 1 hour"
add_arguments = asked.add_comparison


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run what is missing in `rnn.csv.gz`."""
    problems = [robot.load_problem(name) for name in (robot.ABSOLUTE, robot.CHANGE)]
    compare("rnn", problems, arguments, say)


report = rnn.report
