"""Layers that are stacked in one tensor, and memories that stay as they are."""

import functools
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
    agreement_steps,
    get_kernel_inputs,
    get_memory,
    get_rates,
    learn_rates,
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
    "blocks": {"w": np.linspace(-0.9, 1.1, 48, dtype="f4").reshape(LAYERS, 4, 4),
               "b": np.ones((LAYERS, 4), "f4")},
    "out": np.linspace(0.5, 1, 4, dtype="f4"),
}  # fmt: skip
NAMES = ["blocks/0", "blocks/1", "blocks/2", "out"]
MAKERS: dict[str, Any] = {
    "memory_sgd": lambda **k: memory_sgd(weight_decay=0.1, **k),
    "memory_adam": memory_adam,
    "a landscape": lambda **k: memory_adam(kernels=linspace_kernels(2.0, 3), **k),
    "a sample": lambda **k: memory_sgd(nesterov=True, evidence_sample=1, **k),
    "a link": scale_by_memory,
}


def by_layer(path, leaf):
    """Return the label of a layer, or those of all that are stacked in a block."""
    *names, name = [key.key for key in path]
    label = "/".join(names or [name])
    if "blocks" not in names:
        return label
    return [f"{label}/{i}" for i in range(leaf.shape[0])]


def apart(tree):
    """Return a tree with layers of their own."""
    layers = {
        f"layer{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["blocks"])
        for i in range(LAYERS)
    }
    return layers | {"out": tree["out"]}


def gradients(steps):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        grads = jax.tree.map(
            lambda leaf: np.float32(rng.normal(size=leaf.shape) + 0.5), PARAMS
        )
        for leaf in grads["blocks"].values():
            leaf.T[:] *= np.array([0.1, 1.0, 10.0], "f4")  # the first axis is the layer
        yield grads


def train(optimizer, params, grads):
    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def scan(params, grads):
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[0]

    params, state = scan(params, jax.tree.map(lambda *steps: np.stack(steps), *grads))
    return jax.tree.map(np.asarray, params), state


@pytest.mark.parametrize("name", MAKERS)
def test_stacked_layers_learn_as_layers_of_their_own(name):
    grads = list(gradients(8))
    params, state = train(MAKERS[name](group_by=by_layer), PARAMS, grads)
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
    _, state = train(memory_adam(group_by=by_layer), PARAMS, gradients(8))
    rates = get_rates(state, PARAMS, group_by=by_layer)
    memory = get_memory(state)
    for i in range(LAYERS):
        expected = memory[f"blocks/{i}"].rates[0]
        np.testing.assert_array_equal(rates["blocks"]["b"][i], jnp.full(4, expected))
    inputs = get_kernel_inputs(state, PARAMS, group_by=by_layer)
    assert {label: one.shape for label, one in inputs.items()} == {
        **{f"blocks/{i}": (20,) for i in range(LAYERS)},
        "out": (4,),
    }
    # Over the root mean square of a layer, not of all of them.
    np.testing.assert_allclose(inputs["blocks/0"][:4], 1.0)


def test_memories_of_stacked_layers_go_on(tmp_path):
    optimizer = memory_adam(group_by=by_layer)
    _, state = train(optimizer, PARAMS, gradients(8))
    init = jax.jit(optimizer.init)
    memory, fresh = get_memory(state), init(PARAMS)
    chex.assert_trees_all_equal(get_memory(set_memory(fresh, memory)), memory)
    save_memory(tmp_path / "memory.safetensors", memory)
    chex.assert_trees_all_equal(load_memory(tmp_path / "memory.safetensors"), memory)
    # To a model of other depth, by the place in the stack.
    deeper = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), PARAMS["blocks"])
    state = init({"blocks": deeper, "out": PARAMS["out"]})
    adapted = adapt_memory(memory, state)
    assert adapted["blocks/5"].rates == memory["blocks/2"].rates
    # An ensemble of such models.
    twice = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), PARAMS)
    stacked = jax.jit(jax.vmap(optimizer.init))(twice)
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
    stacked = scale_by_memory(memory, group_by=by_layer)
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
    params = jax.jit(net.init)(jax.random.key(0), x)
    optimizer = memory_sgd(group_by=by_layer)
    grad = jax.jit(jax.grad(lambda params: jnp.sum(net.apply(params, x) ** 2)))
    _, state = train(optimizer, params, [grad(params)] * 3)
    layers = [f"params/blocks/Dense_0/{i}" for i in range(LAYERS)]
    assert list(get_memory(state)) == ["params/Dense_0", *layers]


