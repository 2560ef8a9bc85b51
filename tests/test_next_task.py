"""A memory goes from task to task, controls are what they say, tables show the rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.experiments import next_task
from benchmarks.problems import next_tasks as problems
from benchmarks.problems.digits import BATCHES, load_digits, select
from metalr_optax import get_memory, memory_adam, set_memory
from metalr_optax.progress import MARKS

ADAM = next_task.LEARNERS[0]
RATES = {"one": 0.01, "two": 0.002}


@pytest.fixture
def memory():
    """Schedules that fall, and have a rise ahead of where the run has been."""
    start = get_memory(memory_adam().init({name: jnp.zeros(3) for name in RATES}))
    schedule = np.where(MARKS <= 64, np.linspace(3.0, -16.0, 20), 1.0)
    return {
        name: one._replace(
            rates=np.full(1, RATES[name], np.float32),
            schedule=schedule.astype(np.float32) * (1 + (name == "two")),
        )
        for name, one in start.items()
    }


def test_controls_are_what_they_say(memory):
    seen = MARKS <= 64
    alone = next_task.control("one rate", memory, seen)
    mean = next_task.control("mean", memory, seen)
    mixed = next_task.control("shuffled", memory, seen)
    for name, one in memory.items():
        np.testing.assert_array_equal(alone[name].rates, one.rates)
        np.testing.assert_allclose(
            np.log(mean[name].rates / one.rates), one.schedule[seen].mean(), rtol=1e-5
        )
        for other in (alone[name], mean[name]):
            np.testing.assert_array_equal(other.schedule, np.zeros(20))
        np.testing.assert_array_equal(mixed[name].rates, one.rates)
        np.testing.assert_array_equal(
            np.sort(mixed[name].schedule[seen]), np.sort(one.schedule[seen])
        )
        assert (mixed[name].schedule[seen] != one.schedule[seen]).any()
        np.testing.assert_array_equal(mixed[name].schedule[~seen], one.schedule[~seen])
    for start in ("schedule", "frozen", "unrelated"):
        chex.assert_trees_all_equal(next_task.control(start, memory, seen), memory)


def test_what_is_frozen_follows_its_schedule_alone():
    params = {"layer": jnp.ones(3)}
    state = ADAM.make(1e-3).init(params)
    optimizer = next_task.freeze(ADAM).make(1e-3)
    (learned,) = get_memory(state).values()
    falling = learned._replace(schedule=np.linspace(0.0, -19.0, 20, dtype=np.float32))
    state = set_memory(optimizer.init(params), {"layer": falling})
    update = jax.jit(optimizer.update)
    for _ in range(4):  # to the third mark
        _, state = update({"layer": jnp.ones(3)}, state, params)
    np.testing.assert_allclose(
        get_memory(state)["layer"].rates, 1e-3 * np.exp(-2.0), rtol=1e-4
    )


def test_second_tasks_are_those_that_they_are_called():
    data = jax.tree.map(lambda one: one[::20], load_digits())
    turned = problems.rotated(data)
    np.testing.assert_array_equal(turned.inputs[7], np.rot90(data.inputs[7]))
    np.testing.assert_array_equal(turned.labels, data.labels)
    gaps = np.asarray(problems.noisy(data).inputs - data.inputs)
    assert 0.1 < gaps.std() < 0.3
    high = select(data, range(5, 10))
    for labels in (high.labels, high.judged_labels):
        assert set(np.asarray(labels)) == set(range(5, 10))
    mixed = problems.unlearnable(data)
    same = np.mean(np.asarray(mixed.labels) == np.asarray(data.labels))
    assert 0.05 < same < 0.2
    pairs = problems.MOVES[BATCHES]()
    assert [one.data for one in pairs.first] == [pairs.second.related]
