"""BEGAN learns to draw digits: tuned methods compared."""

import functools

from benchmarks.harness import compare
from benchmarks.problems.gan import load_problem
from benchmarks.reporting import gan

TIME = "5 minutes; with --full as published, half an hour"
add_arguments = compare.add_arguments
run = functools.partial(compare.run, "gan", lambda: [load_problem()])
report = gan.report
