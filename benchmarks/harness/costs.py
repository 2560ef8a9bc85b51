"""What an update of a problem costs with every method: time and bytes of state."""

import csv
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.harness.runner import make_update
from benchmarks.harness.store import write_csv
from benchmarks.methods import Method
from benchmarks.problems.problem import Problem

_UPDATES = 20  # in one call, so that calling costs nothing
_ROUNDS = 7


class Cost(NamedTuple):
    """Of one update: gradient, optimizer and all, without compiling."""

    problem: str
    method: str
    milliseconds: float
    state_bytes: float  # per parameter


def measure_costs(problem: Problem, methods: Sequence[Method]) -> list[Cost]:
    """Time all methods in turns; return medians."""
    calls, sizes = {}, {}
    for method in methods:
        calls[method.name], sizes[method.name] = _prepare(problem, method)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append((time.perf_counter() - start) / _UPDATES)
    return [
        Cost(problem.name, name, 1e3 * statistics.median(times[name]), sizes[name])
        for name in calls
    ]


def _prepare(problem: Problem, method: Method) -> tuple[Callable[[], Any], float]:
    """Return a compiled call of `_UPDATES` updates and the bytes of state."""
    optimizer = method.make(*method.default.values())

    @jax.jit
    def call(data: Any, params: Any, extra: Any, state: Any) -> Any:
        update = make_update(problem, optimizer, data)
        carry = params, extra, state
        return jax.lax.scan(update, carry, jnp.arange(_UPDATES))[0]

    params, extra = problem.start(problem.data, jax.random.key(0))
    state = optimizer.init(params)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / parameters
    jax.block_until_ready(call(problem.data, params, extra, state))
    return lambda: call(problem.data, params, extra, state), size


def write_costs(costs: Sequence[Cost], path: pathlib.Path) -> None:
    """Write one row per problem and method."""
    write_csv(
        path,
        Cost._fields,
        (
            (
                one.problem,
                one.method,
                f"{one.milliseconds:.4g}",
                f"{one.state_bytes:.4g}",
            )
            for one in costs
        ),
    )


def read_costs(path: pathlib.Path) -> list[Cost]:
    """Read back what `write_costs` wrote."""
    with open(path, newline="") as file:
        return [
            Cost(
                row["problem"],
                row["method"],
                float(row["milliseconds"]),
                float(row["state_bytes"]),
            )
            for row in csv.DictReader(file)
        ]
