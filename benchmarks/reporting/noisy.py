"""Ends of small, noisy tasks, and the checkpoints that a validation set chooses."""

import pathlib

import numpy as np
import pandas as pd

from benchmarks.reporting import rows as raw
from benchmarks.reporting.long import short

TASKS = ("noisy teacher, long", "noisy labels")
HALVES = ("validation", "test")
_KEY = ["method", "setting", "seed"]


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return a table: a row a method, the end and the best checkpoint of each task."""
    rows, columns = raw.load(folder / "noisy.csv.gz"), {}
    names = rows["method"].where(
        rows["method"] != "adam", "Adam, " + rows["setting"].str.removeprefix("rate=")
    )
    rows = rows.assign(name=names)
    for task in TASKS:
        chosen, tested = (
            rows[rows["problem"] == f"{task}, {half}"].set_index([*_KEY, "name"])
            for half in HALVES
        )
        curves = zip(tested["curve"], chosen["curve"].loc[tested.index], strict=True)
        best = [test[np.nanargmin(validation)] for test, validation in curves]
        for head, values in {"end": tested["end"], "best checkpoint": best}.items():
            found = tested.assign(value=values).groupby("name", sort=False)["value"]
            columns[f"{short(task)}, {head}"] = found.median()
    cells = pd.DataFrame(columns).map("{:.3g}".format)
    return {"table": raw.table(cells.reset_index(names="method"))}
