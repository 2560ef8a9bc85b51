"""The average of the weights is the formula's, inside of whatever stands around it."""

import functools
import itertools
from typing import Any

import chex
import cloudpickle
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from metalr_optax import average_weights, averaged_weights, learn_rates, memory_adam
from metalr_optax.averaging import AverageWeightsState

# Optax has types for parameters and states that say little of what is inside.
averaging: Any = average_weights
read: Any = averaged_weights

PARAMS = {"a": {"w": jnp.array([[0.5, -2.0], [3.0, 1.0]]), "b": jnp.array([0.1, 7.0])}}


def reference(weights, power, average: Any = None) -> Any:
    """The formula, literally, in float64."""
    for t, x in enumerate(weights, start=1):
        x = np.asarray(x, np.float64)
        average = x if t == 1 else average + (power + 1) / (t + power) * (x - average)
    return average


def gradients(number, params: Any = PARAMS):
    """Return gradients that differ from step to step."""
    keys = jax.random.split(jax.random.key(0), number)
    return [jax.jit(optax.tree.random_like)(key, params) for key in keys]


@functools.cache
def step_of(optimizer, kinds):
    """Return a compiled step for parameters of a kind, which may be traced once."""
    del kinds
    traces = []

    @jax.jit
    def step(grads, state, params):
        traces.append(1)
        assert len(traces) == 1, "traced more than once"
        updates, state = optimizer.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    return step


def train(optimizer: Any, grads, params: Any = PARAMS, state=None) -> Any:
    """Return the last state, and the parameters after each step."""
    state, after = state or jax.jit(optimizer.init)(params), [params]
    step = step_of(optimizer, str(jax.tree.map(jax.typeof, params)))
    for gradient in grads:
        state, params = step(gradient, state, after[-1])
        after.append(params)
    return state, after[1:]


def expected_of(after, power=8.0):
    """Return the average of parameters, with those that repeat counted once."""
    moved = [
        new
        for old, new in itertools.pairwise([PARAMS, *after])
        if optax.tree.norm(optax.tree.sub(new, old)) > 0
    ]
    return jax.tree.map(lambda *leaves: reference(leaves, power), *moved)


def assert_close(one, other, rtol=1e-5):
    chex.assert_trees_all_close(
        jax.tree.map(np.float64, one), jax.tree.map(np.float64, other), rtol=rtol
    )


SGD: Any = optax.chain(optax.sgd(0.1), averaging())


@functools.cache
def usual() -> Any:
    """Return gradients of five steps, the last state and all parameters."""
    grads = gradients(5)
    return grads, *train(SGD, grads)


@jax.jit
def visit(power, state, params, weights):
    """Move to other weights, and return the new state."""
    updates = jax.tree.map(jnp.subtract, weights, params)
    return averaging(power).update(updates, state, params)[1]


def visit_all(power, weights, start):
    """Return the state after weights were visited one after the other."""
    state, here = averaging(power).init(start), start
    for there in weights:
        state, here = visit(power, state, here, there), there
    return state


# Small whole numbers: the difference of two is exact, so weights are those visited.
WEIGHTS = st.lists(
    st.lists(st.integers(-40, 40), min_size=3, max_size=3), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.floats(0.01, 100.0), st.integers(0, 11))
@example([[1, 2, 3]], 8.0, 0)
@example([[1, 2, 3], [1, 2, 3], [4, 5, 6]], 8.0, 1)
def test_it_is_the_formula_and_a_step_that_moves_nothing_does_not_count(
    weights, power, again
):
    start = jnp.full(3, 77.0)
    points = [jnp.array(point, jnp.float32) for point in weights]
    moves = [
        new for old, new in itertools.pairwise([start, *points]) if np.any(new != old)
    ]
    state = visit_all(power, points, start)
    found = np.asarray(read(state, start))
    assert state.count == len(moves)
    np.testing.assert_allclose(found, reference(moves, power), rtol=1e-4, atol=1e-4)
    # It is a mean: inside of what was visited, and free of the start.
    low, high = np.min(moves, axis=0), np.max(moves, axis=0)
    assert np.all((low - 1e-4 <= found) & (found <= high + 1e-4))
    # Skipped steps, anywhere, change no bit.
    again = min(again, len(points))
    here = points[again - 1] if again else start
    skipping = [*points[:again], here, here, *points[again:]]
    chex.assert_trees_all_equal(visit_all(power, skipping, start), state)


