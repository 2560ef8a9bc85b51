"""Memories that see how the gradients of a coordinate agreed, not its direction."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    Memory,
    adapt_memory,
    agreement_steps,
    get_kernel_inputs,
    get_memory,
    get_rates,
    linspace_kernels,
    load_memory,
    raw_product,
    save_memory,
    scale_by_memory,
    set_memory,
    summarize_memory,
)

PARAMS = {"a": jnp.linspace(-1.0, 1.0, 8), "b": {"w": jnp.ones((2, 3))}}
KERNELS = linspace_kernels(1.0, 5)


def make(initial: Any = 1e-2, **settings) -> Any:
    fresh = not isinstance(initial, Memory | dict)
    return scale_by_memory(
        initial,
        kernels=KERNELS if fresh else None,
        signal=raw_product,
        memory_optimizer=agreement_steps(),
        kernel_input="history",
        **settings,
    )


def gradients(steps, seed=0):
    """Half of a tensor always points one way, the other half is noise."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        noise = rng.normal(size=(steps, leaf.size))
        noise[:, : leaf.size // 2] = 1.0
        return jnp.float32(noise.reshape(steps, *leaf.shape))

    return jax.tree.map(draw, PARAMS)


@functools.partial(jax.jit, static_argnums=0)
def scan(optimizer, grads):
    """Return the last state and all updates."""
    state = optimizer.init(jax.tree.map(lambda x: x[0], grads))
    return jax.lax.scan(lambda s, g: optimizer.update(g, s)[::-1], state, grads)


@functools.cache
def learned():
    return scan(make(), gradients(60))[0]


def test_what_goes_one_way_reads_a_larger_rate_than_noise():
    state = learned()
    for label, memory in get_memory(state).items():
        still, along = memory.rates[2], memory.rates[4]
        assert along > 2 * still, label
        assert bool(memory.history)
    rates = get_rates(state)
    assert jnp.all(rates["a"][:4] > 2 * jnp.mean(rates["a"][4:]))


def test_the_history_of_coordinates():
    state = learned()
    signs = np.sign(np.asarray(gradients(60)["a"]))
    expected = np.zeros(8)
    for before, after in itertools.pairwise(signs):
        expected = 0.9 * expected + 0.1 * before * after
    found = get_kernel_inputs(state)
    np.testing.assert_allclose(found["a"], expected, atol=1e-6)
    assert found["b"].shape == (6,)
    assert float(summarize_memory(state)["out_of_range_fraction/a"]) == 0


def test_rates_are_read_at_the_new_history_and_corrected_at_the_old():
    kernels = linspace_kernels(1.0, 3, width=0.1)
    rates = np.array([0.1, 0.2, 0.4])
    optimizer: Any = scale_by_memory(
        Memory(kernels, rates),
        memory_optimizer=optax.sgd(0.01),
        kernel_input="history",
    )
    x = jnp.ones(2)
    update = jax.jit(optimizer.update)
    first, state = update(x, optimizer.init(x))
    np.testing.assert_allclose(first, 0.2)
    second, state = update(x, state)
    # The last rate was read at 0, so the middle one rises by its step; at .1, where it
    # is read now, it is alone.
    np.testing.assert_allclose(get_memory(state)["params"].rates, [0.1, 0.21, 0.4])
    np.testing.assert_allclose(second, 0.21, rtol=1e-6)
    np.testing.assert_allclose(state.base_state.history, 0.1, rtol=1e-6)


def test_a_base_that_points_against_the_gradient_has_the_same_history():
    bases = optax.scale_by_adam(), optax.adam(1.0)
    ends = [scan(make(base_optimizer=base), gradients(6)) for base in bases]
    (state, updates), (other, opposite) = ends
    chex.assert_trees_all_close(state.base_state.history, other.base_state.history)
    turned = jax.tree.map(jnp.negative, opposite)
    chex.assert_trees_all_close(updates, turned, rtol=1e-5)


def test_nothing_to_compare_moves_a_history_towards_nothing():
    optimizer, x = make(), np.ones(3, np.float32)
    update, state = jax.jit(optimizer.update), optimizer.init(x)
    for _ in range(3):
        _, state = update(x, state)
    before = state.base_state.history
    _, state = update(np.array([np.nan, 0.0, 1.0], np.float32), state)
    after = state.base_state.history
    np.testing.assert_allclose(after[:2], 0.9 * before[:2])
    assert after[2] > before[2]


def test_it_is_kept_and_moves_on(tmp_path):
    memory = get_memory(learned())
    path = tmp_path / "memory.safetensors"
    save_memory(path, memory)
    loaded = load_memory(path)
    chex.assert_trees_all_equal(loaded, jax.tree.map(np.asarray, memory))
    again = set_memory(make().init(PARAMS), loaded)
    chex.assert_trees_all_equal(get_memory(again), memory)
    chex.assert_trees_all_equal(make(loaded).init(PARAMS), again)


def test_it_is_not_taken_for_a_memory_of_directions():
    memory = get_memory(learned())
    plain = scale_by_memory(kernels=KERNELS)
    state = plain.init(PARAMS)
    there, here = "kernel_input='history'", "kernel_input='direction'"
    with pytest.raises(ValueError, match=rf"learned with {there}.*read with {here}"):
        set_memory(state, memory)
    with pytest.raises(ValueError, match=rf"learned with {here}.*read with {there}"):
        make(get_memory(state))
    flat = adapt_memory(memory, state)
    for label, one in flat.items():
        assert one.history is None
        assert len(set(one.rates.tolist())) == 1, label
    set_memory(state, flat)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kernel_input", {"kernel_input": "value"}),
        ("normalize", {"normalize": "rms", "kernel_input": "history"}),
        ("evidence_sample", {"evidence_sample": 9, "kernel_input": "history"}),
    ],
)
def test_what_does_not_go_with_it_is_refused(name, settings):
    with pytest.raises(ValueError, match=f"{name} must be"):
        scale_by_memory(**settings)


def test_a_direction_to_read_at_is_refused():
    with pytest.raises(ValueError, match="direction must be None"):
        get_rates(learned(), PARAMS)


def test_under_jit_vmap_and_with_stacked_layers():
    def in_layers(path, leaf):
        return [f"b/{i}" for i in range(len(leaf))] if leaf.ndim == 2 else "a"

    optimizer = make(group_by=in_layers)
    grads = jax.tree.map(lambda x: x[:4].astype(jnp.bfloat16), gradients(4))
    grads["b"]["w"] = grads["b"]["w"].at[:, 1].multiply(-1.0)

    state, updates = scan(optimizer, grads)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert list(get_memory(state)) == ["a", "b/0", "b/1"]
    assert state.base_state.history["b"]["w"].dtype == jnp.float32
    both = jax.tree.map(lambda x: jnp.stack([x, x]), grads)
    states, _ = jax.vmap(lambda grads: scan(optimizer, grads))(both)
    first = jax.tree.map(lambda x: x[0], states)
    chex.assert_trees_all_close(first, state, rtol=1e-4)
