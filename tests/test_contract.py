"""What every user of Optax may expect, for every way to use a memory."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import cloudpickle
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    clipped_product,
    get_memory,
    learn_rates,
    linspace_kernels,
    logspace_kernels,
    memory_adam,
    memory_sgd,
    paper_adam,
    paper_sgd,
    scale_by_memory,
)

DOWN = optax.scale(-1.0)
# Behind optax.sgd(0.1) directions are a tenth of the gradients: so are the kernels.
TENTH = linspace_kernels(0.2, 20)


class Row(NamedTuple):
    """One way to use a memory; `make` takes the initial rate."""

    make: Callable[[Any], optax.GradientTransformationExtraArgs]
    raw: bool = False  # pass the raw gradient as grad=
    needs_params: bool = False
    maps_params: bool = True  # whether `optax.tree.map_params` takes its base alone


ROWS = {
    "memory_sgd": Row(lambda rate: memory_sgd(initial=rate)),
    "memory_adam": Row(lambda rate: memory_adam(initial=rate)),
    "around lion": Row(
        lambda rate: learn_rates(optax.lion(1.0), initial=rate), needs_params=True
    ),
    "around muon": Row(
        lambda rate: learn_rates(optax.contrib.muon(1.0), initial=rate),
        needs_params=True,
        maps_params=False,
    ),
    "link": Row(lambda rate: optax.chain(scale_by_memory(rate), DOWN)),
    "link, equation 6": Row(
        lambda rate: optax.chain(
            scale_by_memory(
                rate,
                kernels=logspace_kernels(2.0, 20),
                memory_optimizer=optax.sgd(0.1),
                signal=clipped_product,
                group_by="tensor",
            ),
            DOWN,
        )
    ),
    "before sgd": Row(lambda rate: optax.chain(scale_by_memory(rate), optax.sgd(1.0))),
    "before adam": Row(
        lambda rate: optax.chain(scale_by_memory(rate), optax.adam(0.05))
    ),
    "behind sgd": Row(
        lambda rate: optax.chain(optax.sgd(0.1), scale_by_memory(rate, kernels=TENTH))
    ),
    "behind sgd, grad=": Row(
        lambda rate: optax.chain(optax.sgd(0.1), scale_by_memory(rate, kernels=TENTH)),
        raw=True,
    ),
    "behind adam": Row(
        lambda rate: optax.chain(optax.adam(1.0), scale_by_memory(rate))
    ),
    "behind adam, grad=": Row(
        lambda rate: optax.chain(optax.adam(1.0), scale_by_memory(rate)), raw=True
    ),
    "inner along": Row(
        lambda rate: optax.chain(
            scale_by_memory(rate, base_optimizer=optax.scale_by_adam()), DOWN
        )
    ),
    "inner against": Row(
        lambda rate: scale_by_memory(rate, base_optimizer=optax.adam(1.0))
    ),
}
ALIASES = {
    "memory_sgd": memory_sgd,
    "memory_adam": memory_adam,
    "paper_sgd": paper_sgd,
    "paper_adam": paper_adam,
}


# What Optax and JAX do around an optimizer is the same for rows that go the same way
# through our code: there these stand for all.
TYPICAL = (
    "memory_sgd",
    "memory_adam",
    "around lion",
    "link",
    "link, equation 6",
    "behind adam, grad=",
    "inner against",
)


@pytest.fixture(params=ROWS)
def row(request):
    return ROWS[request.param]


@pytest.fixture(params=TYPICAL)
def typical(request):
    return ROWS[request.param]


def make_params(dtype=jnp.float32):
    """Asymmetric on purpose: a symmetric target cannot tell a sign from its mirror."""
    return {
        "dense": {
            "kernel": jnp.array([[0.5, -1.0], [0.8, 0.3], [-0.6, 0.9]], dtype),
            "bias": jnp.array([0.4, -0.7], dtype),
        },
        "scale": jnp.array(1.5, dtype),
    }


def quadratic(params):
    """Minimum 0 at kernel 0.1, bias -0.2, scale 1, steeper in some directions."""
    terms = (
        jnp.array([[1.0], [2.0], [3.0]]) * (params["dense"]["kernel"] - 0.1) ** 2,
        jnp.array([0.5, 2.0]) * (params["dense"]["bias"] + 0.2) ** 2,
        3.0 * (params["scale"] - 1.0) ** 2,
    )
    return sum(jnp.sum(term.astype(jnp.float32)) for term in terms)


def make_step(optimizer, raw=False, loss=quadratic):
    """One training step; a pure function of (params, state)."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(params, state):
        grads = jax.grad(loss)(params)
        extra = {"grad": grads} if raw else {}
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


