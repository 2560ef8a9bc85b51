"""Taking memories out of training states and giving them on."""

from typing import Any

import chex
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

from metalr_optax import (
    Kernels,
    Memory,
    get_memory,
    linspace_kernels,
    match_labels,
    paper_adam,
    paper_sgd,
    scale_by_memory,
    set_memory,
    summarize_memory,
)

PARAMS = {"a": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, "c": jnp.ones(2)}
WRAPPERS = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx, optax.scale(0.5)),
    "named_chain": lambda tx: optax.named_chain(("x", optax.clip(1.0)), ("tx", tx)),
    "masked": lambda tx: optax.masked(tx, {"a": True, "c": True}),
    "partition": lambda tx: optax.partition({"x": tx}, {"a": "x", "c": "x"}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "inject": lambda tx: optax.inject_hyperparams(lambda s: optax.chain(tx, s), "s")(
        optax.scale(1.0)
    ),
}


def learned(optimizer, params=PARAMS, steps=4):
    """Return the state after a few steps in which most rates move."""
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    for step in range(steps):
        updates = jax.tree.map(lambda x, s=step: x * (1.0 + 0.1 * s), params)
        _, state = update(updates, state, params)
    return state


@pytest.mark.parametrize("name", WRAPPERS)
def test_memory_goes_through_wrappers_and_nothing_else_does(name):
    optimizer = WRAPPERS[name](paper_sgd(initial=0.01))
    memory = get_memory(learned(optimizer))
    assert list(memory) == ["a", "c"]
    assert np.max(memory["a"].rates) > 0.015
    fresh = optimizer.init(PARAMS)
    transferred = set_memory(fresh, memory)
    chex.assert_trees_all_equal(get_memory(transferred), memory)
    # Transfer to itself is the identity; all else is what init made.
    chex.assert_trees_all_equal(set_memory(transferred, get_memory(fresh)), fresh)
    assert jax.tree.map(jax.typeof, transferred) == jax.tree.map(jax.typeof, fresh)


def test_set_memory_equals_initial():
    memory = get_memory(learned(paper_adam(initial=0.01)))
    one = set_memory(paper_adam(initial=0.5).init(PARAMS), memory)
    other = paper_adam(initial=memory).init(PARAMS)
    chex.assert_trees_all_equal(one, other)


def test_kernels_are_transferred_with_the_rates():
    other = Memory(linspace_kernels(0.5, 20), np.geomspace(1e-3, 0.1, 20))
    memory = {"a": other, "c": other}
    state = set_memory(paper_sgd().init(PARAMS), memory)
    for one in get_memory(state).values():
        chex.assert_trees_all_close(one[:2], jax.tree.map(jnp.float32, other[:2]))
        # A memory made by hand knows no evidence, and takes the address of the state.
        assert not one.evidence_weight.any()
        assert not one.rms_normalized


def test_a_large_tensor_reads_the_kernels_it_was_given():
    """Its table follows the kernels in the state, not those of the construction."""
    params = {"a": np.float32(np.random.default_rng(0).normal(size=(128, 129)) / 5)}
    rates = np.geomspace(1e-3, 0.1, 20)
    memory = {"a": Memory(linspace_kernels(0.5, 20), rates)}
    optimizer, built = scale_by_memory(), scale_by_memory(memory)
    state = set_memory(jax.jit(optimizer.init)(params), memory)
    updates, _ = jax.jit(optimizer.update)(params, state)
    expected, _ = jax.jit(built.update)(params, jax.jit(built.init)(params))
    chex.assert_trees_all_equal(updates, expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m | {"c": m["c"]._replace(kernels=linspace_kernels(1, 20))}, "same"),
        (
            lambda m: {
                label: one._replace(kernels=linspace_kernels(2.0, 20, width=0.02))
                for label, one in m.items()
            },
            "on the grid",
        ),
    ],
)
def test_kernels_that_a_shared_table_cannot_serve_are_refused(change, match):
    optimizer = paper_sgd()
    state = optimizer.init(PARAMS)
    memory = change(get_memory(state))
    with pytest.raises(ValueError, match=rf"(?s){match}.*initial=memory"):
        set_memory(state, memory)
    # What the message says works, also under vmap and where nothing is concrete.
    again = paper_sgd(initial=memory).init(PARAMS)
    chex.assert_trees_all_equal(set_memory(again, get_memory(again)), again)
    jax.eval_shape(lambda: set_memory(optimizer.init(PARAMS), get_memory(state)))