@pytest.mark.parametrize("power", [0.01, 8.0, 1e9])
def test_the_first_step_replaces_the_start_and_leaves_no_trace(power):
    """Though a state was made with other weights, as where they are loaded later."""
    optimizer = averaging(power)
    start = jnp.array([1e30, -7.0, jnp.nan, jnp.inf])
    params, updates = jnp.array([0.1, 1 / 3, -2.0, 3e-8]), jnp.full(4, 1e-3)
    for update in (optimizer.update, jax.jit(optimizer.update)):
        _, state = update(updates, optimizer.init(start), params)
        np.testing.assert_array_equal(state.average, params + updates)


def test_weights_that_stand_still_are_their_average():
    params = {"moves": jnp.zeros(3), "stays": jnp.array([0.1, 1 / 3, 1e-30])}
    updates = {"moves": jnp.ones(3), "stays": jnp.zeros(3)}
    state, update = averaging().init(params), jax.jit(averaging().update)
    for _ in range(20):
        _, state = update(updates, state, params)
    assert state.count == 20
    np.testing.assert_array_equal(state.average["stays"], params["stays"])


def test_before_the_first_step_the_average_is_the_start():
    state = SGD.init(PARAMS)
    chex.assert_trees_all_equal(read(state, PARAMS), PARAMS)


def test_updates_pass_unchanged():
    updates = jax.tree.map(lambda x: 2 * x, PARAMS)
    passed, _ = averaging().update(updates, averaging().init(PARAMS), PARAMS, value=1.0)
    assert passed is updates


def test_it_ends_nearer_to_a_minimum_than_the_weights_do():
    params = jnp.zeros(200)
    keys = jax.random.split(jax.random.key(0), 200)

    def step(carry, key):
        x, state = carry
        updates, state = SGD.update(x - 1 + jax.random.normal(key, x.shape), state, x)
        return (optax.apply_updates(x, updates), state), None

    (x, state), _ = jax.lax.scan(step, (params, SGD.init(params)), keys)
    far, near = (np.linalg.norm(weights - 1) for weights in (x, read(state, x)))
    assert near < 0.7 * far


# Around and beside it


def nan_at(number, grads):
    """Return gradients of which one is bad."""
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), grads[0])
    return [bad if i == number else gradient for i, gradient in enumerate(grads)]


