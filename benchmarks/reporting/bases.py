"""Ends of `learn_rates` over those of the base inside at its best rate."""

import pathlib

from benchmarks.harness.store import TUNING_SEED
from benchmarks.reporting import rows as raw
from benchmarks.reporting.long import short

TASKS = ("teacher, long", "classes, long")
ENDINGS = {"constant": "", "decayed": ", decay", "averaged": ", average"}


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return a table for each way to end a run: a row a base, a column a task."""
    rows = raw.load(folder / "bases.csv.gz")
    rows = rows[rows["seed"] < TUNING_SEED]
    ends = rows.groupby(["method", "problem"], sort=False)["end"].median().unstack()
    names = [name for name in ends.index if "," not in name]
    tables = {}
    for head, ending in ENDINGS.items():
        ours = ends.loc[[f"memory, {name}{ending}" for name in names]]
        base = ends.loc[[f"{name}{ending}" for name in names]]
        ratios = (ours.set_axis(names) / base.set_axis(names)).rename(columns=short)
        cells = ratios.map("{:.3g}".format).reset_index(names="base")
        tables[head] = raw.table(cells)
    return tables
