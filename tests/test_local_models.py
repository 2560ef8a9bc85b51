"""Slopes, widths and new local models: what is learned besides rates."""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

from metalr_optax import (
    Kernels,
    Memory,
    adapt_memory,
    agreement_steps,
    get_memory,
    get_rates,
    linspace_kernels,
    load_memory,
    load_metadata,
    memory_sgd,
    plot_memory,
    plot_transfer,
    raw_product,
    save_memory,
    scale_by_memory,
    set_memory,
    summarize_memory,
)
from metalr_optax.evidence import Evidence
from metalr_optax.growing import Learned, grow, growing, padded
from metalr_optax.memory import read
from metalr_optax.rules import from_optax
from metalr_optax.splitting import Sums
from metalr_optax.stack import ByDirection

STILL = optax.sgd(0.0)
KERNELS = Kernels(np.array([-1.0, 0.2, 1.0]), np.array([0.7, 0.4, 0.5]))
SLOPES = np.array([0.2, -0.1, 0.3])
MEMORY = Memory(KERNELS, np.array([0.1, 0.4, 0.2]), slopes=SLOPES)
ALL: dict[str, Any] = {"capacity": 8, "learned_widths": True, "linear": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "capacity": {"capacity": 8},
    "widths": {"learned_widths": True},
    "linear": {"linear": True},
    "all": ALL,
}


class Columns(NamedTuple):
    """What a state holds of one memory, [M] each; None for what it does not learn."""

    rates: Any
    evidence_weight: Any
    centers: Any
    widths: Any
    slopes: Any
    disagreement: Any


def columns(state):
    """Return what a state holds of its memory, its local models where they stand."""
    memory = jax.tree.map(np.asarray, state.memory)
    centers, widths = np.moveaxis(memory.kernels, -2, 0)
    stacks = Columns(
        *(memory.rates, memory.evidence_weight, centers, widths),
        *(memory.slopes, memory.disagreement),
    )
    return jax.tree.map(lambda stack: stack[..., 0, :], stacks)


@jax.jit
def curve(state, z):
    """Return the rates that a memory has at inputs z."""
    memory = get_memory(state)["params"]
    return read(memory.kernels, memory.rates, z, memory.slopes)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def follow(optimizer, wanted, draw, steps, *values):
    """Return last rates and state after evidence that they should be wanted(z).

    Directions are new in every step; the sign of a gradient flips exactly where the
    rate that was read is larger than wanted. The first gradient tells the orientation.
    """

    def step(number, carry):
        z, rates, state = carry
        new = draw(jax.random.key(number), *values)
        gradient = jnp.where(number == 0, new, (1 - rates / wanted(z, *values)) * z)
        updates, state = optimizer.update(new, state, grad=gradient)
        return new, updates / new, state

    z = draw(jax.random.key(0), *values)
    return jax.lax.fori_loop(0, steps + 1, step, (z, z, optimizer.init(z)))[1:]


def uniform(low, high, num=32):
    return lambda key: jax.random.uniform(key, (num,), minval=low, maxval=high)


@functools.cache
def driver(**settings):
    """Return one compiled run for all memories, directions and gradients of a shape."""

    @jax.jit
    def run(memory, directions, gradients):
        optimizer = scale_by_memory(memory, **settings)

        def step(state, tensors):
            direction, gradient = tensors
            _, state = optimizer.update(direction, state, grad=gradient)
            return state, state

        state = optimizer.init(jax.tree.map(lambda x: x[0], directions))
        return jax.lax.scan(step, state, (directions, gradients))[1]

    return run


def drive(memory, directions, values, **settings):
    """Return columns [steps, M] of updates with the same evidence every time.

    directions: [steps + 1, ...]; the first gradient tells the orientation.
    """

    def gradient(a, d):
        return np.concatenate([d[:1], a / d[:-1]])

    gradients = jax.tree.map(gradient, values, directions)
    states = driver(**settings)(memory, directions, gradients)
    return jax.tree.map(lambda column: column[1:], columns(states))