AROUND: dict[str, Any] = {
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(9.0)), ("tx", tx)),
    "masked": lambda tx: optax.masked(tx, jax.tree.map(lambda _: True, PARAMS)),
    "partition": lambda tx: optax.partition(
        {"all": tx}, jax.tree.map(lambda _: "all", PARAMS)
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 3).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}
CHAINS: dict[str, Any] = {
    **{name: (around(SGD), 8.0) for name, around in AROUND.items()},
    "inside inject_hyperparams": (
        optax.inject_hyperparams(
            lambda rate, power: optax.chain(optax.sgd(rate), averaging(power))
        )(0.1, power=2.5),
        2.5,
    ),
    "inject_hyperparams inside": (
        optax.chain(optax.sgd(0.1), optax.inject_hyperparams(averaging)(power=3.0)),
        3.0,
    ),
    "behind apply_if_finite": (
        optax.chain(optax.apply_if_finite(optax.sgd(0.1), 3), averaging()),
        8.0,
    ),
    "behind MultiSteps": (
        optax.chain(
            optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation(),
            averaging(),
        ),
        8.0,
    ),
    "behind memory_adam": (optax.chain(memory_adam(), averaging()), 8.0),
    "inside MultiSteps, memory_adam": (
        optax.MultiSteps(
            optax.chain(memory_adam(), averaging()), 2, True, optax.skip_not_finite
        ).gradient_transformation(),
        8.0,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_real_steps_are_averaged_whatever_is_around(name):
    optimizer, power = CHAINS[name]
    grads, guarded = gradients(9), "finite" in name or "memory_adam" in name
    state, after = train(optimizer, nan_at(4, grads) if guarded else grads)
    chex.assert_tree_all_finite((after[-1], read(state, after[-1])))
    assert_close(read(state, after[-1]), expected_of(after, power))
    (kept,) = (
        node
        for node in jax.tree.leaves(state, is_leaf=_is_state)
        if isinstance(node, AverageWeightsState)
    )
    skips = {"MultiSteps": 6, "behind MultiSteps": 6, "inside MultiSteps": 5}
    skipped = skips.get(name.split(",")[0], 1 if guarded else 0)
    assert kept.count == len(after) - skipped


def _is_state(node):
    return isinstance(node, AverageWeightsState)


def test_what_a_mask_leaves_out_comes_from_the_parameters():
    mask = {"a": {"w": True, "b": False}}
    masked = optax.chain(optax.sgd(0.1), optax.masked(averaging(), mask))
    grads, _, after = usual()
    state, _ = train(masked, grads)
    found = read(state, after[-1])
    assert_close(found["a"]["w"], expected_of(after)["a"]["w"])
    chex.assert_trees_all_equal(found["a"]["b"], after[-1]["a"]["b"])
    assert np.all(found["a"]["w"] != after[-1]["a"]["w"])


def test_a_mask_may_leave_out_a_branch():
    params = {"head": PARAMS["a"], "body": {"deep": jnp.ones(3)}}
    optimizer = optax.masked(averaging(), {"head": True, "body": False})
    updates = jax.tree.map(jnp.ones_like, params)
    _, state = optimizer.update(updates, optimizer.init(params), params)
    found = read(state, params)
    chex.assert_trees_all_equal(found["body"], params["body"])
    assert_close(found["head"], jax.tree.map(lambda x: x + 1, params["head"]))


def test_parts_of_a_partition_have_an_average_each():
    optimizer = optax.partition(
        {
            "slow": optax.chain(optax.sgd(0.1), averaging(1.0)),
            "fast": optax.chain(optax.sgd(1.0), averaging(4.0)),
            "frozen": optax.set_to_zero(),
        },
        {"a": "slow", "b": "fast", "c": "frozen"},
    )
    params = {name: jnp.array([1.0, -2.0]) for name in "abc"}
    state, after = train(optimizer, gradients(4, params), params)
    found = read(state, after[-1])
    for name, power in (("a", 1.0), ("b", 4.0)):
        expected = reference([one[name] for one in after], power)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["c"], params["c"])


def test_a_bad_step_of_memory_adam_changes_no_bit():
    optimizer, _ = CHAINS["behind memory_adam"]
    state, after = train(optimizer, gradients(3))
    bad = nan_at(0, gradients(1))
    again, still = train(optimizer, bad, after[-1], state)
    chex.assert_trees_all_equal(again[1], state[1])
    chex.assert_trees_all_equal(still[-1], after[-1])
    assert state[1].count == 3


def test_it_is_no_part_of_a_base():
    with pytest.raises(ValueError, match=r"base_optimizer.*AverageWeightsState"):
        learn_rates(optax.chain(optax.adam(1.0), averaging())).init(PARAMS)


# Frameworks


def test_a_train_state():
    model = nn.Dense(2)
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 3)))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=SGD)
    step, after = jax.jit(lambda state, grads: state.apply_gradients(grads=grads)), []
    for gradient in gradients(4, params):
        state = step(state, gradient)
        after.append(state.params)
    found = read(state, state.params)
    expected = jax.tree.map(lambda *leaves: reference(leaves, 8.0), *after)
    assert_close(found, expected)
    jax.eval_shape(model.apply, found, jnp.ones((1, 3)))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)


