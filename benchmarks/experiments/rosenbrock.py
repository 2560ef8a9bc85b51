"""Two numbers go down a curved valley: tuned methods compared."""

import functools

from benchmarks.harness import compare
from benchmarks.problems import tasks
from benchmarks.reporting import rosenbrock

TIME = "1 minute; with --full as published, 3 minutes"
add_arguments = compare.add_arguments
run = functools.partial(compare.run, "rosenbrock", lambda: [tasks.rosenbrock()])
report = rosenbrock.report