def repeat(z, steps):
    return np.stack([np.array(z)] * (steps + 1))


# --- one step, from the formulas


def eta(z, centers, widths, rates, slopes):
    psi = [
        math.exp(-0.5 * ((z - c) / s) ** 2)
        for c, s in zip(centers, widths, strict=True)
    ]
    local = [
        v * (1 + b * min(max((z - c) / s, -2), 2))
        for c, s, v, b in zip(centers, widths, rates, slopes, strict=True)
    ]
    return sum(p * f for p, f in zip(psi, local, strict=True)) / sum(psi)


def relative(sums, sizes):
    return np.array(sums) / (np.array(sizes) + 1e-3 * sum(sizes))


def one_step(**options):
    """Return a state after evidence from two tensors of one memory, and that."""
    rng = np.random.default_rng(3)
    shapes = {"a": (3, 4), "b": (5,)}
    z = {name: rng.uniform(-1.4, 1.6, shape) for name, shape in shapes.items()}
    a = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    found = drive(
        MEMORY if options.get("linear") else MEMORY._replace(slopes=None),
        jax.tree.map(lambda x: repeat(x, 1), z),
        a,
        memory_optimizer=STILL,
        signal=raw_product,
        group_by="all",
        **options,
    )
    pairs = [
        (x, y)
        for name in z
        for x, y in zip(z[name].ravel(), a[name].ravel(), strict=True)
    ]
    return jax.tree.map(lambda column: column[0], found), pairs


def test_slopes_follow_evidence_times_distance():
    with jax.enable_x64(True):
        found, pairs = one_step(linear=True)
    sums, sizes = np.zeros(3), np.zeros(3)
    for z, a in pairs:
        for m, (c, s) in enumerate(zip(*KERNELS, strict=True)):
            psi, t = math.exp(-0.5 * ((z - c) / s) ** 2), min(max((z - c) / s, -2), 2)
            sums[m] += a * psi * t
            sizes[m] += abs(a * psi * t)
    np.testing.assert_allclose(found.slopes, SLOPES + 0.02 * relative(sums, sizes))
    np.testing.assert_array_equal(found.widths, KERNELS.widths)


@pytest.mark.parametrize("linear", [False, True])
def test_widths_follow_the_derivative_of_what_is_read(linear):
    """By differences of the reading: what evidence would have of a larger width."""
    with jax.enable_x64(True):
        found, pairs = one_step(learned_widths=True, linear=linear)
    sums, sizes, step = np.zeros(3), np.zeros(3), 1e-6
    slopes = SLOPES if linear else np.zeros(3)
    for z, a in pairs:
        for m in range(3):
            up, down = (
                eta(
                    z,
                    KERNELS.centers,
                    KERNELS.widths * np.exp(sign * step * (np.arange(3) == m)),
                    MEMORY.rates,
                    slopes,
                )
                for sign in (1, -1)
            )
            sums[m] += a * (up - down) / (2 * step)
            sizes[m] += abs(a * (up - down) / (2 * step))
    new = KERNELS.widths * np.exp(0.02 * relative(sums, sizes))
    np.testing.assert_allclose(found.widths, new, rtol=1e-8)


def test_disagreement_is_the_covariance_of_sign_and_side():
    # One local model alone: evidence of two signs, of one, and on one side.
    memory = Memory(Kernels(np.zeros(1), np.ones(1)), np.array([0.1]))
    z = np.array([-0.5, -0.25, 0.75])
    for a in ([-1.0, -3.0, 2.0], [1.0, 3.0, 2.0], [1.0, -1.0, 1e-30]):
        with jax.enable_x64(True):
            found = drive(
                memory,
                repeat(z, 2),
                np.array(a),
                memory_optimizer=STILL,
                signal=raw_product,
                capacity=2,
            )
        weights = np.abs(a) * np.exp(-0.5 * z**2)
        weights /= weights.sum()
        signs, sides = np.sign(a), np.sign(z)
        mean, lean = np.dot(weights, signs), np.dot(weights, sides)
        covariance = np.dot(weights, (signs - mean) * (sides - lean))
        expected = np.array([0.02, 0.02 + 0.98 * 0.02]) * covariance
        np.testing.assert_allclose(
            found.disagreement[:, 0], expected, rtol=2e-3, atol=3e-5
        )
    assert abs(covariance) < 1e-12