@pytest.mark.parametrize("wrapper", ["chain", "MultiSteps", "masked"])
def test_an_optimizer_of_nnx(wrapper):
    model = Net(nnx.Rngs(0))
    start = nnx.state(model, nnx.Param)
    around = AROUND[wrapper]
    if wrapper == "masked":
        around = functools.partial(
            optax.masked, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
        )
    optimizer = nnx.Optimizer(model, around(SGD), wrt=nnx.Param)
    after = []
    for number in range(6):
        gradient = jax.tree.map(lambda x, n=number: x - n, start)
        optimizer.update(model, gradient)
        after.append(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    if wrapper == "MultiSteps":
        after = after[2::3]
    expected = jax.tree.map(lambda *leaves: reference(leaves, 8.0), *after)
    if wrapper == "masked":
        expected = jax.tree.map(
            lambda mean, last: mean if last.ndim > 1 else last, expected, after[-1]
        )
    params = nnx.state(model, nnx.Param)
    found = read(optimizer, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert_close(nnx.to_pure_dict(found), expected)
    # A whole module, with its statistics, and plain arrays are as good.
    module = read(optimizer, model)
    assert_close(nnx.to_pure_dict(nnx.state(module, nnx.Param)), expected)
    chex.assert_trees_all_equal(module.norm.mean[...], model.norm.mean[...])
    assert_close(read(optimizer, after[-1]), expected)


def test_a_module_of_equinox_with_its_functions():
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    arrays = eqx.filter(model, eqx.is_inexact_array)
    state, after = train(SGD, gradients(3, arrays), arrays)
    found = read(state, eqx.combine(after[-1], model))
    assert found(jnp.ones(2)).shape == (1,)
    kernels = [one.layers[0].weight for one in after]
    np.testing.assert_allclose(
        found.layers[0].weight, reference(kernels, 8.0), rtol=1e-5
    )


def test_steps_take_a_whole_module_of_equinox():
    """As those of `optax.adam` do, where gradients were filtered."""
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    arrays = eqx.filter(model, eqx.is_inexact_array)
    optimizer: Any = average_weights()
    grads, state = jax.tree.map(jnp.ones_like, arrays), optimizer.init(arrays)
    _, found = optimizer.update(grads, state, model)
    _, expected = optimizer.update(grads, state, arrays)
    chex.assert_trees_all_equal(found, expected)


# Dtypes and leaves


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("complex64", "complex64"),
    ],
)
def test_dtypes(dtype, kept):
    with jax.enable_x64(dtype == "float64"):
        params: Any = {"x": jnp.array([1.0, -2.0], dtype), "y": jnp.ones(1, dtype)}
        updates = jax.tree.map(lambda x: 0.3 * x, params)
        state, update = averaging(2.0).init(params), jax.jit(averaging(2.0).update)
        kinds, after = jax.tree.map(jax.typeof, state), []
        for _ in range(4):
            _, state = update(updates, state, params)
            new: Any = optax.apply_updates(params, updates)
            after.append(np.asarray(new["x"], np.complex128))
            params = new
        assert jax.tree.map(jax.typeof, state) == kinds
        assert state.average["x"].dtype == kept
        found = read(state, params)
        chex.assert_trees_all_equal_dtypes(found, params)
        parts = [
            reference([part(x) for x in after], 2.0) for part in (np.real, np.imag)
        ]
        rtol = 1e-14 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(
            state.average["x"], parts[0] + 1j * parts[1], rtol=rtol
        )


def test_mixed_widths_have_the_weight_of_the_widest():
    with jax.enable_x64(True):
        params = {"wide": jnp.ones(2, "float64"), "narrow": jnp.ones(2, "bfloat16")}
        state, update = averaging(0.7).init(params), jax.jit(averaging(0.7).update)
        visited = [params["wide"] * 1.1**n for n in range(5)]
        for here, there in itertools.pairwise(visited):
            updates = {"wide": there - here, "narrow": params["narrow"]}
            now = params | {"wide": here}
            _, state = update(updates, state, now)
        expected = reference(visited[1:], 0.7)
        np.testing.assert_allclose(state.average["wide"], expected, rtol=1e-14)
        assert state.average["narrow"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("wide", [False, True])
def test_rounded_weights_are_averaged_as_they_are_rounded(dtype, wide):
    """Updates of less than half the distance to the next number move nothing."""
    params = jnp.array([1.0, 2.0, 3e-6, 1e-7], dtype)
    updates = jnp.array([1e-4, -1e-4, 0.0, 0.0], "float32" if wide else dtype)
    state, update = averaging().init(params), jax.jit(averaging().update)
    for step in (averaging().update, update, update):
        _, state = step(updates, state, params)
        np.testing.assert_array_equal(state.average, np.float32(params))
    assert state.count == 3


def test_the_result_does_not_depend_on_the_x64_flag():
    grads, expected, _ = usual()
    with jax.enable_x64(True):
        state, params = SGD.init(PARAMS), PARAMS
        for gradient in grads:
            updates, state = jax.jit(SGD.update)(gradient, state, params)
            params = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal_dtypes(state, expected)
        assert_close(state, expected, rtol=1e-6)


def test_other_leaves_are_left_alone():
    params = {
        "w": jnp.ones(2),
        "count": jnp.arange(3),
        "key": jax.random.key(3),
        "nothing": None,
    }
    state = averaging().init(params)
    updates = {"w": jnp.ones(2), "count": None, "key": None, "nothing": None}
    integers = updates | {"count": np.zeros(3, jax.dtypes.float0)}
    for update in (updates, integers):
        passed, state = averaging().update(update, state, params)
        assert passed is update
    assert [leaf.shape for leaf in jax.tree.leaves(state.average)] == [(2,)]
    found = read(state, params)
    np.testing.assert_array_equal(found["w"], 2 * np.ones(2))
    np.testing.assert_array_equal(found["count"], np.arange(3))
    assert found["key"] == params["key"]
    assert found["nothing"] is None


@pytest.mark.parametrize("params", [{}, (), {"a": None}, jnp.zeros(0), jnp.ones(())])
def test_empty_and_bare_trees(params):
    state = averaging().init(params)
    _, state = averaging().update(params, state, params)
    assert state.count == (
        jnp.size(params) == 1 if isinstance(params, jax.Array) else 0
    )
    found = read(state, params)
    expected = jax.tree.map(lambda x: x + x, params)
    chex.assert_trees_all_equal(found, expected)


# Programs


def test_a_state_of_one_kind():
    grads, state, _ = usual()  # which is traced once
    kinds = jax.tree.map(jax.typeof, SGD.init(PARAMS))
    assert jax.tree.map(jax.typeof, state) == kinds
    assert state[1].count.dtype == jnp.int32
    assert state[1].count == len(grads)


def test_the_counter_saturates():
    optimizer, most = averaging(2.0**33), jnp.array(2**31 - 1, jnp.int32)
    state = optimizer.init(jnp.ones(2))._replace(count=most)
    _, state = optimizer.update(jnp.ones(2), state, jnp.ones(2))
    assert state.count == most
    # With a weight of 2**33 / (2**31 + 2**33).
    np.testing.assert_allclose(state.average, 1.8, rtol=1e-6)


def test_scan_equals_a_loop():
    grads, state, after = usual()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)

    def step(carry, gradient):
        params, state = carry
        updates, state = SGD.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, scanned), _ = jax.lax.scan(step, (PARAMS, SGD.init(PARAMS)), stacked)
    assert_close((params, scanned[1].average), (after[-1], state[1].average), 1e-6)


