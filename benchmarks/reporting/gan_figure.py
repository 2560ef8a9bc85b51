"""Digits that generators drew, beside real ones."""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from benchmarks.harness.store import read_setting
from benchmarks.problems.gan import generate
from benchmarks.problems.problem import make_runner
from benchmarks.reporting.statistics import METHOD, Comparison, fixed, most_tuned

_ROWS, _COLUMNS = 8, 8


def draw_digits(comparison: Comparison, path: pathlib.Path) -> None:
    """Train seed 0 of four settings again; draw what each generator then makes.

    Above each is the spread of its images over that of real ones: 0 means that the
    generator draws a single digit, which the measure of the game does not see.
    """
    problem = comparison.problem
    count = _ROWS * _COLUMNS
    real = np.asarray(problem.data.judged)[:count]
    panels = {"real": real}
    for name in ("adam", "paper_sgd"):
        for kind, choose in (("fixed", fixed), ("best trial", most_tuned)):
            found = choose(comparison, name)
            if found is not None:
                setting = jnp.array([list(read_setting(found.setting).values())])
                runner = make_runner(problem, METHOD[name])
                _, params, _ = runner(problem.data, setting, jnp.arange(1), None)
                params = jax.tree.map(lambda leaf: leaf[0], params)
                drawn = np.asarray(generate(params, problem.data.latents[:count]))
                spread = drawn.std(0).mean() / real.std(0).mean()
                panels[f"{name}, {kind}\nspread {spread:.2f}"] = drawn
    figure = matplotlib.figure.Figure(
        figsize=(2.6 * len(panels), 3.3), layout="constrained"
    )
    for axis, (title, images) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        grid = images.reshape(_ROWS, _COLUMNS, 28, 28).swapaxes(1, 2)
        axis.imshow(
            grid.reshape(28 * _ROWS, 28 * _COLUMNS), cmap="gray", vmin=0, vmax=1
        )
        axis.set_title(title, fontsize="medium")
        axis.axis("off")
    figure.savefig(path, dpi=100, facecolor="white")
