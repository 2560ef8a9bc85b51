"""When gradients contradict a rate, and what a rate may do before and after that."""

import functools
from typing import Any

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr_optax import (
    Kernels,
    get_memory,
    learn_rates,
    linspace_kernels,
    memory_adam,
    memory_sgd,
    set_memory,
)
from metalr_optax.bases import response
from metalr_optax.evidence import Evidence
from metalr_optax.memory import Memory
from metalr_optax.progress import follow_schedule
from metalr_optax.rules import Rule, aim_below_zero, from_optax
from metalr_optax.stack import ByDirection, stack_memories

STEPS, ROWS = 60, 3


@functools.cache
def contradictions(steps=STEPS, rows=ROWS):
    """One compiled run: agreement [T, L], multipliers [T] -> the test and rates."""
    nothing = Rule(
        init=lambda stack, sizes: jnp.zeros([]),
        # The rates of the result say what the rule was told.
        update=lambda evidence, state, stack: (
            stack._replace(rates=jnp.where(evidence.contradicted, 0.5, 0.25)[:, None]),
            state,
        ),
        bounds=lambda state, dtype: (jnp.asarray(0, dtype), jnp.asarray(1, dtype)),
    )
    rule = follow_schedule(nothing)
    memories = [Memory(linspace_kernels(1.0, 1), np.array([0.25]))] * rows
    start: Any = stack_memories(ByDirection(), memories, jnp.float32, True)

    def step(carry, inputs):
        stack, state = carry
        agreement, multiplier = inputs
        zeros = jnp.zeros(rows)
        evidence = Evidence(
            *[agreement[:, None], jnp.abs(agreement)[:, None]],
            *[agreement, jnp.where(agreement == 0, 0, 1.0), zeros, zeros + 1],
            multiplier=multiplier,
        )
        new, state = rule.update(evidence, state, stack)
        # A rate that is held stays what it was before.
        stack = stack._replace(rates=jnp.full_like(stack.rates, 0.25))
        return (stack, state), (state.disagreement, new.rates[:, 0])

    @jax.jit
    def run(agreements, multipliers):
        carry = start, rule.init(start, None)
        return jax.lax.scan(step, carry, (agreements, multipliers))[1]

    return run


def by_hand(agreements, multipliers):
    """Return when and with which highest multiplier a row [T] is contradicted."""
    total = squares = highest = 0.0
    for agreement, multiplier in zip(agreements, multipliers, strict=True):
        total = min(total + agreement, 0.0)
        squares = squares + agreement**2 if total < 0 else 0.0
        if highest > 0 or total**2 > 16 * squares:
            highest = max(highest, multiplier)
        yield total, squares, highest


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays("f4", (STEPS, ROWS), elements=st.sampled_from([-1, -0.5, 0, 0.25, 1])),
    hnp.arrays("f4", STEPS, elements=st.sampled_from([0.25, 0.5, 1])),
)
def test_contradiction_is_a_sum_since_its_last_zero_beyond_chance(
    agreements, multipliers
):
    # Half of the rows disagree most of the time, so that both outcomes are common.
    agreements[:, 0] = -np.abs(agreements[:, 0])
    found, rates = map(np.asarray, contradictions()(agreements, multipliers))
    for row in range(ROWS):
        expected = list(by_hand(agreements[:, row], multipliers))
        np.testing.assert_allclose(found[:, :, row], expected, rtol=1e-5, atol=1e-6)
        before = np.array([0.0, *found[:-1, 2, row]])
        holds = multipliers < 0.9 * before
        told = np.where(found[:, 2, row] > 0, 0.5, 0.25)
        np.testing.assert_allclose(rates[:, row], np.where(holds, 0.25, told))


def test_noise_seldom_contradicts_and_a_weak_trend_does():
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 0.2, (1000, 400)).astype("f4")
    highest, _ = contradictions(1000, 400)(noise, np.ones(1000, "f4"))
    assert np.mean(highest[-1, 2] > 0) < 0.03
    highest, _ = contradictions(1000, 400)(noise - 0.05, np.ones(1000, "f4"))
    assert np.mean(highest[-1, 2] > 0) > 0.99


