"""What `learn_rates` and its aliases promise, whatever base they go around."""

import functools
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    Memory,
    agreement_steps,
    average_weights,
    get_memory,
    learn_rates,
    linspace_kernels,
    logspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
    raw_product,
    scale_by_memory,
    set_memory,
    summarize_memory,
)
from metalr_optax.bases import UnitSteps

MAKERS = {"memory_sgd": memory_sgd, "memory_adam": memory_adam}


def run(optimizer, gradients):
    """Feed gradients [T, ...]; return the updates [T, ...] and the last state."""

    def step(state, gradient):
        updates, state = optimizer.update(gradient, state, jnp.ones_like(gradient))
        return state, updates

    @jax.jit
    def scan(gradients):
        start = optimizer.init(jnp.ones_like(gradients[0]))
        return jax.lax.scan(step, start, gradients)

    state, updates = scan(gradients)
    return updates, state


def first_step(optimizer, gradients, params=None, **extra_args):
    """Return the updates and the state after the first step, in one program."""

    def step(gradients, params, extra_args):
        state = optimizer.init(gradients if params is None else params)
        return optimizer.update(gradients, state, params, **extra_args)

    return jax.jit(step)(gradients, params, extra_args)


def gradients(size=64, steps=8, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(steps, size)) + 0.5, jnp.float32)


@pytest.mark.parametrize(
    ("name", "clip", "base"),
    [
        ("memory_sgd", optax.clip_by_global_norm(1.0), optax.trace(0.9)),
        ("memory_adam", optax.identity(), optax.scale_by_adam(b2=0.99)),
    ],
)
def test_is_the_chain_that_its_docstring_says(name, clip, base):
    by_hand = optax.chain(
        clip,
        scale_by_memory(
            1e-3,
            base_optimizer=base,
            kernels=linspace_kernels(1.0, num=1),
            memory_optimizer=agreement_steps(0.5),
            signal=raw_product,
            rate_bounds=(1e-9, 10.0),
        ),
        optax.scale(-0.5),
    )
    expected, _ = run(by_hand, gradients())
    ours = MAKERS[name](0.5, initial=1e-3, largest_step=None)
    actual, state = run(ours, gradients())
    # What cancels in a momentum keeps the rounding of what it is made of, about 1e-4.
    chex.assert_trees_all_close(actual, expected, rtol=1e-6, atol=1e-9)
    rate = get_memory(state)["params"].rates[0]
    assert np.abs(np.log(rate / 1e-3)) > 0.5


ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "nesterov": True}
UNIT_ADAM = UnitSteps(*optax.adam(1.0, **ADAM))


@pytest.mark.parametrize(
    ("alias", "around"),
    [
        (memory_adam(0.5), learn_rates(optax.adam(1.0, b2=0.99), 0.5)),
        (
            memory_adam(**ADAM, weight_decay=0.1, largest_step=0.2),
            learn_rates(UNIT_ADAM, weight_decay=0.1, largest_step=0.2),
        ),
        (
            memory_sgd(0.5),
            learn_rates(optax.sgd(1.0, 0.9), 0.5, initial=1e-3, clip_norm=1.0),
        ),
    ],
)
def test_an_alias_is_what_learn_rates_makes_of_its_base(alias, around):
    (one, state), (other, same) = (run(x, gradients()) for x in (alias, around))
    chex.assert_trees_all_equal((one, get_memory(state)), (other, get_memory(same)))


def test_a_chain_that_descends_is_a_base_as_the_ready_optimizer_is():
    chain = optax.chain(optax.scale_by_adam(), optax.scale(-1.0))
    one, other = (run(learn_rates(b), gradients()) for b in (chain, optax.adam(1.0)))
    chex.assert_trees_all_equal(one[0], other[0])
    chex.assert_trees_all_equal(*(get_memory(state) for _, state in (one, other)))


