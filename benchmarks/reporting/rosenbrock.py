"""Tables and pictures of the valley."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.cm
import matplotlib.colors
import numpy as np
import optax

from benchmarks.methods import COLORS
from benchmarks.problems.tasks import ROSENBROCK_START, rosenbrock, rosenbrock_height
from benchmarks.reporting import comparison, draw
from metalr_optax import clipped_product, get_memory, linspace_kernels, paper_sgd

GRID_BOUND = 10.0  # of the notebook's 100 local models
_NAMES = ("x1", "x2")


class Descent(NamedTuple):
    """One run: where it was at first and after every update, and its rates."""

    points: Any  # [updates + 1, 2]
    losses: Any  # [updates + 1]
    rates: Any  # [updates + 1, 2, local models]


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures."""
    draw_descent(descend(), folder / "rosenbrock_path.png")
    return comparison.report(folder, "rosenbrock")


def descend() -> Descent:
    """Run the notebook's setting: base rate 0.001, stepped by Adam(0.001)."""
    problem, optimizer = (
        rosenbrock(),
        paper_sgd(
            initial=1e-3,
            kernels=linspace_kernels(GRID_BOUND, 100),
            memory_optimizer=optax.adam(1e-3),
            signal=clipped_product,
        ),
    )

    def step(carry: Any, count: jax.Array) -> Any:
        params, state = carry
        memory = get_memory(state)
        point = jnp.stack([params[name] for name in _NAMES])
        rates = jnp.stack([memory[name].rates for name in _NAMES])
        seen = Descent(point, problem.measure(None, params, ()), rates)
        gradients, _ = problem.gradients(None, params, (), count)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), seen

    params = dict(zip(_NAMES, map(jnp.float32, ROSENBROCK_START), strict=True))
    start, counts = (params, optimizer.init(params)), jnp.arange(problem.horizon + 1)
    _, seen = jax.jit(lambda: jax.lax.scan(step, start, counts))()
    return jax.tree.map(np.asarray, seen)


def draw_descent(descent: Descent, path: pathlib.Path) -> None:
    """Draw the surface with the path, the loss, and both landscapes over time."""
    figure, ((surface, loss), memories) = draw.panels(2, 2, (5.6, 4.0))
    _draw_path(surface, descent)
    loss.plot(descent.losses, color=COLORS["paper_sgd"])
    loss.set(yscale="log", xlabel="updates", title="loss")
    # A memory starts at 0.001 and may go up to 1.
    norm = matplotlib.colors.LogNorm(1e-5, descent.rates.max())
    extent = (0, len(descent.losses) - 1, -GRID_BOUND, GRID_BOUND)
    for number, axis in enumerate(memories):
        rates = np.maximum(descent.rates[:, number], 1e-5).T
        axis.imshow(rates, aspect="auto", origin="lower", extent=extent, norm=norm)
        axis.set(xlabel="updates", ylabel=f"gradient of {_NAMES[number]}, clipped")
        axis.set_title(f"memory of {_NAMES[number]}: {len(rates)} rates")
    colors = matplotlib.cm.ScalarMappable(norm, "viridis")
    figure.colorbar(colors, ax=memories[-1], label="learning rate")
    draw.save(figure, path)


def _draw_path(axis: Any, descent: Descent) -> None:
    x1, x2 = np.meshgrid(np.linspace(-2.2, 2.2, 200), np.linspace(-1.5, 3.5, 200))
    height = np.asarray(rosenbrock_height(x1, x2))
    levels, norm = np.geomspace(0.1, height.max(), 12), matplotlib.colors.LogNorm()
    axis.contourf(x1, x2, height, levels, norm=norm, cmap="Greys")
    axis.plot(*descent.points.T, ".-", color=COLORS["paper_sgd"], linewidth=1)
    axis.plot(*descent.points[0], "o", color="black", label="start")
    axis.plot(1.0, 1.0, "*", color="red", ms=12, label="minimum")
    axis.set(xlabel="x1", ylabel="x2")
    axis.legend(loc="lower left")
    axis.set_title(f"path of {len(descent.points) - 1} updates")