PARAMS = {"a": {"w": np.full(4, 0.25, "f4")}, "b": {"w": np.full(4, 0.04, "f4")}}
# Two coordinates keep their sign and two flip it: agreement is 0 in every step.
HALF = np.where(np.arange(4) < 2, 1.0, (-1.0) ** np.arange(300)[:, None]).astype("f4")
ALL = np.ones((100, 4), "f4")


def rates_along(optimizer, gradients, state=None):
    """Return the rates {label: [T]} along gradients [T, 4] of both tensors."""

    def step(state, gradient):
        tree = jax.tree.map(lambda x: gradient, PARAMS)
        _, state = optimizer.update(tree, state, PARAMS)
        return state, {name: one.rates[0] for name, one in get_memory(state).items()}

    @jax.jit
    def run(state, gradients):
        start = optimizer.init(PARAMS) if state is None else state
        return jax.lax.scan(step, start, gradients)[1]

    return jax.tree.map(np.asarray, run(state, jnp.asarray(gradients)))


def make(factor=1.0, initial=1e-5, **options):
    """Adam without momentum: its direction is the sign of the gradient."""
    return memory_adam(factor, b1=0.0, initial=initial, **options)


# The first step has no evidence yet.
RISING = 1e-5 * 1.02 ** np.arange(300)


def usual(rms, inputs=0.0, touched=1.0):
    """Return the rate that needs no evidence, for a base with steps of size 1."""
    return 0.005 * rms**0.5 * 128.0 / max(inputs * touched, 128.0)


# A dense layer has 512 inputs; a matrix alone counts as a square one. Layers that a
# scan stacks have a memory each.
LAYERS: dict[str, Any] = {
    "dense": {"w": np.full((512, 2), 0.25, "f4"), "b": np.full(2, 0.25, "f4")},
    "alone": {"w": np.full((1024, 256), 0.04, "f4")},
    "norm": {"w": np.full(1024, 0.25, "f4"), "b": np.full(1024, 0.25, "f4")},
    "stack": {"w": np.full((2, 512, 2), 0.25, "f4"), "b": np.full((2, 2), 0.25, "f4")},
}
INPUTS = {"dense": 512, "alone": 512, "norm": 0, "stack/0": 512, "stack/1": 512}


def by_slice(path, leaf):
    label = path[0].key
    return [f"{label}/{n}" for n in range(2)] if label == "stack" else label


@functools.cache
def highest_rates(num):
    """Return a compiled run: the share of gradients that are not 0 -> rates {label}."""
    # Kernels so wide that all evidence is of every local model.
    kernels = Kernels(np.linspace(-1.0, 1.0, num), np.full(num, 1e4))
    optimizer = make(kernels=kernels, group_by=by_slice, initial=1e-4)

    def gradient(leaf, touched, count):
        # Of neighbours, one keeps its sign and one flips it.
        place = jnp.arange(leaf.size)
        sign = jnp.where(place % 2, (-1.0) ** count, 1.0)
        return jnp.where(place % 8 < 8 * touched, sign, 0.0).reshape(leaf.shape)

    def run(touched):
        def step(state, count):
            tree = jax.tree.map(lambda leaf: gradient(leaf, touched, count), LAYERS)
            return optimizer.update(tree, state, LAYERS)[1], None

        state, _ = jax.lax.scan(step, optimizer.init(LAYERS), jnp.arange(200))
        return {name: one.rates for name, one in get_memory(state).items()}

    return jax.jit(run)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("touched", [1.0, 0.5, 0.25])
def test_the_usual_rate_falls_with_the_inputs_that_a_step_touches(num, touched):
    rates = highest_rates(num)(touched)
    for name, inputs in INPUTS.items():
        rms = 0.04 if name == "alone" else 0.25
        expected = usual(rms, inputs, touched)
        # Both numbers of a bias are always touched, two of about a thousand.
        np.testing.assert_allclose(rates[name], expected, rtol=0.01, err_msg=name)


