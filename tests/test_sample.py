"""Which coordinates give evidence, and what the state costs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    get_memory,
    learn_rates,
    linspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
    scale_by_memory,
)
from metalr_optax.evidence import sample

GRADIENTS = np.random.default_rng(0).normal(0.2, 0.7, (4, 96, 200)).astype(np.float32)


def run(optimizer, gradients):
    state, update = jax.jit(optimizer.init)(gradients[0]), jax.jit(optimizer.update)
    updates: Any = None
    for gradient in gradients:
        updates, state = update(gradient, state)
    return updates, state


SHAPES = [(96, 200), (19200,), (3, 3, 64, 32), (50257, 3), (64, 12, 25), (7000, 9)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 100, 2000, 12_000])
def test_a_sample_is_a_lattice_over_rows_and_columns(shape, size):
    tensor = jnp.arange(np.prod(shape)).reshape(shape)
    taken = np.asarray(sample(tensor, size)).ravel()
    assert size / 8 < taken.size <= size
    assert len(set(taken.tolist())) == taken.size
    columns = shape[-1]
    rows, places = np.divmod(taken, columns)
    if taken.size >= 2 * columns and tensor.size // columns <= size:
        assert set(rows) == set(range(tensor.size // columns))
    # All columns but less than a block; alike often, wherever a row has one.
    counts = np.bincount(places, minlength=columns)
    width = -(-columns // max(1, size // len(set(rows))))
    assert counts[columns // width * width :].sum() == 0
    if len(set(rows)) >= width:
        assert counts[: columns // width * width].min() >= 1
        assert np.ptp(counts[: columns // width * width]) <= 0.5 * counts.max() + 1


def test_a_sample_of_an_embedding_sees_every_token():
    """As many of each, in the middle of a table and at its ends."""
    tokens = jnp.repeat(jnp.arange(1000)[:, None], 64, axis=1)
    assert np.ptp(np.bincount(np.asarray(sample(tokens, 4096)).ravel())) == 0
    heads = np.bincount(np.asarray(sample(tokens.T, 4096)).ravel(), minlength=1000)
    assert heads[:992].min() >= 1


def test_none_and_small_tensors_are_taken_whole():
    gradient = GRADIENTS[0]
    assert sample(gradient, None) is gradient
    assert sample(gradient, gradient.size) is gradient
    assert gradient.size / 8 < sample(gradient, gradient.size - 1).size < gradient.size


def test_a_sampled_memory_learns_what_its_sample_says():
    whole, state = run(scale_by_memory(0.01, evidence_sample=1000), GRADIENTS)
    parts = np.stack([np.asarray(sample(one, 1000)) for one in GRADIENTS])
    of_sample, expected = run(scale_by_memory(0.01), parts)
    np.testing.assert_array_equal(state.last_direction.array, parts[-1].ravel())
    assert np.ptp(get_memory(state)["params"].rates) > 0.01
    np.testing.assert_allclose(
        get_memory(state)["params"].rates,
        get_memory(expected)["params"].rates,
        rtol=1e-5,
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
    flipped = params | {"small": np.ones(60, "f4")}
    _, state = run(optimizer, [params, flipped])
    expected = 0.5 + 0.1 * (1200 - 60) / 1260
    np.testing.assert_allclose(get_memory(state)["all"].rates, expected, rtol=1e-5)


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
        return get_memory(state)["params"].rates[0] - 0.5

    means = jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(0), 400))
    np.testing.assert_allclose(np.std(means), 1 / np.sqrt(256), rtol=0.1)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 4.3),
        ({"evidence_sample": 2**15}, 0.06),
    ],
)
def test_bytes_of_state_per_parameter(options, limit):
    params = {f"layer {i}": jax.ShapeDtypeStruct((2500, 1000), "f4") for i in range(4)}
    state = jax.eval_shape(paper_sgd(**options).init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size / 1e7 <= limit


READY = {
    "Adam": (memory_adam, optax.adam(1.0)),
    "SGD": (memory_sgd, optax.sgd(1.0, momentum=0.9)),
    "no momentum": (functools.partial(memory_sgd, momentum=0.0), optax.sgd(1.0)),
    "half of Adam": (
        functools.partial(memory_adam, mu_dtype="bfloat16"),
        optax.adam(1.0, mu_dtype="bfloat16"),
    ),
    "Nadam": (functools.partial(memory_adam, nesterov=True), optax.nadam(1.0)),
    "Lion": (functools.partial(learn_rates, optax.lion(1.0)), optax.lion(1.0)),
}


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize(
    ("shapes", "more"), [([(1000, 1000)], 0.02), (100 * [(128, 128)], 1.03)]
)
def test_ready_optimizers_keep_what_their_base_keeps(name, shapes, more):
    """And a number for each of 4,096 coordinates of a tensor: bytes per parameter."""
    params = [jax.ShapeDtypeStruct(shape, "f4") for shape in shapes]
    ready, base = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        / sum(leaf.size for leaf in params)
        for state in (
            jax.eval_shape(READY[name][0]().init, params),
            jax.eval_shape(READY[name][1].init, params),
        )
    )
    assert ready <= base + more
    kept = {"Adam": 8, "SGD": 4, "no momentum": 0, "half of Adam": 6, "Nadam": 8}
    assert round(base, 3) == kept.get(name, 4)


@pytest.mark.parametrize("name", READY)
def test_leaves_of_a_state(name):
    """Those of the base, a row for each memory, and twelve."""
    params = {f"layer {i}": {"w": jnp.ones(2), "b": jnp.ones(1)} for i in range(5)}
    make, base = READY[name]
    ready, alone = (
        len(jax.tree.leaves(jax.eval_shape(tx.init, params))) for tx in (make(), base)
    )
    assert ready <= alone + 5 + 12


@pytest.mark.parametrize("make", [memory_adam, memory_sgd, paper_sgd, paper_adam])
def test_a_donated_state_is_overwritten(make):
    """No copy of what is as large as the model, whatever order XLA has."""
    shapes = [(16384, 1024)] if make in (paper_sgd, paper_adam) else [(512, 512)] * 20
    params = {str(i): jax.ShapeDtypeStruct(one, "f4") for i, one in enumerate(shapes)}
    optimizer = make()
    state = jax.eval_shape(optimizer.init, params)
    step = jax.jit(optimizer.update, donate_argnums=1)
    memory: Any = step.lower(params, state).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes == size
    # Adam's direction has to be somewhere, and the last one until it is counted.
    limit = 9 if make is paper_adam else 1
    assert memory.temp_size_in_bytes < limit * sum(p.size for p in params.values())


@pytest.mark.parametrize(
    "options",
    [
        {"evidence_sample": 0},
        {"evidence_sample": 100.0},
        {"evidence_sample": True},
    ],
)
@pytest.mark.parametrize("make", [scale_by_memory, paper_sgd])
def test_refused_options_are_named(make, options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must be .* got"):
        make(**options)


def test_a_traced_sample_size_says_what_to_do():
    optimizer = optax.inject_hyperparams(paper_sgd)(evidence_sample=100)
    with pytest.raises(ValueError, match="static_args"):
        jax.eval_shape(optimizer.init, jnp.zeros(3))
    optimizer = optax.inject_hyperparams(paper_sgd, static_args=("evidence_sample",))(
        evidence_sample=100
    )
    jax.eval_shape(optimizer.init, jnp.zeros(3))