class Usual(NamedTuple):
    """What most tests of a row share: compiled once, whatever they do with it."""

    optimizer: optax.GradientTransformationExtraArgs
    update: Callable[..., Any]
    donated: Callable[..., Any]  # a step that takes parameters and state, once traced


@functools.cache
def usual(row):
    optimizer = row.make(0.01)
    train = make_step(optimizer, row.raw)
    traces = []

    def step(params, state):
        traces.append(params)
        assert len(traces) == 1, "traced more than once"
        return train(params, state)

    donated = jax.jit(step, donate_argnums=(0, 1))
    return Usual(optimizer, jax.jit(optimizer.update), donated)


quadratic_grad = jax.jit(jax.grad(quadratic))
apply_updates = jax.jit(optax.apply_updates)


def walk(row, params, steps=8, state=None, grad=quadratic_grad):
    """Train in a Python loop; return parameters and state."""
    optimizer, update, _ = usual(row)
    state = optimizer.init(params) if state is None else state
    for _ in range(steps):
        grads = grad(params)
        extra = {"grad": grads} if row.raw else {}
        updates, state = update(grads, state, params, **extra)
        params = apply_updates(params, updates)
    return params, state


def run(optimizer, params, steps=8, raw=False, loss=quadratic):
    """Train in one scan; return parameters and state."""
    step = make_step(optimizer, raw, loss)
    carry = params, optimizer.init(params)
    return jax.jit(
        lambda carry: jax.lax.scan(lambda c, _: (step(*c), None), carry, None, steps)[0]
    )(carry)


def assert_close(one, other, rtol=1e-5, atol=1e-7):
    chex.assert_trees_all_close(one, other, rtol=rtol, atol=atol)


def kinds(tree):
    """Shape, dtype, weak type and sharding of every leaf."""
    return jax.tree.map(jax.typeof, tree)


def test_learns_and_moves_its_rates(row):
    optimizer, _, step = usual(row)
    params, state = make_params(), optimizer.init(make_params())
    rates = []
    for number in range(200):
        # At the end some have come back to where they began.
        if number in (0, 20):
            rates.append({k: m.rates for k, m in get_memory(state).items()})
        params, state = step(params, state)
    rates.append({k: m.rates for k, m in get_memory(state).items()})
    assert quadratic(params) < 0.1 * quadratic(make_params())
    for label, before in rates[0].items():
        moved = [np.asarray(after[label]) - before for after in rates[1:]]
        assert np.max(np.abs(moved)) > 1e-3, label


@pytest.mark.parametrize("name", ["paper_sgd", "paper_adam"])
def test_goes_down_the_rosenbrock_valley(name):
    def rosenbrock(x):
        return (1.0 - x[0]) ** 2 + 100.0 * (x[1] - x[0] ** 2) ** 2

    alias: Any = ALIASES[name]
    optimizer = alias(memory_optimizer=optax.adam(1e-4))
    step = make_step(optimizer, loss=rosenbrock)
    start = jnp.array([-0.5, 1.0])
    carry = start, optimizer.init(start)
    (end, _), _ = jax.lax.scan(lambda c, _: (step(*c), None), carry, None, 300)
    assert rosenbrock(end) < 0.1 * rosenbrock(start)


def test_one_trace_and_a_state_of_stable_type(row):
    params = make_params()
    state = usual(row).optimizer.init(params)
    expected = kinds((params, state))
    for _ in range(3):
        # Which may be traced once, whatever the other tests do with it.
        params, state = usual(row).donated(params, state)
        assert kinds((params, state)) == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(typical, dtype):
    optimizer, update, _ = usual(typical)
    with jax.enable_x64(dtype == "float64"):
        params = make_params(dtype)
        state = optimizer.init(params)
        precise = jnp.promote_types(dtype, jnp.float32)
        for one in get_memory(state).values():
            numbers = *one.kernels, one.rates, one.evidence_weight, one.schedule
            assert {x.dtype for x in numbers} == {precise}
            assert one.rms_normalized.dtype == bool
        grads = quadratic_grad(params)
        extra = {"grad": grads} if typical.raw else {}
        updates, after = update(grads, state, params, **extra)
        chex.assert_trees_all_equal_dtypes(updates, params)
        assert kinds(after) == kinds(state)
        updates, after = update(grads, after, params, **extra)
        assert kinds(after) == kinds(state)
        finite = jax.tree.map(np.isfinite, jax.device_get(updates))
        assert all(map(np.all, jax.tree.leaves(finite)))


