"""Labels, orientation, hostile values and refused arguments of scale_by_memory."""

import subprocess
import sys
from typing import Any

import chex
import equinox as eqx
import flax.linen
import flax.nnx
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    Kernels,
    Memory,
    get_memory,
    learn_rates,
    linspace_kernels,
    logspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
    save_memory,
    scale_by_memory,
    set_memory,
    sign_agreement,
)

KERNELS = linspace_kernels(2.0, 5)
MEMORY = Memory(KERNELS, np.full(5, 0.01))


def labels(params, group_by="layer"):
    init = scale_by_memory(group_by=group_by).init
    return sorted(jax.eval_shape(lambda params: get_memory(init(params)), params))


# --- which tensors share a memory


def test_labels_of_flax_linen():
    class Net(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            return flax.linen.Dense(2)(flax.linen.Conv(3, (2,))(x))

    params = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((4, 1)))
    assert labels(params) == ["params/Conv_0", "params/Dense_0"]
    assert labels(params["params"], "tensor") == [
        "Conv_0/bias",
        "Conv_0/kernel",
        "Dense_0/bias",
        "Dense_0/kernel",
    ]


def test_labels_of_flax_nnx_drop_the_wrapper():
    class Net(flax.nnx.Module):
        def __init__(self, rngs):
            self.first = flax.nnx.Linear(2, 3, rngs=rngs)
            self.free = flax.nnx.Param(jnp.ones(2))

    params = flax.nnx.state(Net(flax.nnx.Rngs(0)), flax.nnx.Param)
    assert labels(params) == ["first", "free"]
    assert labels(params, "tensor") == ["first/bias", "first/kernel", "free"]


@jax.tree_util.register_pytree_node_class
class NamedArray:
    """An array and the names of its axes: a node that names no keys."""

    def __init__(self, array, axes):
        self.array, self.axes = array, axes

    def tree_flatten(self):
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes, children):
        (array,) = children
        return cls(array, axes)


class NamedLinear(eqx.Module):
    weight: NamedArray
    bias: NamedArray


@pytest.mark.parametrize("around", [lambda array: array, flax.nnx.Param])
def test_labels_drop_a_node_around_an_array(around):
    """As around none of them, in any container, also within the wrapper of Flax."""
    weight = around(NamedArray(jnp.ones((3, 2)), ("in", "out")))
    bias = around(NamedArray(jnp.ones(2), ("out",)))
    params = {
        "l0": {"weight": weight, "bias": bias},
        "l1": NamedLinear(weight, bias),
        "l2": [weight, bias],
        "l3": bias,
    }
    assert labels(params) == ["l0", "l1", "l2", "l3"]
    assert labels(params, "tensor") == [
        *("l0/bias", "l0/weight", "l1/bias", "l1/weight", "l2/0", "l2/1", "l3")
    ]


def test_labels_keep_a_node_with_other_arrays():
    """A layer that names no keys, of an array and a layer, is no wrapper."""

    @jax.tree_util.register_pytree_node_class
    class Layer:
        def __init__(self, array, inner):
            self.children = array, inner

        def tree_flatten(self):
            return self.children, None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    params = {"block": {"layer": Layer(jnp.ones(2), {"inner": jnp.ones(3)})}}
    assert labels(params, "tensor") == ["block/layer/0", "block/layer/1/inner"]


def test_labels_of_haiku_keep_their_slashes():
    net = haiku.transform(lambda x: haiku.nets.MLP([3, 2])(x))
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(2))
    assert labels(params) == ["mlp/~/linear_0", "mlp/~/linear_1"]


def test_labels_of_equinox():
    net = eqx.nn.MLP(2, 1, width_size=3, depth=1, key=jax.random.key(0))
    params = eqx.filter(net, eqx.is_inexact_array)
    assert labels(params) == ["layers/0", "layers/1"]