def initialised(base, is_traced):
    optimizer = learn_rates(base)
    init = jax.jit(optimizer.init) if is_traced else optimizer.init
    return init({"w": jnp.ones((2, 3)), "b": jnp.zeros(3)})


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize(
    ("base", "match"),
    [
        (optax.scale_by_adam(), r"must descend, got .*; .* optax\.scale\(-1\.0\)"),
        (optax.identity(), "base_optimizer must descend, got 'a first step of 1'"),
        (
            optax.contrib.schedule_free_adamw(),
            r"rates and weights .*ScheduleFreeState.* schedule_free goes around",
        ),
        (optax.lbfgs(), r"leave rates .*got \['ScaleByZoomLinesearchState'\]"),
        (
            optax.chain(optax.sgd(1.0), average_weights()),
            r"got \['AverageWeightsState'\]; chain\(learn_rates.* averages behind it",
        ),
        (
            optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
            "leave rates .*BacktrackingLinesearchState",
        ),
        (memory_adam(), r"got \['GuardState'\]; use it without learn_rates"),
        (optax.contrib.prodigy(), r"\['ProdigyState'\]; use it without learn_rates"),
        (
            optax.contrib.mechanize(optax.sgd(1.0)),
            r"\['MechanicState'\]; use it without learn_rates",
        ),
    ],
)
def test_a_base_that_cannot_be_wrapped_is_refused_with_the_reason(
    base, match, is_traced
):
    with pytest.raises(ValueError, match=match):
        initialised(base, is_traced)


@pytest.mark.parametrize("is_traced", [False, True])
def test_a_rate_inside_of_a_base_warns(is_traced):
    with pytest.warns(UserWarning, match=r"first step of -0\.00099.* rate of 1 inside"):
        initialised(optax.adam(1e-3), is_traced)
    for base in (optax.adam(1.0), optax.sgd(0.1), optax.set_to_zero()):
        initialised(base, is_traced)


def test_what_stands_in_place_of_a_base_is_named():
    not_made: Any = optax.adam
    with pytest.raises(ValueError, match=r"base_optimizer must be .* got function"):
        learn_rates(not_made)


@pytest.mark.parametrize(
    "optimizer",
    [learn_rates(optax.sgd(1.0)), memory_adam(b1=0.0), memory_sgd(momentum=None)],
)
def test_schedule_free_goes_around(optimizer):
    """And is at the goal with the weights that it is evaluated at."""
    around = optax.contrib.schedule_free(optimizer, learning_rate=1.0, b1=0.9)
    curvature, x = jnp.geomspace(0.1, 2.0, 10), jnp.ones(10)

    def step(carry, _):
        x, state = carry
        updates, state = around.update(curvature * x, state, x)
        return (optax.apply_updates(x, updates), state), None

    @jax.jit
    def descend(x):
        return jax.lax.scan(step, (x, around.init(x)), length=1000)[0]

    x, state = descend(x)
    for end in (x, optax.contrib.schedule_free_eval_params(state, x)):
        assert jnp.sum(curvature * end**2) < 1e-3 * jnp.sum(curvature)
    assert get_memory(state)["params"].rates[0] > 0.05


def test_a_schedule_inside_of_a_base_is_learned_away():
    """Once rates have come down: they climb as if it were not there, and hold outside.

    Gradients agree for 8 steps, contradict each other for 18, and agree from then on.
    """
    falling, params = optax.linear_schedule(1.0, 0.0, 100), jnp.full(3, 100.0)
    late = optax.join_schedules([optax.constant_schedule(1.0), falling], [SETTLED])

    def settle_and_climb(base, factor):
        optimizer = learn_rates(base, factor, initial=1e-5)
        rates = follow(optimizer, params, [*SETTLE, *[1.0] * 24])[0]["params"]
        assert rates[SETTLED - 1] < 0.8 * rates[7]
        return rates[SETTLED + 11], rates[SETTLED + 23]

    inside = settle_and_climb(optax.adam(late, b1=0.0), 1.0)
    outside = settle_and_climb(optax.adam(1.0, b1=0.0), late)
    none = settle_and_climb(optax.adam(1.0, b1=0.0), 1.0)
    chex.assert_trees_all_close(inside, none, rtol=0.02)
    assert inside[1] > 2 * inside[0]
    assert outside[1] == outside[0]