def test_rates_rise_to_the_usual_until_gradients_contradict_them():
    rates = rates_along(make(), HALF)
    for label, rms in (("a", 0.25), ("b", 0.04)):
        expected = np.minimum(RISING, usual(rms))
        np.testing.assert_allclose(rates[label], expected, rtol=1e-4)
    # Under a schedule the usual rate is twice as high; a bound is never exceeded.
    twice = rates_along(make(optax.constant_schedule(1.0)), HALF)["a"]
    np.testing.assert_allclose(twice, np.minimum(RISING, 0.005), rtol=1e-4)
    low = rates_along(make(rate_bounds=(1e-9, 1e-4)), HALF)["a"]
    assert low.max() == np.float32(1e-4)
    # Nothing rises without evidence, nor after a contradiction.
    assert np.all(rates_along(make(), 0 * HALF)["a"] == np.float32(1e-5))
    flips = (-1.0) ** np.arange(20)[:, None] * ALL[:20]
    gradients = np.concatenate([flips, HALF]).astype("f4")
    fallen = rates_along(make(initial=1e-3), gradients)["a"]
    assert np.all(fallen[20:] == fallen[20])
    assert 1e-8 < fallen[20] < 1e-6


def test_memories_of_another_run_and_rules_of_a_user_do_not_rise():
    optimizer = make()
    carried = {
        label: one._replace(evidence_weight=np.array([500.0], "f4"))
        for label, one in get_memory(optimizer.init(PARAMS)).items()
    }
    state = set_memory(optimizer.init(PARAMS), carried)
    still = make(memory_optimizer=optax.set_to_zero())
    for rates in (rates_along(optimizer, HALF, state), rates_along(still, HALF)):
        assert np.all(rates["a"] == np.float32(1e-5))


def test_contradicted_rates_aim_at_an_agreement_of_minus_a_fifth():
    """The rule within is told u plus a fifth of the activity, where contradicted."""
    rule = aim_below_zero(from_optax(optax.scale(-1.0), (0.0, 100.0)))
    memories = [Memory(linspace_kernels(1.0, 1), np.array([5.0]))] * 2
    stack: Any = stack_memories(ByDirection(), memories, jnp.float32, True)
    zeros = jnp.zeros(2)
    for ratio, moves in ((-0.2, 0.0), (0.0, 0.2), (-1.0, -0.8)):
        activity = jnp.array([[2.0], [2.0]])
        evidence = Evidence(ratio * activity, activity, zeros, zeros, zeros, zeros)
        evidence = evidence._replace(contradicted=jnp.array([True, False]))
        new, _ = rule.update(evidence, rule.init(stack, None), stack)
        expected = 5 + 2.0 * np.array([moves, ratio])
        np.testing.assert_allclose(new.rates[:, 0], expected, atol=1e-6)


def test_only_a_multiplier_that_may_decay_lets_rates_aim_below_zero():
    """Of ten coordinates eleven twentieths flip their sign, once all have for a while.

    That lowers a rate, and raises a rate that will decay.
    """
    flips = np.concatenate(
        [-np.ones((18, 20)), np.tile(np.where(np.arange(20) < 11, -1, 1), (200, 1))]
    )
    gradients = np.cumprod(flips, axis=0).astype("f4")
    params = jnp.ones(20)

    def change(factor):
        optimizer = memory_adam(factor, b1=0.0, initial=0.01)

        def step(state, gradient):
            _, state = optimizer.update(gradient, state, params)
            return state, get_memory(state)["params"].rates[0]

        rates = jax.lax.scan(step, optimizer.init(params), gradients)[1]
        return rates[-1] / rates[18]

    assert jax.jit(lambda: change(1.0))() < 0.98
    assert jax.jit(lambda: change(lambda count: jnp.ones([])))() > 1.02
    assert jax.jit(change)(jnp.ones([])) > 1.02


BASES = {
    "adamw": (optax.adamw(1.0), (1.0, 1.0)),
    "adabelief": (optax.adabelief(1.0), (1.0, 1.0)),
    "lion": (optax.lion(1.0), (9.0, 10.0)),
    "muon": (optax.contrib.muon(1.0), (3.0, 10.0)),
    "rmsprop": (optax.rmsprop(1.0), (5.0, 10.0)),
    "sign": (optax.sign_sgd(1.0), (10.0, 10.0)),
    "sgd": (optax.sgd(1.0), (0.0, 0.0)),
    "momentum": (optax.sgd(1.0, momentum=0.9, nesterov=True), (0.0, 0.0)),
    "clipped": (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), (0, 0)),
}