def test_labels_of_plain_trees():
    assert labels(jnp.zeros(3)) == ["params"]
    assert labels(jnp.zeros(3), "tensor") == ["params"]
    assert labels({"x1": jnp.zeros(()), "x2": jnp.zeros(())}) == ["x1", "x2"]
    assert labels([jnp.zeros(2), {"w": jnp.zeros(2)}]) == ["0", "1"]
    # A key "value" in a dict is a name; only an attribute is a wrapper.
    attention = {"attention": {"query": jnp.zeros(2), "value": jnp.zeros(2)}}
    assert labels(attention) == ["attention"]
    assert labels(attention, "tensor") == ["attention/query", "attention/value"]


def test_an_attribute_value_with_siblings_is_no_wrapper():
    class Attention(eqx.Module):
        query: jax.Array
        value: jax.Array

    params = {"attention": Attention(jnp.zeros(2), jnp.zeros(2))}
    assert labels(params) == ["attention"]
    assert labels(params, "tensor") == ["attention/query", "attention/value"]


def test_labels_of_a_function_see_path_and_leaf():
    params = {"a": {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}, "c": jnp.zeros(1)}

    def by_rank(path, leaf):
        return f"{path[0].key}, rank {leaf.ndim}"

    assert labels(params, by_rank) == ["a, rank 1", "a, rank 2", "c, rank 1"]


def test_paths_that_join_to_one_label_share_a_memory():
    params = {"a/b": {"w": jnp.zeros(2)}, "a": {"b": {"w": jnp.zeros(2)}}}
    assert labels(params) == ["a/b"]


def test_memories_are_as_precise_as_the_most_precise_tensor():
    with jax.enable_x64(True):
        params = {
            "mixed": {"w": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(2, jnp.float64)},
            "half": {"w": jnp.zeros(2, jnp.float16)},
        }
        memory = get_memory(jax.jit(scale_by_memory().init)(params))
        assert memory["mixed"].rates.dtype == jnp.float64
        assert memory["half"].rates.dtype == jnp.float64
        memory = get_memory(jax.jit(scale_by_memory().init)(params["half"]))
        assert memory["w"].rates.dtype == jnp.float32


# --- which way the base optimizer points


@jax.jit
def orientation_after(gradients, directions):
    """Run a link whose inner transformation emits the given directions."""

    def emit(updates, state, params=None):
        del updates, params
        return directions[state], state + 1

    base = optax.GradientTransformation(lambda params: jnp.zeros([], int), emit)
    optimizer: Any = scale_by_memory(base_optimizer=base)
    state = optimizer.init(jnp.zeros(2))
    for gradient in gradients:
        _, state = optimizer.update(gradient, state)
    return state.orientation


@pytest.mark.parametrize(
    ("gradients", "directions", "expected"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 1.0),
        ([[1.0, 2.0]], [[-1.0, -2.0]], -1.0),
        ([[1.0, 2.0]], [[2.0, -1.0]], 0.0),
        ([[0.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [-1.0, 1.0]], -1.0),
        # The first step that can tell decides for good.
        ([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]], 1.0),
        # Neither under- nor overflow hides the sign.
        ([[1e-30, 0.0]], [[-1e-30, 0.0]], -1.0),
        ([[3e38, 3e38]], [[-3e38, -3e38]], -1.0),
        ([[np.nan, 1.0]], [[1.0, -1.0]], -1.0),
        ([[1.0, 1.0]], [[np.inf, -1.0]], -1.0),
    ],
)
def test_orientation(gradients, directions, expected):
    steps = np.array(gradients, np.float32), np.array(directions, np.float32)
    assert orientation_after(*steps) == expected