def test_a_decay_beside_a_base_is_no_evidence_and_one_inside_is():
    """With no gradient at first, the decay is all that a direction can have."""
    x = jnp.array([2.0, -4.0])
    bases = optax.adamw(1.0, weight_decay=0.1), optax.adam(1.0)
    rates, directions = [], []
    for base, decay in zip(bases, (0.0, 0.1), strict=True):
        optimizer: Any = learn_rates(base, 0.5, initial=0.01, weight_decay=decay)
        updates, state = first_step(optimizer, 0 * x, x)
        # Times the multiplier and the learned rate, here as there.
        np.testing.assert_allclose(updates, -0.5 * 0.01 * 0.1 * x, rtol=1e-5)
        directions.append(optax.tree.get(state, "last_direction").array)
        _, state = jax.jit(optimizer.update)(x, state, x)
        rates.append(get_memory(state)["params"].rates[0])
    np.testing.assert_allclose(directions, [0.1 * x, 0 * x], rtol=1e-6)
    assert rates[0] > 0.012
    assert rates[1] == np.float32(0.01)


def test_rates_that_nothing_steps_are_those_of_their_schedule():
    still = functools.partial(
        learn_rates, optax.sgd(1.0), memory_optimizer=optax.set_to_zero()
    )
    logs = np.sin(np.arange(20, dtype=np.float32))
    memory = Memory(linspace_kernels(1.0, 1), np.array([0.01]), schedule=logs)
    grads = gradients(3, steps=8)
    for optimizer, rates in (
        (still(initial=0.01), np.full(4, 0.01)),
        (still(initial=memory), 0.01 * np.exp(logs[:4])),
    ):
        moves, _ = run(optimizer, grads)
        found = np.asarray(-moves / grads)[[0, 1, 3, 7]]  # steps 1, 2, 4 and 8
        np.testing.assert_allclose(found, rates[:, None].repeat(3, 1), rtol=1e-5)


def test_a_base_gets_its_extra_arguments():
    polyak: Any = optax.chain(optax.scale_by_polyak(), optax.scale(-1.0))
    optimizer: Any = learn_rates(polyak, initial=0.03)
    x, value = jnp.array([1.0, -2.0]), jnp.float32(3.0)
    updates, _ = first_step(optimizer, x, x, value=value, other=1)
    expected, _ = first_step(polyak, x, x, value=value)
    np.testing.assert_allclose(updates, 0.03 * expected, rtol=1e-6)


HALF: Any = {
    "memory_adam": lambda: memory_adam(),
    "mu_dtype": lambda: memory_adam(mu_dtype="float32", nesterov=True),
    "paper_adam": lambda: paper_adam(),
    "rmsprop": lambda: learn_rates(optax.rmsprop(1.0)),
}


@pytest.mark.parametrize("name", HALF)
def test_a_base_steps_in_float16_as_in_float32(name):
    """Though 1e-4 squared is 0 in float16, and so is an eps of 1e-8."""
    optimizer = HALF[name]()

    def moves(dtype):
        steps = jnp.array([[1.0, 0.0], [1e-4, 0.0], [1e-4, 1e-4]], dtype)
        found, _ = run(optimizer, steps)
        assert found.dtype == dtype
        return np.array(found, np.float32)

    found, expected = moves(jnp.float16), moves(jnp.float32)
    assert np.all(expected[0] == [expected[0, 0], 0.0])
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-6)


def test_a_multiplier_is_as_precise_as_the_parameters():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        optimizer: Any = learn_rates(optax.sgd(1.0), 0.3, initial=0.25)
        x = jnp.array([1.0, -2.0])
        updates, _ = first_step(optimizer, x, x)
    np.testing.assert_allclose(updates, -0.3 * 0.25 * np.array([1.0, -2.0]), 1e-14)


COUNTERS = "progress", "counts", "count"