def test_memories_outlive_the_donation_of_their_state():
    optimizer = paper_sgd(initial=0.01)
    step = jax.jit(optimizer.update, donate_argnums=1)
    state, history = optimizer.init(PARAMS), []
    for _ in range(3):
        history.append(get_memory(state))
        _, state = step(PARAMS, state)
    successor = paper_sgd(initial=history[-1])
    step(PARAMS, state)
    jax.jit(successor.update)(PARAMS, jax.jit(successor.init)(PARAMS))
    assert np.all(np.isfinite([memory["a"].rates for memory in history]))


def test_one_memory_can_start_every_group():
    one = get_memory(learned(paper_sgd(initial=0.01)))["a"]
    memory = get_memory(paper_sgd(initial=one).init(PARAMS))
    # Only the layers are of other sizes.
    fan_ins = [one.fan_in for one in memory.values()]
    assert fan_ins == [2.0, 0.0]
    same = {label: x._replace(fan_in=one.fan_in) for label, x in memory.items()}
    chex.assert_trees_all_equal(same, {"a": one, "c": one})


def test_a_transferred_memory_survives_the_donation_of_its_new_state():
    memory = get_memory(learned(paper_sgd(initial=0.01)))
    optimizer = paper_sgd()
    state = set_memory(optimizer.init(PARAMS), memory)
    jax.jit(optimizer.update, donate_argnums=1)(PARAMS, state)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(memory))


def test_flax_train_state():
    model = flax.linen.Dense(2)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 3)))
    optimizer = paper_adam(initial=0.01)
    fresh = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    step = jax.jit(lambda state: state.apply_gradients(grads=params))
    state = step(step(fresh))
    memory = get_memory(state)
    assert list(memory) == ["params"]
    chex.assert_trees_all_equal(get_memory(set_memory(fresh, memory)), memory)


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("all", ["all"]),
        ("tensor", ["bias", "kernel"]),
        ("layer", ["bias", "kernel"]),
        (lambda path, leaf: jax.tree_util.keystr(path), ["['bias']", "['kernel']"]),
    ],
)
def test_flax_nnx_optimizer(group_by, expected):
    adam = paper_adam(initial=0.01, group_by=group_by)

    def make():
        model = flax.nnx.Linear(3, 2, rngs=flax.nnx.Rngs(0))
        return model, flax.nnx.Optimizer(model, adam, wrt=flax.nnx.Param)

    @flax.nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean((model(jnp.ones((1, 3))) - 5.0) ** 2)

        optimizer.update(model, flax.nnx.grad(loss)(model))

    model, optimizer = make()
    for _ in range(3):
        step(model, optimizer)
    memory = get_memory(optimizer)
    assert sorted(memory) == expected
    for one in memory.values():
        assert isinstance(one.rates, jax.Array)
        assert np.max(one.rates) > 0.015
    chex.assert_trees_all_equal(get_memory(optimizer.opt_state), memory)

    model, fresh = make()
    fresh.opt_state = set_memory(fresh.opt_state, memory)
    chex.assert_trees_all_equal(get_memory(fresh), memory)
    step(model, fresh)  # and it trains on