def test_nothing_is_learned_before_the_orientation_is_known():
    # Always at right angles to the gradient, and a signal that praises everything.
    turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    inner = optax.stateless(lambda g, _: turn @ jnp.asarray(g))
    optimizer = scale_by_memory(
        0.01,
        base_optimizer=inner,
        memory_optimizer=optax.sgd(1.0),
        signal=lambda g, d: jnp.ones_like(g),
    )
    state, update = jax.jit(optimizer.init)(jnp.ones(2)), jax.jit(optimizer.update)
    for _ in range(3):
        _, state = update(jnp.array([1.0, 2.0]), state)
    np.testing.assert_allclose(get_memory(state)["params"].rates, 0.01)


def test_a_base_that_points_against_the_gradient_raises_its_rates():
    params = {"w": jnp.array([1.0, -2.0])}
    for optimizer, extra in (
        (scale_by_memory(1e-3, base_optimizer=optax.adam(1.0)), {}),
        (optax.chain(optax.adam(1.0), scale_by_memory(1e-3)), {"grad": params}),
    ):
        state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
        for _ in range(5):  # the gradient never flips: every rate in use is too small
            _, state = update(params, state, params, **extra)
        assert jnp.max(get_memory(state)["w"].rates) > 0.02


def test_the_raw_gradient_judges_not_the_direction():
    # Directions that agree with each other while the gradient flips every time.
    directions = jnp.ones(2)
    gradients = jnp.array([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    optimizer = scale_by_memory(0.1, memory_optimizer=optax.sgd(0.1))

    def rates_after(with_gradient):
        state, update = jax.jit(optimizer.init)(directions), jax.jit(optimizer.update)
        for gradient in gradients[:2]:
            extra = {"grad": gradient} if with_gradient else {}
            _, state = update(directions, state, **extra)
        return get_memory(state)["params"].rates

    assert jnp.max(rates_after(with_gradient=False)) > 0.15
    assert jnp.min(rates_after(with_gradient=True)) < 0.05


# --- values nobody wants


BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
OPTIMIZERS = {
    "link": scale_by_memory(0.01, memory_optimizer=optax.sgd(0.1)),
    "paper_sgd": paper_sgd(initial=0.01, memory_optimizer=optax.sgd(0.1)),
    "offset signal": scale_by_memory(
        0.01,
        memory_optimizer=optax.sgd(0.1),
        signal=lambda g, d: sign_agreement(g, d) + 0.1,
    ),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_coordinate_is_passed_on_and_teaches_nothing(name, bad):
    optimizer = OPTIMIZERS[name]
    update = jax.jit(optimizer.update)
    good = jnp.array([0.5, -0.3, 0.2])
    poisoned = good.at[1].set(BAD[bad])
    silenced = good.at[1].set(0.0)
    state = silent = optimizer.init(good)
    for step in (good, poisoned, good, good):
        updates, state = update(step, state)
        # The same run in which that coordinate has nothing to say.
        _, silent = update(jnp.where(jnp.isfinite(step), step, silenced), silent)
        np.testing.assert_array_equal(jnp.isfinite(updates), jnp.isfinite(step))
        rates = get_memory(state)["params"].rates
        assert np.all(np.isfinite(rates))
        np.testing.assert_allclose(rates, get_memory(silent)["params"].rates)
    assert jnp.max(rates) > 0.02  # it went on learning


@pytest.mark.parametrize("with_grad", [False, True])
def test_a_bad_coordinate_leaves_the_memory_of_a_base_learning(with_grad):
    inner = None if with_grad else optax.adam(1.0)
    link = scale_by_memory(0.01, base_optimizer=inner, memory_optimizer=optax.sgd(0.1))
    optimizer = optax.chain(optax.adam(1.0), link) if with_grad else link
    good = np.array([0.5, -0.3, 0.2], "f4")
    for bad in BAD.values():
        state, poisoned = jax.jit(optimizer.init)(good), np.array([0.5, bad, 0.2], "f4")
        for gradient in (good, poisoned, good, good, good):
            extra = {"grad": gradient} if with_grad else {}
            updates, state = jax.jit(optimizer.update)(gradient, state, **extra)
            assert np.all(np.isfinite(get_memory(state)["params"].rates))
        # Adam itself never recovers that coordinate; nobody hides it.
        np.testing.assert_array_equal(np.isfinite(updates), [True, False, True])
        assert np.max(get_memory(state)["params"].rates) > 0.05


def test_plain_numbers_are_gradients_too():
    for make in (paper_sgd, paper_adam, scale_by_memory):
        optimizer: Any = make()
        state = optimizer.init({"x": 1.0})
        updates, _ = optimizer.update({"x": 2.0}, state)
        assert updates["x"].dtype == jnp.float32
        precise = np.ones(3)  # float64, which JAX makes float32 without a warning
        updates, _ = optimizer.update(precise, optimizer.init(precise))
        assert updates.dtype == jnp.float32


def test_a_precise_signal_does_not_change_the_state():
    with jax.enable_x64(True):
        optimizer = scale_by_memory(signal=lambda g, d: g * d + np.float64(0.1))
        params = jnp.ones(3, jnp.float32)
        state = jax.jit(optimizer.init)(params)
        _, after = jax.jit(optimizer.update)(params, state)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


@pytest.mark.parametrize("make", [paper_sgd, paper_adam, scale_by_memory])
def test_any_finite_gradient_gives_a_finite_update(make):
    optimizer = make()
    for value in (0.0, 1e-45, 1e-38, 1e-8, 1e8, 3e38):
        gradient = {"a": np.full(3, value, "f4"), "b": np.array([-value, 1.0], "f4")}
        state = jax.jit(optimizer.init)(gradient)
        for _ in range(3):
            updates, state = jax.jit(optimizer.update)(gradient, state)
            leaves = jax.tree.leaves((updates, get_memory(state)))
            assert all(np.all(np.isfinite(leaf)) for leaf in leaves), value


def test_the_first_step_and_zeros_teach_nothing_whatever_the_signal():
    optimizer = scale_by_memory(
        0.01, memory_optimizer=optax.sgd(0.5), signal=lambda g, d: jnp.ones_like(g)
    )
    zeros, ones = jnp.zeros(3), jnp.ones(3)
    state, update = jax.jit(optimizer.init)(ones), jax.jit(optimizer.update)
    before = get_memory(state)["params"].rates
    for gradient in (ones, zeros, ones, zeros, zeros):
        _, state = update(gradient, state)
        np.testing.assert_array_equal(get_memory(state)["params"].rates, before)


def test_the_authors_count_the_empty_first_step():
    optimizer: Any = scale_by_memory(0.01)
    _, state = jax.jit(lambda x: optimizer.update(x, optimizer.init(x)))(jnp.ones(3))
    assert int(optax.tree.get(state.rule_state, "count")) == 1


def test_extra_arguments_of_others_change_nothing():
    """Such as a norm, with which a guard would hold a step for a bad one."""
    params = jnp.array([1.0, -2.0])
    for make in (scale_by_memory, paper_adam, memory_sgd):
        optimizer: Any = optax.with_extra_args_support(make())
        state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
        for norm in (np.inf, np.nan, 0.0):
            found = update(params, state, norm=norm, skipped=True)
            assert np.all(found[0] != 0)
            chex.assert_trees_all_equal(found, update(params, state))


def test_only_memories_that_go_by_progress_hold_a_schedule():
    params = jnp.ones(3)
    for progress in (False, True):
        state: Any = jax.jit(scale_by_memory(progress=progress).init)(params)
        assert (state.memory.schedule is None) != progress
        np.testing.assert_array_equal(
            get_memory(state)["params"].schedule, np.zeros(20)
        )


def test_rates_stay_within_their_bounds():
    bounds = (0.005, 0.02)
    optimizer = scale_by_memory(
        0.01, memory_optimizer=optax.sgd(10.0), rate_bounds=bounds
    )
    state, update = jax.jit(optimizer.init)(jnp.ones(1)), jax.jit(optimizer.update)
    seen = []
    for gradient in (1.0, 1.0, -1.0):
        _, state = update(jnp.full(1, gradient), state)
        seen.append(get_memory(state)["params"].rates)
    assert np.max(seen[1]) == np.float32(bounds[1])
    assert np.min(seen[2]) == np.float32(bounds[0])


def test_aliases_clip_to_the_kernels():
    gradient = jnp.array([0.1, 5.0, -7.0])
    wide = Memory(linspace_kernels(4.0, 5), np.full(5, 0.01))
    usual: dict[str, Any] = {"initial": 0.01}
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 2.0),
        ({"kernels": linspace_kernels(3.0, 4)}, 3.0),
        ({"kernels": linspace_kernels(3.0, 1)}, 3.0),
        ({"initial": wide}, 4.0),
        ({"initial": {"params": wide}}, 4.0),
    ]
    for arguments, bound in cases:
        optimizer: Any = paper_sgd(**(usual | arguments))
        step = jax.jit(lambda x, tx=optimizer: tx.update(x, tx.init(x))[0])
        expected = -0.01 * np.clip(gradient, -bound, bound)
        np.testing.assert_allclose(step(gradient), expected, rtol=1e-5)


# --- refused arguments


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"initial": 2.0}, "initial must have rates within .* got 2.0"),
        ({"initial": 0.0}, "initial must have rates within .* got 0.0"),
        ({"initial": np.nan}, "initial must have rates within .* got nan"),
        ({"initial": "fast"}, "initial must be a rate, .* got 'fast'"),
        ({"initial": np.ones(3)}, "initial must be a rate"),
        ({"initial": None}, "initial must be a rate, .* got None"),
        (
            {"initial": optax.constant_schedule(0.1)},
            "initial must be a rate, .* got function <lambda>",
        ),
        ({"initial": [MEMORY]}, "initial must be a rate"),
        ({"initial": tuple(MEMORY)}, "initial must be a rate"),
        ({"initial": 0.1j}, "initial must be a rate, .* got 0.1j"),
        ({"initial": np.float16(0)}, "initial must have rates within"),
        (
            {"initial": {"a": 0.1}},
            r"initial\['a'\] must be .*Memory, got 0.1; Memory\(linspace_kernels\(1.0, "
            r"num=1\), \[0.1\]\) is a single rate",
        ),
        ({"initial": MEMORY, "kernels": KERNELS}, "kernels must be None"),
        (
            {"initial": {"a": MEMORY._replace(rates=np.full(5, 7.0))}},
            r"initial\['a'\] must have rates within",
        ),
        (
            {"initial": MEMORY._replace(rates=np.full(4, 0.1))},
            r"initial must have rates within .* of shape \(5,\)",
        ),
        (
            {"initial": MEMORY._replace(rates=np.full(5, np.inf))},
            "initial must have rates within",
        ),
        (
            {"initial": MEMORY._replace(kernels=Kernels(np.zeros(5), np.ones(5)))},
            "centers that increase",
        ),
        ({"kernels": np.zeros(3)}, "kernels must be metalr_optax.Kernels"),
        (
            {"base_optimizer": optax.adam},
            "base_optimizer must be .* got function adam",
        ),
        ({"memory_optimizer": 0.1}, "memory_optimizer must be .* got 0.1"),
        ({"signal": "sign"}, "signal must be a function .* got 'sign'"),
        ({"group_by": "model"}, "group_by must be 'layer', .* got 'model'"),
        ({"group_by": 3}, "group_by must be 'layer', .* got 3"),
        ({"rate_bounds": (0.1, 0.01)}, r"rate_bounds must be .* got \(0.1, 0.01\)"),
        ({"rate_bounds": (0.0, 1.0)}, "rate_bounds must be"),
        ({"rate_bounds": (1e-9, np.inf)}, "rate_bounds must be"),
        ({"rate_bounds": 1.0}, "rate_bounds must be .* got 1.0"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments, match):
    with pytest.raises(ValueError, match=match):
        scale_by_memory(**arguments)
    if "base_optimizer" not in arguments:
        for alias in (paper_sgd, paper_adam):
            with pytest.raises(ValueError, match=match):
                alias(**arguments)