def test_counters_are_integers_that_saturate():
    most = np.iinfo(np.int32).max
    optimizer = learn_rates(optax.sgd(1.0), optax.constant_schedule(1.0))
    update, x = jax.jit(optimizer.update), jnp.array([1.0, -2.0])
    state = optimizer.init(x)
    for name in COUNTERS:
        assert optax.tree.get(state, name).dtype == jnp.int32
        full = jnp.full_like(optax.tree.get(state, name), most)
        state = optax.tree.set(state, **{name: full})
    for factor, in_a_row in ((np.nan, most), (1.0, 0), (np.nan, 1)):
        updates, state = update(factor * x, state, x)
        chex.assert_tree_all_finite((updates, state))
        progress, counts, count = (optax.tree.get(state, name) for name in COUNTERS)
        assert (progress, count) == (most, most)
        assert counts[:2].tolist() == [most, in_a_row]


@pytest.mark.parametrize(("name", "most"), [("memory_sgd", 0.1), ("memory_adam", 0.01)])
def test_any_start_comes_down_and_stays(name, most):
    curvature = jnp.geomspace(0.1, 2.0, 10)

    def heights_from(initial):
        optimizer: Any = MAKERS[name](initial=initial)

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(curvature * x, state)
            x = jnp.asarray(optax.apply_updates(x, updates))
            return (x, state), jnp.sum(curvature * x**2)

        x = jnp.ones(10)
        return jax.lax.scan(step, (x, optimizer.init(x)), length=300)[1]

    heights = jax.jit(jax.vmap(heights_from))(jnp.array([1e-5, 1e-3, most]))
    assert heights[:, 0].min() > 1.0
    assert heights[:, -50:].max() < 1e-2


@pytest.mark.parametrize("name", MAKERS)
def test_a_decay_is_that_of_adamw_at_the_learned_rate(name):
    params = {"kernel": jnp.array([2.0, -4.0]), "bias": jnp.array([1.0])}
    initial = {
        "bias": Memory(linspace_kernels(1.0, 1), np.array([0.001])),
        "kernel": Memory(linspace_kernels(1.0, 1), np.array([0.01])),
    }
    arguments = {"weight_decay": 0.1, "mask": {"kernel": True, "bias": False}}
    optimizer: Any = MAKERS[name](0.5, initial=initial, **arguments)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = first_step(optimizer, zeros, params)
    np.testing.assert_allclose(updates["kernel"], [-0.001, 0.002], rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)
    with pytest.raises(ValueError, match="params"):
        jax.eval_shape(optimizer.update, zeros, state)


def test_a_first_step_is_adamws():
    """Its numbers carry over: rate, decay and what does not decay."""
    params = {"w": jnp.array([[2.0, -4.0]]), "b": jnp.array([1.0])}
    grads = {"w": jnp.array([[0.3, 0.1]]), "b": jnp.array([-0.2])}
    arguments = {"weight_decay": 0.1, "mask": {"w": True, "b": False}, "eps_root": 1e-3}
    pair = memory_adam(initial=1e-3, **arguments), optax.adamw(1e-3, **arguments)
    one, other = (first_step(optimizer, grads, params)[0] for optimizer in pair)
    chex.assert_trees_all_close(one, other, rtol=1e-5)


def test_a_landscape_decays_at_its_mean_rate_by_evidence():
    kernels = linspace_kernels(3.0, 3)
    memory = Memory(kernels, np.array([0.001, 0.004, 0.2]), np.array([3.0, 1.0, 0.0]))
    optimizer: Any = memory_sgd(initial=memory, weight_decay=0.1)
    x = jnp.array([2.0, -4.0])
    updates, _ = first_step(optimizer, 0 * x, x)
    np.testing.assert_allclose(updates, -0.1 * 0.007 / 4 * x, rtol=1e-5)


ROOMS = {"wide": {"w": jnp.full(3, 2.0), "b": jnp.zeros(1)}, "zero": jnp.zeros(4)}