def test_states_of_a_vmap_are_transferred_together():
    optimizer = paper_sgd(initial=0.01)
    params = jax.tree.map(lambda x: np.stack([x, 2 * x]), PARAMS)
    fresh = jax.jit(jax.vmap(optimizer.init))(params)
    update = jax.jit(jax.vmap(optimizer.update))
    _, state = update(params, fresh)
    _, state = update(params, state)
    memory = get_memory(state)
    assert memory["a"].rates.shape == (2, 20)
    chex.assert_trees_all_equal(get_memory(set_memory(fresh, memory)), memory)

    flat = {
        label: one._replace(kernels=jax.tree.map(jnp.zeros_like, one.kernels))
        for label, one in memory.items()
    }
    with pytest.raises(ValueError, match="widths within"):
        set_memory(fresh, flat)


def test_a_bare_memory_is_not_a_mapping():
    state = paper_sgd().init(PARAMS)
    bare: Any = get_memory(state)["a"]
    with pytest.raises(ValueError, match="memory must be a mapping"):
        set_memory(state, bare)


def test_parts_of_a_layer_are_told_apart():
    optimizer = optax.partition(
        {"w": paper_sgd(), "b": paper_adam(), "c": optax.identity()},
        {"a": {"w": "w", "b": "b"}, "c": "c"},
    )
    state: Any = learned(optimizer)
    memory = get_memory(state)
    assert list(memory) == ["b/a", "w/a"]
    assert not np.array_equal(memory["b/a"].rates, memory["w/a"].rates)
    chex.assert_trees_all_equal(memory["w/a"], get_memory(state.inner_states["w"])["a"])
    assert {"rate_mean/b/a", "rate_mean/w/a"} <= set(summarize_memory(state))
    fresh = set_memory(jax.jit(optimizer.init)(PARAMS), memory)
    chex.assert_trees_all_equal(get_memory(fresh), memory)
    with pytest.raises(ValueError, match=r"missing \['b/a', 'w/a'\]"):
        set_memory(state, {"a": memory["w/a"]})
    # From a run whose layers were whole, and back.
    whole = paper_sgd().init(PARAMS)
    assert match_labels(get_memory(whole), state) == {"b/a": "a", "w/a": "a"}
    parts = {label: one for label, one in memory.items() if label == "w/a"}
    assert match_labels(parts, whole) == {"a": "w/a", "c": "w/a"}


@pytest.mark.parametrize(
    ("states", "labels"),
    [
        (lambda s: {"one": s, "two": s}, ["one/c", "two/c"]),
        (lambda s: (s, {"x": s}), ["0/c", "1/x/c"]),
        (lambda s: [{"x": (s, 1)}, {"x": (s, 2)}], ["0/c", "1/c"]),
        (lambda s: {"x": {"m": s}, "y": {"n": s}, "z": 1}, ["x/m/c", "y/n/c"]),
    ],
)
def test_states_of_one_label_are_told_apart_by_where_they_are(states, labels):
    state = paper_sgd().init({"c": jnp.ones(2)})
    assert list(get_memory(states(state))) == labels


def test_states_without_a_memory_are_refused():
    with pytest.raises(ValueError, match="must contain a state of scale_by_memory"):
        get_memory(optax.adam(0.1).init(PARAMS))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: {"a": m["a"]}, r"missing \['c'\], unknown \[\]"),
        (lambda m: m | {"d": m["a"]}, r"missing \[\], unknown \['d'\]"),
        (
            lambda m: m | {"a": Memory(linspace_kernels(2.0, 7), np.full(7, 0.1))},
            r"shape \(20,\) for this state, got \(7,\)",
        ),
        (lambda m: m | {"a": m["a"].rates}, r"memory\['a'\] must be a metalr_optax"),
        (lambda m: m | {"a": m["a"]._replace(rates=-m["a"].rates)}, "rates within"),
        (lambda m: m | {"a": m["a"]._replace(rates=np.full(20, np.nan))}, "rates with"),
        (
            lambda m: m | {"a": m["a"]._replace(kernels=Kernels(*2 * [np.zeros(20)]))},
            "widths within",
        ),
    ],
)
def test_memories_that_do_not_fit_are_refused(change, match):
    state = scale_by_memory(0.01).init(PARAMS)
    with pytest.raises(ValueError, match=match):
        set_memory(state, change(get_memory(state)))
