"""Invariants of reading and correcting a memory."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metalr_optax import (
    Kernels,
    Memory,
    clipped_product,
    get_memory,
    linspace_kernels,
    logspace_kernels,
    memory_adam,
    raw_product,
    scale_by_memory,
    sign_agreement,
)
from metalr_optax.local_models import agreement
from metalr_optax.memory import accumulate, read

KERNELS = {
    "even": linspace_kernels(2.0, 20),
    "narrow": linspace_kernels(2.0, 5, width=0.01),
    "log": logspace_kernels(2.0, 20),
    "one": linspace_kernels(2.0, 1),
    "many": linspace_kernels(2.0, 500),
}
ANY_FLOAT32 = hnp.arrays(np.float32, 16, elements=st.floats(width=32))
FINITE_FLOAT32 = hnp.arrays(
    np.float32, 16, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
fast = settings(max_examples=50, deadline=None, derandomize=True)
read_compiled = jax.jit(lambda memory, z: read(memory.kernels, memory.rates, z))
accumulate_compiled = jax.jit(lambda kernels, z, e: accumulate(kernels, z, [e])[0])


def make_memory(name, dtype=np.float32):
    centers, widths = KERNELS[name]
    rates = np.geomspace(1e-6, 1.0, len(centers), dtype=dtype)
    rates = np.random.default_rng(0).permutation(rates)
    return Memory(Kernels(centers.astype(dtype), widths.astype(dtype)), rates)


@pytest.mark.parametrize("name", KERNELS)
@fast
@given(address=FINITE_FLOAT32)
def test_a_rate_is_always_a_weighted_mean_of_rates(name, address):
    memory = make_memory(name)
    rate = np.asarray(read_compiled(memory, address))
    assert np.all(rate >= memory.rates.min() * (1 - 1e-5))
    assert np.all(rate <= memory.rates.max() * (1 + 1e-5))


@pytest.mark.parametrize("name", KERNELS)
@fast
@given(address=FINITE_FLOAT32)
def test_a_constant_memory_is_a_constant_rate(name, address):
    # The same as: normalised activations sum to one.
    memory = make_memory(name)._replace(rates=np.full_like(KERNELS[name][0], 0.125))
    memory = jax.tree.map(np.float32, memory)
    np.testing.assert_allclose(read_compiled(memory, address), 0.125, rtol=1e-6)


@pytest.mark.parametrize("name", ["even", "narrow", "log", "one"])
@pytest.mark.parametrize("far", [1e2, 1e8, 1e20, 3e38, np.inf])
def test_the_outermost_rate_holds_outside(name, far):
    memory = make_memory(name)
    address = np.array([far, -far], np.float32)
    rate = read_compiled(memory, address)
    np.testing.assert_allclose(rate, memory.rates[[-1, 0]], rtol=1e-3)


def test_inside_the_read_is_the_plain_weighted_mean():
    with jax.enable_x64(True):
        for name in ("even", "log", "one", "many"):
            centers, widths = KERNELS[name]
            memory = make_memory(name, np.float64)
            # Not further from a kernel than exp can reach in float64.
            offsets = np.linspace(-2.0, 2.0, 9)
            z = np.clip((centers[:, None] + widths[:, None] * offsets).ravel(), -2, 2)
            psi = np.exp(-((z[:, None] - centers) ** 2) / (2 * widths**2))
            expected = psi @ memory.rates / psi.sum(1)
            np.testing.assert_allclose(read_compiled(memory, z), expected, 1e-10)


@pytest.mark.parametrize("name", KERNELS)
@fast
@given(address=FINITE_FLOAT32, sign=st.sampled_from([-1.0, 1.0]))
def test_agreement_raises_and_flips_lower_exactly_the_active_rates(name, address, sign):
    kernels = make_memory(name).kernels
    u = np.asarray(accumulate_compiled(kernels, address, np.full_like(address, sign)))
    away = np.asarray(address, np.float64)[:, None] - kernels.centers
    distance = np.abs(away) / kernels.widths
    active = np.any(distance < 4.0, axis=0)
    silent = np.all(distance > 20.0, axis=0)
    assert np.all(sign * u[active] > 1e-4)
    assert np.all(np.abs(u[silent]) < 1e-12)
    assert np.all(np.isfinite(u))


def value_of_gradient(gradient, direction):
    del direction
    return gradient


@jax.jit
def learn_one_rate(first, second):
    """Return the step of a single rate by its evidence, whatever the direction was."""
    optimizer = scale_by_memory(
        1.0,
        kernels=KERNELS["one"],
        memory_optimizer=optax.sgd(1.0),
        signal=value_of_gradient,
        rate_bounds=(1e-9, 10.0),
    )
    _, state = optimizer.update(first, optimizer.init(first))
    _, state = optimizer.update(second, state)
    return get_memory(state)["params"].rates - 1.0


@fast
@given(address=FINITE_FLOAT32)
def test_a_single_kernel_hears_everyone_alike(address):
    agreement = np.linspace(-1.0, 2.0, address.size, dtype=np.float32)
    # XLA takes denormal numbers for zero, and zero for no direction.
    address = np.where(np.abs(address) < 1.2e-38, np.float32(1.0), address)
    (step,) = learn_one_rate(address, agreement)
    np.testing.assert_allclose(step, agreement.mean(dtype=np.float64), rtol=1e-5)


def test_evidence_is_the_hypergradient_of_a_quadratic():
    """Minus d loss(x - eta(g) g) / d rates, up to the normalisation of the read."""
    with jax.enable_x64(True):
        memory = make_memory("even", np.float64)
        x = jnp.array([0.3, -0.2, 0.15])
        curvature = jnp.array([1.0, 3.0, 5.0])

        def loss(x):
            return 0.5 * jnp.sum(curvature * x**2)

        g: Any = np.asarray(curvature * x)

        def after(rates):
            return x - read(memory.kernels, rates, g) * g

        hypergradient = jax.jit(jax.grad(lambda rates: loss(after(rates))))(
            memory.rates
        )
        product = curvature * jax.jit(after)(memory.rates) * g
        centers, widths = memory.kernels
        mass = np.exp(-((g[:, None] - centers[None]) ** 2) / (2 * widths[None] ** 2))
        u = accumulate_compiled(memory.kernels, g, product / mass.sum(1))
        np.testing.assert_allclose(u, -hypergradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("signal", [sign_agreement, clipped_product])
@fast
@given(gradient=ANY_FLOAT32, direction=ANY_FLOAT32)
def test_agreement_is_bounded_and_finite_for_any_number(signal, gradient, direction):
    values = np.asarray(agreement(signal, gradient, direction))
    assert np.all(np.abs(values) <= 1.0)
    unusable = ~np.isfinite(gradient) | ~np.isfinite(direction)
    assert np.all(values[unusable | (gradient == 0) | (direction == 0)] == 0)


@pytest.mark.parametrize("signal", [sign_agreement, clipped_product, raw_product])
@fast
@given(gradient=ANY_FLOAT32, direction=ANY_FLOAT32)
def test_a_direction_is_turned_along_its_gradient(signal, gradient, direction):
    gradient, direction = jnp.asarray(gradient), jnp.asarray(direction)
    along = agreement(signal, gradient, direction)
    for turn in (1.0, -1.0):
        turned = agreement(signal, gradient, turn * direction, jnp.float32(turn))
        np.testing.assert_array_equal(turned, along)
    unknown = agreement(signal, gradient, direction, jnp.float32(0))
    np.testing.assert_array_equal(unknown, np.zeros(16))


def test_a_memory_prints_its_rates_and_its_schedule_as_rates():
    falling = np.log(np.array([4.0, 2.0, 2.0] + 17 * [1.0]))
    for array in (np.asarray, jnp.asarray):
        kernels = Kernels(*map(array, linspace_kernels(2.0, 3)))
        memory = Memory(kernels, array([0.1, 0.1, 0.4]), array([3.0, 0.0, 1.0]))
        assert repr(memory) == "Memory(rates=0.1 to 0.4)"
        # The mean rate by evidence is .175.
        learned = repr(memory._replace(schedule=array(falling)))
        assert learned == (
            "Memory(rates=0.1 to 0.4, schedule={1: 0.7, 2: 0.35, 4: 0.35, 8: 0.175})"
        )
    state = jax.jit(memory_adam(initial=1e-3).init)({"dense": jnp.ones(2)})
    assert repr(get_memory(state)) == "{'dense': Memory(rates=0.001)}"
    # Local models that are not in use have no rate.
    state = jax.jit(scale_by_memory(0.25, capacity=30).init)(jnp.ones(2))
    assert repr(get_memory(state)["params"]) == "Memory(rates=0.25)"


def test_a_memory_without_values_prints_their_shape():
    printed = []
    memory = get_memory(memory_adam().init(jnp.ones(2)))["params"]
    jax.jit(lambda memory: printed.append(repr(memory)))(memory)
    printed.append(repr(jax.eval_shape(lambda: memory)))
    many = jax.tree.map(lambda x: jnp.stack([x, x]), memory)
    printed.append(repr(many._replace(schedule=many.schedule + 1)))
    for text in printed:
        assert re.match(r"Memory\(rates=an array .* and shape \((2, )?1,?\)\)$", text)
    assert repr(jax.tree.map(lambda _: None, memory)) == "Memory(rates=None)"
    # Concrete ones have values inside of jit too.
    jax.jit(lambda: printed.append(repr(memory)))()
    assert printed[-1] == "Memory(rates=0.0001)"


def test_sign_agreement_does_not_underflow():
    tiny = jnp.array([1e-30, -1e-30])
    np.testing.assert_array_equal(sign_agreement(tiny, tiny), [1.0, 1.0])
    np.testing.assert_array_equal(sign_agreement(tiny, -tiny), [-1.0, -1.0])


def test_a_signal_that_looks_at_the_whole_tensor_sees_no_bad_numbers():
    def normalised(gradient, direction):
        scale = jnp.sqrt(jnp.mean(gradient**2) * jnp.mean(direction**2))
        return jnp.clip(gradient * direction / scale, -1.0, 1.0)

    gradient = jnp.array([1.0, jnp.nan, jnp.inf, -2.0])
    values = agreement(normalised, gradient, jnp.ones(4))
    np.testing.assert_array_equal(np.sign(values), [1, 0, 0, -1])
    zeros = agreement(normalised, jnp.zeros(4), jnp.ones(4))  # 0 / 0 inside
    np.testing.assert_array_equal(zeros, jnp.zeros(4))


def test_a_signal_that_is_not_finite_says_nothing():
    values = jnp.array([0.5, jnp.nan, jnp.inf])
    told = agreement(lambda g, d: values, jnp.ones(3), jnp.ones(3))
    np.testing.assert_array_equal(told, [0.5, 0.0, 0.0])


@pytest.mark.parametrize(
    "shapes", [{"a": (300, 400)}, {"layer": {"a": (300, 200), "b": (300, 200)}}]
)
def test_activations_of_a_large_tensor_are_never_stored(shapes):
    # The whole update: its parts alone may well be fused where they are not together.
    params = jax.tree.map(np.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
    optimizer = scale_by_memory(kernels=KERNELS["many"])
    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(optimizer.update).lower(params, state).compile()
    # A few times the gradient and a few tables; the activations would take 240 MB.
    limit = 8 * 4 * 300 * 400 + 8e6
    analysis: Any = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < limit
