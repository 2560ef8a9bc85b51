"""Two numbers go down a curved valley: tuned methods compared."""

import functools

from benchmarks.harness.command import add_comparison, compare
from benchmarks.problems import tasks
from benchmarks.reporting import rosenbrock

TIME = "1 minute; with --full as published, 3 minutes"
add_arguments = add_comparison
run = functools.partial(compare, "rosenbrock", lambda: [tasks.rosenbrock()])
report = rosenbrock.report
