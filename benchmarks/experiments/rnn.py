"""An LSTM learns the dynamics of a real arm: tuned methods compared."""

import functools

from benchmarks.harness.command import add_comparison, compare
from benchmarks.problems.robot import ABSOLUTE, CHANGE, load_problem
from benchmarks.reporting import rnn

TIME = "10 minutes; with --full as published, 1 hour"
add_arguments = add_comparison
run = functools.partial(
    compare, "rnn", lambda: [load_problem(name) for name in (ABSOLUTE, CHANGE)]
)
report = rnn.report