# Gradients that agree for 8 steps and contradict each other for 18, four standard
# deviations of chance and more.
SETTLE = [1.0] * 8 + [-1.0, 1.0] * 9
SETTLED = len(SETTLE)


def follow(optimizer, params, signs, state=None):
    """Return the rates {label: [T]} along gradients of T signs, and the last state."""

    def step(state, sign):
        grads = jax.tree.map(lambda x: jnp.full_like(x, sign), params)
        _, state = optimizer.update(grads, state, params)
        rates = {label: one.rates[0] for label, one in get_memory(state).items()}
        return state, rates

    @jax.jit
    def scan(state, signs):
        start = optimizer.init(params) if state is None else state
        return jax.lax.scan(step, start, signs)

    state, rates = scan(state, np.array(signs, np.float32))
    return jax.tree.map(np.asarray, rates), state


def climb(optimizer, params, updates=60, state=None):
    """Return the rates after updates from gradients that always agree."""
    rates, state = follow(optimizer, params, [1.0] * updates, state)
    return {label: along[-1] for label, along in rates.items()}, state


def test_no_rate_climbs_above_its_part_of_the_weights():
    """A memory of 3 twos and a zero; one of zeros, which has the size of the tree."""
    optimizer = memory_adam(largest_step=0.2)
    expected = {"wide": 0.2 * np.sqrt(12 / 4), "zero": 0.2 * np.sqrt(12 / 8)}
    rates, state = climb(optimizer, ROOMS)
    chex.assert_trees_all_close(rates, expected, rtol=1e-5)
    logs = summarize_memory(state)
    assert logs["at_ceiling_fraction/wide"] == 1.0
    assert logs["at_bound_fraction/wide"] == 0.0
    # The ceiling stays where other memories are put.
    lower = {
        label: one._replace(rates=one.rates / 9)
        for label, one in get_memory(state).items()
    }
    moved = set_memory(optimizer.init(ROOMS), lower)
    rates, _ = climb(optimizer, ROOMS, state=moved)
    chex.assert_trees_all_close(rates, expected, rtol=1e-5)


def test_a_layer_that_starts_next_to_zero_learns_as_from_zero():
    """As a LayerScale of 1e-6 does: its size says nothing of how large it will be."""

    def steps_to(gamma, initial):
        optimizer: Any = memory_adam(initial=initial)
        params: Any = {"scale": {"gamma": gamma}}

        def step(carry, _):
            params, state = carry
            gradient = jax.tree.map(lambda x: 2 * (x - 1), params)
            updates, state = optimizer.update(gradient, state)
            params = cast(Any, optax.apply_updates(params, updates))
            return (params, state), params["scale"]["gamma"]

        start = params, optimizer.init(params)
        return jnp.argmax(jax.lax.scan(step, start, length=60)[1] > 0.9)

    gammas, starts = jnp.array([0.0, 1e-6, -1e-4]), jnp.array([[1e-3], [1e-5]])
    steps = jax.jit(jnp.vectorize(steps_to))(gammas[None], starts)
    assert jnp.all(steps[:, 0] > 5)
    assert jnp.all(abs(steps - steps[:, :1]) <= 1)


def test_ceilings_are_those_of_layers_unless_they_start_next_to_zero():
    sizes = {"zero": 0.0, "tiny": 1e-6, "small": 2e-3, "usual": 0.5}
    params = {name: {"w": jnp.full(4, size)} for name, size in sizes.items()}
    state = jax.jit(memory_adam().init)(params)
    whole = np.sqrt(np.mean(np.square([*sizes.values()])))
    found = dict(zip(sorted(sizes), optax.tree.get(state, "limits")[0], strict=True))
    expected = {**sizes, "zero": whole, "tiny": whole}
    for name, size in expected.items():
        np.testing.assert_allclose(found[name], 0.1 * size, rtol=1e-6)


def test_without_a_ceiling_the_bound_is_the_limit():
    rates, _ = climb(memory_adam(largest_step=None), ROOMS)
    np.testing.assert_allclose(list(rates.values()), 10.0)
    rates, _ = climb(memory_adam(), jax.tree.map(jnp.zeros_like, ROOMS))
    np.testing.assert_allclose(list(rates.values()), 10.0)


