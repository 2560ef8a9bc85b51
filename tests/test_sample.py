"""What the state costs: sampled evidence, the dtype of the last direction, donation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metalr_optax.sample import sample

from metalr_optax import get_memory, linspace_kernels, paper_sgd, scale_by_memory

GRADIENTS = np.float32(np.random.default_rng(0).normal(0.2, 0.7, (4, 96, 200)))


def run(optimizer, gradients):
    state = optimizer.init(gradients[0])
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state)
    return updates, state


@pytest.mark.parametrize("shape", [(96, 200), (19200,), (3, 3, 64, 32), (50257, 3)])
@pytest.mark.parametrize("size", [1, 100, 4096])
def test_a_sample_is_an_even_lattice_of_nearly_the_size(shape, size):
    tensor = np.arange(np.prod(shape)).reshape(shape)
    taken = sample(tensor, size)
    assert size / 4 < taken.size <= size
    for axis, indices in enumerate(np.unravel_index(taken, shape)):
        steps = np.unique(indices)
        assert len(set(np.diff(steps))) <= 1
        assert steps[0] == 0
        assert shape[axis] - steps[-1] <= max(np.diff(steps), default=shape[axis])


def test_none_and_small_tensors_are_taken_whole():
    gradient = GRADIENTS[0]
    assert sample(gradient, None) is gradient
    assert sample(gradient, gradient.size) is gradient


def test_a_sampled_memory_learns_what_its_sample_says():
    whole, state = run(scale_by_memory(0.01, evidence_sample=1000), GRADIENTS)
    parts = np.stack([sample(gradient, 1000) for gradient in GRADIENTS])
    of_sample, expected = run(scale_by_memory(0.01), parts)
    assert state.previous_direction.shape == parts[0].shape
    assert np.ptp(state.memory["params"].rates) > 0.01
    np.testing.assert_allclose(
        state.memory["params"].rates, expected.memory["params"].rates, rtol=1e-5
    )
    np.testing.assert_allclose(sample(whole, 1000), of_sample, rtol=1e-3, atol=1e-5)


def test_sampled_and_whole_tensors_count_by_their_coordinates():
    """u is the mean over all coordinates: a sampled tensor stands for its size."""
    optimizer = scale_by_memory(
        0.5,
        kernels=linspace_kernels(2.0, 1),
        memory_optimizer=optax.sgd(0.1),
        evidence_sample=100,
        group_by="all",
    )
    params = {"large": np.ones((40, 30), "f4"), "small": -np.ones(60, "f4")}
    state = optimizer.init(params)
    _, state = optimizer.update(params, state)
    flipped = params | {"small": np.ones(60, "f4")}
    _, state = optimizer.update(flipped, state)
    expected = 0.5 + 0.1 * (1200 - 60) / 1260
    np.testing.assert_allclose(state.memory["all"].rates, expected, rtol=1e-5)


def test_the_stated_standard_error_of_a_sample():
    optimizer = scale_by_memory(
        0.5,
        kernels=linspace_kernels(2.0, 1),
        memory_optimizer=optax.sgd(1.0),
        rate_bounds=(1e-9, 2.0),
        evidence_sample=256,
    )

    def learn(key):
        signs = jax.random.rademacher(key, (2, 64, 64), jnp.float32)
        state = optimizer.init(signs[0])
        for gradient in signs:
            _, state = optimizer.update(gradient, state)
        return state.memory["params"].rates[0] - 0.5

    means = jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(0), 400))
    np.testing.assert_allclose(np.std(means), 1 / np.sqrt(256), rtol=0.1)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 4.3),
        ({"direction_dtype": jnp.bfloat16}, 2.3),
        ({"evidence_sample": 2**16}, 0.1),
    ],
)
def test_bytes_of_state_per_parameter(options, limit):
    params = {f"layer {i}": jax.ShapeDtypeStruct((2500, 1000), "f4") for i in range(4)}
    state = jax.eval_shape(paper_sgd(**options).init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size / 1e7 <= limit


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_short_last_direction_learns_like_a_long_one(dtype):
    _, state = run(scale_by_memory(0.01, direction_dtype=dtype), GRADIENTS)
    _, expected = run(scale_by_memory(0.01), GRADIENTS)
    assert state.previous_direction.dtype == dtype
    rates, long = (get_memory(one)["params"].rates for one in (state, expected))
    assert np.ptp(long) > 0.01
    np.testing.assert_allclose(rates, long, atol=1e-3)


# XLA widens all of a bfloat16 tensor before it looks at a piece of it.
@pytest.mark.parametrize(("dtype", "temporary"), [(None, 1), (jnp.bfloat16, 9)])
def test_a_donated_state_is_overwritten(dtype, temporary):
    params = jax.ShapeDtypeStruct((16384, 1024), jnp.float32)
    optimizer = paper_sgd(direction_dtype=dtype)
    state = jax.eval_shape(optimizer.init, params)
    step = jax.jit(optimizer.update, donate_argnums=1)
    memory = step.lower(params, state).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    # Bounds may change from step to step, so they are written anew.
    bounds = optax.tree.get(state, "rate_bounds")
    assert memory.alias_size_in_bytes == size - bounds.size * bounds.dtype.itemsize
    assert memory.temp_size_in_bytes < temporary * params.size


@pytest.mark.parametrize(
    "options",
    [
        {"evidence_sample": 0},
        {"evidence_sample": 100.0},
        {"evidence_sample": True},
        {"direction_dtype": "int8"},
        {"direction_dtype": jnp.complex64},
        {"direction_dtype": "no dtype"},
    ],
)
@pytest.mark.parametrize("make", [scale_by_memory, paper_sgd])
def test_refused_options_are_named(make, options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must be .* got"):
        make(**options)


def test_a_traced_sample_size_says_what_to_do():
    optimizer = optax.inject_hyperparams(paper_sgd)(evidence_sample=100)
    with pytest.raises(ValueError, match="static_args"):
        optimizer.init(jnp.zeros(3))
    optimizer = optax.inject_hyperparams(paper_sgd, static_args=("evidence_sample",))(
        evidence_sample=100
    )
    optimizer.init(jnp.zeros(3))
