"""The table of memories of small networks that start larger ones."""

import pathlib

import pandas as pd

from benchmarks.methods import BASELINES, LABELS, plain
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import fixed, from_rate, paired, tuned

FRESH = (1e-5, 1e-4, 1e-3)
MOMENTS = ("early", "end")
STARTS = tuple(f"{when}{how}" for when in MOMENTS for how in ("", ", pooled", ", mean"))
LEARNERS = ("memory_adam", "memory_sgd", "memory_sgd_m21")


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the updates to the target of every start, beside a fresh memory."""
    cells = {}
    for network, rows in raw.by_problem(folder / "transfer.csv.gz").items():
        over = f"{network}, beside fresh"
        for name in BASELINES:
            label = f"{LABELS[name]}, best of 20"
            cells[label, network] = raw.format_updates(tuned(rows, name))
            cells[label, over] = ""
        for name in LEARNERS:
            fresh = fixed(rows, name)
            runs = {
                f"fresh from {rate:g}": from_rate(rows, name, rate) for rate in FRESH
            } | {start: fixed(rows, name, start) for start in STARTS}
            for start, found in runs.items():
                label = f"{plain(LABELS[name])}, {start}"
                cells[label, network] = raw.format_updates(found)
                cells[label, over] = "" if found.equals(fresh) else paired(found, fresh)
    frame = pd.Series(cells).unstack(sort=False)
    shown = frame[(frame != "").any(axis=1)].reset_index(names="start")
    return {"table": raw.table(shown)}