@pytest.mark.parametrize(
    ("initial", "match"),
    [
        (np.ones(3), r"got an array \(ndarray\) of float64 and shape \(3,\);"),
        (
            jnp.ones((2, 1)),
            r"got an array \(ArrayImpl\) of float32 and shape \(2, 1\);",
        ),
        (np.ones(1), "got 1.0;"),
        ("x" * 1000, r"got \'x+\.\.\.x+\';"),
        (
            dict.fromkeys("ab", 99 * [0.1]),
            r"initial\['a'\] must .* got \[0.1, 0.1, \.\.\.\];",
        ),
        ({"a": MEMORY._replace(rates=np.full(5, 7.0))}, r"float64 and shape \(5,\)$"),
        ([MEMORY, MEMORY], r"got \[Memory, Memory\];"),
    ],
)
def test_a_refusal_is_one_line_whatever_was_given(initial, match):
    with pytest.raises(ValueError, match=match) as refused:
        scale_by_memory(initial)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 250


def test_a_refusal_is_short_for_large_models(tmp_path):
    """It names a few layers, shows no array and the call that would be right."""
    layers: Any = {f"params/Encoder/block_{i}/M_{i}": jnp.ones(3) for i in range(40)}
    other = {f"params/Decoder/block_{i}/M_{i}": jnp.ones(3) for i in range(40)}
    make: Any = scale_by_memory
    optimizer, path, first = make(group_by="tensor"), tmp_path / "file", min(layers)
    state, memory = optimizer.init(layers), get_memory(optimizer.init(other))
    to_adapt = r"set_memory\(state, adapt_memory\(memory, state\)\)"
    for call, match in (
        (lambda: save_memory(path, state), r"get_memory\(opt_state\)"),
        (lambda: save_memory(path, layers), r"memory\[.* must be .*Memory"),
        (lambda: get_memory(memory), "must contain a state of scale_by_memory"),
        (lambda: set_memory(state, memory), to_adapt),
        (lambda: make(memory, group_by="tensor").init(layers), to_adapt),
        (lambda: optimizer.update(other, state), "labels that init saw"),
        (lambda: optimizer.update({**layers, **other}, state), "labels that init saw"),
        (
            lambda: optimizer.update(layers | {first: None}, state),
            f"none for .*{first}",
        ),
        (lambda: optimizer.update(layers, state, grad=other), f"grad must .*{first}"),
        (lambda: make(kernels=layers), "kernels must be metalr_optax.Kernels"),
        (lambda: make(rate_bounds=layers), "rate_bounds must be two"),
    ):
        with pytest.raises(ValueError, match=match) as refused:
            call()
        assert len(str(refused.value)) <= 400
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"a": jnp.zeros(2, jnp.int32)}, "floating point arrays, got int32 at a"),
        ({"a": jnp.zeros(2, bool)}, "floating point arrays, got bool at a"),
        (jnp.zeros(2, jnp.complex64), "got complex64 at the top"),
        ({"a": {"f": jnp.tanh}}, r"got PjitFunction at a/f; .* eqx\.filter"),
        ({"a": "text"}, "got str at a"),
    ],
)
def test_parameters_that_are_not_real_floats_fail_at_init(params, match):
    with pytest.raises(ValueError, match=match):
        scale_by_memory().init(params)


