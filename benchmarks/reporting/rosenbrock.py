"""Tables and pictures of the valley."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from benchmarks.methods import COLORS
from benchmarks.problems.tasks import ROSENBROCK_START, rosenbrock_height
from benchmarks.reporting import comparison, draw
from metalr_optax import clipped_product, get_memory, linspace_kernels, paper_sgd

GRID_BOUND = 10.0  # of the notebook's 100 local models
_UPDATES = 100


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
    optimizer = paper_sgd(
        initial=1e-3,
        kernels=linspace_kernels(GRID_BOUND, 100),
        memory_optimizer=optax.adam(1e-3),
        signal=clipped_product,
    )

    def step(carry: Any, _: None) -> Any:
        point, state = carry
        rates = jnp.stack([memory.rates for memory in get_memory(state).values()])
        loss, gradient = jax.value_and_grad(lambda x: rosenbrock_height(*x))(point)
        updates, state = optimizer.update(gradient, state, point)
        there = Descent(jnp.stack(point), loss, rates)
        return (optax.apply_updates(point, updates), state), there

    point = tuple(map(jnp.float32, ROSENBROCK_START))
    start = point, optimizer.init(point)
    return jax.tree.map(np.asarray, jax.lax.scan(step, start, length=_UPDATES + 1)[1])


def draw_descent(descent: Descent, path: pathlib.Path) -> None:
    """Draw the surface with the path, the loss, and both landscapes over time."""
    figure, ((surface, loss), memories) = draw.panels(2, 2, (5.6, 4.0))
    _draw_path(surface, descent)
    loss.plot(descent.losses, color=COLORS["paper_sgd"])
    loss.set(yscale="log", xlabel="steps", title="loss")
    # A memory starts at 0.001 and may go up to 1.
    norm = LogNorm(1e-5, descent.rates.max())
    extent = (0, _UPDATES, -GRID_BOUND, GRID_BOUND)
    for name, axis, rates in zip(
        ("x1", "x2"), memories, descent.rates.T.swapaxes(0, 1), strict=True
    ):
        rates = np.maximum(rates, 1e-5)
        axis.imshow(rates, aspect="auto", origin="lower", extent=extent, norm=norm)
        axis.set(xlabel="steps", ylabel=f"gradient of {name}, clipped")
        axis.set_title(f"memory of {name}: {len(rates)} rates")
    colors = ScalarMappable(norm, "viridis")
    figure.colorbar(colors, ax=memories[-1], label="learning rate")
    draw.save(figure, path)


def _draw_path(axis: Any, descent: Descent) -> None:
    x1, x2 = np.meshgrid(np.linspace(-2.2, 2.2, 200), np.linspace(-1.5, 3.5, 200))
    height = np.asarray(rosenbrock_height(x1, x2))
    levels = np.geomspace(0.1, height.max(), 12)
    axis.contourf(x1, x2, height, levels, norm=LogNorm(), cmap="Greys")
    axis.plot(*descent.points.T, ".-", color=COLORS["paper_sgd"], linewidth=1)
    axis.plot(*descent.points[0], "o", color="black", label="start")
    axis.plot(1.0, 1.0, "*", color="red", ms=12, label="minimum")
    axis.set(xlabel="x1", ylabel="x2", title=f"path of {_UPDATES} steps")
    axis.legend(loc="lower left")
