"""A bad batch costs one step and nothing else, an outlier is limited."""

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
from metalr_optax.guards import guard

OPTIMIZERS: dict[str, Any] = {"memory_sgd": memory_sgd(), "memory_adam": memory_adam()}
DECAYING: Any = {
    make.__name__: make(
        optax.linear_schedule(0.5, 1.0, 9), initial=1e-3, weight_decay=0.1
    )
    for make in (memory_sgd, memory_adam)
}
RULES: Any = ({}, {"memory_optimizer": agreement_steps(), "signal": raw_product})
LINKS = [optax.chain(scale_by_memory(1e-3, **k), optax.scale(-1.0)) for k in RULES]
INNER = optax.scale_by_schedule(lambda count: 1.0)
GUARDS = {
    limit: guard(INNER.init, lambda *arguments: INNER.update(*arguments[:3]), limit)
    for limit in (None, 0.3)
}
BAD = {
    "nan": np.array([1.0, np.nan, 0.0], "f4"),
    "inf": np.array([-np.inf, 1.0, 0.0], "f4"),
    "the largest number": np.array([3e38, -3e38, 0.0], "f4"),
    "1e25 times as large": np.array([1e25, 1.0, 0.0], "f4"),
}


def tree(first):
    return {"a": first, "b": np.ones((2, 2), "f4")}


ONES = tree(np.ones(3, "f4"))


def gradients(num):
    rows = np.random.default_rng(0).normal(size=(num, 3)) + 0.5
    return [tree(row.astype("f4")) for row in rows]


