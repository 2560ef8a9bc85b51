"""A memory fits another model: labels are matched by name, order and role."""

import functools
from typing import Any, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalr_optax import (
    Kernels,
    Memory,
    adapt_memory,
    get_memory,
    linspace_kernels,
    logspace_kernels,
    match_labels,
    memory_adam,
    memory_sgd,
    paper_sgd,
    scale_by_memory,
    set_memory,
)

EVEN = linspace_kernels(2.0, 20)


def state_of(*labels, optimizer=None):
    """State of an optimizer with these labels."""
    optimizer = optimizer or memory_sgd(group_by=lambda path, _: path[0].key)
    return optimizer.init({label: np.zeros(2, "f4") for label in labels})


def scalar(rate, steps=1.0):
    return Memory(linspace_kernels(1.0, 1), np.array([rate]), np.array([steps]))


def match(new, old):
    return match_labels(dict.fromkeys(old), state_of(*new))


# Which label starts from which


def test_the_same_label_is_the_first_choice():
    assert match(["a", "b"], ["b", "a"]) == {"a": "a", "b": "b"}


def test_numbers_are_layers_in_order():
    old = [f"params/Dense_{i}" for i in range(3)]
    new = [f"net/Dense_{i}" for i in range(11)]
    # Same role, another module: first to first, last to last, 10 after 9.
    found = cast(Any, match(new, old))
    assert [found[f"net/Dense_{i}"][-1] for i in range(11)] == list("00011111222")
    deeper = [f"params/Dense_{i}" for i in range(5)]
    found = cast(Any, match(deeper, old))
    assert [found[one][-1] for one in deeper] == list("01222")
    assert match(["net/Dense_0"], old) == {"net/Dense_0": "params/Dense_0"}


def test_a_tensor_starts_from_its_layer():
    old = ["net", "net/Dense_1", "net/Dense_10"]
    assert match(["net/Dense_1/kernel"], old) == {"net/Dense_1/kernel": "net/Dense_1"}


@pytest.mark.parametrize(
    ("new", "role"),
    [
        ("Dense_0/kernel", "kernel"),
        ("mlp/~/linear_1/w", "kernel"),
        ("layers/3/weight", "kernel"),
        ("head", "kernel"),
        ("Conv_2", "kernel"),
        ("Dense_0/bias", "bias"),
        ("linear/b", "bias"),
        ("LayerNorm_0/bias", "norm"),
        ("blocks/2/ln_1/weight", "norm"),
        ("BatchNorm_0", "norm"),
        ("x/scale", "norm"),
        ("Embed_0/embedding", "embedding"),
        ("wte/weight", "embedding"),
        ("position", "embedding"),
        ("pos_embedding", "embedding"),
        ("embedder/0/w", "embedding"),
        ("layer1/bn1", "norm"),
        ("ln1/weight", "norm"),
        ("ln", "norm"),
        ("norms/0/weight", "norm"),
        ("decomposition/kernel", "kernel"),
        ("abnormal", "kernel"),
        ("columns", "kernel"),
    ],
)
def test_roles(new, role):
    old = {"kernel": "K/kernel", "bias": "K/bias", "norm": "Norm", "embedding": "Embed"}
    assert match([new], old.values()) == {new: old[role]}
    others = [one for key, one in old.items() if key != role]
    assert match([new], others) == {new: None}


@pytest.mark.parametrize("layers", [2, 5])
def test_flax_modules_of_another_depth(layers):
    class Net(nn.Module):
        depth: int

        @nn.compact
        def __call__(self, x):
            for _ in range(self.depth):
                x = nn.LayerNorm()(nn.Dense(3)(x))
            return x

    @functools.partial(jax.jit, static_argnums=0)
    def init(depth):
        params = Net(depth).init(jax.random.key(0), jnp.zeros((1, 2)))
        return memory_adam(initial=1e-3).init(params)

    learned = get_memory(init(3))
    for number, label in enumerate(learned):
        learned[label] = learned[label]._replace(rates=np.array([0.1 * (number + 1)]))
    state = init(layers)
    found = match_labels(learned, state)
    adapted = get_memory(set_memory(state, adapt_memory(learned, state)))
    for label, source in found.items():
        assert source is not None
        assert label.split("_")[0] == source.split("_")[0]
        np.testing.assert_allclose(adapted[label].rates, learned[source].rates, 1e-6)