# --- local models that are split


def test_halves_read_what_the_whole_read():
    memory = Memory(
        Kernels(np.array([-3.0, 0.3]), np.array([1.0, 0.8])),
        np.array([0.1, 0.2]),
        np.array([1.0, 4.0]),
        slopes=np.array([0.0, 0.3]),
    )
    z = np.array([-0.1, 0.1, 0.5, 0.7])
    found = drive(
        memory,
        repeat(z, 40),
        # Evidence in two digits of the slope's step: it stays where it is.
        np.where(z < 0.3, -1.0, 1.0),
        memory_optimizer=STILL,
        signal=raw_product,
        capacity=3,
        linear=True,
    )
    counts = list(np.sum(found.widths > 0, axis=1))
    assert (counts[0], counts[-1]) == (2, 3)
    split = counts.index(3)
    before, after = (
        jax.tree.map(lambda column, at=at: column[at], found)
        for at in (split - 1, split)
    )
    weights = np.exp(-0.5 * ((z - 0.3) / 0.8) ** 2)
    part = np.dot(weights, np.abs(z - 0.3) / 0.8) / weights.sum()
    np.testing.assert_allclose(after.centers[1], 0.3 - 0.8 * part, rtol=1e-5)
    np.testing.assert_allclose(after.centers[2], 0.3 + 0.8 * part, rtol=1e-5)
    np.testing.assert_allclose(after.widths[1:], 0.8 * part, rtol=1e-5)
    np.testing.assert_allclose(
        after.evidence_weight.sum(), before.evidence_weight.sum() + 1, rtol=1e-5
    )
    # One straight line, which both halves continue.
    slope = min(before.slopes[1] + 0.02 / 1.001, 0.45)
    for m in (1, 2):
        for t in (-1.0, 0.0, 1.0):
            place = after.centers[m] + t * after.widths[m]
            line = 0.2 * (1 + slope * (place - 0.3) / 0.8)
            mine = after.rates[m] * (1 + after.slopes[m] * t)
            np.testing.assert_allclose(mine, line, rtol=1e-5)


def test_a_split_is_where_evidence_disagrees_and_nowhere_else():
    # Around -1 all rates are too small or too large alike; around 1 there is a step.
    def wanted(z, low, high):
        return jnp.where(z < 0, 0.3, jnp.where(z < 1.0, low, high))

    def draw(key, *_):
        return jax.random.uniform(key, (32,), minval=0.7, maxval=1.3) * jnp.where(
            jnp.arange(32) < 16, -1, 1
        )

    optimizer = scale_by_memory(
        0.2,
        kernels=Kernels(np.array([-1.0, 1.0]), np.full(2, 0.4)),
        memory_optimizer=agreement_steps(),
        capacity=4,
    )
    memory = columns(follow(optimizer, wanted, draw, 40, 0.1, 0.5)[1])
    assert np.sum(memory.widths > 0) == 3
    assert (memory.centers[0], memory.widths[0]) == (-1, np.float32(0.4))
    assert 0.8 < memory.centers[1] < 1 < memory.centers[2] < 1.2
    alike = columns(follow(optimizer, wanted, draw, 300, 0.3, 0.3)[1])
    assert np.sum(alike.widths > 0) == 2


