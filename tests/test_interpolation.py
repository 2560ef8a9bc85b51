"""The table of a large tensor against one local model at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metalr_optax.evaluation import can_be_tabled

from metalr_optax import (
    Kernels,
    Memory,
    get_memory,
    linspace_kernels,
    logspace_kernels,
    scale_by_memory,
)
from metalr_optax.memory import evidence, read
from metalr_optax.table import _address, collect, look_up, make_table, spread, tabulate

SIZE = 2**14


@jax.jit
def read_by_table(kernels, rates, address):
    table = make_table(kernels)
    return look_up(table.grid, tabulate(table, rates), rates, address)


@jax.jit
def evidence_by_table(kernels, address, agreement):
    table, num = make_table(kernels), len(kernels.centers)
    return collect(table, spread(table.grid, address, agreement, num), num)


read, evidence = jax.jit(read), jax.jit(evidence)
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
@given(kind=st.sampled_from(KINDS), silent=st.booleans(), seed=st.integers(0, 2**31))
def test_the_stated_accuracy(name, kind, silent, seed):
    kernels = to_float32(RESOLVED[name])
    rng = np.random.default_rng(seed)
    rates = np.float32(10.0 ** rng.uniform(-3.0, 0.0, len(kernels.centers)))
    address = draw_addresses(kernels, kind, seed)
    error = read_by_table(kernels, rates, address) - read(
        Memory(kernels, rates), address
    )
    assert np.max(np.abs(error)) <= 1e-4 * np.max(rates)

    agreement = np.float32(
        rng.uniform(-1.0, 1.0, address.shape) + rng.uniform(-1.0, 1.0)
    )
    if silent:
        agreement *= rng.uniform(size=address.shape) < 0.5
    error = evidence_by_table(kernels, address, agreement) - evidence(
        kernels, address, agreement
    )
    assert np.max(np.abs(error)) <= 1e-3 * np.sum(np.abs(agreement))


@pytest.mark.parametrize("name", RESOLVED)
def test_usual_kernels_are_resolved(name):
    assert can_be_tabled(RESOLVED[name])


@pytest.mark.parametrize("name", RESOLVED)
def test_a_constant_memory_is_exactly_a_constant_rate(name):
    kernels = to_float32(RESOLVED[name])
    rates = np.full(len(kernels.centers), 0.1, np.float32)
    read_rates = read_by_table(kernels, rates, draw_addresses(kernels, "even", 0))
    np.testing.assert_array_equal(read_rates, np.float32(0.1))


@pytest.mark.parametrize("name", UNRESOLVED)
def test_what_a_table_would_blur_is_read_exactly(name):
    kernels = UNRESOLVED[name]
    assert not can_be_tabled(kernels)
    memory = Memory(kernels, np.geomspace(1e-3, 1.0, len(kernels.centers)))
    address = draw_addresses(to_float32(kernels), "even", 0)
    optimizer = scale_by_memory(memory)
    updates, _ = jax.jit(optimizer.update)(address, optimizer.init(address))
    single = jax.tree.map(np.float32, memory)
    np.testing.assert_allclose(updates, read(single, address) * address, rtol=1e-6)


@pytest.mark.parametrize("name", ["even 20", "even 100", "log 20", "log 100"])
def test_nodes_lie_where_their_coordinate_says(name):
    """The grid and its inverse: nodes grow, and reach 8 widths beyond the kernels."""
    kernels = to_float32(RESOLVED[name])
    table = jax.jit(make_table)(kernels)
    assert np.all(np.asarray(table.widths) > 0)
    places = jnp.arange(table.widths.size)
    nodes = np.asarray(jax.jit(_address)(table.grid, places), np.float64)
    assert np.all(np.diff(nodes) > 0)
    assert nodes[0] <= kernels.centers[0] - 7.9 * kernels.widths[0]
    assert nodes[-1] >= kernels.centers[-1] + 7.9 * kernels.widths[-1]


@pytest.mark.parametrize("name", ["even 20", "even 500", "log 20"])
def test_the_mass_of_all_coordinates_is_kept(name):
    kernels = to_float32(RESOLVED[name])
    address = draw_addresses(kernels, "normal", 3)
    mass = np.asarray(evidence_by_table(kernels, address, np.ones_like(address)))
    z = np.float64(address).reshape(-1, 1)
    activations = np.exp(-0.5 * ((z - kernels.centers) / kernels.widths) ** 2)
    np.testing.assert_allclose(mass, activations.sum(0), atol=1e-3 * SIZE)
    np.testing.assert_allclose(mass.sum(), activations.sum(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(SIZE,), (128, 128), (2, 8, 1024)])
def test_a_coordinate_is_counted_at_the_same_node_in_any_shape_and_piece(shape):
    kernels = to_float32(RESOLVED["even 100"])
    table = jax.jit(make_table)(kernels)
    address = draw_addresses(kernels, "normal", 0)
    agreement = np.sign(draw_addresses(kernels, "even", 1))
    whole = spread(table.grid, address.reshape(shape), agreement.reshape(shape), 100)
    parts = [
        spread(table.grid, z, a, 100, start)
        for start, z, a in (
            (0, address.ravel()[:5000], agreement.ravel()[:5000]),
            (5000, address.ravel()[5000:], agreement.ravel()[5000:]),
        )
    ]
    np.testing.assert_array_equal(whole, parts[0] + parts[1])


@pytest.mark.parametrize("shape", [(131, 127), (1024, 1024), (2049, 1031)])
def test_a_tensor_of_any_size_is_counted_once(shape):
    """Sizes that are odd, of one piece, and of two pieces and an odd rest."""
    kernels = linspace_kernels(2.0, 20)
    rng = np.random.default_rng(0)
    params = np.float32(rng.normal(0.3, 0.8, (2, *shape)))
    optimizer = scale_by_memory(
        0.5, kernels=kernels, memory_optimizer=optax.sgd(1.0), rate_bounds=(1e-9, 2.0)
    )
    state = optimizer.init(params[0])
    update = jax.jit(optimizer.update)
    for gradient in params:
        _, state = update(gradient, state)
    agreement = np.prod(np.sign(params), axis=0)
    expected = evidence(to_float32(kernels), params[0], agreement) / agreement.size
    assert np.max(expected) > 0.01
    actual = state.memory["params"].rates - 0.5
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-5)


def test_counting_is_unbiased():
    """Coordinates of one address are shared out between its two nodes, by distance."""
    kernels = to_float32(RESOLVED["even 20"])
    grid = jax.jit(make_table)(kernels).grid
    nodes = np.arange(8192)
    places = []
    for address in np.linspace(0.0, 0.01, 7, dtype=np.float32):
        counts = np.asarray(
            spread(grid, np.full(SIZE, address), np.ones(SIZE, "f4"), 20)
        )
        assert counts.sum() == SIZE
        assert np.ptp(np.flatnonzero(counts)) <= 1
        places.append(np.sum(counts * nodes) / SIZE)
    steps = np.diff(places)
    assert steps.min() > 0.1
    np.testing.assert_allclose(steps, steps.mean(), atol=2e-3)


def test_hostile_addresses_of_a_large_tensor():
    kernels = to_float32(RESOLVED["even 20"])
    rates = np.geomspace(1e-3, 1.0, 20, dtype=np.float32)
    address = np.zeros((128, 128), np.float32)
    address[0, :6] = np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45
    rate = np.asarray(read_by_table(kernels, rates, address))
    np.testing.assert_allclose(rate[0, 1:5], [1.0, 1e-3, 1.0, 1e-3], rtol=1e-4)
    assert np.all(np.isfinite(rate))
    far = np.full_like(address, 3e38)
    mass = evidence_by_table(kernels, far, np.ones_like(far))
    assert np.max(np.abs(mass)) < 1e-6
    optimizer = scale_by_memory(Memory(kernels, rates))
    state = optimizer.init(address)._replace(previous_direction=jnp.asarray(address))
    updates, state = jax.jit(optimizer.update)(far, state)
    assert np.all(np.isfinite(state.memory["params"].rates))
    updates, _ = jax.jit(optimizer.update)(address, state)
    np.testing.assert_array_equal(np.isfinite(updates), np.isfinite(address))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_large_tensor_of_any_dtype_learns_like_a_small_one(dtype):
    """The same gradients, once as a large tensor and once as many small ones."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        gradients = jnp.asarray(rng.normal(0.3, 0.7, size=(3, 128, 128)), dtype)
        # A plain step, which does not blow up the evidence of idle local models.
        optimizer = scale_by_memory(
            0.01, group_by="all", memory_optimizer=optax.sgd(0.5)
        )

        def run(split):
            state = optimizer.init(split(gradients[0]))
            for gradient in gradients:
                updates, state = jax.jit(optimizer.update)(split(gradient), state)
            return jnp.concatenate(jax.tree.leaves(updates)), get_memory(state)["all"]

        large, memory = run(lambda x: [x])
        small, expected = run(lambda x: [x[:64], x[64:]])
        assert large.dtype == dtype
        assert memory.rates.max() > 0.03
        np.testing.assert_allclose(memory.rates, expected.rates, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            np.float64(large), np.float64(small), rtol=1e-2, atol=1e-5
        )
