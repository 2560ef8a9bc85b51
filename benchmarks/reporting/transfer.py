"""The table of memories of small networks that start larger ones."""

import pathlib

import pandas as pd

from benchmarks.harness.store import Frame, write_setting
from benchmarks.methods import BASELINES, LABELS, USUAL, plain
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import from_rate, paired, tuned

FRESH = (1e-5, 1e-3)
MOMENTS = ("early", "end")
STARTS = tuple(f"{when}{how}" for when in MOMENTS for how in ("", ", pooled", ", mean"))
LEARNERS = ("memory_adam", "memory_sgd", "memory_sgd_m21")


def usual(rows: Frame, name: str, start: str = "fresh") -> Frame:
    """Return the runs from .001, where the memories of all learners began."""
    return raw.find(rows, name, write_setting(USUAL), start)


def over_fresh(rows: Frame, name: str, start: str) -> str:
    """Return updates from a start over those of a fresh memory."""
    return paired(usual(rows, name, start), usual(rows, name))


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
            runs = {
                f"fresh from {rate:g}": from_rate(rows, name, rate) for rate in FRESH
            }
            fresh = runs[f"fresh from {FRESH[1]:g}"]
            for start, found in (
                runs | {x: usual(rows, name, x) for x in STARTS}
            ).items():
                label = f"{plain(LABELS[name])}, {start}"
                cells[label, network] = raw.format_updates(found)
                cells[label, over] = "" if found is fresh else paired(found, fresh)
    frame = pd.Series(cells).unstack(sort=False)
    shown = frame[(frame != "").any(axis=1)].reset_index(names="start")
    return {"table": raw.table(shown)}