@pytest.mark.parametrize("make", [memory_adam, paper_sgd, scale_by_memory])
def test_shapes_without_values_fail_at_init_with_the_call_that_takes_them(make):
    """A state follows from the size of the parameters, which shapes do not tell."""
    shapes = {"a": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(ValueError, match=r"params .*jax\.eval_shape\(optimizer\.init"):
        make().init(shapes)
    state = jax.eval_shape(make().init, shapes)
    expected = make().init({"a": jnp.ones(3)})
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, expected)


def test_labels_that_do_not_fit_fail_at_init():
    optimizer = scale_by_memory({"a": MEMORY, "b": MEMORY})
    with pytest.raises(ValueError, match=r"missing \['c'\], unknown \['b'\]"):
        optimizer.init({"a": jnp.zeros(2), "c": jnp.zeros(2)})


def test_a_label_that_is_no_string_fails_at_init():
    with pytest.raises(ValueError, match=r"a label of type str, .* got 1"):
        scale_by_memory(group_by=lambda path, leaf: leaf.ndim).init(jnp.zeros(2))


def test_an_equinox_model_with_functions_in_it_is_refused_with_the_way_to_filter_it():
    model: Any = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    for make in (memory_sgd, memory_adam, paper_sgd, paper_adam):
        with pytest.raises(ValueError, match=r"at activation; .* eqx\.filter\(model"):
            make().init(model)
    optimizer: Any = memory_adam(weight_decay=0.1)
    grads = eqx.filter(model, eqx.is_inexact_array)
    # As with optax.adamw, parameters may be the whole model.
    eqx.filter_jit(optimizer.update)(grads, jax.jit(optimizer.init)(grads), model)