def test_vmap_equals_separate_runs_that_skip_steps_of_their_own():
    starts = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    powers = jnp.array([1.0, 8.0, 20.0])
    moves = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])

    @jax.jit
    def run(power, start, moves):
        optimizer = averaging(power)
        state = optimizer.init(start)
        for move in moves:
            updates = jnp.full(2, move)
            _, state = optimizer.update(updates, state, start)
            start = start + updates
        return state, read(state, start)

    states, together = jax.vmap(run)(powers, starts, moves)
    assert list(states.count) == [2, 1, 3]
    for row in range(3):
        _, alone = run(powers[row], starts[row], moves[row])
        np.testing.assert_allclose(together[row], alone, rtol=1e-6)
    # So does what reads the states of all members at once.
    stacked = read(states, starts)
    np.testing.assert_array_equal(stacked, together)


@functools.cache
def donated(optimizer):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("init", [SGD.init, jax.jit(SGD.init)])
def test_donated_steps(init):
    grads, expected, after = usual()
    params = jax.tree.map(jnp.copy, PARAMS)
    state = init(params)
    for gradient in grads:
        params, state = donated(SGD)(params, state, gradient)
    assert_close(params, after[-1], 1e-6)
    assert_close(state[1].average, expected[1].average, 1e-6)


def test_an_average_outlives_donated_steps():
    mask = {"a": {"w": True, "b": False}}
    optimizer = optax.chain(optax.sgd(0.1), optax.masked(averaging(), mask))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = optimizer.init(params)
    grads = gradients(2)
    params, state = donated(optimizer)(params, state, grads[0])
    best = read(state, params)
    expected = jax.tree.map(np.array, best)
    params, state = donated(optimizer)(params, state, grads[1])
    chex.assert_trees_all_equal(best, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_average_of_sharded_parameters_is_sharded_like_them(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), (kind, kind))
    params = {"w": jnp.arange(32.0).reshape(8, 4), "b": jnp.ones(4, "bfloat16")}
    specs = {"w": jax.P("x", "y"), "b": jax.P("y")}
    grads = gradients(3, params)
    expected, after = train(SGD, grads, params)
    with jax.set_mesh(mesh):
        place = functools.partial(jax.sharding.NamedSharding, mesh)
        shardings = {name: place(spec) for name, spec in specs.items()}
        placed = jax.device_put(params, shardings)
        for init in (SGD.init, jax.jit(SGD.init)):
            state, now = init(placed), placed
            _assert_sharded(state[1].average, shardings)
            for gradient in grads:
                gradient = jax.device_put(gradient, shardings)
                now, state = donated(SGD)(jax.tree.map(jnp.copy, now), state, gradient)
            _assert_sharded(state[1].average, shardings)
            found = read(state, now)
            _assert_sharded(found, shardings)
            assert_close(
                jax.device_get(state[1].average), expected[1].average, rtol=1e-6
            )
            chex.assert_trees_all_equal_dtypes(found, after[-1])


