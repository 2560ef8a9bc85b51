"""A problem that compiles and runs at once."""

import jax
import jax.numpy as jnp

from benchmarks.harness import choose
from benchmarks.problems.problem import Problem

CURVATURES = jnp.array([1.0, 0.2, 3.0])


def bowl(name="bowl"):
    """A noisy quadratic in 20 updates; data is how far away it starts."""

    def start(data, key):
        return {"layer": {"x": data * jax.random.normal(key, (3,))}}, key

    def gradients(data, params, key, count):
        noise = jax.random.normal(jax.random.fold_in(key, count), (3,))
        x = params["layer"]["x"]
        return {"layer": {"x": CURVATURES * x + 0.01 * noise}}, key

    def measure(data, params, key):
        return jnp.sum(CURVATURES * params["layer"]["x"] ** 2)

    far = jnp.float32(1.0)
    return Problem(name, far, start, gradients, measure, 20, 2, 2.0 * far, 9.0 * far)


def give_target(monkeypatch, folder):
    """Write down that a bowl comes down to .5, beside the committed targets."""
    path = folder / "targets.csv"
    path.write_text(choose.TARGETS.read_text() + "bowl,0.5,test\n")
    monkeypatch.setattr(choose, "TARGETS", path)
