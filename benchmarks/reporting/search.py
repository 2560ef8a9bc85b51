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

    def end(task: str, variant: str, rate: float) -> float:
        return median(from_rate(found[found["problem"] == task], variant, rate)["end"])

    def over(task: str, variant: str, rate: float) -> str:
        usual = 1.0 if task in SHARES else end(task, variants[0], rate)
        return divide(end(task, variant, rate), usual)

    lines = [
        {"variant": variant}
        | {short(x): ", ".join(over(x, variant, rate) for rate in RATES) for x in TASKS}
        for variant in variants
    ]
    return {"search": raw.table(lines), "versions": raw.versions(found)}
