"""Large tensors on a grid against one local model at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    Kernels,
    Memory,
    get_memory,
    linspace_kernels,
    logspace_kernels,
    scale_by_memory,
)
from metalr_optax.grid import (
    _count,
    _place,
    accumulate_large,
    make_grid,
    read_large,
)
from metalr_optax.memory import accumulate, read

SIZE = 2**14


def given(values, inputs):
    """What is compared: the values are there already."""
    return inputs, [values]


@functools.partial(jax.jit, static_argnums=1)
def on_grid(kernels, grid, rates, inputs, values):
    """Return the rates that are read [...], and evidence [M]."""
    sums = accumulate_large(kernels, grid, given, True, (values, inputs), ())
    return read_large(kernels, grid, rates, inputs), sums[0]


@jax.jit
def exactly(kernels, rates, inputs, values):
    sums = accumulate(kernels, inputs, [values])
    return read(kernels, rates, inputs), sums[0]


count = jax.jit(_count, static_argnums=(1, 2, 3))
RESOLVED = {
    "even 4": linspace_kernels(2.0, 4),
    "even 20": linspace_kernels(2.0, 20),
    "even 100": linspace_kernels(2.0, 100),
    "even 1000": linspace_kernels(2.0, 1000),
    "wide 500": linspace_kernels(2.0, 500, width=2.0),
    "narrow 20": linspace_kernels(2.0, 20, width=0.3),
    "tiny 20": linspace_kernels(1e-30, 20),
    "huge 100": linspace_kernels(1e30, 100),
    "off centre": Kernels(np.linspace(3.0, 9.0, 12), np.full(12, 0.4)),
    "log 20": logspace_kernels(2.0, 20),
    "log 100": logspace_kernels(2.0, 100),
    "log of small gradients": logspace_kernels(1e-4, 20),
    "log of unequal inputs": logspace_kernels(8.0, 20, smallest=0.02),
    "very wide 100": linspace_kernels(2.0, 100, width=8.0),
    "uneven": Kernels(np.array([-2.0, -0.5, 0.1, 1.0, 2.0]), np.full(5, 0.5)),
    "uneven widths": Kernels(np.linspace(-2.0, 2.0, 5), np.linspace(0.4, 0.6, 5)),
    "uneven 40": Kernels(
        np.sort(np.random.default_rng(0).uniform(-2.0, 2.0, 40)), np.full(40, 0.1)
    ),
}
UNRESOLVED = {
    "steps": linspace_kernels(2.0, 20, width=0.02),
    "even 2000": linspace_kernels(2.0, 2000),
    "log 500": logspace_kernels(2.0, 500),
    "three": linspace_kernels(2.0, 3),
}


def to_float32(kernels):
    return Kernels(*(np.asarray(array, np.float32) for array in kernels))


def draw_addresses(kernels, kind, seed) -> Any:
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
    return addresses[kind].astype(np.float32).reshape(128, 128)


KINDS = ("even", "normal", "decades", "one place", "beside the centres")


@pytest.mark.parametrize("kind", ["equal", "apart"])
def test_derivatives_are_those_of_one_local_model_at_a_time(kind):
    """Equal rates are at the bounds of what is read, which must not show."""
    kernels, rng = RESOLVED["even 4"], np.random.default_rng(0)
    grid = make_grid(kernels)
    inputs, weights = rng.normal(size=(2, SIZE)).astype(np.float32)
    rates = np.ones(4) if kind == "equal" else np.array([1.0, 3.0, 2.0, 9.0])
    rates = rates.astype(np.float32)

    def total(look, rates, inputs, values):
        found, sums = look(rates, inputs, values)
        # Sums are close, their derivatives the same: so no product with rates.
        return jnp.sum(found * weights) + jnp.sum(sums * jnp.arange(4.0))

    found, expected = (
        jax.jit(jax.grad(functools.partial(total, look), (0, 1, 2)))(
            rates, inputs, weights
        )
        for look in (
            functools.partial(on_grid, kernels, grid),
            functools.partial(exactly, kernels),
        )
    )
    for array, exact in zip(found, expected, strict=True):
        atol = 1e-3 * np.max(np.abs(exact))
        np.testing.assert_allclose(array, exact, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("name", RESOLVED)
def test_the_stated_accuracy(name):
    kernels = to_float32(RESOLVED[name])
    grid: Any = make_grid(kernels)
    for seed, kind in enumerate(KINDS):
        rng = np.random.default_rng(seed)
        rates = 10.0 ** rng.uniform(-3.0, 0.0, len(kernels.centers))
        rates = np.asarray(rates, np.float32)
        address = draw_addresses(kernels, kind, seed)
        agreement = rng.uniform(-1.0, 1.0, address.shape) + rng.uniform(-1.0, 1.0)
        if seed % 2:  # not all coordinates say something
            agreement *= rng.uniform(size=address.shape) < 0.5
        agreement = np.float32(agreement)
        found, sums = on_grid(kernels, grid, rates, address, agreement)
        expected, exact = exactly(kernels, rates, address, agreement)
        assert np.max(np.abs(found - expected)) <= 1e-4 * np.max(rates)
        assert np.max(np.abs(sums - exact)) <= 1e-3 * np.sum(np.abs(agreement))


@pytest.mark.parametrize("name", RESOLVED)
def test_usual_kernels_are_resolved(name):
    assert make_grid(RESOLVED[name]) is not None
    # Also of kernels in the precision of a state.
    assert make_grid(to_float32(RESOLVED[name])) == make_grid(RESOLVED[name])


@pytest.mark.parametrize("name", RESOLVED)
def test_a_constant_memory_is_exactly_a_constant_rate(name):
    kernels = to_float32(RESOLVED[name])
    rates = np.full(len(kernels.centers), 0.1, np.float32)
    address = draw_addresses(kernels, "even", 0)
    read_rates, _ = on_grid(kernels, make_grid(kernels), rates, address, address)
    np.testing.assert_array_equal(read_rates, np.float32(0.1))


@pytest.mark.parametrize("name", UNRESOLVED)
def test_what_a_grid_would_blur_is_read_exactly(name):
    kernels = UNRESOLVED[name]
    assert make_grid(kernels) is None
    memory = Memory(kernels, np.geomspace(1e-3, 1.0, len(kernels.centers)))
    address = draw_addresses(to_float32(kernels), "even", 0)
    optimizer = scale_by_memory(memory)
    updates = jax.jit(lambda x: optimizer.update(x, optimizer.init(x))[0])(address)
    single = jax.tree.map(np.float32, memory)
    rates, _ = exactly(single.kernels, single.rates, address, address)
    expected = rates * address
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["even 20", "even 100", "log 20", "log 100"])
def test_places_grow_and_stay_within_the_nodes(name):
    """From far below the kernels to far above, and what is no number is a place too."""
    kernels = to_float32(RESOLVED[name])
    grid: Any = make_grid(kernels)
    reach = kernels.centers[-1] + 7.9 * kernels.widths[-1]
    inputs = np.linspace(-reach, reach, 10_001, dtype=np.float32)
    place = jax.jit(_place, static_argnums=1)
    assert np.all(np.diff(place(kernels, grid, inputs)) > 0)
    hostile = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0], np.float32)
    places = np.asarray(place(kernels, grid, hostile))
    assert np.all((places >= 0) & ((places >> grid.shift) + 1 < 2 * grid.half))


@pytest.mark.parametrize("name", ["even 20", "even 100", "log 20"])
def test_the_mass_of_all_coordinates_is_kept(name):
    kernels = to_float32(RESOLVED[name])
    address = draw_addresses(kernels, "normal", 3)
    ones, rates = np.ones_like(address), np.ones_like(kernels.centers)
    mass = np.asarray(on_grid(kernels, make_grid(kernels), rates, address, ones)[1])
    z = np.float64(address).reshape(-1, 1)
    activations = np.exp(-0.5 * ((z - kernels.centers) / kernels.widths) ** 2)
    np.testing.assert_allclose(mass, activations.sum(0), atol=1e-3 * SIZE)
    np.testing.assert_allclose(mass.sum(), activations.sum(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(SIZE,), (2, 8, 1024), (129, 127), (1031, 513)])
def test_a_coordinate_is_counted_at_the_same_node_in_any_shape_and_piece(shape):
    kernels = to_float32(RESOLVED["even 100"])
    grid: Any = make_grid(kernels)
    address = np.resize(draw_addresses(kernels, "normal", 0), shape)
    values = np.sign(np.resize(draw_addresses(kernels, "even", 1), shape))

    def counts(by_coordinate, shape):
        pair = values.reshape(shape), address.reshape(shape)
        return count(kernels, grid, given, by_coordinate, pair, ())[0]

    np.testing.assert_array_equal(counts(True, shape), counts(False, (address.size,)))


@pytest.mark.parametrize("shape", [(131, 127), (512, 1024), (1031, 513)])
def test_a_tensor_of_any_size_is_counted_once(shape):
    """Sizes that are odd, of two pieces, and of two pieces and an odd rest."""
    kernels = linspace_kernels(2.0, 20)
    rng = np.random.default_rng(0)
    params = rng.normal(0.3, 0.8, (2, *shape)).astype(np.float32)
    optimizer = scale_by_memory(
        0.5, kernels=kernels, memory_optimizer=optax.sgd(1.0), rate_bounds=(1e-9, 2.0)
    )
    state, update = jax.jit(optimizer.init)(params[0]), jax.jit(optimizer.update)
    for gradient in params:
        _, state = update(gradient, state)
    agreement = np.prod(np.sign(params), axis=0)
    _, sums = exactly(to_float32(kernels), np.ones(20), params[0], agreement)
    expected = sums / agreement.size
    assert np.max(expected) > 0.01
    actual = get_memory(state)["params"].rates - 0.5
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-5)


def test_counting_is_unbiased():
    """Coordinates of one input are shared out between its two nodes, by distance."""
    kernels = to_float32(RESOLVED["even 20"])
    grid: Any = make_grid(kernels)
    nodes = np.arange(2 * grid.half)
    places = []
    for address in np.linspace(0.0, 0.01, 7, dtype=np.float32):
        pair = np.ones(SIZE, np.float32), np.full(SIZE, address)
        counts = np.asarray(count(kernels, grid, given, True, pair, ())[0])
        assert counts.sum() == SIZE
        assert np.ptp(np.flatnonzero(counts)) <= 1
        places.append(np.sum(counts * nodes) / SIZE)
    steps = np.diff(places)
    assert steps.min() > 0.05
    np.testing.assert_allclose(steps, steps.mean(), atol=2e-3)


def test_hostile_addresses_of_a_large_tensor():
    kernels = to_float32(RESOLVED["even 20"])
    rates = np.geomspace(1e-3, 1.0, 20, dtype=np.float32)
    address = np.zeros((128, 128), np.float32)
    address[0, :6] = np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45
    grid: Any = make_grid(kernels)
    rate = np.asarray(on_grid(kernels, grid, rates, address, address)[0])
    np.testing.assert_allclose(rate[0, 1:5], [1.0, 1e-3, 1.0, 1e-3], rtol=1e-4)
    assert np.all(np.isfinite(rate))
    far = np.full_like(address, 3e38)
    _, mass = on_grid(kernels, grid, rates, far, np.ones_like(far))
    assert np.max(np.abs(mass)) < 1e-6
    optimizer = scale_by_memory(Memory(kernels, rates))
    state: Any = jax.jit(optimizer.init)(address)
    state = state._replace(last_direction=jnp.asarray(address))
    updates, state = jax.jit(optimizer.update)(far, state)
    assert np.all(np.isfinite(get_memory(state)["params"].rates))
    updates, _ = jax.jit(optimizer.update)(address, state)
    np.testing.assert_array_equal(np.isfinite(updates), np.isfinite(address))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_large_tensor_of_any_dtype_learns_like_a_small_one(dtype):
    """The same gradients, once as a large tensor and once as many small ones."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        gradients = jnp.asarray(rng.normal(0.3, 0.7, size=(3, 128, 128)), dtype)
        # A plain step, which does not blow up the evidence of idle local models.
        optimizer = scale_by_memory(
            0.01, group_by="all", memory_optimizer=optax.sgd(0.5)
        )

        @jax.jit
        def run(gradients):
            state = optimizer.init(jax.tree.map(lambda x: x[0], gradients))

            def step(state, gradient):
                return optimizer.update(gradient, state)[::-1]

            state, updates = jax.lax.scan(step, state, gradients)
            return jnp.concatenate(updates, axis=1)[-1], get_memory(state)["all"]

        large, memory = run([gradients])
        small, expected = run([gradients[:, :64], gradients[:, 64:]])
        assert large.dtype == dtype
        assert memory.rates.max() > 0.03
        np.testing.assert_allclose(memory.rates, expected.rates, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            np.float64(large), np.float64(small), rtol=1e-2, atol=1e-5
        )
