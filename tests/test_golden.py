"""Replays traces of the authors' own code, see data/README.md."""

import functools
import gzip
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalr_optax import (
    clipped_product,
    get_memory,
    linspace_kernels,
    logspace_kernels,
    scale_by_memory,
    set_memory,
)
from metalr_optax.memory import read

READ = jax.jit(jax.vmap(read, (None, 0, 0)))
CASES = ("p1", "p2", "p3", "p4", "p5")


class AdamState(NamedTuple):
    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates


def authors_adam(lr, beta1, beta2, eps):
    """Adam whose epsilon is added to the uncorrected root of the second moment."""

    def init(params):
        zeros = optax.tree.zeros_like
        return AdamState(jnp.zeros([], jnp.int32), zeros(params), zeros(params))

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, beta1, 1)
        nu = optax.tree.update_moment(updates, state.nu, beta2, 2)

        def step(m, s):
            # The authors compute the powers in float64: 1 - beta**k must not cancel.
            k = jnp.asarray(count, m.dtype)
            rate = lr * jnp.sqrt(-jnp.expm1(k * np.log(beta2)))
            return -rate / -jnp.expm1(k * np.log(beta1)) * m / (jnp.sqrt(s) + eps)

        return jax.tree.map(step, mu, nu), AdamState(jnp.asarray(count), mu, nu)

    return optax.GradientTransformation(init, update)


def load(name):
    path = pathlib.Path(__file__).parent / "data" / f"{name}.json.gz"
    with gzip.open(path, "rt") as file:
        return json.load(file)


def make_kernels(config):
    bound, num = config["max_grad_value"], config["num_centers"]
    make = logspace_kernels if config["logspace"] else linspace_kernels
    return make(bound, num, width=config["lm_scale"])


def make_optimizer(config):
    settings = dict(config["memory_optimizer"])
    memory_optimizer = {"adam": authors_adam, "sgd": lambda lr: optax.sgd(lr)}
    return optax.chain(
        optax.clip(config["clip_grad"]),
        scale_by_memory(
            config["base_lr"],
            kernels=make_kernels(config),
            memory_optimizer=memory_optimizer[settings.pop("name")](**settings),
            signal=clipped_product,
            group_by="tensor",
            rate_bounds=(config["value_min"], config["value_max"]),
        ),
        optax.scale(-1.0),
    )


def make_loss(objective):
    if objective["kind"] == "rosenbrock_two_scalars":
        a, b = objective["a"], objective["b"]
        return lambda x: jnp.sum((a - x["x1"]) ** 2 + b * (x["x2"] - x["x1"] ** 2) ** 2)
    matrix = np.asarray(objective["A"], np.float32)
    return lambda x: x["x"] @ matrix.astype(x["x"].dtype) @ x["x"] / 2


def with_start(start, rest):
    return {name: np.concatenate([start[name][None], rest[name]]) for name in start}


def rates_of(state):
    return {label: memory.rates for label, memory in get_memory(state).items()}


def make_run(case):
    """Return a compiled run, the same one for all phases of a dtype."""
    optimizer = make_optimizer(case["config"])
    value_and_grad = jax.value_and_grad(make_loss(case["objective"]))

    @jax.jit
    def run(params, state, recorded, driven):
        choose = functools.partial(jax.tree.map, functools.partial(jnp.where, driven))

        def step(carry, recorded):
            params, state = carry
            loss, grads = value_and_grad(params)
            updates, state = optimizer.update(choose(recorded, grads), state, params)
            params = choose(params, optax.apply_updates(params, updates))
            return (params, state), (loss, params, updates, rates_of(state))

        before = rates_of(state)
        (_, state), trace = jax.lax.scan(step, (params, state), recorded)
        return before, trace, get_memory(state)

    return jax.jit(optimizer.init), run


def replay(case, dtype, driven=False):
    """Run all phases; per phase: loss [T], and dicts of params, lr, memory by tensor.

    Driven, the recorded gradients are fed and the parameters stay where they are.
    """
    init, run = case["run"]
    results, memory = [], {}
    for phase in case["phases"]:
        start = {
            name: jnp.asarray(np.float32(trace["params"][0]), dtype)
            for name, trace in phase["tensors"].items()
        }
        recorded = {
            name: np.asarray(trace["grad"], dtype)
            for name, trace in phase["tensors"].items()
        }
        state = init(start)
        if phase["start"] == "load_and_reset_keep_memory":
            state = set_memory(state, memory)
        rates, trace, memory = run(start, state, recorded, driven)
        loss, params, updates, memories = jax.tree.map(np.asarray, trace)
        results.append(
            {
                "loss": loss,
                "updates": updates,
                "params": with_start(start, params),
                "memory": with_start(rates, memories),
            }
        )
    return results


