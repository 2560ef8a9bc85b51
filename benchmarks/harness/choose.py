"""How a run is judged, and which setting of a method is its best."""

import pathlib

import numpy as np
import pandas as pd

from benchmarks.harness.store import TUNING_SEED, Frame, write_setting
from benchmarks.methods import Method, sample_settings

TARGETS = pathlib.Path(__file__).parents[1] / "targets.csv"
BUDGETS = (1, 5, 20)
TRIALS = max(BUDGETS)


def load_targets() -> dict[str, float]:
    """Return what every problem's measure must come down to, fixed beforehand."""
    rows = pd.read_csv(TARGETS, index_col="problem", dtype=str)
    return rows["target"].map(float).to_dict()


def updates_to(curve: np.ndarray, target: float, every: int) -> float:
    """Return the updates until a measure is at the target or below; inf for never."""
    reached = np.flatnonzero(curve <= target)
    return float((reached[0] + 1) * every) if len(reached) else np.inf


def final(curve: np.ndarray) -> float:
    """Return the median of the last five measures; inf if one is not finite."""
    last = curve[-5:]
    return float(np.median(last)) if np.isfinite(last).all() else np.inf


def judge(rows: Frame, target: float = np.nan, every: int = 1) -> Frame:
    """Return the rows of a problem with their updates to the target and their ends."""
    updates = [updates_to(curve, target, every) for curve in rows["curve"]]
    return rows.assign(updates=updates, end=[final(one) for one in rows["curve"]])


def tried(rows: Frame, method: Method, trials: int = TRIALS) -> Frame:
    """Return the judged trials of the sampler's first settings, in their order.

    Up to the first that is not there.
    """
    texts = [write_setting(one) for one in sample_settings(method, trials)]
    found = rows[(rows.method == method.name) & (rows.seed == TUNING_SEED)]
    found = found[found.start == "fresh"].set_index("setting").reindex(texts)
    return found[found["end"].notna().cummin().to_numpy(bool)]


def best_trial(rows: Frame, method: Method, trials: int) -> str:
    """Return the best of the first settings of the sampler; '' until all are tried.

    What diverges comes last, even if it was at the target before; then the fewest
    updates count, then the lowest end.
    """
    found = tried(rows, method, trials)
    ranks = found.assign(broken=~np.isfinite(found["end"]))
    order = ranks.sort_values(["broken", "updates", "end"], kind="stable").index
    return str(order[0]) if len(found) == trials else ""


def lowest_trial(rows: Frame, method: Method, trials: int = TRIALS) -> str:
    """Return the setting that ends lowest of the first ones; '' until all are tried."""
    found = tried(rows, method, trials)
    return str(found["end"].idxmin()) if len(found) == trials else ""
