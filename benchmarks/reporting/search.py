"""The table of variants of the rule."""

import pathlib

from benchmarks.reporting import rows as raw
from benchmarks.reporting.long import SHARES, divide, short
from benchmarks.reporting.rows import from_rate, median

RATES = (1e-5, 1e-3)
TASKS = (
    *("teacher", "noisy teacher", "classes"),
    *("unequal inputs, long", "physics", "agent"),
)


def report(folder: pathlib.Path, variants: list[str]) -> dict[str, str]:
    """Return ends of variants over the default's, from both starts.

    Of a share of failures, which comes to 0, the ends themselves.
    """
    found = raw.load(folder / "search.csv.gz")
    tasks = {task: found[found["problem"] == task] for task in TASKS}
    lines = []
    for variant in variants:
        line = {"variant": variant}
        for task, rows in tasks.items():
            pairs = [
                [
                    median(from_rate(rows, x, rate)["end"])
                    for x in (variant, variants[0])
                ]
                for rate in RATES
            ]
            line[short(task)] = ", ".join(
                divide(one, 1.0 if task in SHARES else other) for one, other in pairs
            )
        lines.append(line)
    versions = ", ".join(sorted(set(found["version"])))
    return {"search": raw.table(lines), "versions": versions}
