"""Tables and pictures of BEGAN."""

import pathlib

import jax.numpy as jnp
import numpy as np

from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import read_setting
from benchmarks.methods import METHODS
from benchmarks.problems import gan
from benchmarks.reporting import comparison, draw
from benchmarks.reporting.rows import fixed, tuned

_SIDE = 8  # digits in a row


def report(folder: pathlib.Path) -> dict[str, str]:
    """Return the tables; draw the pictures."""
    draw_digits(folder)
    return comparison.report(folder, "gan")


def draw_digits(folder: pathlib.Path) -> None:
    """Train seed 0 of four settings again; draw what each generator then makes.

    Above each is the spread of its images over that of real ones: 0 means that the
    generator draws a single digit, which the measure of the game does not see.
    """
    problem, rows = gan.load_problem(), comparison.load(folder, "gan")["gan"]
    real = np.asarray(problem.data.judged)[: _SIDE**2]
    shown = {"real": real}
    for name in ("adam", "paper_sgd"):
        train = make_runner(problem, METHODS[name])
        for kind, find in (("fixed", fixed), ("tuned", tuned)):
            for text in find(rows, name)["setting"][:1]:
                setting = jnp.array(list(read_setting(text).values()))
                params = train(problem.data, setting, 0, None)[1]
                drawn = gan.generate(params, problem.data.latents[: _SIDE**2])
                spread = drawn.std(0).mean() / real.std(0).mean()
                shown[f"{name}, {kind}\nspread {spread:.2f}"] = np.asarray(drawn)
    figure, (grid,) = draw.panels(1, len(shown), (2.6, 3.3))
    for axis, (title, images) in zip(grid, shown.items(), strict=True):
        tiles = images.reshape(_SIDE, _SIDE, 28, 28).swapaxes(1, 2)
        axis.imshow(tiles.reshape(28 * _SIDE, -1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    draw.save(figure, folder / "gan_digits.png")
