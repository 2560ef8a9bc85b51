"""Tables and the picture of the robot's experiment, beside what needs no network."""

import pathlib

from benchmarks.harness.store import TUNING_SEED
from benchmarks.problems import robot
from benchmarks.reporting import comparison
from benchmarks.reporting.rows import table


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the picture."""
    lines = []
    for name, rows in comparison.load(folder, "rnn").items():
        scores = robot.simple_scores(robot.load_problem(name).data)
        ends = rows[rows["seed"] < TUNING_SEED].groupby(["method", "setting"])["end"]
        scores["lowest median end of a network"] = ends.median().min()
        lines.append({"": name, **{head: f"{x:.2g}" for head, x in scores.items()}})
    return comparison.report(folder, "rnn") | {"yardsticks": table(lines)}
