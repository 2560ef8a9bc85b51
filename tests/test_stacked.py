"""Layers that are stacked in one tensor, and memories that stay as they are."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    Memory,
    adapt_memory,
    get_kernel_inputs,
    get_memory,
    get_rates,
    linspace_kernels,
    load_memory,
    memory_adam,
    memory_sgd,
    save_memory,
    scale_by_memory,
    set_memory,
    summarize_memory,
)

LAYERS = 3
PARAMS = {
    "blocks": {"w": jnp.linspace(-1, 1, LAYERS * 16).reshape(LAYERS, 4, 4) + 0.1,
               "b": jnp.ones((LAYERS, 4))},
    "out": jnp.linspace(0.5, 1, 4),
}  # fmt: skip
NAMES = ["blocks/0", "blocks/1", "blocks/2", "out"]
MAKERS: dict[str, Any] = {
    "memory_sgd": lambda **k: memory_sgd(weight_decay=0.1, **k),
    "memory_adam": memory_adam,
    "a landscape": lambda **k: memory_adam(kernels=linspace_kernels(2.0, 3), **k),
    "a sample": lambda **k: memory_sgd(nesterov=True, evidence_sample=1, **k),
    "a link": scale_by_memory,
}


def in_blocks(path, leaf):
    return "blocks" in jax.tree_util.keystr(path)


def apart(tree):
    """Return a tree with layers of their own."""
    layers = {
        f"layer{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["blocks"])
        for i in range(LAYERS)
    }
    return layers | {"out": tree["out"]}


def gradients(steps):
    rng = np.random.default_rng(0)
    sizes = np.array([0.1, 1.0, 10.0])
    for _ in range(steps):
        grads = jax.tree.map(
            lambda leaf: np.float32(rng.normal(size=leaf.shape) + 0.5), PARAMS
        )
        blocks = jax.tree.map(
            lambda leaf: leaf * sizes.reshape(-1, *[1] * (leaf.ndim - 1)),
            grads["blocks"],
        )
        yield jax.tree.map(jnp.float32, {"blocks": blocks, "out": grads["out"]})


def train(optimizer, params, grads):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for one in grads:
        updates, state = update(one, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", MAKERS)
def test_stacked_layers_learn_as_layers_of_their_own(name):
    grads = list(gradients(8))
    params, state = train(MAKERS[name](stacked=in_blocks), PARAMS, grads)
    expected, alone = train(MAKERS[name](), apart(PARAMS), map(apart, grads))
    chex.assert_trees_all_close(apart(params), expected, rtol=1e-5)
    memory, memories = get_memory(state), get_memory(alone)
    assert list(memory) == NAMES
    for found, label in zip(NAMES, memories, strict=True):
        chex.assert_trees_all_close(memory[found], memories[label], rtol=1e-5)
    rates = [float(one.rates.max()) for one in memory.values()]
    assert len(set(rates)) == 4
    logs = summarize_memory(state)
    assert {"rate_mean/blocks/2", "rate_over_start/out"} <= set(logs)


def test_rates_and_inputs_of_stacked_layers():
    _, state = train(memory_adam(stacked=in_blocks), PARAMS, gradients(8))
    rates = get_rates(state, PARAMS)
    memory = get_memory(state)
    for i in range(LAYERS):
        expected = memory[f"blocks/{i}"].rates[0]
        np.testing.assert_array_equal(rates["blocks"]["b"][i], jnp.full(4, expected))
    inputs = get_kernel_inputs(state, PARAMS)
    assert {label: one.shape for label, one in inputs.items()} == {
        **{f"blocks/{i}": (20,) for i in range(LAYERS)},
        "out": (4,),
    }
    # Over the root mean square of a layer, not of all of them.
    np.testing.assert_allclose(inputs["blocks/0"][:4], 1.0)


def test_memories_of_stacked_layers_go_on(tmp_path):
    optimizer = memory_adam(stacked=in_blocks)
    _, state = train(optimizer, PARAMS, gradients(8))
    memory, fresh = get_memory(state), optimizer.init(PARAMS)
    chex.assert_trees_all_equal(get_memory(set_memory(fresh, memory)), memory)
    save_memory(tmp_path / "memory.safetensors", memory)
    chex.assert_trees_all_equal(load_memory(tmp_path / "memory.safetensors"), memory)
    # To a model of other depth, by the place in the stack.
    deeper = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), PARAMS["blocks"])
    state = optimizer.init({"blocks": deeper, "out": PARAMS["out"]})
    adapted = adapt_memory(memory, state)
    assert adapted["blocks/5"].rates == memory["blocks/2"].rates
    # An ensemble of such models.
    stacked = jax.vmap(optimizer.init)(
        jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    )
    assert list(get_memory(stacked)) == NAMES
    assert get_memory(stacked)["blocks/1"].rates.shape == (2, 1)


def test_kernels_of_stacked_layers_may_differ():
    """As after a transfer that brings kernels of its own for every layer."""
    memory = {
        name: Memory(linspace_kernels(bound, 3), np.array([1e-3, 2e-3, 3e-3]))
        for name, bound in zip(NAMES, (0.5, 1.0, 2.0, 4.0), strict=True)
    }
    renamed = {name.replace("blocks/", "layer"): one for name, one in memory.items()}
    grads = list(gradients(4))
    stacked = scale_by_memory(memory, stacked=in_blocks)
    params, _ = train(stacked, PARAMS, grads)
    expected, _ = train(scale_by_memory(renamed), apart(PARAMS), map(apart, grads))
    chex.assert_trees_all_close(apart(params), expected, rtol=1e-6)


def test_a_network_scanned_over_its_blocks():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dense(4)(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            blocks = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=LAYERS,
            )
            x, _ = blocks(name="blocks")(x, None)
            return nn.Dense(1)(x)

    net: Any = Net()
    x = jnp.ones((2, 4))
    params = net.init(jax.random.key(0), x)
    optimizer = memory_sgd(stacked=in_blocks)
    grads = jax.grad(lambda params: jnp.sum(net.apply(params, x) ** 2))(params)
    _, state = train(optimizer, params, [grads] * 3)
    layers = [f"params/blocks/Dense_0/{i}" for i in range(LAYERS)]
    assert list(get_memory(state)) == ["params/Dense_0", *layers]


def test_what_cannot_be_stacked_is_refused():
    everything = memory_adam(stacked=lambda path, leaf: True)
    with pytest.raises(ValueError, match=r"stacked must choose .* got 'a number at x'"):
        everything.init({"x": jnp.ones(())})
    with pytest.raises(ValueError, match=r"same of all tensors of 'a', .* \(2, 3\)"):
        everything.init({"a": {"b": jnp.ones(2), "w": jnp.ones((3, 2))}})
    wrong: Any = "blocks"
    with pytest.raises(ValueError, match="stacked must be a function"):
        memory_adam(stacked=wrong)


@pytest.mark.parametrize("name", MAKERS)
def test_frozen_memories_stay_and_others_learn_on(name):
    grads = list(gradients(6))
    make = MAKERS[name]
    _, free = train(make(stacked=in_blocks), PARAMS, grads)
    _, state = train(make(stacked=in_blocks, frozen=["blocks/1", "out"]), PARAMS, grads)
    memory = get_memory(state)
    for label, one in get_memory(free).items():
        if label in ("blocks/1", "out"):
            np.testing.assert_array_equal(memory[label].rates, np.float32(1e-3))
            assert not np.array_equal(one.rates, memory[label].rates)
        else:
            np.testing.assert_array_equal(memory[label].rates, one.rates)
    _, state = train(make(stacked=in_blocks, frozen={"blocks"}), PARAMS, grads)
    for i in range(LAYERS):
        rates = get_memory(state)[f"blocks/{i}"].rates
        np.testing.assert_array_equal(rates, np.float32(1e-3))


def test_unknown_labels_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"frozen must have labels .* got \['in'\]"):
        memory_adam(frozen=["in"]).init(PARAMS)
    with pytest.raises(ValueError, match="frozen must be a collection of labels"):
        memory_adam(frozen="blocks")
