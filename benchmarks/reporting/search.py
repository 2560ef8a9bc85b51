"""The table of variants of the rule."""

import pathlib

import pandas as pd

from benchmarks.harness.store import write_setting
from benchmarks.reporting import rows as raw
from benchmarks.reporting.long import MISSING, SHARES, short

RATES = (1e-5, 1e-3)
TASKS = (
    *("teacher", "noisy teacher", "classes"),
    *("unequal inputs, long", "physics", "agent"),
)


def report(folder: pathlib.Path, variants: list[str]) -> dict[str, str]:
    """Return ends of variants over the default's, from both starts.

    Of a share of failures, which comes to 0, the ends themselves.
    """
    rows, cells = raw.load(folder / "search.csv.gz"), {}
    settings = [write_setting({"rate": rate}) for rate in RATES]
    for task in TASKS:
        found = rows[rows["problem"] == task]
        ends = found.pivot_table("end", "method", "setting", aggfunc="median")[settings]
        over = ends if task in SHARES else ends / ends.loc[variants[0]]
        texts = raw.write_cells(over, "{:.3g}", MISSING)
        cells[short(task)] = texts.agg(", ".join, axis=1)
    table = pd.DataFrame(cells, index=variants).reset_index(names="variant")
    return {"search": raw.table(table)}
