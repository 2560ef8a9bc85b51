"""The table of a large tensor against one local model at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr_optax import (
    Kernels,
    Memory,
    get_memory,
    linspace_kernels,
    logspace_kernels,
    scale_by_memory,
)
from metalr_optax.memory import evidence, judge, read, scale, sign_agreement
from metalr_optax.table import evidence_by_table, make_grid, read_by_table

SIZE = 2**14
COMPILED = {
    function.__name__: jax.jit(function)
    for function in (
        make_grid,
        read,
        read_by_table,
        evidence,
        evidence_by_table,
        scale,
    )
}
RESOLVED = {
    "even 4": linspace_kernels(2.0, 4),
    "even 20": linspace_kernels(2.0, 20),
    "even 100": linspace_kernels(2.0, 100),
    "even 500": linspace_kernels(2.0, 500),
    "wide 500": linspace_kernels(2.0, 500, width=2.0),
    "narrow 20": linspace_kernels(2.0, 20, width=0.3),
    "tiny 20": linspace_kernels(1e-30, 20),
    "huge 100": linspace_kernels(1e30, 100),
    "off centre": Kernels(np.linspace(3.0, 9.0, 12), np.full(12, 0.4)),
    "log 20": logspace_kernels(2.0, 20),
    "log 100": logspace_kernels(2.0, 100),
    "log of small gradients": logspace_kernels(1e-4, 20),
}
UNRESOLVED = {
    "steps": linspace_kernels(2.0, 20, width=0.02),
    "very wide 100": linspace_kernels(2.0, 100, width=8.0),
    "log 500": logspace_kernels(2.0, 500),
}


def to_float32(kernels):
    return Kernels(*(np.float32(array) for array in kernels))


def draw_addresses(kernels, kind, seed):
    """Addresses of one of the ways in which gradients fall on kernels."""
    rng = np.random.default_rng(seed)
    bound = float(kernels.centers[-1])
    addresses = {
        "even": rng.uniform(-1.0, 1.0, SIZE) * bound,
        "normal": rng.normal(size=SIZE) * bound / 3,
        "decades": np.sign(rng.normal(size=SIZE))
        * bound
        * 10.0 ** rng.uniform(-8, 1, SIZE),
        "one place": np.full(SIZE, rng.uniform(-1.0, 1.0) * bound),
        "beside the centres": rng.choice(kernels.centers, SIZE)
        + rng.uniform(-2.0, 2.0) * rng.choice(kernels.widths, SIZE),
    }
    return np.float32(addresses[kind]).reshape(128, 128)


KINDS = ("even", "normal", "decades", "one place", "beside the centres")


@pytest.mark.parametrize("name", RESOLVED)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**31))
def test_the_stated_accuracy(name, kind, seed):
    kernels = to_float32(RESOLVED[name])
    grid, _ = COMPILED["make_grid"](kernels)
    rng = np.random.default_rng(seed)
    rates = np.float32(10.0 ** rng.uniform(-3.0, 0.0, len(kernels.centers)))
    address = draw_addresses(kernels, kind, seed)
    actual = COMPILED["read_by_table"](grid, kernels, rates, address)
    error = actual - COMPILED["read"](Memory(kernels, rates), address)
    assert np.max(np.abs(error)) <= 1e-4 * np.max(rates)

    agreement = np.float32(
        rng.uniform(-1.0, 1.0, address.shape) + rng.uniform(-1.0, 1.0)
    )
    actual = COMPILED["evidence_by_table"](grid, kernels, address, agreement)
    error = actual - COMPILED["evidence"](kernels, address, agreement)
    assert np.max(np.abs(error)) / SIZE <= 1e-3 * np.mean(np.abs(agreement))


@pytest.mark.parametrize("name", RESOLVED)
def test_usual_kernels_are_resolved(name):
    assert COMPILED["make_grid"](to_float32(RESOLVED[name]))[1]


@pytest.mark.parametrize("name", UNRESOLVED)
def test_what_a_table_would_blur_is_read_exactly(name):
    kernels = to_float32(UNRESOLVED[name])
    assert not COMPILED["make_grid"](kernels)[1]
    memory = Memory(kernels, np.geomspace(1e-3, 1.0, len(kernels.centers), dtype="f4"))
    address = draw_addresses(kernels, "even", 0)
    np.testing.assert_allclose(
        COMPILED["scale"](memory, address),
        COMPILED["read"](memory, address) * address,
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", ["even 20", "log 20", "log 100"])
def test_nodes_lie_where_their_coordinate_says(name):
    """A rate that is linear in the address is read back: the grid and its inverse."""
    kernels = to_float32(RESOLVED[name])
    grid, _ = COMPILED["make_grid"](kernels)
    nodes = np.asarray(grid.nodes, np.float64)
    assert np.all(np.diff(nodes) > 0)
    assert nodes[0] <= kernels.centers[0] - 7.9 * kernels.widths[0]
    assert nodes[-1] >= kernels.centers[-1] + 7.9 * kernels.widths[-1]


@pytest.mark.parametrize("name", ["even 20", "log 20"])
def test_evidence_is_the_transpose_of_the_read_before_it_is_normalised(name):
    """Both use the same weights: sums of activations agree to the stated accuracy."""
    kernels = to_float32(RESOLVED[name])
    grid, _ = COMPILED["make_grid"](kernels)
    address = draw_addresses(kernels, "normal", 3)
    ones = np.ones_like(address)
    mass = np.asarray(COMPILED["evidence_by_table"](grid, kernels, address, ones))
    z = np.float64(address).reshape(-1, 1)
    activations = np.exp(-0.5 * ((z - kernels.centers) / kernels.widths) ** 2)
    np.testing.assert_allclose(mass, activations.sum(0), atol=1e-3 * SIZE)
    np.testing.assert_allclose(mass.sum(), activations.sum(), rtol=1e-4)


def test_hostile_addresses_of_a_large_tensor():
    kernels = to_float32(RESOLVED["even 20"])
    memory = Memory(kernels, np.geomspace(1e-3, 1.0, 20, dtype=np.float32))
    address = np.zeros((128, 128), np.float32)
    address[0, :6] = np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45
    grid, _ = COMPILED["make_grid"](kernels)
    rate = np.asarray(COMPILED["read_by_table"](grid, *memory, address))
    assert np.isnan(rate[0, 0])
    np.testing.assert_allclose(rate[0, 1:5], [1.0, 1e-3, 1.0, 1e-3], rtol=1e-4)
    assert np.all(np.isfinite(rate[1:]))
    far = np.full_like(address, 3e38)
    mass = COMPILED["evidence_by_table"](grid, kernels, far, np.ones_like(far))
    assert np.max(np.abs(mass)) < 1e-6
    told = jax.jit(lambda g, d: judge(kernels, sign_agreement, g, d, 1.0))(far, address)
    assert np.all(np.isfinite(told))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_large_tensor_of_any_dtype_learns_like_a_small_one(dtype):
    """The same gradients, once as a large tensor and once as many small ones."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        gradients = jnp.asarray(rng.normal(size=(3, 128, 128)) * 0.7, dtype)
        optimizer = scale_by_memory(0.01, group_by="all")

        def run(split):
            state = optimizer.init(split(gradients[0]))
            for gradient in gradients:
                updates, state = jax.jit(optimizer.update)(split(gradient), state)
            return jnp.concatenate(jax.tree.leaves(updates)), get_memory(state)["all"]

        large, memory = run(lambda x: [x])
        small, expected = run(lambda x: [x[:64], x[64:]])
        assert large.dtype == dtype
        # Rates of an Adam step: where evidence is near its epsilon, so is the error.
        np.testing.assert_allclose(memory.rates, expected.rates, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            np.float64(large), np.float64(small), rtol=1e-2, atol=1e-5
        )
