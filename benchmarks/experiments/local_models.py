"""Local models that are added, widen or tilt: a known function, and two tasks.

The known function is the rate that every input asks for. Directions are drawn anew in
every step, and the gradient after one has its sign if the rate that was read was too
small: what a memory learns from that is the function.
"""

import csv
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.progress import counted
from benchmarks.harness.store import Store, write_csv
from benchmarks.harness.sweep import run_methods
from benchmarks.methods import Method
from benchmarks.problems.tasks import SUITE
from metalr_optax import (
    agreement_steps,
    get_memory,
    linspace_kernels,
    logspace_kernels,
    raw_product,
    scale_by_memory,
)
from metalr_optax.memory import read

STEM = "local_models"
TASKS_STEM = f"{STEM}_tasks"
FIXED = "fixed kernels"
# Name -> arguments for so many local models, of which `capacity` starts with two, that
# have inputs on both sides.
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    FIXED: lambda num: {},
    "capacity": lambda num: {
        "capacity": num,
        "kernels": linspace_kernels(REACH / 2, 2),
    },
    "learned widths": lambda num: {"learned_widths": True},
    "linear": lambda num: {"linear": True},
    "all three": lambda num: (
        OPTIONS["capacity"](num) | {"learned_widths": True, "linear": True}
    ),
}
REACH = 2.0
NUMS = (4, 8)
SHOWN = 8
UPDATES = 2000
SEEDS = 3
_COORDINATES = 64
Z = np.linspace(-REACH, REACH, 201)

TASKS = ("unequal inputs", "classes")
RATE = 1e-3
_MOST = 21
_LOG = logspace_kernels(8.0, 20, smallest=0.02)
VARIANTS: dict[str, dict[str, Any]] = {
    "M = 1": {"kernels": linspace_kernels(1.0, 1)},
    "M = 21, fixed": {"kernels": _LOG},
    "M = 21, learned widths": {"kernels": _LOG, "learned_widths": True},
    "M = 21, linear": {"kernels": _LOG, "linear": True},
    "M = 4 to 21": {"kernels": linspace_kernels(2.0, 4), "capacity": _MOST},
    "M = 4 to 21, all three": {
        "kernels": linspace_kernels(2.0, 4),
        "capacity": _MOST,
        "learned_widths": True,
        "linear": True,
    },
}


class Row(NamedTuple):
    """One number.

    Attributes:
      what: "error", the mean absolute log of a rate over that of the function, "curve",
        the rate at an input, or "model", the rate of a local model.
      option: what is learned.
      models: how many there may be.
      seed: of the directions.
      at: the input or centre.
      value: the number.
    """

    what: str
    option: str
    models: int
    seed: int
    at: float
    value: float


def wanted(z: jax.typing.ArrayLike) -> jax.Array:
    """Return the known function: flat, a steep bend, flat."""
    return 0.1 * jnp.exp(1.2 * jnp.tanh(4.0 * (jnp.asarray(z) - 0.5)))


def learn(option: str, num: int, updates: int = UPDATES, seeds: int = SEEDS) -> Any:
    """Return the memories [seeds, ...] of what an option made of the function.

    Examples:
      >>> memory = learn("linear", 6, updates=300, seeds=1)
      >>> bool(memory.rates[0, -1] > 5 * memory.rates[0, 0])
      True
    """
    arguments: dict[str, Any] = {"kernels": linspace_kernels(REACH, num)}
    arguments |= {"memory_optimizer": agreement_steps()} | OPTIONS[option](num)
    optimizer = scale_by_memory(0.1, **arguments)

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (_COORDINATES,), minval=-REACH, maxval=REACH)

    def step(carry: Any, key: jax.Array) -> Any:
        z, rates, state = carry
        gradient, new = (1 - rates / wanted(z)) * z, draw(key)
        moves, state = optimizer.update(new, state, grad=gradient)
        return (new, jnp.asarray(moves) / new, state), None

    def run(key: jax.Array) -> Any:
        keys = jax.random.split(key, updates + 1)
        z = draw(keys[0])
        # The first gradient says that directions point along it.
        moves, state = optimizer.update(z, optimizer.init(z), grad=z)
        start = z, jnp.asarray(moves) / z, state
        (_, _, state), _ = jax.lax.scan(step, start, keys[1:])
        return get_memory(state)["params"]

    keys = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(keys))


def rows_of(option: str, num: int) -> list[Row]:
    """Return the errors of an option, and for the number shown its landscape."""
    memories, rows = learn(option, num), []
    for seed in range(SEEDS):
        one = jax.tree.map(lambda x, i=seed: x[i], memories)
        rates = np.asarray(read(one.kernels, one.rates, jnp.asarray(Z), one.slopes))
        error = np.mean(np.abs(np.log(rates / np.asarray(wanted(Z)))))
        rows.append(Row("error", option, num, seed, 0.0, float(error)))
        if num == SHOWN and seed == 0:
            pairs = zip(Z, rates, strict=True)
            rows += [Row("curve", option, num, seed, *map(float, one)) for one in pairs]
            used = one.kernels.widths > 0
            pairs = zip(one.kernels.centers[used], one.rates[used], strict=True)
            rows += [Row("model", option, num, seed, *map(float, one)) for one in pairs]
    return rows


def run_function(out: pathlib.Path, say: Callable[[str], None]) -> list[Row]:
    """Write `local_models.csv`; return its rows."""
    out.mkdir(parents=True, exist_ok=True)
    rows, tell = [], counted(say, len(OPTIONS) * len(NUMS))
    for option in OPTIONS:
        for num in NUMS:
            rows += rows_of(option, num)
            tell(f"{option}, {num} local models: error {rows[-1].value:.3f}")
    texts = ((*one[:4], *(f"{x:.5g}" for x in one[4:])) for one in rows)
    write_csv(out / f"{STEM}.csv", Row._fields, texts)
    return rows


def read_rows(folder: pathlib.Path) -> list[Row]:
    """Return the rows of a folder."""
    with open(folder / f"{STEM}.csv", newline="") as file:
        return [
            Row(
                *(one["what"], one["option"], int(one["models"]), int(one["seed"])),
                *(float(one["at"]), float(one["value"])),
            )
            for one in csv.DictReader(file)
        ]


def make(rate: float, **arguments: Any) -> optax.GradientTransformationExtraArgs:
    """Return what `memory_sgd` is made of, with other local models."""
    link = scale_by_memory(
        rate,
        base_optimizer=optax.trace(0.9),
        normalize="rms",
        signal=raw_product,
        memory_optimizer=agreement_steps(),
        rate_bounds=(1e-9, 10.0),
        evidence_sample=4096,
        **arguments,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), link, optax.scale(-1.0))


def method_of(name: str) -> Method:
    """Return a variant as what runs."""
    arguments = VARIANTS[name]
    return Method(name, lambda rate: make(rate, **arguments), {}, {"rate": RATE})


def run_tasks(out: pathlib.Path, seeds: int, say: Callable[[str], None]) -> None:
    """Run what is missing in `local_models_tasks.csv`."""
    store, tell = Store(out / f"{TASKS_STEM}.csv"), counted(say, len(TASKS))
    jobs = [({"rate": RATE}, seed) for seed in range(seeds)]
    for task in TASKS:
        pairs = [(method_of(name), jobs) for name in VARIANTS]
        run_methods(SUITE[task](), store, pairs, min(seeds, 5))
        tell(f"{task}: all runs are done")
