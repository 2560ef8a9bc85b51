"""Memories that see something else than a direction: the experiment is what it says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.experiments import kernel_inputs
from metalr_optax import agreement_steps, raw_product, scale_by_memory

PARAMS = {"a": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.ones(5)}


def run(optimizer: Any, steps: int = 6) -> Any:
    """Return the parameters and the state after some noisy steps, one program."""
    noise = np.random.default_rng(0).normal(size=(steps, 3, 4)).astype(np.float32)

    def step(carry: Any, noise: Any) -> Any:
        params, state = carry
        grads = {"a": params["a"] + 0.3 * noise, "b": params["b"]}
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jax.jit(optimizer.init)(PARAMS)
    return jax.jit(lambda: jax.lax.scan(step, (PARAMS, start), noise)[0])()


@pytest.mark.parametrize(
    ("base", "seen"),
    [("momentum", "one rate"), ("momentum", "value"), ("Adam", "history")],
)
def test_what_is_kept_is_what_the_package_does(base, seen):
    expected = optax.chain(
        scale_by_memory(
            base_optimizer=kernel_inputs.BASES[base],
            kernels=kernel_inputs.kernels_for(seen),
            signal=raw_product,
            memory_optimizer=agreement_steps(),
            group_by="tensor",
            normalize=None if seen == "history" else "rms",
            kernel_input="history" if seen == "history" else "direction",
            rate_bounds=(1e-9, 10.0),
        ),
        optax.scale(-1.0),
    )
    tried = kernel_inputs.seeing(seen, kernel_inputs.BASES[base], 1e-3)
    found, wanted = run(tried)[0], run(expected)[0]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, wanted
    )


def test_what_is_seen():
    direction = jnp.array([1e-9, 1e-3, 1.0, -1.0, 1e3])
    size = kernel_inputs.look("size", direction / 447.2, direction)
    assert size[2] == size[3]
    assert jnp.all(jnp.diff(size[jnp.array([0, 1, 2, 4])]) >= 0)
    assert jnp.all(jnp.abs(size) <= 1)
    _, state = run(kernel_inputs.seeing("history", optax.identity(), 1e-6), 8)
    # Gradients of one sign all along, and for noise something in between.
    np.testing.assert_allclose(state.history[1], 1 - 0.9**7, rtol=1e-5)
    assert jnp.all(jnp.abs(state.history[0]) <= 1)


def test_a_smoothed_rate_lags_behind():
    fast, slow = (
        run(kernel_inputs.seeing(seen, optax.identity(), 1e-3), 4)[1]
        for seen in ("one rate", "smoothed")
    )
    assert jnp.all(slow.used[1] < fast.used[1])