def train(optimizer, params, grads, state=None):
    state = jax.jit(optimizer.init)(params) if state is None else state
    update = jax.jit(optimizer.update)
    for one in grads:
        updates, state = update(one, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def limited(gradients, clip_norm=None):
    """Return what a guard lets through of each gradient, and its last state."""
    optimizer = GUARDS[clip_norm]
    state, update = jax.jit(optimizer.init)(gradients[0]), jax.jit(optimizer.update)
    passed = []
    for gradient in gradients:
        moves, state = update(gradient, state)
        passed.append(moves)
    return passed, state


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_as_if_a_bad_batch_had_not_been(name, bad):
    optimizer, grads = DECAYING[name], gradients(8)
    expected = train(optimizer, ONES, grads)
    found = train(optimizer, ONES, [*grads[:4], *[tree(BAD[bad])] * 2, *grads[4:]])
    chex.assert_trees_all_equal(found[0], expected[0])
    uncounted = found[1]._replace(counts=expected[1].counts)
    chex.assert_trees_all_equal(uncounted, expected[1])
    logs = summarize_memory(found[1])
    assert (logs["skipped/a"], logs["skipped_in_a_row/a"]) == (2, 0)
    logs = summarize_memory(train(optimizer, *found[:1], [tree(BAD[bad])] * 3)[1])
    assert (logs["skipped/b"], logs["skipped_in_a_row/b"]) == (3, 3)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", BAD)
def test_a_run_may_begin_with_a_bad_batch(name, bad):
    optimizer, grads = OPTIMIZERS[name], gradients(8)
    expected = train(optimizer, ONES, grads)
    found = train(optimizer, ONES, [tree(BAD[bad]), *grads])
    chex.assert_trees_all_equal(found[0], expected[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("outlier", [1e15, 1e-30, 1e-45, 0.0])
def test_a_finite_gradient_is_not_skipped_and_does_not_end_a_run(name, outlier):
    optimizer, grads = OPTIMIZERS[name], gradients(8)
    other = jax.tree.map(lambda g: np.full_like(g, outlier), grads[0])
    params, state = train(optimizer, ONES, [*grads, other, other])
    assert summarize_memory(state)["skipped/a"] == 0
    before = get_memory(state)["a"].rates
    params, state = train(optimizer, params, 20 * [ONES], state)
    assert summarize_memory(state)["skipped/a"] == 0
    chex.assert_tree_all_finite((params, state))
    assert get_memory(state)["a"].rates > 1.1 * before


@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_norms_are_limited_by_the_largest_of_the_last_steps(clip_norm):
    """Against the formula in NumPy, with outliers of all sizes among the gradients."""
    rng = np.random.default_rng(0)
    grads: Any = rng.normal(size=(300, 6)) * 10.0 ** rng.uniform(-1, 1, (300, 1))
    grads[::29] *= 10.0 ** rng.uniform(0, 15, (11, 1))
    trees = [{"a": g[:2], "b": g[2:].reshape(2, 2)} for g in grads.astype("f4")]
    passed, state = limited(trees, clip_norm)
    usual, norms, cut = 0.0, np.linalg.norm(np.float32(grads), axis=1), 0
    for gradient, norm, found in zip(grads, norms, passed, strict=True):
        limit = clip_norm or (10 * usual if usual else norm)
        scale, cut = min(1.0, limit / norm), cut + (norm > limit)
        flat = np.concatenate([found["a"], found["b"].ravel()])
        np.testing.assert_allclose(flat, scale * gradient, rtol=1e-4)
        usual = max(0.99 * usual, min(norm, 2 * usual) if usual else norm)
    np.testing.assert_allclose(state.usual_norm, usual, rtol=1e-4)
    assert cut > 5
    assert state.counts[:2].tolist() == [0, 0]


@pytest.mark.parametrize("usual", [1e-6, 1.0, 1e6])
def test_how_large_a_gradient_is_too_large(usual):
    """1e15 times the usual norm is brought down to 10 times, and more is a bad step."""
    first = {"a": np.array([3 * usual, 0], "f4"), "b": np.array([[-4 * usual]], "f4")}
    (_, found), state = limited([first, jax.tree.map(lambda g: 1e15 * g, first)])
    np.testing.assert_allclose(optax.tree.norm(found), 50 * usual, rtol=1e-5)
    assert state.counts[:2].tolist() == [0, 0]
    more = 1e21 * max(1, 1 / usual)
    (_, found, again), state = limited(
        [first, jax.tree.map(lambda g: more * g, first), first]
    )
    assert optax.tree.norm(found) == 0
    chex.assert_trees_all_close(again, first, rtol=1e-6)
    assert state.counts[:2].tolist() == [1, 0]
    np.testing.assert_allclose(state.usual_norm, 5 * usual, rtol=1e-5)


@pytest.mark.parametrize("tiny", [1e-20, 1e-30, 1e-45, 0.0])
def test_gradients_of_next_to_nothing_are_no_usual_ones(tiny):
    """A layer that is not in use yet does not hold up the steps after it is."""
    nothing = jax.tree.map(lambda g: np.full_like(g, tiny), ONES)
    passed, state = limited([nothing, nothing, ONES])
    # XLA may take denormal numbers for zero.
    chex.assert_trees_all_close(passed[0], nothing, rtol=1e-6, atol=1e-37)
    chex.assert_trees_all_equal(passed[2], ONES)
    assert state.counts[:2].tolist() == [0, 0]


@pytest.mark.parametrize("optimizer", LINKS, ids=["paper", "ready"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e-45, 0.0])
def test_a_memory_in_a_chain_learns_on(value, optimizer):
    grads = gradients(8)
    bad = jax.tree.map(lambda g: np.full_like(g, value), grads[0])
    _, state = train(optimizer, ONES, [*grads, bad, bad])
    before = get_memory(state)["a"].rates.max()
    _, state = train(optimizer, ONES, 20 * [ONES], state)
    assert get_memory(state)["a"].rates.max() > 1.1 * before


def test_two_outliers_in_a_row_are_still_outliers():
    """Adam's second moment is filled by no more than ten times the largest norm."""
    optimizer, grads = OPTIMIZERS["memory_adam"], gradients(8)
    _, state = train(optimizer, ONES, grads)
    norm = max(float(optax.tree.norm(one)) for one in grads)
    huge = jax.tree.map(lambda g: 1e6 * g, grads[0])
    _, state = train(optimizer, ONES, [huge, huge], state)
    filled = optax.tree.norm(jax.tree.map(jnp.sqrt, optax.tree.get(state, "nu")))
    assert filled < np.sqrt(0.01) * (10 + 20 + 1) * norm
    # What is as large for longer is no outlier: the limit has grown with it.
    _, state = train(optimizer, ONES, 30 * [huge], state)
    filled = optax.tree.norm(jax.tree.map(jnp.sqrt, optax.tree.get(state, "nu")))
    assert filled > 0.1 * optax.tree.norm(huge)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loss_scale_that_doubles_and_halves_leaves_rates_as_they_were(name):
    """Divided out as before any optimizer; what overflowed is a skipped step."""
    optimizer, params = OPTIMIZERS[name], jax.tree.map(np.float16, ONES)
    scales = [2.0**10, 2.0**11, 2.0**12, 2.0**20, 2.0**11, 2.0**10, 2.0**11, 2.0**12]
    plain, scaled = [], []
    for scale, grads in zip(scales, gradients(8), strict=True):
        halves = jax.tree.map(jnp.float16, grads)
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
    update, state = jax.jit(optimizer.update), jax.jit(optimizer.init)(params)
    updates, state = update(grads, state, params)
    np.testing.assert_allclose(updates, -0.5 / 8, rtol=1e-2)
    assert summarize_memory(state)["skipped/params"] == 0


def test_one_bad_batch_skips_the_step_of_all():
    optimizer: Any = optax.MultiSteps(memory_adam(), 2)
    found, state = train(optimizer, ONES, [*gradients(1), tree(BAD["nan"])])
    chex.assert_trees_all_equal(found, ONES)
    assert summarize_memory(state)["skipped/a"] == 1


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_what_is_measured_is_the_norm_of_the_whole_tree(scale):
    leaves = [np.array([3 * scale, 0.0], "f4"), np.array([[-4 * scale]], "f4")]
    _, state = limited([[*leaves, np.zeros((0, 3), "f4")]])
    np.testing.assert_allclose(state.usual_norm, 5 * scale, rtol=1e-5)
    (passed,), state = limited([[*leaves, np.array(np.nan, "f4")]])
    assert state.counts[:2].tolist() == [1, 1]
    assert state.usual_norm == 0
    chex.assert_trees_all_equal(passed, jax.tree.map(jnp.zeros_like, passed))


@pytest.mark.parametrize("scales", [[1e-12], 10 * [1e-3], 10 * [1e-12]])
@pytest.mark.parametrize("maker", [memory_sgd, memory_adam])
def test_a_rate_does_not_climb_while_steps_are_held_back(maker, scales):
    """That gradients agree says nothing of a rate whose steps are made smaller."""
    optimizer: Any = maker(clip_norm=None)
    inputs = jax.random.normal(jax.random.key(0), (64, 8))
    targets = inputs @ jnp.arange(8.0) / 4

    def height(weights):
        return jnp.mean((inputs @ weights - targets) ** 2) / 2

    def step(carry, scale):
        weights, state = carry
        grads = scale * jax.grad(height)(weights)
        updates, state = optimizer.update(grads, state, weights)
        weights = optax.apply_updates(weights, updates)
        return (weights, state), height(weights)

    start, factors = jnp.zeros(8), jnp.ones(300).at[: len(scales)].set(scales[0])
    carry = start, optimizer.init(start)
    _, heights = jax.jit(lambda carry: jax.lax.scan(step, carry, factors))(carry)
    assert heights.max() < 1.01 * height(start)
    assert heights[-1] < 0.01 * height(start)
