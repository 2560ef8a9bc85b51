"""Memories that go by progress: what a run leaves, and how the next one follows it."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr_optax import (
    Memory,
    adapt_memory,
    agreement_steps,
    get_memory,
    linspace_kernels,
    memory_adam,
    memory_sgd,
    raw_product,
    scale_by_memory,
    set_memory,
    summarize_memory,
)
from metalr_optax.progress import MARKS, record, step_along

PARAMS = {"a": np.array([1.0, -2.0, 0.5], "f4"), "b": np.array([0.3, 1.0], "f4")}
LOGS = np.linspace(2.0, -2.0, 20)


class Reference:
    """One memory in plain Python: logs of rates, absolute and not relative."""

    def __init__(self, rate, schedule):
        self.rate = rate
        self.marks = {2**p: rate + float(log) for p, log in enumerate(schedule)}
        self.updates = 0

    def update(self, evidence):
        """Move by evidence, then towards the next mark; keep what was highest."""
        ahead = [mark for mark in self.marks if mark > self.updates]
        self.rate += evidence
        for mark in ahead:
            self.marks[mark] += evidence
        if ahead:
            distance = self.marks[ahead[0]] - self.rate
            self.rate += distance / (ahead[0] - self.updates)
        self.updates += 1
        for mark in self.marks:
            if mark <= self.updates:
                self.marks[mark] = max(self.marks[mark], self.rate)


@pytest.mark.parametrize("shape", [(), (1,)])
@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=70),
    st.lists(st.floats(-3, 3), min_size=20, max_size=20),
)
def test_follows_and_records_as_the_reference(shape, evidence, schedule):
    reference = Reference(0.0, schedule)
    with jax.enable_x64(True):
        logs, rate = np.array([schedule]), 0.0
        for updates, one in enumerate(evidence):
            progress = np.full(shape, updates, np.int32)
            step = _STEP(logs, progress)
            logs = _RECORD(logs, progress, step, step + one)
            rate += one + float(step[0])
            reference.update(one)
            np.testing.assert_allclose(rate, reference.rate, atol=1e-9)
            expected = np.array(list(reference.marks.values())) - rate
            np.testing.assert_allclose(np.asarray(logs[0]), expected, atol=1e-9)


_STEP, _RECORD = jax.jit(step_along), jax.jit(record)


def test_memories_may_be_at_steps_of_their_own():
    """As each of them alone, at a step that is a number."""
    logs = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    steps, change = np.array([0, 1, 6, 300_000]), np.array([0.1, -0.2, 0.3, 0.0], "f4")
    found = _RECORD(logs, steps, _STEP(logs, steps), change)
    for row, step in enumerate(steps):
        own = logs[row : row + 1]
        expected = _RECORD(own, step, _STEP(own, step), change[row : row + 1])
        np.testing.assert_allclose(found[row], expected[0], rtol=1e-6)


def make(initial=1e-3, num=1, progress=True, learns=True, **settings):
    fresh: Any = not isinstance(initial, Memory | dict)
    return scale_by_memory(
        initial,
        kernels=linspace_kernels(2.0, num) if fresh else None,
        signal=raw_product,
        memory_optimizer=agreement_steps() if learns else optax.set_to_zero(),
        progress=progress,
        **settings,
    )


def noisy(steps, seed=0):
    """Gradients that agree for sixteen steps and contradict each other from then on."""
    rng = np.random.default_rng(seed)
    signs = np.where(np.arange(steps) < 16, 1, (-1) ** np.arange(steps))[:, None]
    return {
        label: np.float32(signs * x + 0.2 * rng.normal(size=(steps, len(x))))
        for label, x in PARAMS.items()
    }


def run(optimizer, gradients, state=None):
    """Return the state at the end, the updates and the rates of every step."""

    def step(state, gradient):
        updates, state = optimizer.update(gradient, state, PARAMS)
        rates = {label: one.rates for label, one in get_memory(state).items()}
        return state, (updates, rates)

    @jax.jit
    def scan(state, gradients):
        return jax.lax.scan(step, state or optimizer.init(PARAMS), gradients)

    return scan(state, gradients)


def steps_in(state):
    """Return the steps of the run, and those that the user's schedule knows of."""
    progress, count = (optax.tree.get(state, name) for name in ("progress", "count"))
    assert (progress.shape, progress.dtype) == ((), jnp.int32)
    return int(progress), int(count)


def rates_by_mark(memory):
    """Return the rates of the local models of progress."""
    return float(memory.rates[0]) * np.exp(np.asarray(memory.schedule))


@pytest.mark.parametrize("num", [1, 4])
def test_without_a_schedule_a_run_is_what_it_was(num):
    state, (updates, rates) = run(make(num=num), noisy(40))
    plain, expected = run(make(num=num, progress=False), noisy(40))
    # But for how XLA rounds a product and a sum in one.
    chex.assert_trees_all_close((updates, rates), expected, rtol=1e-6)
    for label, one in get_memory(plain).items():
        assert not np.any(one.schedule)
        assert np.any(get_memory(state)[label].schedule)