def test_layers_left_out_and_added():
    """A frozen layer has no memory; one that is thawed starts from another."""
    params = {f"Dense_{i}": {"kernel": jnp.ones((2, 2))} for i in range(3)}

    def init(*trained):
        mask = {label: label in trained for label in params}
        return optax.masked(memory_sgd(), mask).init(params)

    first = init("Dense_1", "Dense_2")
    learned = get_memory(first)
    learned["Dense_1"] = learned["Dense_1"]._replace(rates=np.array([0.5]))
    second = init("Dense_0", "Dense_1")
    found = match_labels(learned, second)
    assert found == {"Dense_0": "Dense_1", "Dense_1": "Dense_1"}
    adapted = get_memory(set_memory(second, adapt_memory(learned, second)))
    assert [float(one.rates[0]) for one in adapted.values()] == [0.5, 0.5]


def test_small_tensors_beside_frozen_ones_start_from_their_layers():
    """Low-rank adapters: another tree, some layers without any."""
    full = {f"Dense_{i}": {"kernel": jnp.ones((4, 4))} for i in range(3)}
    learned = get_memory(memory_sgd().init(full))
    for number, label in enumerate(learned):
        learned[label] = learned[label]._replace(rates=np.array([0.1 * (number + 1)]))
    low = {"a": jnp.ones((4, 1)), "b": jnp.zeros((1, 4))}
    adapters = {"Dense_0": low, "Dense_1": None, "Dense_2": low}
    state = jax.jit(memory_sgd(group_by="tensor").init)(adapters)
    found = match_labels(learned, state)
    assert found == {
        f"Dense_{i}/{name}": f"Dense_{i}" for i in (0, 2) for name in ("a", "b")
    }
    rates = [float(one.rates[0]) for one in adapt_memory(learned, state).values()]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.3, 0.3], rtol=1e-6)
    kept = {label: learned[label] for label in ("Dense_0", "Dense_2")}
    set_memory(memory_sgd().init(adapters), kept)


# What a memory becomes


def test_to_itself_it_is_the_identity():
    kernels = logspace_kernels(2.0, 6)
    memory = Memory(kernels, np.geomspace(1e-3, 1.0, 7), np.arange(7.0))
    state = set_memory(paper_sgd(kernels=kernels).init(jnp.ones(2)), {"params": memory})
    learned = get_memory(state)
    chex.assert_trees_all_equal(adapt_memory(learned, state), learned)
    chex.assert_trees_all_equal(set_memory(state, adapt_memory(learned, state)), state)


@pytest.mark.parametrize("double", ["memory", "state"])
def test_precision_alone_is_no_other_kernel(double):
    rates = np.full(20, 1e-3)
    rates[7] = 0.1
    memory = {"params": Memory(EVEN, rates)}
    if double == "state":
        kernels = Kernels(*(np.asarray(array, np.float32) for array in EVEN))
        memory = {"params": Memory(kernels, np.asarray(rates, np.float32))}
    with jax.enable_x64(double == "state"):
        state = paper_sgd().init(jnp.ones(2, float))
        adapted = adapt_memory(memory, state)
    np.testing.assert_allclose(adapted["params"].rates, rates, rtol=1e-6)


def test_what_has_no_values_is_refused():
    shapes = jax.eval_shape(memory_sgd().init, {"a": jnp.ones(2)})
    state, memory = state_of("a"), {"a": scalar(0.1)}
    with pytest.raises(ValueError, match="opt_state must have values"):
        adapt_memory(memory, shapes)
    with pytest.raises(ValueError, match="opt_state must have values"):
        set_memory(shapes, memory)
    with pytest.raises(ValueError, match="must have values: adapt it outside"):
        jax.jit(lambda state: adapt_memory(get_memory(state), state))(state)


def test_members_of_a_vmapped_state_are_adapted_one_by_one():
    states = jax.jit(jax.vmap(memory_sgd().init))({"a": jnp.ones((4, 3))})
    memory = {"a": scalar(0.1)}
    with pytest.raises(ValueError, match=r"shape \(4, 1\).*a memory per member"):
        set_memory(states, memory)
    with pytest.raises(ValueError, match="one member of a vmapped state and stack"):
        adapt_memory(memory, states)
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[0], states)
    adapted = adapt_memory(memory, one)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 4), adapted)
    chex.assert_shape(get_memory(set_memory(states, stacked))["a"].rates, (4, 1))


