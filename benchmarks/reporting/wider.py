"""Tables of memories of narrow networks that start wide ones."""

import pathlib

import numpy as np
import pandas as pd

from benchmarks.harness.store import Frame
from benchmarks.reporting import rows as raw

NETWORKS = ("dense 512", "dense 1024", "attention 512", "attention 1024")
ADAM_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FRESH = (1e-5, 1e-4, 1e-3)
# Without a usual rate, to which rates of wide networks rise, and without a ceiling.
FREE = "memory_adam, largest_step=None"
# How rates are lowered: by the ratio of widths to this power. Those of SGD are not.
POWERS = {
    "memory_adam": {"1 / width": 1.0, "1 / sqrt(width)": 0.5, "not lowered": 0.0},
    "memory_sgd": {"not lowered": 0.0},
}
_EARLY = 10  # measures, of the first hundred steps


def starts(rows: Frame) -> dict[str, Frame]:
    """Return the runs of one network: Adam's rates, fresh memories, and given ones."""
    found = {
        f"Adam, {rate:g}": raw.from_rate(rows, "adam", rate) for rate in ADAM_RATES
    }
    found[f"{FREE}, fresh from {FRESH[0]:g}"] = raw.from_rate(rows, FREE, FRESH[0])
    for name, powers in POWERS.items():
        for rate in FRESH:
            found[f"{name}, fresh from {rate:g}"] = raw.from_rate(rows, name, rate)
        for start in powers:
            found[f"{name}, {start}"] = raw.fixed(rows, name, start)
    return found


def format_early(found: Frame) -> str:
    """Return the mean loss of the first hundred steps, the median of seeds."""
    means = [np.nan_to_num(np.mean(x[:_EARLY]), nan=np.inf) for x in found["curve"]]
    return f"{raw.median(means):.3g}" if means else ""


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return three tables, a row a start and a column a network."""
    networks = raw.by_problem(folder / "wider.csv.gz")
    cells = {
        "steps": raw.format_updates,
        "early": format_early,
        "end": raw.format_end,
    }
    tables = {}
    for head, cell in cells.items():
        columns = {
            name: {start: cell(found) for start, found in starts(rows).items()}
            for name, rows in networks.items()
        }
        tables[head] = raw.table(pd.DataFrame(columns).reset_index(names="start"))
    return tables