def test_updates_take_the_dtype_that_comes_in():
    params = make_params(jnp.bfloat16)
    optimizer = scale_by_memory(0.01)
    state = jax.eval_shape(optimizer.init, params)
    grads = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    updates, after = jax.eval_shape(optimizer.update, grads, state, params)
    chex.assert_trees_all_equal_dtypes(updates, grads)
    assert kinds(after) == kinds(state)


def test_vmap_over_scans_equals_separate_loops(typical):
    shifts = np.array([0.0, 0.3, -0.5], np.float32)
    ones = [jax.tree.map(lambda x, by=by: x + by, make_params()) for by in shifts]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ones)
    train = functools.partial(run, usual(typical).optimizer, steps=4, raw=typical.raw)
    together = jax.device_get(jax.jit(jax.vmap(train))(starts))
    for i, start in enumerate(ones):
        alone = walk(typical, start, 4)
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone)


def test_vmap_over_rates_equals_separate_runs(typical):
    rates = jnp.array([1e-3, 1e-2, 0.1])

    def train(rate):
        return run(typical.make(rate), make_params(), steps=4, raw=typical.raw)[0]

    together = jax.device_get(jax.jit(jax.vmap(train))(rates))
    init = jax.jit(lambda rate: typical.make(rate).init(make_params()))
    for i, rate in enumerate(rates):
        state = init(rate)
        alone, _ = walk(typical, make_params(), 4, state)
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone)


def test_donated_steps(typical):
    params = make_params()
    state = usual(typical).optimizer.init(params)
    for _ in range(3):
        params, state = usual(typical).donated(params, state)
    assert_close((params, state), walk(typical, make_params(), 3))


@pytest.mark.parametrize("name", ["memory_sgd", "link", "behind adam, grad="])
def test_a_donated_step_leaves_the_callers_gradient_alive(name):
    """Where a direction, or what it is compared with, may be the gradient itself."""
    typical = ROWS[name]
    optimizer, grads = usual(typical).optimizer, make_params()
    extra = {"grad": grads} if typical.raw else {}
    _, state = optimizer.update(grads, optimizer.init(grads), grads, **extra)  # no jit
    others = jax.tree.map(lambda x: x + 1, grads)
    usual(typical).donated(others, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(others))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("transfer", [lambda m: m, lambda m: m["dense"]])
def test_a_donated_step_leaves_the_callers_memory_alive(transfer):
    memory = get_memory(run(paper_sgd(initial=0.01), make_params())[1])
    initial = transfer(memory)
    step = jax.jit(make_step(paper_sgd(initial=initial)), donate_argnums=(0, 1))
    for _ in range(2):  # two optimizers from one memory
        params = make_params()
        step(params, paper_sgd(initial=initial).init(params))
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(memory))


def test_inject_hyperparams(typical):
    injected = optax.inject_hyperparams(typical.make)(0.01)
    params, state = run(injected, make_params(), raw=typical.raw)
    assert_close((params, state.inner_state), walk(typical, make_params()))


@functools.cache
def halved(name):
    """What an alias learns with a factor of a half."""
    return run(ALIASES[name](0.5, initial=0.01), make_params())


@pytest.mark.parametrize("name", ALIASES)
def test_inject_hyperparams_of_an_alias(name):
    injected = optax.inject_hyperparams(ALIASES[name])(
        learning_rate=lambda count: 0.5 + 0.0 * count, initial=0.01
    )
    params, state = run(injected, make_params())
    expected = halved(name)
    # Injected decays are float32 numbers: Adam corrects its bias less exactly.
    assert_close((params, state.inner_state), expected, rtol=1e-3, atol=1e-5)