@functools.cache
def initialised(num):
    optimizer = scale_by_memory(kernels=linspace_kernels(2.0, num))
    return jax.jit(optimizer.init)(np.ones(2, "f4"))


# Few sizes, because each is compiled; any rates.
@settings(max_examples=30, deadline=None)
@given(
    rates=st.sampled_from([2, 3, 8]).flatmap(
        lambda num: st.lists(st.floats(1e-6, 1.0), min_size=num, max_size=num)
    ),
    num=st.sampled_from([1, 2, 9, 30]),
)
def test_resampling_stays_within_the_rates_and_keeps_the_evidence(rates, num):
    old = Memory(
        linspace_kernels(2.0, len(rates)),
        np.array(rates),
        np.arange(1.0, len(rates) + 1),
    )
    new = adapt_memory({"params": old}, initialised(num))["params"]
    assert new.rates.shape == new.evidence_weight.shape == (num,)
    assert (new.rates >= min(rates) * 0.999).all()
    assert (new.rates <= max(rates) * 1.001).all()
    np.testing.assert_allclose(
        new.evidence_weight.sum(), old.evidence_weight.sum(), rtol=1e-5
    )


def test_other_kernels_read_the_same_rates():
    old = Memory(linspace_kernels(2.0, 5), np.array([0.1, 0.2, 0.4, 0.2, 0.1]))
    state = scale_by_memory(kernels=linspace_kernels(2.0, 9)).init(jnp.ones(2))
    new = adapt_memory({"params": old}, state)["params"]
    distance = np.linspace(-2.0, 2.0, 9)[:, None] - np.linspace(-2.0, 2.0, 5)
    psi = np.exp(-(distance**2) / (2 * 0.5**2))
    np.testing.assert_allclose(new.rates, psi @ old.rates / psi.sum(1), rtol=1e-5)


def test_counts_go_to_the_nearest_centres():
    old = Memory(linspace_kernels(2.0, 9), np.full(9, 0.1), np.eye(9)[2] * 6.0)
    state = scale_by_memory(kernels=linspace_kernels(2.0, 5)).init(jnp.ones(2))
    new = adapt_memory({"params": old}, state)["params"]
    # By their strength at the old centre: 1, and exp(-2) for the neighbours.
    shares = np.exp([-2.0, 0.0, -2.0, -8.0, -18.0])
    np.testing.assert_allclose(
        new.evidence_weight, 6.0 * shares / shares.sum(), rtol=1e-4
    )


def test_a_landscape_becomes_its_mean_where_there_is_one_rate():
    rates, counts = np.array([0.001, 0.1, 1.0]), np.array([3.0, 1.0, 0.0])
    old = Memory(linspace_kernels(2.0, 3), rates, counts)
    new = adapt_memory({"params": old}, memory_sgd().init(jnp.ones(2)))["params"]
    # exp((3 log 1e-3 + log 0.1) / 4) = 10^(-10/4); nobody asked the third.
    np.testing.assert_allclose(new.rates, [10**-2.5], rtol=1e-5)
    np.testing.assert_allclose(new.evidence_weight, [4.0])
    unknown = {"params": old._replace(evidence_weight=None)}
    new = adapt_memory(unknown, memory_sgd().init(jnp.ones(2)))["params"]
    np.testing.assert_allclose(new.rates, [10 ** (-4 / 3)], rtol=1e-5)
    assert not new.evidence_weight.any()


def test_one_rate_becomes_a_flat_landscape():
    state = paper_sgd().init(jnp.ones(2))
    new = adapt_memory({"params": scalar(0.25, steps=40.0)}, state)["params"]
    np.testing.assert_allclose(new.rates, np.full(20, 0.25), rtol=1e-6)
    np.testing.assert_allclose(new.evidence_weight, np.full(20, 2.0))


def test_addresses_of_another_kind_are_not_mixed():
    value = get_memory(paper_sgd(kernels=EVEN).init({"a": jnp.ones(3)}))
    value["a"] = value["a"]._replace(rates=np.geomspace(1e-3, 1e-1, 20))
    optimizer = memory_sgd(kernels=EVEN)
    state = optimizer.init({"a": jnp.ones(3)})
    match = "normalize=None.*normalize='rms'.*adapt_memory"
    with pytest.raises(ValueError, match=match):
        set_memory(state, value)
    with pytest.raises(ValueError, match=match):
        memory_sgd(initial=value)
    adapted = adapt_memory(value, state)
    np.testing.assert_allclose(adapted["a"].rates, np.full(20, 1e-2), rtol=1e-5)
    assert get_memory(set_memory(state, adapted))["a"].rms_normalized
    # A single rate has no address.
    memory_sgd(initial=get_memory(paper_sgd(kernels=linspace_kernels(2, 1)).init(EVEN)))


