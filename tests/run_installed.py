"""What works with the core dependencies only; run where the library is installed."""

import importlib.util
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import optax

import metalr_optax


def check_place():
    for absent in ("matplotlib", "flax", "benchmarks", "pytest"):
        assert importlib.util.find_spec(absent) is None, absent
    folder = pathlib.Path(metalr_optax.__file__).parent
    assert "site-packages" in folder.parts, folder
    assert f"## {metalr_optax.__version__}" in (folder / "CHANGELOG.md").read_text()


def train():
    target = jnp.array([1.0, -2.0, 3.0])
    optimizer = metalr_optax.memory_adam(initial=1e-5)
    params = {"layer": jnp.zeros(3)}

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum((p["layer"] - target) ** 2))(params)
        updates, state = optimizer.update(grads, state, params)
        logs = metalr_optax.summarize_memory(state)
        return optax.apply_updates(params, updates), state, logs

    state = optimizer.init(params)
    for _ in range(150):
        params, state, logs = step(params, state)
    assert jnp.max(jnp.abs(params["layer"] - target)) < 0.1, params
    assert logs["rate_max/layer"] > 1e-3, logs
    return optimizer, params, state, logs


def keep(optimizer, params, state, logs):
    with tempfile.TemporaryDirectory() as place:
        path = pathlib.Path(place, "memory.safetensors")
        metalr_optax.save_memory(path, metalr_optax.get_memory(state))
        memory = metalr_optax.load_memory(path)
    assert memory["layer"].rates[0] == logs["rate_mean/layer"]
    fresh = metalr_optax.set_memory(optimizer.init(params), memory)
    assert metalr_optax.get_memory(fresh)["layer"].rates[0] == memory["layer"].rates[0]
    message = ""
    try:
        metalr_optax.plot_memory(memory["layer"])
    except ImportError as error:
        message = str(error)
    assert "metalr-optax[plots]" in message


if __name__ == "__main__":
    check_place()
    keep(*train())
    print(f"metalr_optax {metalr_optax.__version__} works by itself")
