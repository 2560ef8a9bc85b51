import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    Kernels,
    Memory,
    agreement_steps,
    get_kernel_inputs,
    get_layer_rates,
    get_memory,
    get_rates,
    learn_rates,
    linspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
    raw_product,
    scale_by_memory,
    set_memory,
    summarize_memory,
)

STILL = optax.sgd(0.0)  # a memory that never moves
# What keeps samples of its last direction only.
SAMPLING = {
    memory_sgd: "memory_sgd",
    memory_adam: "memory_adam",
    functools.partial(learn_rates, optax.lion(1.0)): "lion",
    functools.partial(paper_adam, evidence_sample=4): "paper_adam",
}


def make_gradients(steps, seed=0):
    """Gradients of two layers, with zeros and values that are not finite among them."""
    rng = np.random.default_rng(seed)
    gradients = []
    for _ in range(steps):
        kernel, bias, other = (
            rng.normal(size=shape).astype("f4") for shape in ((4, 5), (5,), (7,))
        )
        kernel[0, :3] = 0.0
        bias[0] = np.nan
        other[-1] = np.inf
        gradients.append({"a": {"kernel": kernel, "bias": bias}, "b": {"w": other}})
    return gradients


def flatten(gradient):
    return {
        "a": np.concatenate(
            [gradient["a"]["bias"].ravel(), gradient["a"]["kernel"].ravel()]
        ),
        "b": gradient["b"]["w"].ravel(),
    }


def run(optimizer, gradients):
    """Return the states after each step."""
    update = jax.jit(optimizer.update)
    states = [jax.jit(optimizer.init)(jax.tree.map(np.zeros_like, gradients[0]))]
    for gradient in gradients:
        states.append(update(gradient, states[-1])[1])
    return states[1:]


@pytest.mark.parametrize("base", [None, optax.sgd(1.0)])
def test_agreement_and_sign_are_counted_by_hand(base):
    """Also of a base that points against the gradient."""
    gradients = make_gradients(30)
    optimizer = scale_by_memory(base_optimizer=base, kernels=linspace_kernels(2.0, 1))
    states = run(optimizer, gradients)
    trend = {"a": 0.0, "b": 0.0}
    for number, state in enumerate(states):
        logs = summarize_memory(state)
        for label in ("a", "b"):
            share = 0.5
            if number:
                new, old = (
                    flatten(gradients[number - k])[label].astype("f8") for k in (0, 1)
                )
                usable = np.isfinite(new) & np.isfinite(old)
                signs = np.where(usable, np.sign(new) * np.sign(old), 0)
                share = (signs > 0).sum() / (signs != 0).sum()
                trend[label] = 0.9 * trend[label] + 0.1 * np.sign(signs.sum())
            found = logs[f"agreement_fraction/{label}"]
            np.testing.assert_allclose(found, share, rtol=1e-6)
            found = logs[f"evidence_sign/{label}"]
            np.testing.assert_allclose(found, trend[label], atol=1e-6)
            assert logs[f"rate_too_small/{label}"] == (trend[label] > 0.5)
            assert logs[f"rate_too_large/{label}"] == (trend[label] < -0.5)


def test_with_momentum_gradients_are_held_against_the_last_direction():
    """A gradient may keep its sign and be against what momentum went along."""
    gradients = [1.0, 1.0, -0.1, -0.1, 1.0]
    optimizer = memory_sgd(momentum=0.9, clip_norm=None)
    states = run(optimizer, [{"w": np.full(3, g, "f4")} for g in gradients])
    logs = [float(summarize_memory(state)["agreement_fraction/w"]) for state in states]
    assert logs == [0.5, 1.0, 0.0, 0.0, 1.0]


def test_agreement_is_not_told_of_a_base_that_goes_neither_along_nor_against():
    factors = jnp.array([1.0, 1.0, -2.0])
    sideways = optax.stateless(lambda g, _: jnp.asarray(g) * factors)
    optimizer = scale_by_memory(base_optimizer=sideways)
    states = run(optimizer, [jnp.ones(3)] * 3)
    assert [summarize_memory(one)["agreement_fraction/params"] for one in states] == [
        0.5
    ] * 3


def test_tensors_of_a_layer_count_by_their_size():
    """Of the large one a sample stands for all of it, in every quantity."""
    kernel = np.ones((300, 200), "f4")
    gradients = [{"layer": {"kernel": 9 * kernel, "bias": np.ones(6_000, "f4")}}]
    gradients.append({"layer": {"kernel": kernel, "bias": -np.ones(6_000, "f4")}})
    state = run(scale_by_memory(kernels=linspace_kernels(2.0, 5)), gradients)[-1]
    logs = summarize_memory(state)
    assert logs["agreement_fraction/layer"] == pytest.approx(60 / 66, rel=1e-6)
    assert logs["out_of_range_fraction/layer"] == pytest.approx(60 / 66, rel=1e-6)


