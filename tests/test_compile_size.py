"""What an update is made of: a program that grows with a model, and few modules."""

import itertools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import metalr_optax
from metalr_optax import memory_adam, memory_sgd

# A program of a + b N lines for N tensors has less than 4 times as many lines for 4
# times as many tensors: 2.5 to 2.9 times from 15 to 60. One that is quadratic tends to
# 16: 10 to 11 times from 30 to 120 tensors, or 7 times from 15 to 60, where XLA copied
# the sum of all norms into the program of every tensor.
GROWTH = 3.4


def lines(optimizer, number):
    """Return how long the compiled update of so many tensors is, each with a memory.

    As text it is as long with the optimizations that tests/conftest.py switches off,
    which come after all that copies an expression.
    """
    shapes = [(4 + i % 5, 3) for i in range(number)]
    params = {f"layer{i}": {"w": jnp.ones(shape)} for i, shape in enumerate(shapes)}
    update = jax.jit(optimizer.update)
    lowered = update.lower(params, jax.eval_shape(optimizer.init, params), params)
    text: Any = lowered.compile().as_text()
    return len(text.splitlines())


@pytest.mark.parametrize("make", [memory_adam, memory_sgd])
def test_a_program_grows_no_faster_than_a_model(make):
    few, many = (lines(make(), number) for number in (15, 60))
    assert many <= GROWTH * few


def modules_entered(function, *arguments):
    """Return the module of every function of the library, in the order of entry."""
    folder, seen, modules = pathlib.Path(metalr_optax.__file__).parent, set(), []

    def look(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        file = pathlib.Path(code.co_filename)
        if event == "call" and file.parent == folder and code not in seen:
            seen.add(code)
            modules.append(file.stem)

    sys.setprofile(look)
    try:
        jax.make_jaxpr(function)(*arguments)
    finally:
        sys.setprofile(None)
    return modules


def test_who_reads_an_update_from_its_start_changes_module_15_times_at_most():
    optimizer = memory_adam()
    params = {"a": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, "c": jnp.ones(3)}
    state = jax.eval_shape(optimizer.init, params)
    modules = modules_entered(optimizer.update, params, state, params)
    assert len(modules) > 30
    changes = [pair for pair in itertools.pairwise(modules) if len({*pair}) == 2]
    assert len(changes) <= 15, changes