WHOLE = {"a": {"w": jnp.ones(2), "b": jnp.ones(3)}}
LACKING = {"a": {"w": None, "b": jnp.ones(3)}}
MORE = {"a": WHOLE["a"] | {"c": jnp.ones(1)}}
RESHAPED = {"a": {"w": jnp.ones(()), "b": jnp.ones(3)}}


@pytest.mark.parametrize("make", [paper_sgd, scale_by_memory])
@pytest.mark.parametrize(
    ("updates", "match"),
    [
        (LACKING, r"2 leaves .* got 1 and None at \['a/w'\]"),
        (LACKING, r"and None at \['a/w'\]; .* optax.set_to_zero"),
        (MORE, r"2 leaves .* got 3 and None at \[\]"),
        (RESHAPED, r"at a/w the shape .* \(2,\), got \(\)"),
    ],
)
def test_updates_unlike_a_whole_last_direction_are_refused(make, updates, match):
    optimizer = make()
    with pytest.raises(ValueError, match=match):
        optimizer.update(updates, optimizer.init(WHOLE), WHOLE)


@pytest.mark.parametrize(
    "make",
    [
        memory_adam,
        memory_sgd,
        lambda: memory_sgd(momentum=None, nesterov=True),
        lambda: learn_rates(optax.lion(1.0)),
        lambda: paper_sgd(evidence_sample=9),
    ],
)
@pytest.mark.parametrize(
    ("updates", "match"),
    [
        (LACKING, r"5 leaves or samples .* got 3 and None at \['a/w'\]"),
        (LACKING, r"and None at \['a/w'\]; .* optax.set_to_zero"),
        (MORE, r"5 leaves or samples .* got 6 and None at \[\]"),
        (RESHAPED, r"5 leaves or samples .* got 4 and None at \[\]"),
    ],
)
def test_updates_with_another_number_of_samples_are_refused(make, updates, match):
    optimizer = make()
    with pytest.raises(ValueError, match=match):
        optimizer.update(updates, optimizer.init(WHOLE), WHOLE)


