"""What tuned baselines reach: the targets of the comparisons, beside the committed."""

import pathlib

from benchmarks.harness.choose import load_targets
from benchmarks.harness.command import Arguments, Parser, Say
from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store
from benchmarks.harness.sweep import baseline_target
from benchmarks.problems import robot
from benchmarks.problems.digits import BATCHES, ONLINE, load_pair
from benchmarks.problems.growths import GROWTHS
from benchmarks.problems.next_tasks import MOVES
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import SUITE

TIME = "2 hours"
# Tasks of the suite whose targets come from the rows of an experiment of the paper.
_ELSEWHERE = {ONLINE: "mnist_tuned", robot.CHANGE: "rnn"}
_ELSEWHERE |= {name: name for name in ("gan", "rosenbrock")}
# Second tasks that no other experiment has; the text's has the target of all of it,
# because it is judged on the same bytes.
_NEW = ("rotated digits", "noisy digits", "digits 5 to 9", "rnn change 2")


def add_arguments(parser: Parser) -> None:
    """Nothing may be asked."""


def load_all() -> list[tuple[str, Problem]]:
    """Return all problems, each with the name of the file of its rows."""
    absolute, batches = robot.load_problem(robot.ABSOLUTE), load_pair(BATCHES)
    problems = [("rnn", absolute), ("mnist_tuned", batches)]
    problems += [(_ELSEWHERE.get(name, "suite"), SUITE[name]()) for name in SUITE]
    problems += [("transfer", make()[1]) for make in GROWTHS.values()]
    return problems + [("next_task", MOVES[name]().second) for name in _NEW]


def run(arguments: Arguments, say: Say) -> None:
    """Tune the baselines; say the targets beside the committed ones."""
    committed, problems = load_targets(), load_all()
    tell = counted(say, len(problems))
    for stem, problem in problems:
        store = Store(arguments.out / f"{stem}.csv.gz")
        target, source = baseline_target(problem, store)
        tell(
            f"{problem.name}: tuned baselines reach {target:.4g} ({source}); "
            f"committed: {committed[problem.name]:.4g}"
        )


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return nothing: the table of targets is on the page that lists the others."""
    return {}