def test_what_is_clipped_to_the_outermost_model_is_outside():
    gradient = np.array([50.0, -50.0, 1.0, 0.0, np.nan, np.inf], np.float32)
    # What a step read is known with its evidence, one step later.
    states = run(paper_sgd(), [gradient] * 2)
    for state, expected in zip(states, (0, 4 / 6), strict=True):
        found = summarize_memory(state)["out_of_range_fraction/params"]
        assert found == pytest.approx(expected)


def test_evidence_that_overflows_is_no_sign_and_no_agreement():
    """Infinite for one local model and against another: it points nowhere."""
    gradients = np.array([[1.0, -1.0], [3e38, 3e38], [3e38, -3e38]], np.float32)
    optimizer = scale_by_memory(
        kernels=linspace_kernels(2.0, 2),
        memory_optimizer=agreement_steps(),
        signal=lambda g, d: jnp.where(g * d > 0, 3e38, -3e38),
    )
    states = run(optimizer, [np.repeat(one, 4) for one in gradients])
    logs = summarize_memory(states[-1])
    assert all(np.isfinite(one) for one in logs.values())


def test_of_a_large_tensor_a_sample_agrees():
    rng = np.random.default_rng(0)
    signs = rng.choice([1.0, -1.0], p=[0.7, 0.3], size=(300, 200)).astype("f4")
    gradients = [{"w": np.abs(rng.normal(size=(300, 200))).astype("f4")}]
    gradients.append({"w": signs * gradients[0]["w"]})
    for sample in (None, 1000):
        state = run(scale_by_memory(evidence_sample=sample), gradients)[-1]
        share = summarize_memory(state)["agreement_fraction/w"]
        # Four standard errors of the smallest sample there can be.
        assert abs(share - 0.7) < 4 * np.sqrt(0.21 / (250 if sample else 1024))
        assert share != np.mean(signs > 0)


def test_the_gauge_tells_rates_that_are_too_small_and_too_large():
    """On a parabola with noise, where 1 jumps to the minimum and 2 diverges."""

    def gauges_of(rate, noise):
        optimizer = optax.chain(
            scale_by_memory(
                rate,
                kernels=linspace_kernels(1.0, 1),
                memory_optimizer=STILL,
                signal=raw_product,
                rate_bounds=(1e-9, 10.0),
            ),
            optax.scale(-1.0),
        )

        def step(carry, key):
            x, state = carry
            gradient = x + noise * jax.random.normal(key, x.shape)
            updates, state = optimizer.update(gradient, state)
            logs = summarize_memory(state)
            gauge = logs["rate_too_small/params"] - logs["rate_too_large/params"]
            return (x + updates, state), gauge

        start = jnp.array([3.0, -2.0, 1.0])
        keys = jax.random.split(jax.random.key(0), 200)
        return jax.lax.scan(step, (start, optimizer.init(start)), keys)[1]

    rates, noises = np.array([0.01, 1.9, 0.5], "f4"), np.array([0, 0, 1], "f4")
    small, large, noisy = np.array(jax.jit(jax.vmap(gauges_of))(rates, noises))
    assert np.all(small[10:] == 1)
    assert np.all(large[10:] == -1)
    # Gradients that are mostly noise contradict each other at a rate of 1/2 less
    # often than one in two times, so neither verdict stays.
    assert np.mean(noisy != 0) < 0.5