@pytest.mark.parametrize("make", [memory_adam, paper_sgd])
def test_updates_without_a_layer_are_refused_by_its_name(make):
    optimizer, params = make(), WHOLE | {"head": {"w": jnp.ones(2)}}
    match = r"updates must have a leaf .* none for \['head'\]; .* optax.set_to_zero"
    with pytest.raises(ValueError, match=match):
        optimizer.update(WHOLE, optimizer.init(params), params)


def test_complex_updates_are_refused():
    params = {"a": jnp.ones(2)}
    for make in (memory_adam, memory_sgd, scale_by_memory):
        optimizer: Any = make()
        state = optimizer.init(params)
        with pytest.raises(ValueError, match=r"be real at a, got .* complex64"):
            optimizer.update({"a": jnp.ones(2, jnp.complex64)}, state, params)


def test_parameters_that_lack_a_leaf_are_refused():
    optimizer, params = memory_adam(weight_decay=0.1), {"a": jnp.ones(2), "b": 1.0}
    state = optimizer.init(params)
    with pytest.raises(
        ValueError, match=r"params must have leaves .* at \['b'\], got None"
    ):
        optimizer.update(params, state, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="not passing `params`"):
        optimizer.update(params, state)


def test_updates_of_another_model_are_refused():
    optimizer: Any = scale_by_memory(0.1)
    state = optimizer.init({"one": jnp.ones(2)})
    with pytest.raises(
        ValueError, match=r"labels that init saw, .*\['one'\], got \['two'\]"
    ):
        optimizer.update({"two": jnp.ones(2)}, state)