def test_stacked_layers_add_no_arrays_to_a_state():
    """However many they are: every array of a state costs time in every call."""
    optimizer = scale_by_memory(group_by=by_layer)
    state: Any = jax.jit(optimizer.init)(PARAMS)
    blocks = dict.fromkeys(NAMES[:-1])
    assert state.rows == {**blocks, "out": 3}
    single = jax.tree.map(lambda leaf: leaf[:1], PARAMS | {"out": PARAMS["out"][None]})
    alone = jax.eval_shape(optimizer.init, single)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(alone))


def test_slices_may_share_memories_with_each_other_and_with_tensors():
    """One memory of all even layers and what is no block, and one of the odd layer."""

    def even_or_odd(path, leaf):
        shared = ["even", "odd", "even"]
        return shared if "blocks" in jax.tree_util.keystr(path) else "even"

    def like_them(path, leaf):
        return "odd" if "layer1" in jax.tree_util.keystr(path) else "even"

    grads = list(gradients(8))
    params, state = train(scale_by_memory(group_by=even_or_odd), PARAMS, grads)
    alone = scale_by_memory(group_by=like_them)
    expected, other = train(alone, apart(PARAMS), map(apart, grads))
    chex.assert_trees_all_close(apart(params), expected, rtol=1e-5)
    chex.assert_trees_all_close(get_memory(state), get_memory(other), rtol=1e-5)


@pytest.mark.parametrize(
    "label", [["a", "b"], ["a", "b", "c", "d"], ["a", "b", 3], [], 3, None]
)
def test_what_is_no_label_of_slices_is_refused(label):
    optimizer = memory_adam(group_by=lambda path, leaf: label)
    with pytest.raises(ValueError, match="group_by must return a label"):
        optimizer.init({"w": jnp.ones((3, 2))})


def test_a_number_has_no_slices():
    optimizer = memory_adam(group_by=lambda path, leaf: ["a"])
    with pytest.raises(ValueError, match=r"first axis of x, \(\), got \['a'\]"):
        optimizer.init({"x": jnp.ones(())})


def partly_kept(make, kept, **options):
    """Return an optimizer whose memories of some top level names stay as they are."""
    parts: dict[Any, Any] = {
        "learns": make(**options),
        "stays": make(memory_optimizer=optax.set_to_zero(), **options),
    }
    names = {name: "stays" if name in kept else "learns" for name in PARAMS}
    return optax.partition(parts, names, mask_compatible_extra_args=True)


