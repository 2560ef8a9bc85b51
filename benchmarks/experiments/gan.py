"""BEGAN learns to draw digits: tuned methods compared."""

import functools

from benchmarks.harness.command import add_comparison, compare
from benchmarks.problems.gan import load_problem
from benchmarks.reporting import gan

TIME = "5 minutes; with --full as published, half an hour"
add_arguments = add_comparison
run = functools.partial(compare, "gan", lambda: [load_problem()])
report = gan.report