def test_a_single_rate_becomes_a_landscape():
    optimizer = scale_by_memory(
        0.1,
        kernels=linspace_kernels(1.0, 1),
        memory_optimizer=agreement_steps(),
        capacity=4,
    )

    def wanted(z):
        return jnp.where(z < 0.5, 0.05, 0.5)

    _, state = follow(optimizer, wanted, uniform(-2.0, 2.0), 700)
    left, right = curve(state, jnp.array([-1.0, 1.5]))
    assert right > 4 * left


# --- local models that are added


def test_local_models_are_added_where_none_answers_and_no_more_than_there_is_room():
    optimizer = scale_by_memory(
        0.2, kernels=linspace_kernels(0.5, 3), memory_optimizer=STILL, capacity=5
    )

    def draw(key, bound):
        return jax.random.uniform(key, (32,), minval=-bound, maxval=bound)

    for bound, covered in ((1.5, True), (4.0, False)):
        _, state = follow(optimizer, lambda z, _: 0.3 + 0 * z, draw, 400, bound)
        memory = jax.tree.map(np.asarray, get_memory(state)["params"])
        used = memory.kernels.widths > 0
        centers, widths = memory.kernels.centers[used], memory.kernels.widths[used]
        assert np.all(np.diff(centers) > 0)
        np.testing.assert_array_equal(widths, 0.25)
        z = np.linspace(-bound, bound, 601)[:, None]
        answer = np.exp(-0.5 * ((z - centers) / widths) ** 2).max(axis=1)
        assert bool(np.mean(answer < 0.1) < 0.1) == covered
        assert len(centers) <= 5
        np.testing.assert_allclose(memory.rates, 0.2, rtol=1e-5)
        # Those not in use stand last, and are nowhere else.
        np.testing.assert_array_equal(used, np.sort(used)[::-1])
        np.testing.assert_array_equal(np.isfinite(memory.kernels.centers), True)


def test_a_new_local_model_stands_among_those_it_is_for_and_reads_the_same():
    memory = Memory(
        Kernels(np.array([0.0, 1.0]), np.full(2, 0.5)), np.array([0.1, 0.4])
    )
    z = repeat([0.1, 0.9, 3.0, 3.4], 60)
    found = drive(memory, z, np.ones(4), memory_optimizer=STILL, capacity=4)
    # Half of the inputs: 1 - .98^n is above a tenth when n is 6.
    counts = np.sum(found.widths > 0, axis=1)
    assert counts[:10].tolist() == [2] * 5 + [3] * 5
    new = jax.tree.map(lambda column: column[5], found)
    np.testing.assert_allclose(new.centers[:3], [0.0, 1.0, 3.2], rtol=1e-6)
    np.testing.assert_allclose(new.widths, [0.5, 0.5, 0.5, 0.0])
    np.testing.assert_allclose(new.rates[:3], [0.1, 0.4, 0.4], rtol=1e-4)
    assert new.evidence_weight[2] == 0


def test_inputs_without_evidence_add_nothing():
    memory = Memory(Kernels(np.array([1.0, 2.0]), np.full(2, 0.3)), np.full(2, 0.2))
    z, numbers = repeat([1.0, 4.0, 4.1, 4.2], 60), []
    for far in (0.0, 1.0):
        values = np.array([1.0, far, far, far])
        found = drive(memory, z, values, memory_optimizer=STILL, capacity=4)
        numbers.append(int(np.sum(found.widths[-1] > 0)))
    assert numbers[0] == 2 < numbers[1]


THREE = Memory(linspace_kernels(1.0, 3), np.full(3, 0.2))


@pytest.mark.parametrize("outlier", [1e6, -3e37, np.inf, np.nan])
def test_an_outlier_in_every_step_adds_nothing(outlier):
    found = drive(THREE, repeat([0.3, -0.4, 0.8, outlier], 60), np.ones(4), **ALL)
    assert int(np.sum(found.widths[-1] > 0)) == 3
    chex.assert_tree_all_finite(found)