def deviation(actual, expected, scale, floor=0.01):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    error = np.abs(actual - expected)
    return np.max(error / np.maximum(np.abs(expected), floor * scale), initial=0.0)


def largest(values):
    return np.max(np.abs(np.asarray(values, np.float64)))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    case = load(request.param)
    return case | {"run": make_run(case)}


def test_kernels_are_the_authors_tables(case):
    kernels = make_kernels(case["config"])
    limits = case["tolerance"]["table"]
    assert len(kernels.centers) == case["config"]["num_centers_effective"]
    np.testing.assert_allclose(
        kernels.centers, case["centers"], rtol=limits["centers"], atol=1e-30
    )
    np.testing.assert_allclose(
        np.square(kernels.widths),
        np.broadcast_to(case["sigma_sq"], kernels.widths.shape),
        rtol=limits["sigma_sq"],
    )


def test_one_recorded_step(case):
    limits = case["tolerance"]["local"]
    loss_and_grad = jax.jit(jax.vmap(jax.value_and_grad(make_loss(case["objective"]))))
    clip = case["config"]["clip_grad"]
    for phase in case["phases"]:
        tensors = phase["tensors"]
        params = {
            name: np.array(trace["params"], np.float32)
            for name, trace in tensors.items()
        }
        loss, grads = loss_and_grad({name: x[:-1] for name, x in params.items()})
        scale = largest(phase["loss"])
        assert deviation(loss, phase["loss"], scale, 1e-6) <= limits["loss"]
        for name, trace in tensors.items():
            grad = np.clip(grads[name], -clip, clip)
            error = deviation(grad, trace["grad"], largest(trace["grad"]))
            assert error <= limits["gradient"], name
            # One table of rates per step, read at the recorded gradients.
            kernels = jax.tree.map(np.float32, make_kernels(case["config"]))
            memories = np.float32(trace["memory"][1:])
            lr = READ(kernels, memories, np.float32(trace["grad"]))
            error = deviation(lr, trace["lr"], largest(trace["lr"]))
            assert error <= case["tolerance"]["driven"]["lr"], name
            after = params[name][:-1] - np.float32(trace["lr"]) * np.float32(
                trace["grad"]
            )
            error = deviation(after, params[name][1:], largest(trace["params"]))
            assert error <= limits["update"], name


def test_driven_by_the_recorded_gradients(case):
    limits = case["tolerance"]["driven"]
    for phase, result in zip(
        case["phases"], replay(case, jnp.float32, driven=True), strict=True
    ):
        for name, trace in phase["tensors"].items():
            memory, lr = trace["memory"], np.asarray(trace["lr"])
            error = deviation(result["memory"][name], memory, largest(memory))
            assert error <= limits["memory"], name
            grad = np.asarray(trace["grad"])
            used = np.where(grad == 0, lr, -result["updates"][name] / grad)
            assert deviation(used, lr, largest(lr)) <= limits["lr"], name


def test_closed_loop_in_float32(case):
    results = replay(case, jnp.float32)
    for phase, limits, result in zip(
        case["phases"], case["tolerance"]["closed"], results, strict=True
    ):
        for limit in limits:
            check_closed(phase, result, limit, stride=1)


def test_closed_loop_in_float64(case):
    with jax.enable_x64(True):
        results = replay(case, jnp.float64)
    for phase, limits, result in zip(
        case["float64"]["phases"], case["tolerance"]["closed64"], results, strict=True
    ):
        for limit in limits:
            check_closed(phase, result, limit, stride=case["float64"]["stride"])


def check_closed(phase, result, limit, stride):
    """Compare every stride-th row of the first steps with the recorded ones."""
    steps = limit["steps"]
    rows = slice(0, steps + 1, stride)
    recorded = slice(0, steps // stride + 1)
    losses = np.asarray(phase["loss"])
    scale = largest(losses)
    losses = losses[: -(-steps // stride)]
    error = deviation(result["loss"][:steps:stride], losses, scale, 1e-6)
    assert error <= limit["loss"], ("loss", limit)
    for quantity in ("params", "memory"):
        for name, trace in phase["tensors"].items():
            expected = np.asarray(trace[quantity])
            error = deviation(
                result[quantity][name][rows], expected[recorded], largest(expected)
            )
            assert error <= limit[quantity], (quantity, name, limit)
