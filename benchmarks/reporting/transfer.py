"""The table of memories of small networks that start larger ones."""

import pathlib

import pandas as pd

from benchmarks.harness.store import Frame
from benchmarks.methods import BASELINES, LABELS, plain
from benchmarks.reporting import rows as raw
from benchmarks.reporting.rows import fixed, from_rate, paired, tuned

FRESH = (1e-5, 1e-3)
MOMENTS = ("early", "end")
STARTS = tuple(f"{when}{how}" for when in MOMENTS for how in ("", ", pooled", ", mean"))
LEARNERS = ("memory_adam", "memory_sgd", "memory_sgd_m21")


def over_fresh(rows: Frame, name: str, start: str) -> str:
    """Return updates from a start over those of a fresh memory."""
    return paired(fixed(rows, name, start), fixed(rows, name))


def starts_of(rows: Frame) -> dict[str, tuple[Frame, Frame]]:
    """Return label -> runs on a network, and those of the fresh memory beside them."""
    nothing = rows.iloc[:0]
    found = {
        f"{LABELS[name]}, best of 20": (tuned(rows, name), nothing)
        for name in BASELINES
    }
    for name in LEARNERS:
        fresh, label = from_rate(rows, name, FRESH[1]), plain(LABELS[name])
        other = from_rate(rows, name, FRESH[0])
        found[f"{label}, fresh from {FRESH[0]:g}"] = other, fresh
        found[f"{label}, fresh from {FRESH[1]:g}"] = fresh, nothing
        for start in STARTS:
            found[f"{label}, {start}"] = fixed(rows, name, start), fresh
    return found


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the updates to the target of every start, beside a fresh memory."""
    networks, cells = raw.by_problem(folder / "transfer.csv.gz"), {}
    for network, rows in networks.items():
        for label, (runs, fresh) in starts_of(rows).items():
            cells[label, network] = raw.format_updates(runs)
            cells[label, f"{network}, beside fresh"] = paired(runs, fresh)
    frame = pd.Series(cells).unstack(sort=False)
    shown = frame[(frame != "").any(axis=1)].reset_index(names="start")
    versions = raw.versions(pd.concat(networks.values()))
    return {"table": raw.table(shown), "versions": versions}