def test_a_raw_gradient_of_another_structure_is_refused():
    optimizer = scale_by_memory()
    params = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="mask_compatible_extra_args=True"):
        optimizer.update(params, optimizer.init(params), grad={"b": jnp.ones(2)})


def test_a_raw_gradient_of_another_shape_is_refused_and_none_is_no_gradient():
    optimizer = scale_by_memory()
    params = {"a": jnp.ones(2)}
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"there \{'a': \(2,\)\}, got \{'a': \(\)\}"):
        optimizer.update(params, state, grad={"a": jnp.ones(())})
    jax.eval_shape(lambda: optimizer.update(params, state, grad=None))


def test_kernels_that_float32_cannot_hold_fail_at_init():
    narrow = scale_by_memory(kernels=logspace_kernels(1.0, 4, smallest=1e-38))
    with pytest.raises(ValueError, match=r"widths within \[1\.17"):
        narrow.init(jnp.zeros(2))
    close = Kernels(np.array([1.0, 1.0 + 1e-12]), np.ones(2))
    with pytest.raises(ValueError, match=r"centers that increase, .* as float32"):
        scale_by_memory(kernels=close).init(jnp.zeros(2))


def test_a_memory_of_lists_is_a_memory():
    centers: Any = [-1.0, 0.0, 1.0]
    widths: Any = [0.5, 0.5, 0.5]
    rates: Any = [0.1, 0.2, 0.3]
    optimizer = scale_by_memory(Memory(Kernels(centers, widths), rates))
    rates = get_memory(optimizer.init(jnp.zeros(2)))["params"].rates
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3])


def test_rates_that_went_through_text_are_within_the_bounds_they_came_from():
    for bounds in ((1e-9, 0.1), (3e-7, 0.7)):
        for bound in np.array(bounds, np.float32):
            scale_by_memory(float(repr(float(bound))), rate_bounds=bounds)


def test_bounds_may_be_traced():
    def first_rate(largest):
        optimizer = scale_by_memory(
            0.1, memory_optimizer=optax.sgd(9.0), rate_bounds=(1e-9, largest)
        )
        state = optimizer.init(jnp.ones(2))
        for _ in range(2):
            _, state = optimizer.update(jnp.ones(2), state)
        return jnp.max(get_memory(state)["params"].rates)

    bounds = jnp.array([0.2, 0.5])
    found = jax.jit(jax.vmap(first_rate))(bounds)
    np.testing.assert_allclose(found, bounds)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_rate_at_its_bound_is_allowed_in_any_dtype(dtype):
    for bound in (1e-9, 1.0):
        scale_by_memory(jnp.asarray(bound, dtype))


def test_an_optimizer_can_be_built_before_jax_has_its_devices():
    """As programs do that call jax.distributed.initialize in main."""
    program = (
        "import jax, metalr_optax\n"
        "metalr_optax.paper_adam(kernels=metalr_optax.logspace_kernels(1.0, 8))\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "assert jax.device_count() == 3\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
