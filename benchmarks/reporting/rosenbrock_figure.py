"""A picture of one descent on the Rosenbrock function and of what it learned."""

import pathlib

import matplotlib.cm
import matplotlib.colors
import matplotlib.figure
import numpy as np

from benchmarks.problems.rosenbrock import BOUND, MODELS, Descent, rosenbrock


def draw_descent(descent: Descent, path: pathlib.Path) -> None:
    """Draw the surface with the path, the loss, and both landscapes over time."""
    figure = matplotlib.figure.Figure(figsize=(13, 3.4), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.15, 1, 1.1, 1.25))
    _draw_path(figure, axes[0], descent)
    axes[1].plot(descent.losses, color="#009E73")
    axes[1].set_yscale("log")
    axes[1].set_xlabel("updates")
    axes[1].set_title("loss")
    # A memory starts at 0.001 and may go up to 1.
    norm = matplotlib.colors.LogNorm(1e-5, descent.rates.max())
    for axis, name, rates in zip(
        axes[2:], ("x1", "x2"), descent.rates.swapaxes(0, 1), strict=True
    ):
        axis.imshow(
            np.maximum(rates, 1e-5).T,
            aspect="auto",
            origin="lower",
            extent=(0, len(rates) - 1, -BOUND, BOUND),
            norm=norm,
            cmap="viridis",
        )
        axis.set_xlabel("updates")
        axis.set_ylabel(f"gradient of {name}, clipped")
        axis.set_title(f"memory of {name}: {MODELS} rates")
    colors = matplotlib.cm.ScalarMappable(norm, "viridis")
    figure.colorbar(colors, ax=axes[-1], label="learning rate")
    figure.savefig(path, dpi=100, facecolor="white")


def _draw_path(figure, axis, descent: Descent) -> None:
    x1, x2 = np.meshgrid(np.linspace(-2.2, 2.2, 200), np.linspace(-1.5, 3.5, 200))
    surface = np.asarray(rosenbrock(x1, x2))
    levels = np.geomspace(0.1, surface.max(), 12)
    shown = axis.contourf(
        x1, x2, surface, levels, norm=matplotlib.colors.LogNorm(), cmap="Greys"
    )
    figure.colorbar(shown, ax=axis, format="%.1g", label="loss")
    axis.plot(*descent.points.T, ".-", color="#009E73", linewidth=1, markersize=4)
    axis.plot(*descent.points[0], "o", color="#0072B2", label="start")
    axis.plot(1.0, 1.0, "*", color="#D55E00", markersize=12, label="minimum (1, 1)")
    axis.set_xlim(-2.2, 2.2)
    axis.set_ylim(-1.5, 3.5)
    axis.set_xlabel("x1")
    axis.set_ylabel("x2")
    axis.legend(fontsize="small", loc="lower left")
    axis.set_title(f"surface and path, {len(descent.points) - 1} updates")