def test_a_rate_above_its_ceiling_stays_or_falls():
    memory = get_memory(memory_sgd(initial=1.0).init(jnp.ones(3)))
    rates, _ = climb(memory_adam(initial=memory), jnp.ones(3), 5)
    np.testing.assert_allclose(rates["params"], 1.0)


def test_a_factor_that_falls_is_not_made_up_for():
    """Once a rate has come down; the factor falls below .9 after 5 of 50 steps."""
    params = jnp.full(3, 100.0)
    falling = optax.linear_schedule(1.0, 0.0, 50)
    late = optax.join_schedules([optax.constant_schedule(1.0), falling], [SETTLED])

    def rates_of(make, factor, *then):
        optimizer = make(factor, initial=1e-5, b1=0.0)
        rates = follow(optimizer, params, [*SETTLE, *then])[0]["params"]
        assert rates[SETTLED - 1] < 0.8 * rates[7]
        return rates[SETTLED:]

    rates = rates_of(memory_adam, late, *[1.0] * 46, *SETTLE[8:])
    held = rates[5]
    assert rates[45] == held
    # Nor does contradiction take rates down that the schedule takes down.
    assert rates[-1] == held
    free = rates_of(memory_adam, 1.0, *[1.0] * 46)
    assert free[45] > 2 * held > 0
    # A restart lets it learn again.
    back = SETTLED + 46
    restarts = optax.join_schedules([late, optax.constant_schedule(1.0)], [back])
    again = rates_of(memory_adam, restarts, *[1.0] * 62)
    assert again[61] > 2 * again[45] == 2 * held
    # Injected factors are schedules too.
    injected = rates_of(optax.inject_hyperparams(memory_adam), late, *[1.0] * 6)
    np.testing.assert_allclose(injected, rates[:6], rtol=1e-4)


def test_a_rate_climbs_until_it_comes_down_whatever_the_factor_does():
    params = jnp.full(3, 100.0)
    free, _ = climb(memory_adam(initial=1e-5), params, 8)
    for factor in (
        optax.linear_schedule(0.0, 1.0, 50),
        optax.linear_schedule(1.0, 0.0, 50),
        optax.piecewise_constant_schedule(1.0, {2: 0.1}),
    ):
        found, _ = climb(memory_adam(factor, initial=1e-5), params, 8)
        chex.assert_trees_all_close(found, free)


def test_a_decay_is_no_evidence():
    grads = gradients(8, 6)
    plain, decayed = (run(memory_adam(weight_decay=w), grads)[1] for w in (0.0, 0.5))
    chex.assert_trees_all_equal(get_memory(plain), get_memory(decayed))


def test_an_outlier_moves_no_further_than_its_clipped_norm():
    outlier = jnp.full((1, 4), 1e6)
    clipped, _ = run(memory_sgd(initial=0.1), outlier)
    np.testing.assert_allclose(jnp.linalg.norm(clipped), 0.1, rtol=1e-5)
    whole, _ = run(memory_sgd(initial=0.1, clip_norm=None), outlier)
    np.testing.assert_allclose(whole, -1e5, rtol=1e-5)


@pytest.mark.parametrize("size", [64, 2**14])
def test_a_relative_address_is_the_value_over_the_root_mean_square(size):
    scales = np.geomspace(1e-4, 1e4, 8, dtype=np.float32)
    steps = np.asarray(gradients(size)) * scales[:, None]
    sizes = np.sqrt(np.mean(steps**2, axis=1, keepdims=True))
    kernels = logspace_kernels(8.0, 20, smallest=0.02)
    make = functools.partial(
        scale_by_memory, 0.1, kernels=kernels, memory_optimizer=optax.sgd(0.05)
    )
    relative, learned = run(make(normalize="rms"), steps)
    by_value, expected = run(make(), steps / sizes)
    chex.assert_trees_all_close(relative / sizes, by_value, rtol=1e-3, atol=1e-5)
    rates = get_memory(learned)["params"].rates
    chex.assert_trees_all_close(rates, get_memory(expected)["params"].rates, rtol=1e-3)
    assert np.ptp(rates) > 0.01


