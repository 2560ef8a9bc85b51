"""The comparison of tuned methods on the problems of one experiment."""

import argparse
from collections.abc import Callable, Sequence

from benchmarks.harness.arguments import fill_in
from benchmarks.harness.costs import add_costs
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import run_sweep
from benchmarks.methods import METHODS
from benchmarks.problems.problem import Problem


def compare(
    stem: str,
    problems: Sequence[Problem],
    arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    """Run what is missing, then time the methods; rows and times stay in a folder."""
    fill_in(arguments)
    methods = [METHODS[name] for name in METHODS if name in arguments.methods]
    say(
        f"{len(methods)} methods, {arguments.seeds} seeds, {arguments.trials} trials; "
        f"what is done stays in {arguments.out}: stop when you like, the same command "
        "goes on"
    )
    store = Store(arguments.out / f"{stem}.csv.gz")
    if store.runs:
        say(f"{len(store.runs)} runs are done: going on from there")
    tell = counted(say, len(problems) * len(methods))
    for problem in problems:
        run_sweep(problem, store, methods, arguments.seeds, arguments.trials, tell)
    say("timing all methods")
    for problem in problems:
        add_costs(arguments.out, stem, problem, methods)