def test_inject_hyperparams_with_functions_as_static_arguments():
    injected = optax.inject_hyperparams(
        scale_by_memory, static_args=("signal", "group_by")
    )(0.01, signal=clipped_product, group_by=lambda path, leaf: "one")
    state = injected.init(make_params())
    assert list(get_memory(state)) == ["one"]


def test_inject_hyperparams_with_bfloat16_parameters():
    injected = optax.inject_hyperparams(paper_sgd)(initial=0.01)
    params = make_params(jnp.bfloat16)
    trained, state = run(injected, params, steps=20)
    assert quadratic(trained) < 0.9 * quadratic(params)
    assert get_memory(state)["dense"].rates.dtype == jnp.float32


@pytest.mark.parametrize("name", ALIASES)
def test_a_schedule_multiplies_the_learned_rates(name):
    constant = halved(name)[0]
    scheduled = run(ALIASES[name](lambda _: 0.5, initial=0.01), make_params())[0]
    assert_close(constant, scheduled)


def test_masked_leaves_the_rest_alone(typical):
    mask = {"dense": {"kernel": True, "bias": False}, "scale": False}
    frozen = jax.tree.map(lambda keep: not keep, mask)
    optimizer = optax.chain(
        optax.masked(typical.make(0.01), mask, mask_compatible_extra_args=True),
        optax.masked(optax.set_to_zero(), frozen),
    )
    params, state = run(optimizer, make_params(), raw=typical.raw)
    kernel = make_params()["dense"]["kernel"]
    assert set(get_memory(state)) <= {"dense", "dense/kernel"}
    assert jnp.max(jnp.abs(params["dense"]["kernel"] - kernel)) > 1e-4
    assert_close(params["dense"]["bias"], make_params()["dense"]["bias"])
    assert_close(params["scale"], make_params()["scale"])


def test_partition_equals_the_parts(typical):
    def flat(params):  # below every clip: a global norm would see all parts
        return 0.05 * quadratic(params)

    whole, _ = walk(typical, make_params(), grad=jax.grad(flat))
    optimizer = optax.partition(
        {"memory": typical.make(0.01), "frozen": optax.set_to_zero()},
        {"dense": "memory", "scale": "frozen"},
        mask_compatible_extra_args=True,
    )
    params, state = run(optimizer, make_params(), raw=typical.raw, loss=flat)
    assert set(get_memory(state)) <= {"dense", "dense/kernel", "dense/bias"}
    # Layers do not look at each other; only the orientation is one for the tree.
    assert_close(params["dense"], whole["dense"])
    assert_close(params["scale"], make_params()["scale"])


def test_multi_steps_updates_once_per_accumulation(typical):
    optimizer = optax.MultiSteps(typical.make(0.01), 2).gradient_transformation()
    if typical.raw:
        pytest.skip("MultiSteps averages the updates, not the extra argument grad=")
    grads = jax.grad(quadratic)(make_params())
    params, state = make_params(), optimizer.init(make_params())
    update = jax.jit(optimizer.update)
    for _ in range(4):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    expected, plain_state = walk(typical, make_params(), 2, grad=lambda _: grads)
    assert_close(params, expected)
    assert_close(get_memory(state), get_memory(plain_state))


def test_apply_if_finite_skips_a_bad_step(typical):
    optimizer = optax.apply_if_finite(typical.make(0.01), max_consecutive_errors=3)
    update = jax.jit(optimizer.update)

    def step(grads, state):
        extra = {"grad": grads} if typical.raw else {}
        return update(grads, state, params, **extra)

    params, state = make_params(), optimizer.init(make_params())
    updates, state = step(quadratic_grad(params), state)
    params = apply_updates(params, updates)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    updates, skipped = step(bad, state)
    assert_close(updates, optax.tree.zeros_like(params))
    assert_close(get_memory(skipped), get_memory(state))
    updates, _ = step(quadratic_grad(params), skipped)
    expected, _ = walk(typical, make_params(), 2)
    assert_close(apply_updates(params, updates), expected)


def test_unknown_extra_arguments_are_accepted(row):
    optimizer = optax.with_extra_args_support(row.make(0.01))
    params = make_params()
    update = functools.partial(optimizer.update, value=1.0, unknown="x")
    jax.eval_shape(update, params, jax.eval_shape(optimizer.init, params), params)