def test_a_relative_address_survives_any_scale():
    optimizer: Any = scale_by_memory(0.1, normalize="rms")
    init, update = jax.jit(optimizer.init), jax.jit(optimizer.update)
    for scale in (0.0, 1e-45, 1e-30, 1e30, np.inf):
        with np.errstate(invalid="ignore"):
            scaled = np.array([1.0, -2.0, 3.0], np.float32) * np.float32(scale)
        tree = {
            "one": scaled,
            "none": np.zeros((0, 3), np.float32),
            "two": np.array([1.0, np.nan, 0.5], np.float32),
        }
        state = init(tree)
        for _ in range(2):
            updates, state = update(tree, state)
        np.testing.assert_allclose(updates["one"], 0.1 * tree["one"], rtol=0.3)
        assert np.isfinite(updates["two"][0])
        assert np.isnan(updates["two"][1])
        for memory in get_memory(state).values():
            assert np.isfinite(memory.rates).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("memory_sgd", {"momentum": 1.0}, r"momentum must be a number in \[0, 1\)"),
        ("memory_sgd", {"momentum": -0.1}, "momentum must be .*, got -0.1"),
        ("memory_sgd", {"clip_norm": 0.0}, "clip_norm must be"),
        ("memory_adam", {"clip_norm": "1"}, "clip_norm must be"),
        ("memory_adam", {"weight_decay": -1e-4}, "weight_decay must be"),
        ("memory_adam", {"weight_decay": True}, "weight_decay must be"),
        ("memory_adam", {"largest_step": 0.0}, "largest_step must be"),
        ("memory_adam", {"initial": 0.1}, "initial must be at most 0.01 .* got 0.1"),
        ("memory_adam", {"initial": jnp.array(0.1)}, "initial must be at most 0.01"),
    ],
)
def test_refuses_what_cannot_work(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        MAKERS[name](**arguments)


def test_refuses_an_unknown_normalization():
    unknown: Any = "log"
    with pytest.raises(ValueError, match=r"normalize must be .* got 'log'"):
        scale_by_memory(normalize=unknown)


def test_a_learned_memory_may_be_above_the_largest_start():
    params = jnp.zeros(2)
    memory = get_memory(memory_sgd(initial=0.5).init(params))
    state = memory_adam(initial=memory).init(params)
    assert get_memory(state)["params"].rates[0] == 0.5


LION = functools.partial(learn_rates, optax.lion(1.0))
EVERY = [memory_sgd, memory_adam, paper_sgd, paper_adam, LION]


@pytest.mark.parametrize("make", EVERY)
def test_a_rate_in_place_of_the_factor_warns(make):
    """At the line that wrote it: when it is built, or when it is initialised."""
    params, like_a_rate = jnp.ones(2), r"start from is initial=0\.001"
    for rate in (1e-3, np.float32(1e-3), np.array(1e-3)):
        with pytest.warns(UserWarning, match=like_a_rate) as warned:
            make(rate)
        assert warned[0].filename == __file__
    schedules = (
        optax.constant_schedule(1e-3),
        optax.join_schedules([lambda _: 0.0, lambda _: 1e-3], [50_000]),
    )
    for rate in (jnp.float32(1e-3), *schedules):
        optimizer = make(rate)  # nothing is asked of a device
        with pytest.warns(UserWarning, match=like_a_rate) as warned:
            optimizer.init(params)
        assert warned[0].filename == __file__
        with pytest.warns(UserWarning, match=like_a_rate):
            jax.jit(optimizer.init)(params)
    with pytest.warns(UserWarning, match=r"up to 0\.1 multiplies learned rates"):
        make(0.1)
    with pytest.warns(UserWarning, match="learning_rate up to 0.00099"):
        make(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 20, 200)).init(params)
    with pytest.warns(UserWarning, match=like_a_rate):
        optax.inject_hyperparams(make)(learning_rate=1e-3).init(params)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize(
    "factor",
    [
        *(0.2, 1, jnp.float32(0.5), 0.0),
        optax.linear_schedule(0.0, 1.0, 1000),
        optax.warmup_cosine_decay_schedule(0.0, 1.0, 20, 200),
    ],
)
def test_a_factor_does_not_warn(make, factor):
    make(factor).init(jnp.ones(2))
    jax.jit(make(factor).init)(jnp.ones(2))
    optax.inject_hyperparams(make)(learning_rate=factor).init(jnp.ones(2))


