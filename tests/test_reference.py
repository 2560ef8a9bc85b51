"""Compares every buffer of every step with the literal reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import metalr_optax
from metalr_optax import (
    Kernels,
    Memory,
    agreement_steps,
    scale_by_memory,
)

STEPS, MODELS, BOUNDS = 5, 6, (1e-3, 0.5)
SHAPES = {"kernel": (2, 3), "bias": (3,), "scale": ()}
LABELS = {
    "layer": {"kernel": "net/dense", "bias": "net/dense", "scale": "scale"},
    "tensor": {
        "kernel": "net/dense/kernel",
        "bias": "net/dense/bias",
        "scale": "scale",
    },
    "all": {"kernel": "all", "bias": "all", "scale": "all"},
}
OPTIMIZERS = {
    "sgd": (optax.sgd(0.3), reference.sgd(0.3)),
    # With its own eps a step would show what rounding leaves of what cancels.
    "adam": (optax.adam(0.02, eps=1e-4), reference.adam(0.02, eps=1e-4)),
    # A gain so small that few steps use it up.
    "agreement": (agreement_steps(0.7, 0.3), reference.agreement_steps(0.7, 0.3)),
}


def nest(leaves):
    return {
        "net": [{"dense": {"kernel": leaves["kernel"], "bias": leaves["bias"]}}],
        "scale": leaves["scale"],
    }


def label_of(name, group_by):
    return LABELS[group_by][name].replace("net/", "net/0/")


@functools.cache
def compiled(group_by, signal, memory_optimizer, momentum):
    """One compiled run for all examples of a setting: memories in, buffers out."""

    @jax.jit
    def run(memories, gradients):
        optimizer = scale_by_memory(
            memories,
            base_optimizer=optax.trace(momentum) if momentum else None,
            memory_optimizer=OPTIMIZERS[memory_optimizer][0],
            signal=getattr(metalr_optax, signal),
            group_by=group_by,
            rate_bounds=BOUNDS,
        )

        def step(state, gradient):
            updates, state = optimizer.update(gradient, state)
            return state, (updates, state)

        state = optimizer.init(jax.tree.map(lambda x: x[0], gradients))
        return jax.lax.scan(step, state, gradients)[1]

    return run


# XLA takes denormal numbers for zero, NumPy does not: none may arise by scaling, nor
# where products count.
def numbers(smallest):
    return st.floats(-1.0, 1.0).map(lambda x: x if abs(x) > smallest else 0.0)


@st.composite
def problems(draw, group_by, momentum, smallest):
    """Draw memories of a random scale, and gradients whose directions stay inside."""
    bound = 10.0 ** draw(st.floats(-3.0, 2.0))
    labels = sorted({label_of(name, group_by) for name in SHAPES})
    memories = {}
    for label in labels:
        gaps = draw(hnp.arrays(float, MODELS - 1, elements=st.floats(0.3, 1.0)))
        centers = np.concatenate([[0.0], np.cumsum(gaps)])
        centers = bound * (2 * centers / centers[-1] - 1)
        width = draw(hnp.arrays(float, MODELS, elements=st.floats(0.2, 1.0)))
        rates = draw(hnp.arrays(float, MODELS, elements=st.floats(*BOUNDS)))
        memories[label] = Memory(Kernels(centers, width * bound / MODELS), rates)
    gradients = {
        name: bound
        * (1 - momentum)
        * draw(hnp.arrays(float, (STEPS, *shape), elements=numbers(smallest)))
        for name, shape in SHAPES.items()
    }
    return memories, gradients


@pytest.mark.parametrize(
    ("group_by", "signal", "memory_optimizer", "momentum"),
    [
        ("layer", "sign_agreement", "adam", 0.0),
        ("all", "clipped_product", "sgd", 0.0),
        ("tensor", "clipped_product", "adam", 0.5),
        ("layer", "raw_product", "agreement", 0.0),
        ("tensor", "sign_agreement", "agreement", 0.5),
    ],
)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_the_reference(group_by, signal, memory_optimizer, momentum, data):
    smallest = 1e-100 if signal == "raw_product" else 1e-200
    memories, gradients = data.draw(problems(group_by, momentum, smallest))
    history = reference.run(
        [{name: g[t] for name, g in gradients.items()} for t in range(STEPS)],
        {name: label_of(name, group_by) for name in SHAPES},
        {label: (*memory.kernels, memory.rates) for label, memory in memories.items()},
        getattr(reference, signal),
        OPTIMIZERS[memory_optimizer][1],
        BOUNDS,
        momentum,
    )
    with jax.enable_x64(True):
        run = compiled(group_by, signal, memory_optimizer, momentum)
        updates, states = jax.tree.map(np.asarray, run(memories, nest(gradients)))
    expected, rates, direction, optimizer_states = jax.tree.map(
        lambda *steps: np.stack(steps), *history
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    jax.tree.map(close, updates, nest(expected))
    jax.tree.map(close, states.last_direction, nest(direction))
    memory = states.memory
    assert memory.rates.dtype == jnp.float64
    for row, label in enumerate(sorted(memories)):
        np.testing.assert_array_equal(states.rows[label], row)
        close(memory.rates[:, row], rates[label])
        kernels = [memories[label].kernels] * STEPS
        np.testing.assert_array_equal(memory.kernels[:, row], kernels)
        if memory_optimizer == "adam":
            moments = states.rule_state[0]
            # Optax descends along -u, so its first moment has the other sign.
            close(moments.mu[:, row], -optimizer_states[label]["m"], atol=1e-14)
            close(moments.nu[:, row], optimizer_states[label]["s"], atol=1e-16)
