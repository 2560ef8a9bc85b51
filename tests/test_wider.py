"""Rates for a wider network are lowered by the power that a table names."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.experiments import wider
from benchmarks.harness.choose import load_targets
from benchmarks.harness.store import Key, Store
from benchmarks.reporting import rows
from benchmarks.reporting import wider as report
from metalr_optax import get_memory, memory_adam


@pytest.mark.parametrize("start", report.POWERS["memory_adam"])
def test_rates_are_lowered_by_the_power_of_the_width(start):
    def layers(width):
        sizes = {"first": (9, width), "second": (width, width)}
        return {
            label: {"w": jnp.ones(size), "b": jnp.zeros(size[1])}
            for label, size in sizes.items()
        }

    narrow = get_memory(memory_adam(initial=0.008).init(layers(4)))
    power = report.POWERS["memory_adam"][start]
    fitted = wider.fit(narrow, memory_adam().init(layers(64)), power)
    np.testing.assert_allclose(fitted["first"].rates, 0.008, rtol=1e-6)
    np.testing.assert_allclose(fitted["second"].rates, 0.008 / 16**power, rtol=1e-6)


def test_tables_show_steps_the_first_hundred_and_the_end(tmp_path):
    store, updates = Store(tmp_path / "wider.csv.gz"), np.arange(1, 21)
    kind, width = report.NETWORKS[0].split()
    key = Key(f"{kind} {width}", "memory_adam", "1 / width", "rate=0.0001", 0)
    # 1 for ten measures, then below the target of .301.
    store.add({key: np.where(updates > 10, 0.25, 1.0)}, 10)
    tables = report.report(tmp_path)
    for head, cell in {"steps": "110", "early": "1", "end": "0.25"}.items():
        assert f"| memory_adam, 1 / width | {cell} |" in tables[head]
        assert "| memory_adam, not lowered | |" in tables[head]


def test_targets_follow_from_the_rows_of_adam():
    for name, runs in rows.by_problem(rows.RESULTS / "wider.csv.gz").items():
        # Seeds, rates and measures.
        curves = [
            np.stack(list(rows.from_rate(runs, "adam", rate)["curve"]))
            for rate in report.ADAM_RATES
        ]
        best = min(curves, key=lambda curve: np.median(curve[:, -5:].mean(axis=1)))
        reached = np.median(best[:, best.shape[1] * 3 // 4 - 1])
        assert load_targets()[name] == pytest.approx(reached, rel=1e-3)