def test_rare_outliers_add_nothing():
    z = repeat([0.3, -0.4, 0.8, 0.5], 60)
    z[::10, 3] = 3.0
    found = drive(THREE, z, np.ones(4), **ALL)
    assert int(np.sum(found.widths[-1] > 0)) == 3


def test_what_says_nothing_changes_nothing():
    """Gradients that are not finite, then zeros: from the start on."""
    z = np.zeros((61, 4))
    z[:30] = np.nan
    found = columns(driver(**ALL)(THREE, z, z))
    for name, column in found._asdict().items():
        if name != "evidence_weight":
            np.testing.assert_array_equal(column[-1], column[0])


def test_a_memory_without_room_stays_as_it_is():
    """However much its first local model disagrees, and others are wanted."""
    kernels = Kernels(np.array([0.0, 1.0]), np.full(2, 0.3))
    learned = Learned(capacity=2, widths=False, slopes=False)
    start = [Memory(kernels, np.full(2, 0.1))]
    stack = growing(learned, ByDirection()).init(start, jnp.float32, False)
    stack = stack._replace(disagreement=jnp.full((1, 2), 0.9))
    zeros, ones = jnp.zeros((1, 2)), jnp.ones((1, 2))
    none = zeros, zeros
    sums = Sums(none, none, none, ones, far=(zeros, ones), away=(zeros, 6 * ones))
    nothing = jnp.zeros(1)
    evidence = Evidence(zeros, ones, nothing, nothing, nothing, nothing, sums)
    rule = grow(from_optax(STILL, (1e-9, 1.0)), learned)
    state = rule.init(stack, lambda: ones[:, 0])
    found, _ = jax.jit(rule.update)(evidence, state, stack)
    for name in ("rates", "kernels", "evidence_weight"):
        np.testing.assert_array_equal(getattr(found, name), getattr(stack, name))


# --- what they are for


Z = jnp.linspace(-2.5, 2.5, 101)


def bend(z):
    return 0.1 * jnp.exp(1.2 * jnp.tanh(4 * (z - 0.5)))


@functools.cache
def learn_bend(**options):
    """Return last rates, state, and how far the rates are from what they should be."""
    optimizer = scale_by_memory(
        0.1,
        kernels=linspace_kernels(2.0, 4),
        memory_optimizer=agreement_steps(),
        **options,
    )
    rates, state = follow(optimizer, bend, uniform(-2.0, 2.0), 1500)
    off = np.log(curve(state, Z[10:-10]) / bend(Z[10:-10]))
    return rates, state, float(np.mean(np.abs(off)))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_known_function_is_learned_better(name):
    assert learn_bend(**OPTIONS[name])[2] < 0.7 * learn_bend()[2]


def test_room_for_none_changes_nothing():
    plain, full = (get_memory(learn_bend(**one)[1]) for one in ({}, {"capacity": 4}))
    chex.assert_trees_all_close(full, plain, rtol=1e-4)


def test_no_rate_is_read_outside_of_the_bounds():
    bounds = (0.08, 0.3)
    optimizer = scale_by_memory(
        0.1,
        kernels=linspace_kernels(2.0, 4),
        memory_optimizer=agreement_steps(),
        rate_bounds=bounds,
        **ALL,
    )
    _, state = follow(optimizer, lambda z: 0.2 * jnp.exp(z), uniform(-2.0, 2.0), 300)
    rates = curve(state, 1.2 * Z)
    assert np.all((rates > 0.08 - 1e-6) & (rates < 0.3 + 1e-6))
    assert np.ptp(rates) > 0.15
    # A memory that would is held at once.
    steep = Memory(KERNELS, np.array([0.1, 0.29, 0.1]), slopes=np.full(3, 0.45))
    optimizer: Any = scale_by_memory(steep, rate_bounds=bounds, linear=True)
    z = np.linspace(-2, 2, 50)
    updates, _ = jax.jit(lambda z: optimizer.update(z, optimizer.init(z)))(z)
    assert np.all(updates / z < 0.3 + 1e-6)