def test_what_nothing_is_like_starts_from_all():
    memory = {"Dense_0": scalar(0.01, 3.0), "Dense_1": scalar(1.0, 1.0)}
    state = state_of("Dense_0", "LayerNorm_0")
    assert match_labels(memory, state)["LayerNorm_0"] is None
    adapted = adapt_memory(memory, state)
    np.testing.assert_allclose(adapted["Dense_0"].rates, [0.01], rtol=1e-6)
    np.testing.assert_allclose(adapted["LayerNorm_0"].rates, [10**-1.5], rtol=1e-5)
    assert not adapted["LayerNorm_0"].evidence_weight.any()
    set_memory(state, adapted)


def test_pooled_memories_are_resampled_first():
    coarse = Memory(linspace_kernels(2.0, 3), np.full(3, 1e-3), np.ones(3))
    memory = {"x": coarse, "y": Memory(EVEN, np.full(20, 1e-1), np.full(20, 3 / 20))}
    state = state_of("LayerNorm_0", optimizer=paper_sgd())
    adapted = adapt_memory(memory, state)["LayerNorm_0"]
    np.testing.assert_allclose(adapted.rates, np.full(20, 1e-2), rtol=1e-4)
    np.testing.assert_allclose(adapted.kernels.centers, EVEN.centers, rtol=1e-6)


def test_a_mapping_of_the_user_wins():
    memory = {"a": scalar(0.1), "b": scalar(0.4)}
    state = state_of("a", "c")
    mapping = match_labels(memory, state) | {"a": "b", "c": None}
    adapted = adapt_memory(memory, state, mapping)
    rates = [float(one.rates[0]) for one in adapted.values()]
    np.testing.assert_allclose(rates, [0.4, 0.2], rtol=1e-5)


def test_what_a_mapping_leaves_out_keeps_the_memory_of_the_state():
    state = state_of("trunk", "head")
    adapted = adapt_memory({"trunk": scalar(0.4, 9.0)}, state, {"trunk": "trunk"})
    np.testing.assert_allclose(adapted["trunk"].rates, [0.4], rtol=1e-6)
    chex.assert_trees_all_equal(adapted["head"], get_memory(state)["head"])
    after = get_memory(set_memory(state, adapted))["head"]
    chex.assert_trees_all_equal(after, get_memory(state)["head"])


@pytest.mark.parametrize(
    ("memory", "mapping", "match"),
    [
        ({}, None, "at least one"),
        ({"a": 3}, None, "must be a metalr_optax.Memory"),
        ({"a": scalar(np.nan)}, None, "rates within"),
        (
            {"a": scalar(0.1)._replace(evidence_weight=np.array([-1.0]))},
            None,
            "evidence_weight",
        ),
        ({1: scalar(0.1)}, None, "from labels .strings. to"),
        ({"a": scalar(0.1)}, {"z": "a"}, "mapping must have labels of opt_state"),
        ({"a": scalar(0.1)}, {"a": "a", "c": "d"}, r"lead to labels.*\['d'\]"),
    ],
)
def test_what_does_not_fit_is_named(memory, mapping, match):
    with pytest.raises(ValueError, match=match):
        adapt_memory(memory, state_of("a", "c"), mapping)


def test_strict_errors_say_what_maps():
    memory, state = {"a": scalar(0.1)}, state_of("a", "c")
    with pytest.raises(ValueError, match=r"missing \['c'\].*adapt_memory"):
        set_memory(state, memory)
    with pytest.raises(ValueError, match=r"missing \['c'\].*adapt_memory"):
        memory_sgd(initial=memory).init({"a": jnp.ones(2), "c": jnp.ones(2)})
    memory["c"] = Memory(Kernels(*EVEN), np.full(20, 0.1))
    with pytest.raises(ValueError, match=r"shape \(1,\).*adapt_memory"):
        set_memory(state, memory)
