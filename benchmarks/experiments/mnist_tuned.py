"""Digits 1 vs 4, in batches or one at a time: tuned methods compared."""

import functools

from benchmarks.harness.command import add_comparison, compare
from benchmarks.problems.digits import BATCHES, ONLINE, load_pair
from benchmarks.reporting import comparison

TIME = "10 minutes; with --full as published, 1 hour"
add_arguments = add_comparison
run = functools.partial(
    compare, "mnist_tuned", lambda: [load_pair(name) for name in (BATCHES, ONLINE)]
)
report = functools.partial(comparison.report, stem="mnist_tuned")
