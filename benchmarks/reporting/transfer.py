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


def load(folder: pathlib.Path) -> dict[str, Frame]:
    """Return the judged rows of every larger network."""
    found = raw.load(folder / "transfer.csv.gz")
    return {str(name): some for name, some in found.groupby("problem", sort=False)}


def over_fresh(rows: Frame, name: str, start: str) -> str:
    """Return updates from a start over those of a fresh memory."""
    return paired(fixed(rows, name, start), fixed(rows, name))


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the updates to the target of every start, beside a fresh memory."""
    networks = load(folder)
    found = {
        f"{LABELS[name]}, best of 20": [tuned(x, name) for x in networks.values()]
        for name in BASELINES
    }
    beside = {}
    for name in LEARNERS:
        starts = {
            f"fresh from {rate:g}": [
                from_rate(x, name, rate) for x in networks.values()
            ]
            for rate in FRESH
        }
        starts |= {
            start: [fixed(x, name, start) for x in networks.values()]
            for start in STARTS
        }
        usual = starts[f"fresh from {FRESH[-1]:g}"]
        for start, some in starts.items():
            key = f"{plain(LABELS[name])}, {start}"
            found[key] = some
            if some is not usual:
                beside[key] = [paired(*pair) for pair in zip(some, usual, strict=True)]
    lines = []
    for key, some in found.items():
        line, blank = {"start": key}, [""] * len(some)
        for name, one, text in zip(networks, some, beside.get(key, blank), strict=True):
            line |= {name: raw.format_updates(one), f"{name}, beside fresh": text}
        lines += [line] if any(map(len, some)) else []
    versions = raw.versions(pd.concat(networks.values()))
    return {"table": raw.table(lines), "versions": versions}