def test_a_run_leaves_the_highest_rate_since_each_mark():
    state, (_, rates) = run(make(), noisy(40))
    for label, memory in get_memory(state).items():
        curve = np.asarray(rates[label])[:, 0]
        assert curve[-1] < 0.8 * curve.max()
        found = rates_by_mark(memory)
        for mark, rate in zip(MARKS.astype(int), found, strict=True):
            left = curve[mark - 1 :]
            expected = left.max() if len(left) else curve[-1]
            np.testing.assert_allclose(rate, expected, rtol=1e-5)


def test_the_next_run_follows_it_where_evidence_says_nothing():
    memory = Memory(linspace_kernels(1.0, 1), np.array([1e-3]), schedule=LOGS)
    zeros = jax.tree.map(lambda x: np.zeros((70, *x.shape), "f4"), PARAMS)
    state, (_, rates) = run(make(memory), zeros)
    curve = np.log(np.asarray(rates["a"])[:, 0] / 1e-3)
    # A straight line in updates from mark to mark.
    expected = np.interp(np.arange(1, 71), MARKS, LOGS)
    np.testing.assert_allclose(curve, expected, atol=1e-4)
    # What is left is the same, and what lies ahead has stayed.
    left = np.log(rates_by_mark(get_memory(state)["a"]) / 1e-3)
    np.testing.assert_allclose(left, LOGS, atol=1e-4)


def test_evidence_moves_what_is_ahead_and_not_what_was():
    memory = Memory(linspace_kernels(1.0, 1), np.array([1e-3]), schedule=LOGS)
    ones = jax.tree.map(lambda x: np.ones((20, *x.shape), "f4"), PARAMS)
    state, _ = run(make(memory, rate_bounds=(1e-9, 1e9)), ones)
    left = np.log(rates_by_mark(get_memory(state)["a"]) / 1e-3)
    # Gradients that always agree raise rates by e ** 0.5 at most, each time.
    change = left - LOGS
    np.testing.assert_allclose(change[5:], change[5], rtol=1e-3)
    assert 5 < change[5] < 9.5


@pytest.mark.parametrize("length", [8, 40, 200])
def test_runs_of_another_length(length):
    """Beyond what the first run visited its last rate holds."""
    first, (_, rates) = run(make(), noisy(40))
    memory = get_memory(first)
    optimizer = make(memory, learns=False)
    state, (_, following) = run(optimizer, noisy(length, seed=1))
    for label in PARAMS:
        curve = np.asarray(following[label])[:, 0]
        np.testing.assert_allclose(curve[0], np.asarray(rates[label]).max(), rtol=1e-5)
        if length >= 64:
            np.testing.assert_allclose(curve[63:], rates[label][-1, 0], rtol=1e-5)
        # A short run forgets nothing of what it did not reach.
        found = rates_by_mark(get_memory(state)[label])
        expected = rates_by_mark(memory[label])
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_set_memory_begins_progress_anew_and_keeps_the_count_of_updates():
    factor = optax.piecewise_constant_schedule(1.0, {60: 0.1})
    optimizer = memory_sgd(factor, momentum=0.0, clip_norm=None)
    state, _ = run(optimizer, noisy(40))
    memory = get_memory(state)
    assert steps_in(state) == (40, 40)
    state = set_memory(state, memory)
    assert steps_in(state) == (0, 40)
    state, (_, rates) = run(optimizer, noisy(1), state)
    first = {label: rates_by_mark(one)[0] for label, one in memory.items()}
    for label in PARAMS:
        # But for what the first evidence makes of it.
        assert 0.6 < rates[label][0, 0] / first[label] < 1.7
        assert first[label] > 3 * memory[label].rates[0]
    # Where a factor of the user's own has come down rates stand still, schedule or not.
    state, (_, rates) = run(optimizer, noisy(40), state)
    for label in PARAMS:
        later = np.asarray(rates[label])[:, 0]
        assert later[18] != later[17]
        np.testing.assert_array_equal(later[20:], later[20])


def test_a_rate_that_has_come_down_holds_while_a_multiplier_decays():
    # They agree for 16 steps and contradict each other for 20, and that twice.
    parts = noisy(36), noisy(36, seed=1)
    gradients = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    factor = optax.piecewise_constant_schedule(1.0, {36: 0.89})
    optimizer = memory_sgd(factor, momentum=0.0, clip_norm=None)
    curve = np.asarray(run(optimizer, gradients)[1][1]["a"])[:, 0]
    assert curve[35] < 0.8 * curve[15]
    np.testing.assert_array_equal(curve[36:], curve[35])


def test_a_rate_climbs_and_settles_whatever_a_multiplier_did_before():
    optimizers = [
        memory_sgd(factor, momentum=0.0, clip_norm=None)
        for factor in map(optax.piecewise_constant_schedule, (1.0, 1.0), ({}, {5: 0.1}))
    ]
    plain, early = (run(optimizer, noisy(40))[1][1]["a"] for optimizer in optimizers)
    assert plain[-1] < 0.8 * plain[15]
    np.testing.assert_allclose(early, plain, rtol=1e-5)