# --- as states of Optax


PARAMS = {
    "blocks": jnp.linspace(-1.9, 1.9, 16).reshape(2, 8) + 0.01,
    "out": jnp.ones(5),
}


def gradients(params, number):
    return jax.tree.map(lambda x: jnp.sin(x * (1 + number)) * 2, params)


@functools.partial(jax.jit, static_argnums=0)
def train(optimizer, params):
    """Return the last updates and the state after 40 steps."""

    def step(carry, number):
        return optimizer.update(gradients(params, number), carry[1]), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, jnp.arange(40))[0]


def grower(**more):
    return scale_by_memory(
        0.1,
        kernels=Kernels(np.array([-0.4, 0.4]), np.full(2, 0.2)),
        signal=raw_product,
        memory_optimizer=agreement_steps(),
        **ALL,
        **more,
    )


def test_stacked_layers_and_members_of_a_vmap_learn_as_layers_of_their_own():
    """In float64: in float32 a rounding decides what evidence that cancels says."""
    with jax.enable_x64(True):
        whole, optimizer = jax.tree.map(jnp.float64, PARAMS), grower()
        blocks = {f"b{i}": whole["blocks"][i] for i in range(2)}
        apart, update = jax.jit(optimizer.init)(blocks), jax.jit(optimizer.update)
        for number in range(40):
            updates, apart = update(gradients(blocks, number), apart)
        expected = jax.jit(get_memory)(apart)

        def group_by(path, leaf):
            (key,) = path
            return list(blocks) if key.key == "blocks" else key.key

        stacked, together = train(grower(group_by=group_by), whole)
        memories = jax.jit(get_memory)(together)
        close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)
        close(memories, expected | {"out": memories["out"]})
        rates = get_rates(together, group_by=group_by)
        chex.assert_trees_all_close(rates["blocks"][1], get_rates(apart)["b1"])
        _, state = jax.vmap(lambda x: train(optimizer, x))(whole["blocks"])
        members = jax.jit(get_memory)(state)
        for row, mine in enumerate(expected.values()):
            close(jax.tree.map(lambda x, r=row: x[r], members["params"]), mine)
            assert int(np.sum(mine.kernels.widths > 0)) > 2
        again = jax.jit(get_memory)(set_memory(state, members))
        chex.assert_trees_all_equal(again, members)
    centers = {tuple(one.kernels.centers.tolist()) for one in memories.values()}
    assert len(centers) > 2
    np.testing.assert_allclose(stacked["blocks"][1], updates["b1"], rtol=1e-9)
    assert jax.tree.map(jnp.shape, rates) == jax.tree.map(jnp.shape, PARAMS)


