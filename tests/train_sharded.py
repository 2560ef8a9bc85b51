"""One of several processes that train one model, each with a part of it.

Arguments: address of the coordinator, number of processes, index of this process,
file for the memory it ends with.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from metalr_optax import get_memory, paper_sgd


def train(devices: np.ndarray) -> np.ndarray:
    """Fit a linear map, large enough for a table; return the rates.

    Args:
      devices: [data, model], that share the batch and the parameters.
    """
    mesh = jax.sharding.Mesh(devices, ("data", "model"))
    rng = np.random.default_rng(0)
    inputs, teacher = (rng.normal(size=shape) for shape in ((64, 256), (256, 128)))
    data = inputs.astype(np.float32), (inputs @ teacher).astype(np.float32)

    def place(array: np.ndarray, *spec: str | None) -> jax.Array:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    params = place(np.zeros((256, 128), np.float32), "model", "data")
    batch = tuple(place(array, "data") for array in data)
    optimizer: Any = paper_sgd(initial=1e-3)
    with jax.set_mesh(mesh):
        state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params: jax.Array, state, batch):
        def loss(params: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(batch[0] @ params - batch[1])) * 1000.0

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return params + updates, state

    for _ in range(8):
        with jax.set_mesh(mesh):
            params, state = step(params, state, batch)
    rates: Any = get_memory(state)["params"].rates
    return np.asarray(rates.addressable_data(0))


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    address, count, index, path = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(index))
    assert jax.process_count() == int(count)
    np.save(path, train(np.array(jax.devices()).reshape(2, 2)))
