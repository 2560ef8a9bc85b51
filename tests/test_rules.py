"""What steps by agreement promise, beside the reference they are compared with."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from metalr_optax import (
    agreement_steps,
    get_memory,
    linspace_kernels,
    raw_product,
    scale_by_memory,
)
from metalr_optax.rules import inconsistent_evidence

SCALAR = linspace_kernels(2.0, num=1)


def make(initial=1e-3, kernels=SCALAR, gain=2.0, **settings):
    return scale_by_memory(
        initial,
        kernels=kernels,
        memory_optimizer=agreement_steps(1.0, gain),
        signal=raw_product,
        **settings,
    )


@functools.cache
def trajectory(gain=2.0):
    """One compiled run: gradients [T, D] to rates [T]."""
    optimizer = make(gain=gain)

    def update(state, gradient):
        _, state = optimizer.update(gradient, state)
        return state, get_memory(state)["params"].rates[0]

    @jax.jit
    def run(gradients):
        return jax.lax.scan(update, optimizer.init(gradients[0]), gradients)[1]

    return lambda gradients: np.asarray(run(jnp.asarray(gradients, jnp.float32)))


def test_no_scale_of_gradients_changes_anything():
    gradients = np.random.default_rng(0).normal(size=(20, 8)) + 0.3
    rates = trajectory()(gradients)
    assert np.abs(np.log(rates / rates[0])).max() > 0.5
    for scale in (1e-12, 1e12):
        np.testing.assert_allclose(trajectory()(scale * gradients), rates, rtol=1e-4)


def test_gradients_that_vanish_move_nothing():
    gradients = np.ones((20, 8)) * np.where(np.arange(20) < 5, 1.0, 1e-3)[:, None]
    rates = trajectory()(gradients)
    assert rates[4] > 10 * rates[0]
    # Five steps raised the rate by 4 x e; the next 14 agree as much, and are tiny. The
    # first of them still has a large gradient before it.
    np.testing.assert_allclose(rates[6:], rates[6], rtol=1e-3)


def test_noise_moves_rates_less_than_consistent_gradients():
    rng = np.random.default_rng(0)
    noise = np.log(trajectory()(rng.normal(size=(200, 8))))
    steady = np.log(trajectory()(np.ones((200, 8))))
    assert np.abs(np.diff(noise)).mean() < 0.5 * np.abs(np.diff(steady[:6])).mean()


def test_any_start_settles_on_a_quadratic():
    def settle(initial):
        optimizer = optax.chain(make(initial, group_by="tensor"), optax.scale(-1.0))

        def update(carry, _):
            x, state = carry
            updates, state = optimizer.update(x, state)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.ones(4)
        (x, state), _ = jax.lax.scan(update, (x, optimizer.init(x)), length=60)
        return x, get_memory(state)["params"].rates[0]

    x, rates = jax.jit(jax.vmap(settle))(np.array([1e-6, 1e-4, 1e-2, 0.9], "f4"))
    assert np.all((abs(x) < 1e-3) & (rates[:, None] > 0.05))


def test_a_rate_that_is_too_large_comes_down():
    flips = np.ones((12, 8)) * (-1.0) ** np.arange(12)[:, None]
    rates = trajectory()(flips)
    assert rates[-1] < 1e-4 * rates[0]


@pytest.mark.parametrize("outlier", [1e6, 1e18, 1e30, np.inf, np.nan])
def test_an_outlier_hardly_matters(outlier):
    # Consistent gradients of both signs, so that rates stay where they are.
    gradients = np.ones((44, 8)) * np.where(
        np.arange(8) < 4, 1, (-1) ** np.arange(44)[:, None]
    )
    gradients[20] *= outlier
    gradients[21:] = 1.0
    rates = trajectory()(gradients)
    assert np.isfinite(rates).all()
    assert rates[-1] > 100 * rates[20]


def test_disagreement_moves_rates_ever_less():
    """Noise with a little disagreement at any rate, as near a minimum."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(2000, 8))
    gradients[1:] -= 0.1 * gradients[:-1]
    rates = np.log(trajectory()(gradients))
    early, late = (np.abs(np.diff(part)).mean() for part in (rates[:40], rates[-1000:]))
    assert late < 0.05 * early
    assert rates[100] - rates[-1] < 2.0
    # Steps that do not fall follow it down to the bound.
    assert trajectory(None)(gradients)[-1] < 1.1e-9 < 1e-3 * np.exp(rates[-1])


def test_steps_are_the_gain_over_the_inconsistent_evidence():
    """Evidence of both signs in turn is as inconsistent as can be."""
    steps: Any = agreement_steps(1.0, gain=3.0)
    rates, activity = jnp.array([[1e-3]]), jnp.ones([1, 1])
    state, step = steps.init(rates), jax.jit(steps.update)
    moved = []
    for turn in range(200):
        minus_u = np.array([[-1.0 if turn % 2 else 1.0]], "f4")
        changes, state = step(minus_u, state, rates, activity=activity)
        moved.append(abs(np.log1p(float(changes[0, 0] / rates[0, 0]))))
    # A mean of alternating signs is (1 - .8) / (1 + .8) of them, .2 + .8 / 81 trusted.
    doubt = 200 * (1 - 1 / 81)
    expected = 3.0 / doubt * np.tanh(1 / 0.3) * (0.2 + 0.8 / 81)
    np.testing.assert_allclose(moved[-1], expected, rtol=0.05)


