"""Derivatives through steps are those that finite differences show."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    Memory,
    average_weights,
    learn_rates,
    linspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
    scale_by_memory,
)

KERNELS = linspace_kernels(2.0, 4)


def growing(multiplier, initial):
    scale = scale_by_memory(initial, capacity=6, learned_widths=True, linear=True)
    return optax.chain(scale, optax.scale(-multiplier))


# What makes an optimizer of a multiplier and a memory, and its number of rates.
MAKERS: Any = {
    "memory_adam": (lambda m, i: memory_adam(m, initial=i), 1),
    "memory_sgd": (lambda m, i: memory_sgd(m, initial=i, clip_norm=None), 1),
    "paper_sgd": (lambda m, i: paper_sgd(m, initial=i), 4),
    "paper_adam": (lambda m, i: paper_adam(m, initial=i), 4),
    "averaged": (
        lambda m, i: optax.chain(
            learn_rates(optax.adamw(1.0, eps_root=1e-18), m, initial=i),
            average_weights(),
        ),
        4,
    ),
    "growing": (growing, 4),
}


def last_loss(name, values):
    """Return the loss after six steps, from a multiplier, rates and three weights.

    A layer has no gradient at all, and every layer may start at zero.
    """
    make, number = MAKERS[name]
    multiplier, rates, start = jnp.split(values, [1, 1 + number])
    kernels = KERNELS if number > 1 else linspace_kernels(1.0, 1)
    optimizer: Any = make(multiplier[0], Memory(kernels, rates))
    params: Any = {"a": {"w": start}, "b": start[:2] / 2, "unused": 0 * start}

    def loss(params):
        first, second = params["a"]["w"], params["b"]
        error = jnp.array([1.0, 1.7, 0.5]) * (first - jnp.array([0.3, 0.1, -0.2])) ** 2
        return jnp.sum(error) + jnp.sum((second + first[:2] - 0.5) ** 2) / 2

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(step, start, length=6)
    return loss(params)


@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_through_steps_are_finite_differences(name):
    _, number = MAKERS[name]
    rates = np.geomspace(1e-3, 3e-3, number)
    weights = [[1.0, -0.7, 0.4], [0.0, 0.0, 0.0]]
    points = np.array([[1.1, *rates, *start] for start in weights])
    h = 1e-6 * np.maximum(np.abs(points), 1e-3)
    moved = points[:, None] + np.eye(number + 4)[None] * h[:, :, None]
    back = 2 * points[:, None] - moved
    with jax.enable_x64(True):
        end = jax.vmap(lambda values: last_loss(name, values))
        found = jax.jit(lambda x: jax.grad(lambda x: jnp.sum(end(x)))(x))(points)
        ends = jax.jit(end)(np.concatenate([moved, back]).reshape(-1, number + 4))
    high, low = np.asarray(ends).reshape(2, *moved.shape[:2])
    np.testing.assert_allclose(found, (high - low) / (2 * h), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer", [paper_sgd(), paper_adam(), memory_adam(), memory_sgd()]
)
def test_derivatives_are_finite_where_a_gradient_is_zero(optimizer):
    """In float32, for coordinates that never move and a layer that starts at 0."""

    def end(start):
        x: Any = {"a": start, "b": jnp.zeros(2)}
        state = optimizer.init(x)
        for _ in range(3):
            gradient = {"a": start * x["a"], "b": jnp.zeros(2)}
            updates, state = optimizer.update(gradient, state, x)
            x = cast(Any, optax.apply_updates(x, updates))
        return jnp.sum(x["a"] ** 2)

    found = jax.jit(jax.grad(end))(jnp.array([0.5, 0.0, 2.0]))
    assert jnp.all(jnp.isfinite(found))
    assert found[0] != 0
