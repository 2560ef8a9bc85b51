"""Everyday training loops: a run that is resumed equals the run without a break."""

import io
import pathlib
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

from metalr_optax import (
    adapt_memory,
    get_memory,
    get_rates,
    load_memory,
    memory_adam,
    memory_sgd,
    save_memory,
    set_memory,
    summarize_memory,
)

X = jax.random.normal(jax.random.key(0), (16, 4))
Y = jnp.sin(X[:, 0]) + X[:, 1] * X[:, 2]


def _loss(apply, params):
    return jnp.mean((apply(params, X)[:, 0] - Y) ** 2)


# Plain Optax


class Plain(NamedTuple):
    params: Any
    opt_state: Any


def _mlp(params, x):
    return (
        jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
        @ params["out"]
    )


def make_plain(optimizer):
    keys = jax.random.split(jax.random.key(1))
    params = {
        "hidden": {"w": jax.random.normal(keys[0], (4, 8)) / 2, "b": jnp.zeros(8)},
        "out": jax.random.normal(keys[1], (8, 1)) / 3,
    }
    return _functional(optimizer, _mlp, params)


def _functional(optimizer, apply, params):
    @jax.jit
    def step(state):
        grads = jax.grad(lambda params: _loss(apply, params))(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return Plain(optax.apply_updates(state.params, updates), opt_state)

    return Plain(params, jax.jit(optimizer.init)(params)), step


def make_haiku(optimizer):
    init, apply = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 1])(x)))
    return _functional(optimizer, apply, jax.jit(init)(jax.random.key(1), X))


def make_linen(optimizer):
    model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(1)])
    params = jax.jit(model.init)(jax.random.key(1), X)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    state = state.replace(step=jnp.zeros((), jnp.int32))  # as it is after a step

    @jax.jit
    def step(state):
        grads = jax.grad(lambda params: _loss(model.apply, params))(state.params)
        return state.apply_gradients(grads=grads)

    return state, step


def make_equinox(optimizer):
    model = eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(1))

    def apply(model, x):
        return jax.vmap(model)(x)

    state = model, jax.jit(optimizer.init)(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(state):
        model, opt_state = state
        grads = eqx.filter_grad(lambda model: _loss(apply, model))(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), opt_state

    return state, step


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.second = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def make_nnx(optimizer):
    model = Net(nnx.Rngs(1))
    state = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    graph, arrays = nnx.split((model, state))

    @jax.jit
    def step(arrays):
        model, state = nnx.merge(graph, arrays)
        grads = nnx.grad(lambda model: _loss(lambda model, x: model(x), model))(model)
        state.update(model, grads)
        return nnx.state((model, state))

    return arrays, step


def optimizer_of(name, state, optimizer):
    """What users of a framework have at hand: its object, or the state itself."""
    if name != "nnx":
        return state
    fresh = nnx.Optimizer(Net(nnx.Rngs(1)), optimizer, wrt=nnx.Param)
    nnx.update(fresh, state[1])
    return fresh


MAKERS = {
    "optax": make_plain,
    "haiku": make_haiku,
    "linen": make_linen,
    "equinox": make_equinox,
    "nnx": make_nnx,
}


def run(step, state, steps):
    for _ in range(steps):
        state = step(state)
    return state


def assert_same(one, other):
    """Arrays only: functions of two optimizers are not the same object."""
    one, other = (
        jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (one, other)
    )
    assert len(one) > 10
    chex.assert_trees_all_equal(one, other)


def through_flax(state, like, folder):
    del folder
    if isinstance(like, nnx.State):
        data = serialization.to_bytes(nnx.to_pure_dict(state))
        pure = serialization.from_bytes(nnx.to_pure_dict(like), data)
        nnx.replace_by_pure_dict(like, pure)
        return like
    if isinstance(like, tuple) and isinstance(like[0], eqx.Module):
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, state)
        file.seek(0)
        return eqx.tree_deserialise_leaves(file, like)
    return serialization.from_bytes(like, serialization.to_bytes(state))


def through_orbax(state, like, folder):
    arrays, static = eqx.partition(like, eqx.is_array)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "kept", eqx.filter(state, eqx.is_array))
        checkpointer.wait_until_finished()
        return eqx.combine(checkpointer.restore(folder / "kept", arrays), static)