KEEPERS: dict[str, Any] = {
    "a link": scale_by_memory,
    "memory_sgd": memory_sgd,
    "memory_adam": functools.partial(memory_adam, initial=1e-3),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_memories_of_a_part_stay_and_others_learn_on(name):
    """As if the others had been alone, and at the rate that the memories kept."""
    grads, make = list(gradients(6)), KEEPERS[name]
    free = make(group_by=by_layer)
    runs = {
        part: train(free, {part: PARAMS[part]}, [{part: g[part]} for g in grads])
        for part in PARAMS
    }
    for kept, learns in (("blocks", "out"), ("out", "blocks")):
        optimizer = partly_kept(make, (kept,), group_by=by_layer)
        params, state = train(optimizer, PARAMS, grads)
        memory = get_memory(state)
        assert sorted(memory) == NAMES
        for label, moved in get_memory(runs[kept][1]).items():
            np.testing.assert_array_equal(memory[label].rates, np.float32(1e-3))
            assert not np.array_equal(moved.rates, memory[label].rates)
        alone, own = runs[learns]
        for label, expected in get_memory(own).items():
            chex.assert_trees_all_close(memory[label], expected, rtol=1e-6)
        chex.assert_trees_all_close(params[learns], alone[learns], rtol=1e-6)


def test_memories_of_single_layers_of_a_stack_stay():
    """A memory optimizer sees the rates of all, a row for each, by label."""
    learns = jnp.array([[label not in ("blocks/1", "out")] for label in NAMES])

    def make(rule):
        return learn_rates(
            optax.sgd(1.0, 0.9),
            initial=1e-3,
            group_by=by_layer,
            memory_optimizer=rule,
        )

    def mask(steps: Any, _: Any) -> Any:
        return jnp.where(learns, steps, 0)

    masked = optax.stateless(mask)
    grads = list(gradients(6))
    _, state = train(make(optax.chain(agreement_steps(), masked)), PARAMS, grads)
    _, free = train(make(agreement_steps()), PARAMS, grads)
    memory, others = get_memory(state), get_memory(free)
    for label, is_free in zip(NAMES, learns, strict=True):
        rate, other = memory[label].rates, others[label].rates
        assert abs(other / 1e-3 - 1) > 1e-2
        if is_free:
            np.testing.assert_allclose(rate, other, rtol=1e-6)
        else:
            np.testing.assert_array_equal(rate, np.float32(1e-3))


def test_a_kept_memory_is_a_constant_rate():
    grads = list(gradients(6))
    kept: Any = partly_kept(scale_by_memory, ("blocks", "out"))
    found, _ = train(optax.chain(kept, optax.scale(-1.0)), PARAMS, grads)
    expected, _ = train(optax.sgd(1e-3), PARAMS, grads)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


@pytest.mark.parametrize("largest_step", [None, 0.1])
def test_kept_rates_follow_their_schedule_and_nothing_else(largest_step):
    """Of the run that has learned it, whatever the gradients of this one say."""
    schedule = np.concatenate([np.linspace(1.0, 0.0, 4), np.zeros(16)])
    memory = Memory(linspace_kernels(1.0, 1), np.array([1e-3]), schedule=schedule)
    still = learn_rates(
        optax.sgd(1.0),
        initial=memory,
        memory_optimizer=optax.set_to_zero(),
        largest_step=largest_step,
        clip_norm=1e9,
    )
    state, update = jax.jit(still.init)(PARAMS), jax.jit(still.update)
    # A straight way in the logs of rates from mark to mark: steps 1, 2, 4 and 8.
    expected = 1e-3 * np.exp(np.interp(np.arange(1, 9), [1, 2, 4, 8], schedule[:4]))
    for rate, one in zip(expected, gradients(8), strict=True):
        updates, state = update(one, state, PARAMS)
        wanted = jax.tree.map(lambda g, rate=rate: -rate * g, one)
        chex.assert_trees_all_close(updates, wanted, rtol=1e-4)


@pytest.mark.parametrize("make", [scale_by_memory, memory_adam, memory_sgd])
@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("stacked", by_layer, r"group_by=lambda path, leaf: \[f'layer/{i}' for i in"),
        (
            "frozen",
            ["out"],
            r"optax.partition, .*memory_optimizer=optax.set_to_zero\(\)",
        ),
    ],
)
def test_removed_arguments_are_refused_with_what_replaces_them(
    make, name, value, instead
):
    with pytest.raises(TypeError, match=rf"{make.__name__}\(\) has no '{name}': use"):
        make(**{name: value})
    with pytest.raises(TypeError, match=instead):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "instead"), [("inner", "base_optimizer"), ("address", "normalize")]
)
def test_older_names_of_arguments_are_refused_too(name, instead):
    make: Any = scale_by_memory
    with pytest.raises(TypeError, match=rf"has no '{name}': use {instead}"):
        make(**{name: None})


def test_the_replacement_that_an_error_shows_works():
    make: Any = memory_adam
    with pytest.raises(TypeError) as error:
        make(stacked=by_layer)
    shown = str(error.value).split("group_by=")[1].split(", a label")[0]
    state = jax.jit(memory_adam(group_by=eval(shown)).init)(PARAMS["blocks"])
    assert list(get_memory(state)) == [f"layer/{i}" for i in range(LAYERS)]