def test_a_memory_that_may_grow_holds_no_infinity():
    """As `jax_debug_infs` finds out."""
    optimizer = scale_by_memory(kernels=linspace_kernels(1.0, 4), capacity=5)
    x = jnp.array([0.5, -0.2])
    with jax.debug_infs(True):
        state = jax.jit(optimizer.init)(x)
        update = jax.jit(optimizer.update)
        for sign in (1, -1, 1):
            _, state = update(sign * x, state)
        assert len(get_memory(state)["params"].rates) == 5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_dtypes_stay(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
        optimizer = grower()
        start = jax.eval_shape(optimizer.init, params)
        updates, state = jax.eval_shape(optimizer.update, params, start)
        assert state == start
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        assert state.memory.slopes.dtype == wide


# --- what becomes of such memories


def start(optimizer):
    return jax.jit(optimizer.init)(jnp.zeros(3))


@pytest.fixture(scope="module")
def grown():
    _, state, _ = learn_bend(**ALL)
    memory = get_memory(state)["params"]
    assert 4 < int(np.sum(memory.kernels.widths > 0)) < 8
    assert np.any(memory.slopes != 0)
    return state


def test_set_and_initial_take_what_get_gives(grown):
    memory = get_memory(grown)
    fresh = start(grower())
    for state in (
        set_memory(fresh, memory),
        start(scale_by_memory(memory, **ALL)),
        start(scale_by_memory(memory["params"], **(ALL | {"capacity": 11}))),
    ):
        np.testing.assert_allclose(curve(state, Z), curve(grown, Z), rtol=1e-6)
    # Room for what is missing is made.
    short = Memory(KERNELS, MEMORY.rates)
    state = set_memory(fresh, {"params": short})
    np.testing.assert_allclose(curve(state, Z), jax.jit(read)(*short[:2], Z), rtol=1e-5)


def test_a_file_keeps_all_of_it(grown, tmp_path):
    memory = jax.tree.map(np.asarray, get_memory(grown))
    save_memory(tmp_path / "file", memory)
    chex.assert_trees_all_equal(load_memory(tmp_path / "file"), memory)
    assert load_metadata(tmp_path / "file")["format_version"] == "3"
    # Older releases would refuse a width of 0.
    plain = {"a": Memory(Kernels(np.arange(2.0), np.array([1.0, 0.0])), np.ones(2))}
    save_memory(tmp_path / "other", plain)
    assert load_metadata(tmp_path / "other")["format_version"] == "2"


def test_adapting_keeps_what_is_read(grown):
    memory = get_memory(grown)
    # Its own kernels, where there is room, and slopes, where they are read.
    own = adapt_memory(memory, start(grower()))["params"]
    chex.assert_trees_all_close(
        own._replace(schedule=None),
        jax.tree.map(np.asarray, memory["params"])._replace(schedule=None),
        rtol=1e-6,
    )
    # Other kernels read it at their centres.
    fine = start(scale_by_memory(kernels=linspace_kernels(2.0, 60)))
    flat = adapt_memory(memory, fine)
    assert flat["params"].slopes is None
    state = set_memory(fine, flat)
    np.testing.assert_allclose(
        curve(state, Z[10:-10]), curve(grown, Z[10:-10]), rtol=0.2
    )
    centers = linspace_kernels(2.0, 60).centers
    np.testing.assert_allclose(
        flat["params"].rates, curve(grown, jnp.asarray(centers)), rtol=1e-5
    )
    weight = memory["params"].evidence_weight.sum()
    np.testing.assert_allclose(flat["params"].evidence_weight.sum(), weight, rtol=1e-5)
    # Few straight local models are nearer to it than few flat ones.
    few = linspace_kernels(2.0, 10)
    errors = []
    for linear in (False, True):
        state = start(scale_by_memory(kernels=few, linear=linear))
        state = set_memory(state, adapt_memory(memory, state))
        off = np.log(curve(state, Z) / curve(grown, Z))
        errors.append(float(np.mean(np.abs(off))))
    assert errors[1] < errors[0]


def test_slopes_are_refused_where_nobody_reads_them(grown):
    memory = get_memory(grown)
    state = start(scale_by_memory(kernels=linspace_kernels(2.0, 8)))
    match = r"(?s)no slopes without linear=True.*adapt_memory, or memory._replace"
    with pytest.raises(ValueError, match=match):
        set_memory(state, memory)
    with pytest.raises(ValueError, match=match):
        scale_by_memory(memory)


def test_logs_know_local_models_in_use_only():
    bounds = (0.1, 0.4)
    optimizer = scale_by_memory(
        Memory(Kernels(np.array([-1.0, 1.0]), np.ones(2)), np.array([0.1, 0.4])),
        rate_bounds=bounds,
        memory_optimizer=STILL,
        capacity=6,
    )
    z = np.array([-1.0, 1.0, 0.5])
    update, summarize = jax.jit(optimizer.update), jax.jit(summarize_memory)
    _, state = update(z, start(optimizer))
    logs = summarize(state)
    assert logs["at_bound_fraction/params"] == 1
    np.testing.assert_allclose(logs["rate_mean/params"], 0.25)
    np.testing.assert_allclose(logs["rate_min/params"], 0.1)
    np.testing.assert_allclose(logs["rate_max/params"], 0.4)
    _, state = update(z, state)
    fraction = summarize(state)["out_of_range_fraction/params"]
    np.testing.assert_allclose(fraction, 2 / 3)


def test_rates_are_those_of_the_last_update():
    rates, state, _ = learn_bend(**ALL)
    np.testing.assert_allclose(get_rates(state), rates, rtol=1e-5)


def test_pictures_show_what_is_read(grown):
    memory = get_memory(grown)["params"]
    used = int(np.sum(memory.kernels.widths > 0))
    ax = plot_memory(memory, Figure().subplots())
    z, rates = ax.lines[0].get_data()
    np.testing.assert_allclose(rates, curve(grown, jnp.asarray(z)), rtol=1e-5)
    assert len(ax.collections[0].get_offsets()) == used
    before = Memory(KERNELS, MEMORY.rates)
    ax = plot_transfer(before, memory, Figure().subplots())
    z, rates = ax.lines[1].get_data()
    np.testing.assert_allclose(rates, curve(grown, jnp.asarray(z)), rtol=1e-5)


# --- refused arguments


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"capacity": 19}, r"capacity must be an integer of at least 20 .* got 19"),
        ({"capacity": 20.0}, "capacity must be an integer .* got 20.0"),
        ({"capacity": 1, "kernels": linspace_kernels(1.0, 1)}, "at least 2 .* got 1"),
        ({"linear": 1}, "linear must be True or False, got 1"),
        ({"learned_widths": None}, "learned_widths must be True or False"),
        (
            {"linear": True, "kernels": linspace_kernels(1.0, 1)},
            "linear must be False with a single local model",
        ),
        (
            {
                "learned_widths": True,
                "initial": Memory(linspace_kernels(1.0, 1), np.full(1, 0.1)),
            },
            "learned_widths must be False with a single local model",
        ),
        ({"initial": MEMORY}, "initial must have no slopes"),
        (
            {"initial": MEMORY._replace(slopes=np.full(3, 0.5)), "linear": True},
            r"initial must have .* \[-0.45, 0.45\], .* got .* shape \(3,\)",
        ),
        (
            {"initial": MEMORY._replace(slopes=np.zeros(2)), "linear": True},
            r"slopes within .* shape \(3,\), got .* shape \(2,\)",
        ),
        (
            {
                "initial": Memory(
                    Kernels(np.arange(3.0), np.array([1.0, 0.0, 1.0])), np.full(3, 0.1)
                )
            },
            "initial must have widths within",
        ),
        (
            {"initial": Memory(Kernels(np.arange(3.0), np.zeros(3)), np.full(3, 0.1))},
            "initial must have widths within",
        ),
        ({"kernels": Kernels(np.arange(2.0), np.array([1.0, 0.0]))}, "widths within"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, match):
    with pytest.raises(ValueError, match=match):
        scale_by_memory(**({"initial": 0.1} | arguments))


def test_a_memory_is_padded_with_its_mean():
    memory = padded(Memory(KERNELS, np.array([0.1, 0.2, 0.6]), slopes=SLOPES), 5)
    np.testing.assert_allclose(memory.rates[3:], 0.3, rtol=1e-6)
    np.testing.assert_allclose(memory.kernels.centers[3:], 1.0)
    np.testing.assert_array_equal(memory.kernels.widths[3:], 0)
    np.testing.assert_array_equal(memory.slopes[3:], 0)
    assert memory.evidence_weight is None


def test_the_ready_optimizers_know_nothing_of_it():
    memory = jax.eval_shape(lambda x: get_memory(memory_sgd().init(x)), jnp.zeros(3))
    assert memory["params"].slopes is None