@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_run_equals_the_run_without_a_break(name, tmp_path):
    state, step = MAKERS[name](memory_adam(initial=1e-3))
    state = run(step, state, 6)
    one, optimizer = run(step, state, 6), memory_adam(initial=1e-3)
    _, again = MAKERS[name](optimizer)
    for keep in (through_flax, through_orbax):
        kept = keep(state, MAKERS[name](optimizer)[0], tmp_path)
        assert_same(kept, state)
        assert_same(one, run(again, kept, 6))
    before, after = (
        get_memory(optimizer_of(name, end, memory_adam())) for end in (state, one)
    )
    assert all(after[label].rates[0] > 1.5 * before[label].rates[0] for label in after)


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip(9.0), tx),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(9.0)), ("tx", tx)),
    "masked": lambda tx: optax.masked(
        tx, lambda tree: jax.tree.map(lambda _: True, tree)
    ),
    "partition": lambda tx: optax.partition(
        {"all": tx}, lambda tree: jax.tree.map(lambda _: "all", tree)
    ),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda factor: optax.chain(tx, optax.scale(factor))
    )(factor=1.0),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_memory_is_found_and_given_on(name, wrapper, tmp_path):
    """From a state to a file, and into the state of the next run."""
    optimizer = WRAPPERS[wrapper](memory_sgd(initial=0.125))
    state, _ = MAKERS[name](optimizer)
    fresh = optimizer_of(name, state, optimizer)
    found = get_memory(fresh)
    assert len(found) in (1, 2)
    learned = {
        label: one._replace(
            rates=one.rates * (2 + number), evidence_weight=one.evidence_weight + 7
        )
        for number, (label, one) in enumerate(found.items())
    }
    save_memory(tmp_path / "memory.safetensors", learned)
    loaded = load_memory(tmp_path / "memory.safetensors")
    inside = getattr(
        fresh, "opt_state", fresh[1] if isinstance(fresh, tuple) else fresh
    )
    given = set_memory(inside, loaded)
    chex.assert_trees_all_equal(get_memory(given), learned)
    chex.assert_trees_all_equal(adapt_memory(loaded, inside), loaded)
    logs, rates = summarize_memory(fresh), jax.tree.leaves(get_rates(fresh))
    assert all(logs[f"rate_mean/{label}"] == 0.125 for label in learned)
    sizes = [4 * 8 + 8, 8 * 1 + 1 - (name == "optax")]
    assert sum(one.size for one in rates) == sum(sizes)
    assert all(jnp.all(one == 0.125) for one in rates)


@pytest.mark.parametrize("name", MAKERS)
def test_the_next_run_trains_with_what_it_was_given(name):
    state, step = MAKERS[name](memory_sgd(initial=1e-4))
    memory = get_memory(optimizer_of(name, run(step, state, 30), memory_sgd()))
    assert all(one.rates[0] > 1e-3 for one in memory.values())
    transferred, go = MAKERS[name](memory_sgd(initial=memory))
    transferred = run(go, transferred, 2)
    # Two steps are what a fresh memory moves next to nothing in.
    fresh = run(step, state, 2)
    moved = [
        float(optax.tree.norm(optax.tree.sub(*map(_arrays, (one, state)))))
        for one in (transferred, fresh)
    ]
    assert moved[0] > 5 * moved[1]


def _arrays(state):
    """The parameters of any of the loops."""
    first = state.params if hasattr(state, "params") else state[0]
    return eqx.filter(first, eqx.is_inexact_array)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """The process is killed in mid-training, twice, and loses no more than a step."""
    script = pathlib.Path(__file__).parent / "train_killed.py"
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()

    def start(folder) -> Any:
        return subprocess.Popen(
            [sys.executable, script, folder, "40"], stdout=subprocess.PIPE, text=True
        )

    begins = []
    for until in (10, 25):
        process = start(killed)
        begins.append(int(process.stdout.readline().split()[-1]))
        for line in process.stdout:
            if int(line) >= until:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        assert set(load_memory(killed / "memory.safetensors"))
    for folder in (killed, whole):
        process = start(folder)
        begins.append(int(process.stdout.readline().split()[-1]))
        process.communicate()
        assert process.returncode == 0
    assert begins[0] == begins[3] == 0
    assert 10 <= begins[1] <= 25 <= begins[2] < 40
    one, other = ((folder / "checkpoint").read_bytes() for folder in (killed, whole))
    assert one == other
    one, other = (
        load_memory(folder / "memory.safetensors") for folder in (killed, whole)
    )
    chex.assert_trees_all_equal(one, other)
    assert all(memory.rates[0] > 1.5e-3 for memory in one.values())
