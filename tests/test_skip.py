"""A batch that is not finite costs one step, and nothing else."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    agreement_steps,
    get_memory,
    memory_adam,
    memory_sgd,
    raw_product,
    scale_by_memory,
    summarize_memory,
)
from metalr_optax.skip import safe_norm

MAKERS = {"memory_sgd": memory_sgd, "memory_adam": memory_adam}
BAD = {
    "nan": jnp.array([1.0, jnp.nan, 0.0]),
    "inf": jnp.array([-jnp.inf, 1.0, 0.0]),
}


def tree(first):
    return {"a": first, "b": jnp.ones((2, 2))}


def gradients(num):
    rows = np.random.default_rng(0).normal(size=(num, 3)) + 0.5
    return [tree(jnp.asarray(row, jnp.float32)) for row in rows]


def train(optimizer, params, grads, state=None):
    state = optimizer.init(params) if state is None else state
    update = jax.jit(optimizer.update)
    for one in grads:
        updates, state = update(one, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def unskipped(state):
    """Return a state as if nothing had been counted."""
    memory, *others = state
    table = {name: array[..., :-2] for name, array in memory.table.items()}
    return memory._replace(table=table), *others


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", MAKERS)
def test_a_run_goes_on_as_if_a_bad_batch_had_not_been(name, bad):
    optimizer: Any = MAKERS[name](
        optax.linear_schedule(0.5, 1.0, 9), initial=1e-3, weight_decay=0.1
    )
    params, grads = tree(jnp.ones(3)), gradients(8)
    expected = train(optimizer, params, grads)
    found = train(optimizer, params, [*grads[:4], *[tree(BAD[bad])] * 2, *grads[4:]])
    chex.assert_trees_all_equal(found[0], expected[0])
    chex.assert_trees_all_equal(unskipped(found[1]), unskipped(expected[1]))
    logs = summarize_memory(found[1])
    assert (logs["skipped/a"], logs["skipped_in_a_row/a"]) == (2, 0)
    logs = summarize_memory(train(optimizer, *found[:1], [tree(BAD[bad])] * 3)[1])
    assert (logs["skipped/b"], logs["skipped_in_a_row/b"]) == (3, 3)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("outlier", [3e38, 1e25, 1e-45, 0.0])
def test_a_finite_gradient_is_not_skipped_and_does_not_end_a_run(name, outlier):
    optimizer: Any = MAKERS[name]()
    params, grads = tree(jnp.ones(3)), gradients(8)
    huge = jax.tree.map(lambda g: jnp.full_like(g, outlier), grads[0])
    params, state = train(optimizer, params, [*grads, huge, huge])
    assert summarize_memory(state)["skipped/a"] == 0
    before = get_memory(state)["a"].rates
    params, state = train(optimizer, params, 20 * [tree(jnp.ones(3))], state)
    chex.assert_tree_all_finite((params, state[0].base_state))
    assert get_memory(state)["a"].rates > 1.1 * before


@pytest.mark.parametrize("signal", [None, raw_product])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e-45, 0.0])
def test_a_memory_in_a_chain_learns_on(value, signal):
    rule = None if signal is None else agreement_steps()
    link = scale_by_memory(1e-3, memory_optimizer=rule, signal=signal)
    optimizer = optax.chain(link, optax.scale(-1.0))
    params, grads = tree(jnp.ones(3)), gradients(8)
    bad = jax.tree.map(lambda g: jnp.full_like(g, value), grads[0])
    _, state = train(optimizer, params, [*grads, bad, bad])
    before = get_memory(state)["a"].rates.max()
    _, state = train(optimizer, params, 20 * [tree(jnp.ones(3))], state)
    assert get_memory(state)["a"].rates.max() > 1.1 * before


def test_two_outliers_in_a_row_are_still_outliers():
    """Adam's second moment is filled by no more than ten times the largest norm."""
    optimizer: Any = memory_adam()
    params, grads = tree(jnp.ones(3)), gradients(8)
    _, state = train(optimizer, params, grads)
    norm = max(float(optax.tree.norm(one)) for one in grads)
    huge = jax.tree.map(lambda g: 1e6 * g, grads[0])
    _, state = train(optimizer, params, [huge, huge], state)
    filled = optax.tree.norm(jax.tree.map(jnp.sqrt, state[0].base_state.nu))
    assert filled < np.sqrt(0.01) * (10 + 20 + 1) * norm
    # What is as large for longer is no outlier: the limit has grown with it.
    _, state = train(optimizer, params, 30 * [huge], state)
    filled = optax.tree.norm(jax.tree.map(jnp.sqrt, state[0].base_state.nu))
    assert filled > 0.1 * optax.tree.norm(huge)


@pytest.mark.parametrize("name", MAKERS)
def test_a_loss_scale_that_doubles_and_halves_leaves_rates_as_they_were(name):
    """Divided out as before any optimizer; what overflowed is a skipped step."""
    optimizer: Any = MAKERS[name]()
    params = jax.tree.map(jnp.float16, tree(jnp.ones(3)))
    scales = [2.0**10, 2.0**11, 2.0**12, 2.0**20, 2.0**11, 2.0**10, 2.0**11, 2.0**12]
    plain, scaled = [], []
    for scale, grads in zip(scales, gradients(8), strict=True):
        halves = jax.tree.map(lambda g: g.astype(jnp.float16), grads)
        scaled.append(jax.tree.map(lambda g, s=scale: g * s / s, halves))
        if scale < 2.0**16:
            plain.append(halves)
    _, expected = train(optimizer, params, plain)
    _, found = train(optimizer, params, scaled)
    chex.assert_trees_all_equal(get_memory(found), get_memory(expected))
    assert summarize_memory(found)["skipped/a"] == 1


def test_small_dtypes_are_measured_in_a_wide_one():
    optimizer: Any = memory_sgd(initial=1.0, clip_norm=0.5, momentum=0.0)
    params = jnp.ones(64, jnp.float16)
    grads = jnp.full(64, 6e4, jnp.float16)  # its square is not finite
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates, -0.5 / 8, rtol=1e-2)
    assert summarize_memory(state)["skipped/params"] == 0


def test_one_bad_batch_skips_the_step_of_all():
    optimizer: Any = optax.MultiSteps(memory_adam(), 2)
    params, (first, *_) = tree(jnp.ones(3)), gradients(1)
    found, state = train(optimizer, params, [first, tree(BAD["nan"])])
    chex.assert_trees_all_equal(found, params)
    assert summarize_memory(state)["skipped/a"] == 1


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e19, 1e37])
def test_a_norm_is_finite_if_all_numbers_are(scale):
    leaves = [jnp.array([3.0, 0.0]) * scale, jnp.array([[-4.0]]) * scale]
    norm = jax.jit(lambda leaves: safe_norm(leaves, jnp.float32))
    if scale >= 1.0:
        np.testing.assert_allclose(norm(leaves), 5 * scale, rtol=1e-5)
    assert np.isfinite(norm(leaves))
    assert norm([jnp.zeros(2), jnp.zeros((0, 3))]) == 0
    assert not np.isfinite(norm([*leaves, jnp.array(jnp.nan)]))
    assert norm([jnp.full(9, 3e38)]) == jnp.finfo(jnp.float32).max