def test_rates_in_use_bounds_and_what_lies_outside():
    kernels = Kernels(np.arange(-2.0, 3.0), np.full(5, 0.3))
    memory = Memory(
        kernels,
        np.array([1e-3, 0.1, 0.2, 0.4, 2.0]),
        evidence_weight=np.array([0.0, 10.0, 30.0, 0.2, 0.0]),
    )
    optimizer = scale_by_memory(memory, memory_optimizer=STILL, rate_bounds=(1e-3, 2.0))
    # The second step says nothing about the first, and knows where that had looked.
    steps = np.array([[-3.0, 2.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    logs = summarize_memory(run(optimizer, list(steps))[-1])
    expected = {
        "rate_mean": (10 * 0.1 + 30 * 0.2 + 0.2 * 0.4) / 40.2,
        # .2 of evidence is less than a hundredth of 30.
        "rate_min": 0.1,
        "rate_max": 0.2,
        "at_bound_fraction": 2 / 5,
        "out_of_range_fraction": 2 / 4,
        "rate_over_start": 1.0,
        "rate_over_highest": 1.0,
    }
    for name, value in expected.items():
        found = float(logs[f"{name}/params"])
        assert found == pytest.approx(value, rel=1e-5), name
    unused = run(scale_by_memory(0.25), make_gradients(1))[-1]
    logs = summarize_memory(unused)
    assert logs["rate_mean/a"] == logs["rate_min/a"] == logs["rate_max/a"] == 0.25


OPTIMIZERS = {
    "memory_sgd": memory_sgd(momentum=0.0, clip_norm=None),
    "relative landscape": optax.chain(
        scale_by_memory(
            kernels=linspace_kernels(3.0, 9),
            memory_optimizer=agreement_steps(),
            signal=raw_product,
            normalize="rms",
            group_by="tensor",
        ),
        optax.scale(-1.0),
    ),
    "link": optax.chain(scale_by_memory(group_by="all"), optax.scale(-1.0)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_are_what_directions_were_multiplied_by(name):
    optimizer = OPTIMIZERS[name]
    rng = np.random.default_rng(0)
    params = {"a": {"w": np.zeros((3, 4)), "b": np.zeros(4)}, "c": np.zeros(2)}
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    for _ in range(5):
        gradients = jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape)), params)
        updates, state = update(gradients, state)
    rates = jax.jit(get_rates)(state, gradients)
    found = jax.tree.map(lambda rate, g: -np.multiply(rate, g), rates, gradients)
    chex.assert_trees_all_close(found, updates, rtol=1e-5)
    inputs = jax.eval_shape(get_kernel_inputs, state, gradients)
    sizes = {label: one.size for label, one in inputs.items()}
    assert sum(sizes.values()) == 18
    assert set(sizes) == set(get_memory(state))


def test_a_function_of_ones_own_is_to_be_named():
    def group_by(path, leaf):
        return "matrices" if leaf.ndim == 2 else "vectors"

    params = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
    state = scale_by_memory(group_by=group_by).init(params)
    assert summarize_memory(state)["out_of_range_fraction/vectors"] == 0
    assert get_kernel_inputs(state, group_by=group_by)["matrices"].shape == (12,)
    with pytest.raises(ValueError, match="group_by must be that of the optimizer"):
        get_kernel_inputs(state)


def test_states_may_be_grouped_by_other_rules():
    def by_axes(path, leaf):
        return "matrices" if leaf.ndim == 2 else "vectors"

    params = {"a": {"w": jnp.zeros((3, 4))}, "b": {"w": jnp.zeros(5)}}
    optimizer = optax.partition(
        {"a": paper_sgd(group_by=by_axes), "b": paper_sgd()}, {"a": "a", "b": "b"}
    )
    logs = summarize_memory(optimizer.init(params))
    assert "rate_mean/matrices" in logs
    assert "rate_mean/b" in logs


@pytest.mark.parametrize("make", SAMPLING, ids=SAMPLING.values())
def test_a_direction_that_the_state_has_not_is_asked_for(make):
    """And with it the rates are those that the update had used."""
    params = {"a": {"w": jnp.zeros((3, 4))}, "c": jnp.zeros(2)}
    state = jax.jit(make(kernels=linspace_kernels(3.0, 5)).init)(params)
    for reader in (get_rates, get_kernel_inputs):
        with pytest.raises(ValueError, match="direction must be given"):
            reader(state)
    direction = jax.tree.map(lambda p: np.full_like(p, 0.5), params)
    rates = jax.eval_shape(get_rates, state, direction)
    assert jax.tree.structure(rates) == jax.tree.structure(params)
    unit = 0.5 if SAMPLING[make] == "paper_adam" else 1.0
    np.testing.assert_allclose(get_kernel_inputs(state, direction)["c"], unit)


@pytest.mark.parametrize("make", [paper_sgd, paper_adam, scale_by_memory])
def test_a_whole_last_direction_need_not_be_given(make):
    params = {"a": {"w": jnp.zeros((3, 4))}, "c": jnp.zeros(2)}
    optimizer = make(kernels=linspace_kernels(1.5, 5))
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = jax.tree.map(lambda p: rng.uniform(-1, 1, p.shape).astype("f4"), params)
        updates, state = update(grads, state)
    sign = 1 if make is scale_by_memory else -1
    pair = jax.jit(get_rates)(state), optax.tree.get(state, "last_direction")
    found = jax.tree.map(lambda rate, d: sign * np.multiply(rate, d), *pair)
    chex.assert_trees_all_close(found, updates, rtol=1e-5)


def test_collapsed_rates_are_seen():
    """Far below their start and their highest, long after the sign has settled."""
    up, down = np.ones(4, "f4"), np.ones(4, "f4") * [[1], [-1]] * 1.0
    steps = [up] * 10 + [down[i % 2].astype("f4") for i in range(40)]
    state = run(memory_sgd(momentum=0.0), [{"w": g} for g in steps])[-1]
    logs = summarize_memory(state)
    assert logs["rate_over_highest/w"] < 1e-3
    assert logs["rate_over_start/w"] < 0.1
    assert logs["rate_too_large/w"] == 1


def test_a_ceiling_is_told_from_a_bound():
    """Of gradients that always agree: one rate climbs to each of the two."""
    params = {"ceiling": jnp.full(3, 2.0), "bound": jnp.full(3, 200.0)}
    optimizer = memory_adam(largest_step=0.01, rate_bounds=(1e-9, 1.0))

    @jax.jit
    def climb(params):
        state = optimizer.init(params)
        return jax.lax.fori_loop(
            0, 60, lambda _, state: optimizer.update(params, state)[1], state
        )

    logs = summarize_memory(climb(params))
    # Rates may be at .01 of 2 and of 200, but not above 1.
    assert logs["rate_mean/ceiling"] == pytest.approx(0.02, rel=1e-5)
    assert logs["rate_mean/bound"] == pytest.approx(1.0, rel=1e-5)
    expected = {"at_ceiling_fraction": (1, 0), "at_bound_fraction": (0, 1)}
    for name, values in expected.items():
        assert (logs[f"{name}/ceiling"], logs[f"{name}/bound"]) == values, name
    assert logs["rate_too_small/ceiling"] == 1


def test_of_some_local_models_the_part_at_the_ceiling_is_counted():
    """At the bound, between, at the ceiling of .2, and one that started above it."""
    rates = np.array([1e-3, 0.1, 0.2, 0.4])
    memory = Memory(Kernels(np.arange(4.0), np.full(4, 0.3)), rates)
    arguments: Any = {"initial": memory, "rate_bounds": (1e-3, 2.0)}
    for largest_step, at_bound, at_ceiling in ((0.1, 0.25, 0.5), (None, 0.25, 0)):
        optimizer = learn_rates(
            optax.sgd(1.0),
            **arguments,
            memory_optimizer=STILL,
            largest_step=largest_step,
        )
        params = {"w": jnp.full(3, 2.0)}
        state = jax.jit(optimizer.init)(params)
        logs = summarize_memory(state)
        assert logs["at_bound_fraction/w"] == 0  # which no step has looked at
        assert logs["at_ceiling_fraction/w"] == at_ceiling
        _, state = jax.jit(optimizer.update)(params, state)
        logs = summarize_memory(state)
        assert logs["at_bound_fraction/w"] == at_bound
        assert logs["at_ceiling_fraction/w"] == at_ceiling


@pytest.mark.parametrize("make", [memory_adam, memory_sgd, paper_sgd, paper_adam])
def test_a_memory_that_was_never_corrected_is_known(make):
    """Of a layer without gradients, and of any in the first step."""
    gradient = {"used": jnp.ones(3), "unused": jnp.zeros(3)}
    states = run(make(), [gradient] * 9)
    for step, expected in ((1, 1), (2, 0), (9, 0)):
        logs = summarize_memory(states[step - 1])
        assert logs["never_corrected/used"] == expected
        assert logs["never_corrected/unused"] == 1
    logs = summarize_memory(jax.jit(make().init)(gradient))
    assert logs["never_corrected/used"] == 1


def test_a_loss_that_is_infinite_from_the_start_is_seen_in_two_keys():
    gradient = {"w": jnp.full(3, jnp.inf)}
    logs = summarize_memory(run(memory_adam(), [gradient] * 20)[-1])
    assert (logs["skipped_in_a_row/w"], logs["never_corrected/w"]) == (20, 1)


def test_there_is_one_rate_for_each_layer():
    kernels = Kernels(np.array([-1.0, 1.0]), np.ones(2))
    memory = Memory(kernels, np.array([0.1, 0.3]), np.array([3.0, 1.0]))
    params = {"a": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, "c": jnp.ones(3)}
    optimizer = optax.partition(
        {"many": paper_sgd(initial=memory), "one": memory_adam(initial=0.01)},
        {"a": "many", "c": "one"},
    )
    state = optimizer.init(params)
    rates = get_layer_rates(state)
    assert sorted(rates) == ["a", "c"]
    np.testing.assert_allclose([rates["a"], rates["c"]], [0.15, 0.01], rtol=1e-6)
    logs = summarize_memory(state)
    assert rates == {label: logs[f"rate_mean/{label}"] for label in rates}
    init = jax.jit(jax.vmap(memory_sgd(initial=0.5).init))
    many = init({"w": jnp.ones((7, 2))})
    np.testing.assert_allclose(get_layer_rates(many)["w"], np.full(7, 0.5))
    inside = jax.jit(get_layer_rates)(state)
    chex.assert_trees_all_equal(inside, rates)


def test_a_vmapped_state_is_sent_through_vmap():
    params = {"w": jnp.zeros((2, 3))}
    state = jax.jit(jax.vmap(paper_sgd().init))(params)
    for reader in (summarize_memory, get_rates, get_kernel_inputs):
        with pytest.raises(ValueError, match=r"jax\.vmap"):
            reader(state)
        jax.eval_shape(jax.vmap(reader), state)
    sets = jax.eval_shape(jax.vmap(lambda one: set_memory(one, get_memory(one))), state)
    assert jax.tree.map(jnp.shape, sets) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize("make", [memory_sgd, paper_sgd])
def test_readers_compile_once_where_nothing_around_them_is_compiled(make):
    compiled = []

    def listen(event: str, duration_secs: float, **_: Any):
        if "backend_compile" in event:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    state = run(make(), make_gradients(2, seed=7))[-1]
    readers = (summarize_memory, get_rates, get_kernel_inputs)
    for reader in readers:
        reader(state)
    assert compiled
    del compiled[:]
    for reader in readers:
        reader(state)
    assert not compiled


def test_dtypes_are_promoted_by_nobody():
    params = {"w": jnp.ones((4, 4))}
    # Not with Adam for the rates, which is refused itself.
    landscape = functools.partial(scale_by_memory, memory_optimizer=optax.sgd(0.1))
    with jax.numpy_dtype_promotion("strict"):
        for make in (memory_sgd, landscape):
            optimizer = make()
            state = jax.jit(optimizer.init)(params)
            _, state = jax.jit(optimizer.update)(params, state, params)
            for reader in (summarize_memory, get_rates, get_kernel_inputs):
                reader(state)


def test_two_states_have_no_one_tree_of_rates():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    optimizer = optax.partition(
        {"a": memory_sgd(), "b": memory_sgd()}, {"a": "a", "b": "b"}
    )
    state: Any = jax.jit(optimizer.init)(params)
    assert "rate_mean/a" in summarize_memory(state)
    assert "rate_mean/b" in summarize_memory(state)
    with pytest.raises(ValueError, match="one state of a memory, got 2"):
        get_rates(state)
    assert set(get_rates(state.inner_states["a"])) >= {"a"}


@pytest.mark.parametrize("make", [memory_sgd, memory_adam, paper_sgd, paper_adam])
def test_logs_go_through_scan_vmap_and_snapshot(make):
    """Every step, inside of what is compiled, and the same as outside."""
    gradients = jax.tree.map(lambda *leaves: np.stack(leaves), *make_gradients(6))
    gradients = jax.tree.map(lambda one: np.nan_to_num(one, posinf=1.0), gradients)
    # Since Optax 0.2.6.
    snapshot = getattr(optax, "snapshot", lambda *_: optax.identity())
    optimizer = optax.chain(snapshot("norm", optax.tree.norm), make())
    params = jax.tree.map(lambda one: np.zeros_like(one[0]), gradients)

    def step(state, gradient):
        _, state = optimizer.update(gradient, state, params)
        logs = summarize_memory(state) | {"norm": optax.tree.get(state, "norm", 0.0)}
        return state, logs

    state, logs = jax.lax.scan(step, jax.jit(optimizer.init)(params), gradients)
    assert not hasattr(optax, "snapshot") or jnp.all(logs["norm"] > 1)
    assert all(one.shape == (6,) for one in logs.values())
    last = summarize_memory(state)
    assert set(logs) == set(last) | {"norm"}
    for key, value in last.items():
        np.testing.assert_allclose(logs[key][-1], value, rtol=1e-6, err_msg=key)
    several = jax.tree.map(lambda one: np.stack([one, one]), state)
    for key, value in jax.vmap(summarize_memory)(several).items():
        np.testing.assert_allclose(value, [last[key]] * 2, rtol=1e-6, err_msg=key)