def test_parameters_are_not_needed(typical):
    optimizer, update, _ = usual(typical)
    grads = make_params()
    state = optimizer.init(grads)
    with_params, _ = update(grads, state, grads)
    if typical.needs_params:  # for the decay of its base
        with pytest.raises(ValueError, match="not passing `params`"):
            update(grads, state)
        return
    without, _ = update(grads, state)
    assert_close(with_params, without)


@pytest.mark.parametrize("empty", [{}, (), {"a": None}, {"a": optax.MaskedNode()}])
def test_empty_trees(row, empty):
    optimizer = row.make(0.01)
    extra = {"grad": empty} if row.raw else {}
    state = optimizer.init(empty)
    updates, state = optimizer.update(empty, state, empty, **extra)
    assert jax.tree.leaves(updates) == []
    assert get_memory(state) == {}


def test_a_tensor_without_elements():
    params = {"w": jnp.zeros((0, 3)), "v": jnp.ones(2)}
    optimizer: Any = paper_adam(initial=0.01)
    updates, state = optimizer.update(params, optimizer.init(params))
    updates, state = optimizer.update(params, state)
    assert updates["w"].shape == (0, 3)
    chex.assert_tree_all_finite((updates, get_memory(state)))


def test_abstract_initialisation(row):
    params = make_params()
    optimizer = row.make(0.01)
    shapes = jax.eval_shape(lambda: params)
    abstract = jax.eval_shape(optimizer.init, shapes)
    assert kinds(optimizer.init(params)) == kinds(abstract)


def test_lowers_for_accelerators(row):
    optimizer = row.make(0.01)
    params = make_params()
    arguments = jax.eval_shape(lambda: (params, optimizer.init(params)))
    step = jax.jit(make_step(optimizer, row.raw))
    exported = jax.export.export(step, platforms=["tpu", "cuda"])(*arguments)
    assert exported.platforms == ("tpu", "cuda")


BASES = {
    "identity": optax.identity(),
    "adam": optax.scale_by_adam(),
    "adam against": optax.adam(1.0),
    "momentum": optax.trace(0.9),
}


@functools.cache
def plain(base):
    """Where a base optimizer arrives without a memory."""
    return run(optax.chain(BASES[base], optax.scale(0.03)), make_params())[0]


@pytest.mark.parametrize(
    ("base", "group_by"),
    [*((base, "layer") for base in BASES), ("adam", "tensor"), ("adam", "all")],
)
def test_a_memory_that_does_not_move_is_the_base_optimizer(base, group_by):
    still = scale_by_memory(
        0.03,
        base_optimizer=BASES[base],
        memory_optimizer=optax.sgd(0.0),
        group_by=group_by,
    )
    assert_close(run(still, make_params())[0], plain(base), rtol=1e-6)


def test_inner_sees_parameters_and_extra_arguments():
    params = make_params()
    grads = jax.grad(quadratic)(params)
    for inner, extra in (
        (optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.5)), {}),
        (optax.scale_by_polyak(), {"value": 3.0}),
    ):
        still = scale_by_memory(
            0.03, base_optimizer=inner, memory_optimizer=optax.sgd(0.0)
        )
        plain = optax.with_extra_args_support(inner)
        updates, _ = still.update(grads, still.init(params), params, **extra)
        expected, _ = plain.update(grads, plain.init(params), params, **extra)
        assert_close(updates, optax.tree.scale(0.03, expected))


def test_the_memory_optimizer_sees_the_rates():
    decay = optax.chain(optax.add_decayed_weights(0.5), optax.scale(-1.0))
    optimizer = scale_by_memory(0.1, memory_optimizer=decay)
    params = make_params()
    _, state = optimizer.update(params, optimizer.init(params))
    assert_close(get_memory(state)["dense"].rates, jnp.full(20, 0.05))


def test_paper_adam_is_adam_with_the_given_moments():
    adam = {"b1": 0.5, "b2": 0.8, "eps": 0.1}
    by_hand = optax.chain(
        optax.clip(2.0),
        scale_by_memory(0.01, base_optimizer=optax.scale_by_adam(**adam)),
        optax.scale(-1.0),
    )
    assert_close(
        run(paper_adam(initial=0.01, **adam), make_params())[0],
        run(by_hand, make_params())[0],
    )