@pytest.mark.parametrize("factor", [None, -1.0, np.nan, "1", np.ones(2), True, 1j])
def test_what_is_no_factor_is_refused(factor):
    with pytest.raises(ValueError, match="learning_rate must be a number of at least"):
        memory_adam(factor)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("factor", [-1.0, np.nan, np.inf])
def test_an_array_that_is_no_factor_is_refused_at_init(make, factor):
    """When it is built, no device is asked for the value."""
    optimizer = make(jnp.float32(factor))
    for init in (optimizer.init, jax.jit(optimizer.init)):
        with pytest.raises(ValueError, match=r"learning_rate must be a number in \[0"):
            init(jnp.ones(2))


def test_arguments_stand_where_optax_has_them():
    params = jnp.array([1.0, -2.0])
    pairs: Any = [
        (
            memory_adam(1.0, 0.8, 0.95, 1e-6, 1e-7, jnp.float32, 0.1, None),
            optax.adamw(1e-4, 0.8, 0.95, 1e-6, 1e-7, jnp.float32, 0.1, None),
        ),
        (memory_sgd(1.0, 0.8, True, jnp.float32), optax.sgd(1e-3, 0.8, True)),
        (memory_sgd(1.0, None, clip_norm=9.0), optax.sgd(1e-3, None)),
    ]
    for pair in pairs:
        ours, theirs = (first_step(tx, params / 9, params)[0] for tx in pair)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_momentum_may_be_of_another_dtype():
    updates, state = run(memory_sgd(accumulator_dtype=jnp.bfloat16), gradients())
    expected, _ = run(memory_sgd(), gradients())
    error = np.linalg.norm(updates - expected, axis=1)
    assert np.all(error <= 0.01 * np.linalg.norm(expected, axis=1))
    assert optax.tree.get(state, "trace").dtype == jnp.bfloat16


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("way", ["MultiSteps", "a plateau's scale"])
def test_the_ways_that_work_where_links_behind_would_not(name, way):
    """A link behind that holds an update back, or scales it, makes evidence false."""

    def loss(x):
        return jnp.sum((x - 0.3) ** 2)

    params = jnp.full(3, 17.7)
    if way == "MultiSteps":
        optimizer: Any = optax.MultiSteps(MAKERS[name](initial=1e-3), 2)
    else:
        inject = optax.inject_hyperparams(MAKERS[name])
        optimizer = inject(learning_rate=1.0, initial=1e-3)
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=20)

    def step(carry, _):
        params, state, watch = carry
        value, grads = jax.value_and_grad(loss)(params)
        if way != "MultiSteps":
            found: Any = plateau.update(grads, watch, value=value)[1]
            watch, factor = found, {"learning_rate": found.scale}
            state = state._replace(hyperparams=state.hyperparams | factor)
        updates, state = optimizer.update(grads, state, params)
        carry = optax.apply_updates(params, updates), state, watch
        return carry, get_memory(state)["params"].rates[0]

    @jax.jit
    def descend(params):
        start = params, optimizer.init(params), plateau.init(params)
        return jax.lax.scan(step, start, length=300)

    (params, *_), rates = descend(params)
    assert loss(params) < 0.01
    assert np.isfinite(rates).all()
    assert 1e-4 < np.min(rates) <= np.max(rates) < 5  # far from their bounds
