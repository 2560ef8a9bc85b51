"""Tables and pictures of the valley."""

import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib.cm
import matplotlib.colors
import numpy as np
import optax

from benchmarks.harness.runner import make_runner
from benchmarks.methods import COLORS, USUAL, Method
from benchmarks.problems.tasks import ROSENBROCK_START, rosenbrock, rosenbrock_height
from benchmarks.reporting import comparison, draw
from metalr_optax import clipped_product, get_memory, linspace_kernels, paper_sgd

GRID_BOUND = 10.0  # of the notebook's 100 local models
_NAMES = ("x1", "x2")


class Descent(NamedTuple):
    """One run: where it was at first and after every update, and its rates."""

    points: np.ndarray  # [updates + 1, 2]
    losses: np.ndarray  # [updates + 1]
    rates: np.ndarray  # [updates + 1, 2, local models]


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures."""
    draw_descent(descend(), folder / "rosenbrock_path.png")
    return comparison.report(folder, "rosenbrock")


def descend() -> Descent:
    """Run the notebook's setting: base rate 0.001, stepped by Adam(0.001)."""
    method = Method(
        "notebook",
        lambda rate: paper_sgd(
            initial=rate,
            kernels=linspace_kernels(GRID_BOUND, 100),
            memory_optimizer=optax.adam(1e-3),
            signal=clipped_product,
        ),
        {},
        USUAL,
        judged=lambda state, params: (params, get_memory(state)),
    )
    problem = rosenbrock()
    first = {f"x{i + 1}": jnp.float32(x) for i, x in enumerate(ROSENBROCK_START)}

    def see(data: None, judged: Any, extra: Any) -> Any:
        params, memory = judged
        rates = jnp.stack([memory[name].rates for name in _NAMES])
        point = jnp.stack([params[name] for name in _NAMES])
        return point, problem.measure(data, params, extra), rates

    exact = problem._replace(start=lambda *_: (first, ()), measure=see, every=1)
    setting = jnp.array([[USUAL["rate"]]])
    seen, _, _ = make_runner(exact, method)(None, setting, jnp.arange(1), None)
    begin = see(None, (first, get_memory(method.make(1e-3).init(first))), ())
    return Descent(
        *(
            np.concatenate([np.asarray(one)[None], np.asarray(later)[0]])
            for one, later in zip(begin, seen, strict=True)
        )
    )


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
    levels = np.geomspace(0.1, height.max(), 12)
    axis.contourf(
        x1, x2, height, levels, norm=matplotlib.colors.LogNorm(), cmap="Greys"
    )
    axis.plot(*descent.points.T, ".-", color=COLORS["paper_sgd"], linewidth=1)
    axis.plot(*descent.points[0], "o", color=COLORS["adam"], label="start")
    axis.plot(1.0, 1.0, "*", color=COLORS["paper_adam"], ms=12, label="minimum")
    axis.set(xlim=(-2.2, 2.2), ylim=(-1.5, 3.5), xlabel="x1", ylabel="x2")
    axis.legend(loc="lower left")
    axis.set_title(f"path of {len(descent.points) - 1} updates")