def test_a_multiplier_that_falls_early_does_not_end_learning():
    """It ends about as low as with the small multiplier throughout."""
    x = jax.random.normal(jax.random.key(0), (64, 5))
    keys = jax.random.split(jax.random.key(1))
    params = {
        "in": jax.random.normal(keys[0], (5, 16)) / 2,
        "out": jax.random.normal(keys[1], (16, 2)) / 4,
    }
    labels = jnp.sin(2 * x[:, :2]) + x[:, 2:4]

    def loss(params):
        return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - labels) ** 2)

    def end(first, then, initial):
        """Return the loss, with a multiplier for five steps and another one then."""
        factors: Any = jnp.stack([*[first] * 5, then])
        optimizer = memory_adam(lambda count: factors[count], initial=initial)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        return loss(jax.lax.scan(step, start, None, 200)[0][0])

    values = np.array([[0.1], [0.5]], "f4"), np.array([[1e-5, 1e-3]], "f4")
    ends = jax.jit(jnp.vectorize(end))
    early, small = ends(np.ones((1, 1), "f4"), *values), ends(values[0], *values)
    assert np.all((early < 1.1 * small) & (1.1 * small < 0.3 * loss(params)))


def test_a_rate_is_within_its_bounds_wherever_a_schedule_leads():
    wide = Memory(linspace_kernels(1.0, 1), np.array([1e-3]), schedule=9 * LOGS)
    state, (updates, rates) = run(make(wide), noisy(70))
    curve = np.asarray(rates["a"])
    assert curve.max() <= 1.0
    assert curve.min() >= 1e-9
    assert all(np.isfinite(one).all() for one in jax.tree.leaves((updates, state)))


def test_members_of_a_vmap_have_schedules_of_their_own():
    optimizer = memory_adam()
    both = jax.tree.map(lambda *x: np.stack(x), noisy(30), noisy(30, seed=1))
    last = jax.jit(lambda gradients: run(optimizer, gradients)[0])
    memories = get_memory(jax.jit(jax.vmap(last))(both))
    fresh = jax.jit(jax.vmap(lambda _: optimizer.init(PARAMS)))(np.arange(2))
    again = get_memory(set_memory(fresh, memories))
    chex.assert_trees_all_equal(again, memories)
    for member in range(2):
        alone = last(jax.tree.map(lambda x, i=member: x[i], both))
        expected = get_memory(alone)["a"].schedule
        np.testing.assert_allclose(memories["a"].schedule[member], expected, atol=1e-4)
    assert np.any(memories["a"].schedule)


def test_a_schedule_moves_to_another_model():
    memory = get_memory(run(memory_adam(), noisy(40))[0])
    state = jax.jit(memory_adam().init)({"a": PARAMS["a"], "c": PARAMS["b"]})
    adapted = adapt_memory(memory, state, {"a": "a", "c": None})
    np.testing.assert_array_equal(adapted["a"].schedule, memory["a"].schedule)
    weights = [float(one.evidence_weight.sum()) for one in memory.values()]
    mean = np.average([one.schedule for one in memory.values()], 0, weights)
    np.testing.assert_allclose(adapted["c"].schedule, mean, rtol=1e-5)
    assert get_memory(set_memory(state, adapted))["c"].schedule.shape == (20,)
    # A memory made by hand, or of an older file, has none.
    plain = {label: one._replace(schedule=None) for label, one in memory.items()}
    assert not np.any(adapt_memory(plain, state)["a"].schedule)
    assert not np.any(
        get_memory(set_memory(state, {**adapted, "a": plain["a"]}))["a"].schedule
    )


def test_a_mean_rate_of_a_landscape_moves_all_its_local_models():
    rates = np.array([1e-3, 2e-3, 4e-3])
    memory = Memory(linspace_kernels(2.0, 3), rates, schedule=LOGS)
    zeros = jax.tree.map(lambda x: np.zeros((4, *x.shape), "f4"), PARAMS)
    _, (_, found) = run(make(memory), zeros)
    expected = rates * np.exp(LOGS[[0, 1, 2]])[:, None]
    np.testing.assert_allclose(np.asarray(found["a"])[[0, 1, 3]], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "schedule", [np.zeros(3), np.full(20, np.nan), 200 * np.ones(20)]
)
def test_what_is_no_schedule_is_refused(schedule):
    memory = Memory(linspace_kernels(1.0, 1), np.array([0.1]), schedule=schedule)
    with pytest.raises(
        ValueError, match=r"initial must have schedule within .* shape \(20,"
    ):
        scale_by_memory(memory)


def test_logs_show_the_rate_in_use():
    memory = Memory(linspace_kernels(1.0, 1), np.array([1e-3]), schedule=LOGS)
    state, (_, rates) = run(make(memory), noisy(8))
    logs = summarize_memory(state)
    np.testing.assert_allclose(logs["rate_mean/a"], rates["a"][-1, 0], rtol=1e-6)
