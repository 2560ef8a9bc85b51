"""Train, keep everything after every step, go on where the last process stopped.

Run by tests/test_loops.py as a process of its own, which it kills.
"""

import os
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import serialization
from flax.training.train_state import TrainState

from metalr_optax import get_memory, memory_adam, save_memory


def main(folder, steps):
    model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(1)])
    x = jax.random.normal(jax.random.key(0), (16, 4))
    params = model.init(jax.random.key(1), x)
    optimizer = memory_adam(initial=1e-3)
    state: Any = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    checkpoint = folder / "checkpoint"
    if checkpoint.exists():
        state = serialization.from_bytes(state, checkpoint.read_bytes())

    @jax.jit
    def step(state):
        def loss(params):
            outputs = jnp.asarray(model.apply(params, x))[:, 0]
            return jnp.mean((outputs - jnp.sin(x[:, 0])) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    print("from", int(state.step), flush=True)
    while state.step < steps:
        state = step(state)
        beside = folder / "beside"
        beside.write_bytes(serialization.to_bytes(state))
        os.replace(beside, checkpoint)
        save_memory(folder / "memory.safetensors", get_memory(state))
        print(int(state.step), flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
