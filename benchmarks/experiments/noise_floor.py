r"""Why rates fall near a noise floor, in one dimension, and what a falling gain does.

A coordinate of curvature h sees gradients :math:`g_t = h x_t + \epsilon_t` with noise
of variance 1, and descends at a rate :math:`\eta`. It comes to rest where
:math:`h^2 \mathrm{E} x^2 = \eta h / (2 - \eta h)`, so that

.. math::
  \mathrm{E} g_t^2 = \frac{2}{2 - \eta h}, \qquad
  \mathrm{E} g_{t+1} g_t = (1 - \eta h) h^2 \mathrm{E} x^2 - \eta h
    = -\frac{\eta h}{2 - \eta h}, \qquad
  \frac{\mathrm{E} g_{t+1} g_t}{\mathrm{E} g_t^2} = -\frac{\eta h}{2} .

Gradients contradict each other at any rate. A rule that moves the logarithm of the rate
by c times that has :math:`1 / \eta_t = 1 / \eta_0 + c h t / 2`: it falls like 1 / t for
ever. With a gain of c / t it has :math:`1 / \eta_t = 1 / \eta_0 + (c h / 2) \ln t`.
For the stiff coordinates of a layer the first is right, and its flat ones never arrive.
"""

import csv
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.store import write_csv
from metalr_optax import (
    agreement_steps,
    get_memory,
    linspace_kernels,
    raw_product,
    scale_by_memory,
)

STEM = "noise_floor"
AGREEMENT = "agreement"
PRODUCTS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of rate and curvature
GAINS = {"steps that do not fall": None, "steps that fall (the default)": 2.0}
UPDATES = 30_000
SHOWN = (100, 1000, 10_000, 30_000)
# Half of a layer is stiff, half of it flat and far from where it should be.
CURVATURES = np.repeat([1.0, 0.003], 128)
START = 3.0
NOISE = 0.3


class Course(NamedTuple):
    """What a layer does over updates.

    Attributes:
      rates: [updates], of its memory.
      distances: [updates], mean absolute distance of the flat half from where it
        should be.
    """

    rates: np.ndarray
    distances: np.ndarray


class Row(NamedTuple):
    """One number that was measured, or two.

    Attributes:
      what: "agreement", or the rule.
      at: rate times curvature, or updates.
      value: the agreement, or the rate.
      distance: of the flat half.
    """

    what: str
    at: float
    value: float
    distance: float


def agreement_at(product: float) -> float:
    """Return E g g' / E g^2 of 4,096 coordinates at rest.

    Examples:
      >>> round(agreement_at(0.5), 2)
      -0.25
    """

    def step(carry, key):
        x, last = carry
        gradient = x + jax.random.normal(key, x.shape)
        sums = jnp.stack([jnp.sum(gradient * last), jnp.sum(gradient**2)])
        return (x - product * gradient, gradient), sums

    before = int(5 / product)  # to rest
    keys = jax.random.split(jax.random.key(0), before + 1000)
    zeros = jnp.zeros(4096)
    _, sums = jax.jit(lambda: jax.lax.scan(step, (zeros, zeros), keys))()
    both, square = np.asarray(sums[before:], float).sum(axis=0)
    return float(both / square)


def follow(gain: float | None, updates: int = UPDATES) -> Course:
    """Return how a layer trains whose rate `agreement_steps(gain=gain)` corrects.

    Examples:
      >>> ever, less = (follow(gain, 3000).rates[1500:].min() for gain in (None, 2.0))
      >>> bool(ever < 0.1 * less)
      True
    """
    memory = scale_by_memory(
        1e-3,
        kernels=linspace_kernels(1.0, num=1),
        normalize="rms",
        memory_optimizer=agreement_steps(gain=gain),
        signal=raw_product,
    )
    optimizer = optax.chain(memory, optax.scale(-1.0))
    curvatures = jnp.asarray(CURVATURES, jnp.float32)

    def step(carry, key):
        x, state = carry
        gradient = curvatures * x + NOISE * jax.random.normal(key, x.shape)
        moves, state = optimizer.update(gradient, state)
        ((_, one),) = get_memory(state).items()
        x += moves
        return (x, state), (one.rates[0], jnp.mean(jnp.abs(x[len(x) // 2 :])))

    x = START * jnp.ones(len(CURVATURES))
    keys = jax.random.split(jax.random.key(0), updates)
    run = jax.jit(lambda: jax.lax.scan(step, (x, optimizer.init(x)), keys)[1])
    return Course(*map(np.asarray, run()))


def measure() -> list[Row]:
    """Return the agreement at fixed rates, and both courses, at even logarithms."""
    rows = [Row(AGREEMENT, one, agreement_at(one), 0.0) for one in PRODUCTS]
    places = np.unique(np.geomspace(1, UPDATES, 120).astype(int))
    for name, gain in GAINS.items():
        course = follow(gain)
        rows += [
            Row(name, int(at), *(float(one[at - 1]) for one in course))
            for at in {*places, *SHOWN}
        ]
    return sorted(rows)


def write_rows(rows: list[Row], path: pathlib.Path) -> None:
    """Write what was measured."""
    texts = ((one.what, *(f"{x:.6g}" for x in one[1:])) for one in rows)
    write_csv(path, Row._fields, texts)


def read_rows(path: pathlib.Path) -> list[Row]:
    """Return the rows of a file."""
    with open(path, newline="") as file:
        return [
            Row(one["what"], *(float(one[name]) for name in Row._fields[1:]))
            for one in csv.DictReader(file)
        ]