def test_agreement_uses_up_nothing_and_undoes_what_was_settled():
    gradients = np.random.default_rng(0).normal(size=(1080, 8))
    gradients[1000:] = 1.0
    rates = trajectory()(gradients)
    assert rates[-1] > 100 * rates[1000]
    steady = trajectory()(np.ones((12, 8)))
    np.testing.assert_allclose(np.diff(np.log(steady))[1:6], 1.0, rtol=0.01)


def test_a_local_model_settles_on_what_is_its_own():
    """Noise that hardly reaches it leaves its steps as they are."""
    steps: Any = agreement_steps(1.0, gain=3.0)
    rates = jnp.full([1, 2], 1e-3)
    state, step = steps.init(rates), jax.jit(steps.update)
    for turn in range(100):
        activity = jnp.array([[1.0, 1e-9]])
        _, state = step(activity * (-1.0) ** turn, state, rates, activity=activity)
    for _ in range(20):
        activity = jnp.array([[1e-9, 1.0]])
        changes, state = step(-activity, state, rates, activity=activity)
    np.testing.assert_allclose(changes[0, 1], rates[0, 1] * np.expm1(1.0), rtol=0.02)


def test_steps_are_those_of_the_reference_and_rows_know_nothing_of_each_other():
    """Also of a single memory [M], and with sums that overflow in one row only."""
    rng = np.random.default_rng(0)
    activity = rng.uniform(1e-4, 1e-3, (12, 2, 3)) * [1.0, 1e-3, 1.0]
    evidence = rng.uniform(-0.2, 1.0, activity.shape) * activity
    steps: Any = agreement_steps(0.5, gain=2.0)
    step, rates = jax.jit(steps.update), jnp.full([2, 3], 1e-3)
    state, alone = steps.init(rates), steps.init(rates[1])
    expected, (kept, ascend) = np.full(3, 1e-3), reference.agreement_steps(0.5, 2.0)
    vector = rates[1]
    for turn, (u, b) in enumerate(zip(evidence, activity, strict=True)):
        expected, kept = ascend(expected, u[1], kept, b[1])
        weight = jnp.asarray(b).at[0].set(jnp.inf if turn == 5 else b[0])
        changes, state = step(-jnp.asarray(u), state, rates, activity=weight)
        rates += changes
        changes, alone = step(-jnp.asarray(u[1]), alone, vector, activity=b[1])
        vector += changes
    np.testing.assert_allclose(rates[1], expected, rtol=1e-5)
    np.testing.assert_allclose(vector, expected, rtol=1e-5)
    np.testing.assert_allclose(
        inconsistent_evidence(state)[1], kept["doubts"], rtol=1e-4
    )
    assert np.isfinite(rates[0]).all()
    assert np.isfinite(state.history).all()
    # The largest activity so far is that of a sum that did not overflow.
    assert state.history[0, 1] <= 1.001 * activity[:, 0].sum(axis=-1).max()


def test_products_that_overflow_are_no_evidence():
    rates = trajectory()(np.full((6, 8), 1e25))
    np.testing.assert_array_equal(rates, rates[0])


def test_large_tensors_learn_what_small_ones_do():
    # 2^14 coordinates go by table, the same in four parts of one memory do not.
    kernels = linspace_kernels(2.0, num=11)
    rng = np.random.default_rng(0)
    gradients = rng.normal(0.5, size=(4, 2**14)).astype("f4")

    def learn(parts):
        optimizer = make(kernels=kernels, group_by="all")
        state = jax.jit(optimizer.init)(np.split(gradients[0], parts))
        for gradient in gradients:
            _, state = jax.jit(optimizer.update)(np.split(gradient, parts), state)
        return get_memory(state)["all"].rates

    large, small = learn(1), learn(4)
    assert np.ptp(np.log(small)) > 0.1
    np.testing.assert_allclose(np.log(large), np.log(small), atol=0.02)


def test_compiles_once_and_keeps_its_structure():
    optimizer = make()
    params = {"a": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "b": jnp.ones(3)}
    state = optimizer.init(params)
    traces = []

    @functools.partial(jax.jit, donate_argnums=1)
    def update(gradient, state):
        traces.append(1)
        return optimizer.update(gradient, state)

    old = jax.eval_shape(lambda: state)
    for _ in range(3):
        _, new_state = update(params, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, old)
        state = new_state
    assert len(traces) == 1


def test_an_optimizer_without_extra_arguments_gets_none():
    # What is not asked for is not computed: the paper's rule costs what it did.
    def reject(updates, state, params=None):
        return updates, state

    plain = optax.GradientTransformation(lambda params: (), reject)
    optimizer = scale_by_memory(memory_optimizer=plain)
    state = optimizer.init(jnp.ones(2))
    jax.eval_shape(optimizer.update, jnp.ones(2), state)


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf, "1", True, None, [1.0]])
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(ValueError, match=r"step must be a number in \(0, inf\)"):
        agreement_steps(step)


@pytest.mark.parametrize("gain", [0.0, -1.0, np.nan, np.inf, "1", True, [1.0]])
def test_a_gain_that_is_none_is_refused(gain):
    with pytest.raises(ValueError, match=r"gain must be a number in \(0, inf\)"):
        agreement_steps(gain=gain)


@pytest.mark.parametrize("missing", ["params", "activity"])
def test_what_is_missing_is_named(missing):
    rates = jnp.ones([1, 1])
    steps = agreement_steps()
    given = {"params": rates, "activity": rates} | {missing: None}
    with pytest.raises(ValueError, match="needs the rates as params and the extra"):
        steps.update(rates, steps.init(rates), **given)
