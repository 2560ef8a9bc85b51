"""Tables and the picture of the robot's experiment, beside what needs no network."""

import pathlib

from benchmarks.problems import robot
from benchmarks.reporting import comparison
from benchmarks.reporting.rows import fixed, median, table, tuned


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the picture."""
    lines = []
    for name, rows in comparison.load(folder, "rnn").items():
        scores = robot.simple_scores(robot.load_problem(name).data)
        ends = [
            median(one(rows, x)["end"])
            for x in comparison.METHODS
            for one in (fixed, tuned)
        ]
        line = {head: f"{score:.2g}" for head, score in scores.items()}
        lowest = min(end for end in ends if end == end)
        lines.append(
            {"": name, **line, "lowest median end of a network": f"{lowest:.2g}"}
        )
    return comparison.report(folder, "rnn") | {"yardsticks": table(lines)}
