"""What an update of a problem costs with every method: time and bytes of state."""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import metalr_optax
from benchmarks.harness.runner import make_update
from benchmarks.harness.store import Frame, write_frame
from benchmarks.methods import Method
from benchmarks.problems.problem import Problem

_UPDATES = 20  # in one call, so that calling costs nothing
_ROUNDS = 7
_KEY = ["experiment", "problem", "method"]
COLUMNS = [*_KEY, "milliseconds", "state_bytes", "version"]  # bytes a parameter


def time_in_turns(
    calls: Mapping[Any, Callable[[], Any]], rounds: int
) -> dict[Any, np.ndarray]:
    """Return the seconds of every call, round after round, but for two to warm up."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: np.array(taken[2:]) for name, taken in times.items()}


def add_costs(
    folder: pathlib.Path, experiment: str, problem: Problem, methods: Sequence[Method]
) -> None:
    """Time an update of all methods, without compiling; keep medians in `costs.csv`."""
    calls, sizes = {}, {}
    for method in methods:
        calls[method.name], sizes[method.name] = _prepare(problem, method)
    rows, version = [], metalr_optax.__version__
    for name, seconds in time_in_turns(calls, _ROUNDS).items():
        numbers = 1e3 * np.median(seconds) / _UPDATES, sizes[name]
        rounded = [float(f"{number:.4g}") for number in numbers]
        rows.append((experiment, problem.name, name, *rounded, version))
    frames = [read_costs(folder), pd.DataFrame(rows, columns=COLUMNS)]
    both = pd.concat([one for one in frames if len(one)])
    write_frame(both.drop_duplicates(_KEY, keep="last"), folder / "costs.csv")


def read_costs(folder: pathlib.Path) -> Frame:
    """Return a row an experiment, problem and method."""
    path = folder / "costs.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS)


def _prepare(problem: Problem, method: Method) -> tuple[Callable[[], Any], float]:
    """Return a call of `_UPDATES` updates and the bytes of state."""
    optimizer = method.make(*method.default.values())

    @jax.jit
    def call(data: Any, carry: Any) -> Any:
        update = make_update(problem, optimizer, data)
        return jax.lax.scan(update, carry, jnp.arange(_UPDATES))[0]

    params, extra = problem.start(problem.data, jax.random.key(0))
    carry = params, extra, optimizer.init(params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry[2]))
    return lambda: call(problem.data, carry), size / optax.tree.size(params)