@pytest.mark.parametrize("name", BASES)
def test_the_size_of_steps_follows_from_signs_and_scale(name):
    base, (low, high) = BASES[name]
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    assert low <= response(base, params) <= high


def test_a_base_that_needs_more_than_gradients_counts_as_adam():
    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda x: -x * value, updates), state

    needs_value: Any = update
    base = optax.GradientTransformationExtraArgs(optax.sgd(1.0).init, needs_value)
    assert response(base, jnp.ones(3)) == 1.0


def test_ceilings_are_divided_by_the_size_of_steps():
    """Ten for Lion; four times the RMS of what moves for gradients that scale steps."""
    lion = rates_along(learn_rates(optax.lion(1.0), initial=1e-6), ALL)
    adam = rates_along(learn_rates(optax.adam(1.0)), ALL)
    for label, rms in (("a", 0.25), ("b", 0.04)):
        np.testing.assert_allclose(lion[label][-1], 0.1 * rms / 9.98, rtol=1e-3)
        np.testing.assert_allclose(adam[label][-1], 0.1 * rms, rtol=1e-5)
        for scale in (1e-4, 1.0):
            plain = learn_rates(optax.sgd(1.0), rate_bounds=(1e-9, 1e4))
            found = rates_along(plain, scale * ALL)[label][-1]
            np.testing.assert_allclose(found, 0.1 * rms / (4 * scale), rtol=1e-4)
    assert rates_along(memory_sgd(largest_step=None), ALL)["a"][-1] == 10.0


def test_sizes_of_directions_leave_out_zeros_and_fall_slowly():
    params = jnp.full(8, 0.5)
    optimizer = learn_rates(optax.sgd(1.0), initial=1e-9, largest_step=0.2)
    # Half of the coordinates never move.
    steps = np.array([1.0] * 3 + [3.0] * 3 + [0.01] * 4 + [0.0] * 2 + [2.9], "f4")
    gradients = np.outer(steps, np.where(np.arange(8) < 4, 2.0, 0.0)).astype("f4")

    def step(state, gradient):
        _, state = optimizer.update(gradient, state, params)
        return state, optax.tree.get(state, "limits")[0, 0]

    ceilings = jax.jit(
        lambda: jax.lax.scan(step, optimizer.init(params), gradients)[1]
    )()
    unit, expected = 0.0, []
    # A step has the direction before it.
    for size in [0.0, *(4 * 2 * steps)][: len(steps)]:
        if size > 0:
            mean = np.sqrt(0.95 * unit**2 + 0.05 * size**2)
            unit = max(mean, 0.99 * unit) if unit > 0 else size
        expected.append(0.2 * 0.5 / (unit or 1.0))
    np.testing.assert_allclose(ceilings, expected, rtol=1e-5)


def test_tables_whose_rows_are_rarely_touched_are_learned_from_any_start():
    """Two tables of 100 and 200 rows, of which a step touches eight."""
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(rng.normal(0, 0.7, (n, 2)), "f4") for n in (100, 200))

    def loss(params, key, pairs=8):
        i, j = jax.random.randint(key, (2, pairs), 0, jnp.array([[100], [200]]))
        told = jnp.sum(params["left"][i] * params["right"][j], axis=-1)
        return jnp.mean((told - jnp.sum(left[i] * right[j], axis=-1)) ** 2)

    def end(optimizer):
        keys = jax.random.split(jax.random.key(1))
        params = {
            "left": 0.1 * jax.random.normal(keys[0], (100, 16)),
            "right": 0.1 * jax.random.normal(keys[1], (200, 16)),
        }

        def step(carry, count):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(2), count)
            updates, state = optimizer.update(
                jax.grad(loss)(params, key), state, params
            )
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        params = jax.lax.scan(step, start, jnp.arange(4000))[0][0]
        return loss(params, jax.random.key(3), 4096)

    adam: Any = jax.jit(lambda rate: end(optax.adam(rate)))(3e-3)
    ours: Any = jax.jit(jax.vmap(lambda rate: end(memory_adam(initial=rate))))(
        jnp.array([1e-5, 1e-3])
    )
    assert adam < 0.1
    assert np.all(ours < 3 * adam), (ours, adam)