def test_a_memory_optimizer_that_keeps_its_parameters_can_be_donated():
    optimizer = paper_sgd(initial=0.01, memory_optimizer=optax.contrib.dog(1e-3))
    params = make_params()
    step = jax.jit(make_step(optimizer), donate_argnums=(0, 1))
    step(params, optimizer.init(params))


def squares():
    """Numbers of both signs; none near 0, where Adam makes much of a rounding.

    One tensor is large enough for a table.
    """
    lines = {name: jnp.linspace(-1.0, 1.5, size**2) for name, size in SIZES.items()}
    return {
        name: (line + 0.2 * jnp.sign(line)).reshape(SIZES[name], -1)
        for name, line in lines.items()
    }


SIZES = {"small": 8, "large": 128}


def train_squares(row, params):
    """Train on a parabola; return parameters, memories and the kinds of states."""
    optimizer = optax.with_extra_args_support(row.make(0.01))

    def step(_, carry):
        params, state = carry
        extra = {"grad": params} if row.raw else {}
        updates, state = optimizer.update(params, state, params, **extra)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def train(params):
        state = optimizer.init(params)
        return state, jax.lax.fori_loop(0, 4, step, (params, state))

    before, (params, after) = train(params)
    memory = get_memory(jax.device_get(after))
    return params, memory, (kinds(before), kinds(after))


def test_sharded_parameters_give_the_same_numbers(typical):
    whole = squares()
    expected, memory, _ = train_squares(typical, whole)
    for kind, spec in (
        (jax.sharding.AxisType.Explicit, ("x", "y")),
        (jax.sharding.AxisType.Auto, (None, ("y", "x"))),
    ):
        mesh = jax.make_mesh((4, 2), ("x", "y"), (kind, kind))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        with jax.set_mesh(mesh):
            placed = jax.device_put(whole, sharding)
            actual, sharded_memory, (before, after) = train_squares(typical, placed)
            assert before == after
            for tensor in actual.values():
                assert tensor.sharding.is_equivalent_to(sharding, 2)
        assert_close(jax.device_get(actual), jax.device_get(expected))
        assert_close(sharded_memory, memory, rtol=1e-4)


def test_map_params_sees_what_is_shaped_like_parameters_and_nothing_else(row):
    if not row.maps_params:
        pytest.skip("the state of its base alone is refused there, too")
    params = make_params()
    optimizer = row.make(0.01)
    state = optimizer.init(params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    seen = []

    def look(leaf, name):
        seen.append((leaf.shape, leaf.dtype, name))
        return leaf

    names = jax.tree.map(lambda leaf: str(leaf.shape), params)
    mapped = optax.tree.map_params(optimizer, look, state, names)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    assert seen
    assert len(seen) % 3 == 0
    for shape, dtype, name in seen:
        assert shape in shapes
        assert dtype == jnp.float32
        assert name == str(shape)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("memory_sgd", optax.chain),
        ("memory_adam", lambda tx: tx),
        ("paper_sgd", lambda tx: tx),
        ("paper_adam", optax.chain),
    ],
)
def test_specs_of_parameters_are_those_of_a_state(name, wrap):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    spec = jax.sharding.PartitionSpec
    params = {"a": {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}, "c": jnp.ones(8)}
    specs = {"a": {"w": spec("x", "y"), "b": spec("y")}, "c": spec("x")}
    place = functools.partial(jax.sharding.NamedSharding, mesh)
    specs = jax.tree.map(place, specs, is_leaf=lambda one: isinstance(one, spec))
    optimizer = wrap(ALIASES[name]())
    state = optimizer.init(params)
    state_specs = optax.tree.map_params(
        optimizer,
        lambda _, spec: spec,
        state,
        specs,
        transform_non_params=lambda _: place(spec()),
    )
    placed = jax.device_put(state, state_specs)
    found = {leaf.sharding.spec for leaf in jax.tree.leaves(placed)}
    if name != "memory_sgd" or jax.tree.leaves(state)[-1].ndim:
        assert spec("x", "y") in found
    step = jax.jit(
        optimizer.update,
        in_shardings=(specs, state_specs, specs),
        out_shardings=(specs, state_specs),
    )
    updates, after = step(params, placed, params)
    expected, _ = jax.jit(optimizer.update)(params, state, params)
    assert_close(jax.device_get(updates), jax.device_get(expected))
    assert kinds(jax.device_get(after)) == kinds(jax.device_get(state))


