"""The rate of every layer over a long run of `memory_adam`, on three tasks."""

import csv
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness.progress import counted
from benchmarks.harness.runner import make_update
from benchmarks.harness.store import write_csv
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.problem import Problem
from metalr_optax import get_memory, memory_adam

STEM = "layer_rates"
TASKS = ("language, long", "autoencoder", "agent")
START = 1e-5
_POINTS = 100


class Row(NamedTuple):
    """The rate of a layer after so many updates."""

    task: str
    layer: str
    updates: int
    rate: float


def follow(problem: Problem, points: int = _POINTS) -> list[Row]:
    """Train once; return the rates at about even logarithms of the updates."""
    optimizer = memory_adam(initial=START)
    params, extra = jax.jit(problem.start)(problem.data, jax.random.key(0))
    layers = list(get_memory(optimizer.init(params)))

    @jax.jit
    def train(data, params, extra):
        update = make_update(problem, optimizer, data)

        def step(carry, count):
            carry, _ = update(carry, count)
            memory = get_memory(carry[-1])
            return carry, jnp.stack([memory[layer].rates[0] for layer in layers])

        start = params, extra, optimizer.init(params)
        return jax.lax.scan(step, start, jnp.arange(problem.horizon))[1]

    rates = np.asarray(train(problem.data, params, extra))
    places = np.unique(np.geomspace(1, problem.horizon, points).astype(int))
    return [
        Row(problem.name, layer, int(at), float(f"{rates[at - 1, number]:.4g}"))
        for number, layer in enumerate(layers)
        for at in places
    ]


def run(out: pathlib.Path, say: Callable[[str], None]) -> list[Row]:
    """Write `layer_rates.csv`; return its rows."""
    out.mkdir(parents=True, exist_ok=True)
    rows, tell = [], counted(say, len(TASKS))
    for task in TASKS:
        rows += follow(LONG[task]())
        tell(f"{task}: done")
    write_csv(out / f"{STEM}.csv", Row._fields, rows)
    return rows


def read_rows(folder: pathlib.Path) -> list[Row]:
    """Return the rows of a folder."""
    with open(folder / f"{STEM}.csv", newline="") as file:
        return [
            Row(one["task"], one["layer"], int(one["updates"]), float(one["rate"]))
            for one in csv.DictReader(file)
        ]