def _assert_sharded(tree, shardings):
    for name, sharding in shardings.items():
        assert tree[name].sharding.is_equivalent_to(sharding, tree[name].ndim)


def through_flax(state, like, folder):
    del folder
    return serialization.from_bytes(like, serialization.to_bytes(state))


def through_orbax(state, like, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "kept", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "kept", like)


@pytest.mark.parametrize("keep", [through_flax, through_orbax])
def test_a_resumed_run_equals_the_run_without_a_break(keep, tmp_path):
    grads, expected, _ = usual()
    state, after = train(SGD, grads[:2])
    start = jax.tree.map(jnp.zeros_like, PARAMS)
    state, params = keep((state, after[-1]), (SGD.init(start), start), tmp_path)
    resumed, _ = train(SGD, grads[2:], params, state)
    chex.assert_trees_all_equal(resumed, expected)


def test_an_optimizer_can_be_sent_to_another_process():
    again = cloudpickle.loads(cloudpickle.dumps(SGD))
    grads, _, _ = usual()
    one, other = (tx.update(grads[0], tx.init(PARAMS), PARAMS) for tx in (SGD, again))
    chex.assert_trees_all_equal(one, other)


def test_the_average_is_like_the_parameters_for_optax():
    state = SGD.init(PARAMS)
    names = jax.tree.map(lambda leaf: str(leaf.shape), PARAMS)
    mapped: Any = optax.tree.map_params(SGD, lambda _, name: name, state, names)
    assert mapped[1].average == names
    chex.assert_trees_all_equal(optax.tree.get(state, "average"), PARAMS)
    shapes = jax.eval_shape(SGD.init, PARAMS)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)


def test_a_program_grows_no_faster_than_a_model():
    """See tests/test_compile_size.py."""

    def lines(number):
        params = {f"{i}": jnp.ones((4 + i % 5, 3)) for i in range(number)}
        state = jax.eval_shape(averaging().init, params)
        lowered = jax.jit(averaging().update).lower(params, state, params)
        text: Any = lowered.compile().as_text()
        return len(text.splitlines())

    assert lines(60) <= 4.3 * lines(15)


# Errors


@pytest.mark.parametrize(
    "power", [0, -1.0, np.inf, np.nan, "8", None, True, jnp.zeros(2), jnp.array(0.0)]
)
def test_a_power_is_positive_and_finite(power):
    with pytest.raises(ValueError, match=r"power must be a number in \(0, inf\)"):
        averaging(power)


def test_a_power_that_looks_like_a_decay_warns():
    for power in (0.9, 0.999, np.float32(0.9999)):
        with pytest.warns(UserWarning, match=f"power={power:g} looks like the decay"):
            averaging(power)
    for power in (0.89, 1, 8.0, jnp.array(3.0)):
        averaging(power)
        # A concrete array stays one where the optimizer is built while JAX traces.
        jax.eval_shape(lambda x, power=power: averaging(power).init(x), PARAMS)


def test_weights_are_needed():
    state = averaging().init(PARAMS)
    for update in (averaging().update, jax.jit(averaging().update)):
        with pytest.raises(ValueError, match="params must be given to update, got No"):
            update(PARAMS, state)


def _another_shape(state):
    return state, {"a": {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (optax.adam(1.0).init(PARAMS), PARAMS), "state must contain a"),
        (lambda s: ({}, PARAMS), "state must contain a state of average_weights, got"),
        (lambda s: ((s, s), PARAMS), "state must contain one average .* '2 averages'"),
        (lambda s: (s, PARAMS["a"]), r"params must have at a/b .*\(2,\), got {'b'"),
        (_another_shape, r"params must have at a/w the shape .*\(2, 2\), got \(2, 3\)"),
    ],
)
def test_errors_of_averaged_weights(change, message):
    with pytest.raises(ValueError, match=message):
        read(*change(SGD.init(PARAMS)))


def test_a_bare_array_is_named():
    state = averaging().init(jnp.ones(2))
    with pytest.raises(ValueError, match="at the top the shape"):
        read(state, jnp.ones(3))
