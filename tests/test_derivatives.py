"""Derivatives through steps are those that finite differences show."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    Memory,
    agreement_steps,
    average_weights,
    learn_rates,
    linspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
    raw_product,
    scale_by_memory,
)

KERNELS = linspace_kernels(2.0, 4)


# What makes an optimizer of a multiplier and a memory, and its number of rates.
MAKERS: Any = {
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
    "growing": (
        lambda m, i: optax.chain(
            scale_by_memory(
                i,
                memory_optimizer=agreement_steps(),
                signal=raw_product,
                capacity=5,
                learned_widths=True,
                linear=True,
            ),
            optax.scale(-m),
        ),
        4,
    ),
}


def last_loss(name, values):
    """Return the loss after six steps, from a multiplier, rates and three weights.

    A layer has no gradient at all, and the other may start at zero.
    """
    make, number = MAKERS[name]
    multiplier, rates, start = jnp.split(values, [1, 1 + number])
    kernels = KERNELS if number > 1 else linspace_kernels(1.0, 1)
    optimizer: Any = make(multiplier[0], Memory(kernels, rates))
    params: Any = {"a": {"w": start}, "unused": 0 * start}

    def loss(params):
        first, second, third = params["a"]["w"] - jnp.array([0.3, 0.1, -0.2])
        return first**2 + 1.7 * second**2 + (third + first - 0.5) ** 2 / 2

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
        end = jax.jit(jax.vmap(jax.value_and_grad(lambda x: last_loss(name, x))))
        # One program for both: the derivatives of what is moved are left out.
        found = end(np.vstack([points, *moved, *back]))
    ends, gradients = map(np.asarray, found)
    high, low = np.reshape(ends[2:], (2, *moved.shape[:2]))
    np.testing.assert_allclose(
        gradients[:2], (high - low) / (2 * h), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("optimizer", [paper_adam(), memory_adam()])
def test_derivatives_are_finite_where_a_gradient_is_zero(optimizer):
    """In float32, for coordinates that never move and a layer that starts at 0."""

    def end(start):
        def step(carry, _):
            x, state = carry
            gradient = {"a": start * x["a"], "b": jnp.zeros(2)}
            updates, state = optimizer.update(gradient, state, x)
            return (optax.apply_updates(x, updates), state), None

        x: Any = {"a": start, "b": jnp.zeros(2)}
        (x, _), _ = jax.lax.scan(step, (x, optimizer.init(x)), length=2)
        return jnp.sum(x["a"] ** 2)

    found = jax.jit(jax.grad(end))(jnp.array([0.5, 0.0, 2.0]))
    assert jnp.all(jnp.isfinite(found))
    assert found[0] != 0
