"""What the long runs and the search run is what they say."""

import gzip
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from bowl import bowl

from benchmarks.experiments import long, noisy, search
from benchmarks.problems.long_tasks import LONG
from benchmarks.reporting import noisy as report
from metalr_optax import memory_adam


def test_a_decay_ends_at_zero():
    horizon = bowl().horizon
    methods = {one.name: one for one in long.tuned_methods(bowl())}
    params = jnp.ones(2)

    def steps(name):
        optimizer: Any = methods[name].make(0.1)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(horizon):
            updates, state = update(params, state, params)
            yield float(jnp.abs(updates).sum())

    for name in ("adam", "momentum"):
        constant, decayed = list(steps(name)), list(steps(f"{name}, decay"))
        share = 1.0 - np.arange(horizon) / horizon
        np.testing.assert_allclose(decayed, constant * share, rtol=1e-4)


def test_the_default_of_the_search_is_the_default_of_the_library():
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.ones(4)}
    library = memory_adam(initial=1e-4)

    def program(optimizer):
        state = optimizer.init(params)
        return jax.jit(optimizer.update).lower(params, state, params).as_text()

    usual, other, *_ = (search.make(one, 1e-4) for one in search.VARIANTS.values())
    chex.assert_trees_all_equal(usual.init(params), library.init(params))
    assert program(usual) == program(library) != program(other)


def test_a_checkpoint_is_chosen_by_one_half_and_judged_by_the_other(tmp_path):
    whole = LONG["noisy teacher, long"]()
    parts = [half.data for half in noisy.halves(whole)]
    for part in parts:
        np.testing.assert_array_equal(part.labels, whole.data.labels)
    both = np.concatenate([part.judged_labels for part in parts])
    assert sorted(both.ravel()) == sorted(np.ravel(whole.data.judged_labels))
    rows = [
        f'"{task}, {half}",{name},fresh,rate=0.001,{seed},{update},{value},0.4.0'
        for task in report.TASKS
        for name in ("memory_adam", "adam")
        for seed in range(3)
        for half, curve in {"validation": (3, 1, 2), "test": (9, 5, 4)}.items()
        for update, value in enumerate(curve, 1)
    ]
    head = "problem,method,start,setting,seed,update,value,version"
    (tmp_path / "noisy.csv.gz").write_bytes(
        gzip.compress("\n".join([head, *rows, ""]).encode())
    )
    table = report.report(tmp_path)["table"]
    assert "| memory_adam | 5 | 5 | 5 | 5 |" in table
    assert "| Adam, 0.001 | 5 | 5 | 5 | 5 |" in table