@pytest.mark.parametrize("name", ALIASES)
def test_an_optimizer_can_be_sent_to_another_process(name):
    optimizer = ALIASES[name]()
    params = make_params()
    first = optimizer.update(params, optimizer.init(params), params)
    again = cloudpickle.loads(cloudpickle.dumps(optimizer))
    assert_close(first, again.update(params, again.init(params), params))


def test_leaves_of_a_state_survive_arithmetic(row):
    """As in optax.contrib.sam, which blends states: none is boolean, all are arrays."""
    params = make_params()
    optimizer = row.make(0.01)
    state = optimizer.init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    blend = jax.jit(lambda state, first: jax.tree.map(lambda a: first * a, state))
    blended = blend(state, jnp.array(1))
    assert kinds(blended) == kinds(state)
    assert_close(blended, state)


@pytest.mark.parametrize("name", ["memory_sgd", "memory_adam"])
def test_sharpness_aware_minimisation_goes_around_it(name):
    ascend = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    optimizer = optax.contrib.sam(ALIASES[name](), ascend)
    trained, _ = run(optimizer, make_params(), steps=200)
    assert quadratic(trained) < 0.1 * quadratic(make_params())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kernels", [None, linspace_kernels(2.0, 20)])
def test_dtypes_are_promoted_by_nobody(dtype, kernels):
    """In our own code: `optax.adam` fails by itself."""
    params = {"w": jnp.ones((200, 100), dtype), "b": jnp.ones(3, dtype)}
    optimizers = [
        memory_sgd(kernels=kernels),
        paper_sgd(kernels=kernels, memory_optimizer=optax.sgd(0.1)),
    ]
    with jax.numpy_dtype_promotion("strict"):
        for optimizer in optimizers:
            state = jax.eval_shape(optimizer.init, params)
            updates, _ = jax.eval_shape(optimizer.update, params, state, params)
            chex.assert_trees_all_equal_dtypes(updates, params)


def test_a_state_of_the_first_release_is_refused():
    params = make_params()
    optimizer = scale_by_memory()
    old = {"count": jnp.zeros([]), "memory": {}, "previous_direction": params}
    for call in (lambda: optimizer.update(params, old), lambda: get_memory(old)):
        with pytest.raises(ValueError, match=r"older .*save_memory.*initial=load_mem"):
            call()


def test_the_result_does_not_depend_on_the_x64_flag(typical):
    params = make_params()
    expected = walk(typical, params)
    with jax.enable_x64(True):
        actual = run(typical.make(0.01), params, raw=typical.raw)
        assert kinds(actual) == kinds(expected)
        # Adam's bias correction is more exact with the flag.
        assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_both_orientations_of_a_base_learn_the_same():
    along = optax.chain(
        scale_by_memory(0.01, base_optimizer=optax.scale_by_adam()), DOWN
    )
    against = scale_by_memory(0.01, base_optimizer=optax.adam(1.0))
    chained = optax.chain(optax.adam(1.0), scale_by_memory(0.01))
    one = run(along, make_params(), 30)
    two = run(against, make_params(), 30)
    three = run(chained, make_params(), 30, raw=True)
    assert_close(one[0], two[0], rtol=1e-4)
    assert_close(one[0], three[0], rtol=1e-4)
    # The kernels are symmetric, and so are the memories: mirrored.
    mirrored = np.asarray(get_memory(two[1])["dense"].rates)[::-1]
    assert_close(get_memory(one[1])["dense"].rates, mirrored, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        memory_adam(),
        paper_adam(),
        scale_by_memory(capacity=30, learned_widths=True, linear=True),
        optax.inject_hyperparams(memory_adam)(learning_rate=1.0),
    ],
    ids=["memory_adam", "paper_adam", "growing", "injected"],
)
def test_steps_without_jit_compile_nothing_after_the_first(optimizer, caplog):
    params = make_params()
    state = optimizer.init(params)
    for step in range(4):
        caplog.clear()
        # A second step has other branches to take than the first.
        with jax.log_compiles(step > 1):
            _, state = optimizer.update(params, state, params)
    assert not [r for r in caplog.messages if r.startswith("Compiling")]
