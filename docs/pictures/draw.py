"""Draw the pictures of the pages: `python docs/pictures/draw.py`."""

import doctest
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from metalr_optax import (
    agreement_steps,
    get_memory,
    linspace_kernels,
    scale_by_memory,
)
from metalr_optax.memory import read
from metalr_optax.progress import MARKS

STEPS = 600
PAGES = pathlib.Path(__file__).parents[1]
# Narrow, so that letters are large enough on a phone.
WIDTH = 5.2
BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.6"
# The same file on every run, with letters as letters.
plt.rcParams |= {"svg.hashsalt": "metalr_optax", "svg.fonttype": "none"}
plt.rcParams |= {"font.family": "sans-serif", "font.size": 10}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}


def draw_signs():
    """Two steps on a parabola: one too short, one too far."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.4), layout="constrained")
    x = np.linspace(-1.25, 1.25, 100)
    cases = (
        (axes[0], 0.3, BLUE, "same sign: rate too small"),
        (axes[1], 1.65, ORANGE, "sign flipped: too large"),
    )
    for ax, rate, color, title in cases:
        ends = np.array([-1.0, -1.0 + rate])
        ax.plot(x, x**2, color=GREY)
        ax.plot(ends, ends**2, "o", color=color)
        arrow = {"arrowstyle": "-|>", "color": color, "shrinkA": 5, "shrinkB": 5}
        bend = {"connectionstyle": "arc3,rad=-0.25"}
        ax.annotate(
            "", (ends[1], ends[1] ** 2), (ends[0], 1.0), arrowprops=arrow | bend
        )
        for end in ends:
            slope = 2 * end
            near = end + np.array([-0.22, 0.22])
            ax.plot(near, end**2 + slope * (near - end), color="black", linewidth=1)
            ax.annotate(
                "g < 0" if end < 0 else "g > 0",
                (end, end**2),
                textcoords="offset points",
                xytext=(12 if end < 0 else -12, -8),
                ha="left" if end < 0 else "right",
                va="center",
            )
        ax.set_title(title, fontsize="medium")
        ax.set(xlabel="weight", ylabel="loss", xticks=[], yticks=[])
    _save(figure, "signs")


def draw_landscape():
    """Five local models, and the rate that a gradient reads from them."""
    kernels = linspace_kernels(2.0, 5)
    rates = np.array([0.8, 0.55, 0.2, 0.45, 0.7])
    z = np.linspace(-2.6, 2.6, 105)
    figure, ax = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
    for center, width, rate in zip(*kernels, rates, strict=True):
        bump = np.exp(-0.5 * ((z - center) / width) ** 2)
        ax.fill_between(z, rate * bump, color=BLUE, alpha=0.15, linewidth=0)
        ax.plot(center, rate, "o", color=BLUE)
    landscape = np.asarray(read(kernels, rates, z))
    ax.plot(z, landscape, color=ORANGE)
    gradient = 1.4
    rate = float(np.interp(gradient, z, landscape))
    ax.plot([gradient, gradient, z[0]], [0, rate, rate], "--", color="black", lw=1)
    ax.annotate("the rate that it reads", (-1.0, rate), xytext=(-0.9, rate + 0.05))
    ax.annotate("a gradient", (gradient, 0.0), xytext=(gradient + 0.06, 0.03))
    ax.annotate("a kernel and its rate", (-0.0, 0.2), xytext=(0, 0.04), ha="center")
    ax.set(xlabel="gradient", ylabel="learning rate", xlim=(z[0], z[-1]), yticks=[])
    ax.set_ylim(0, 1)
    _save(figure, "landscape")


def draw_schedule():
    """A largest rate that falls, two runs, and the learned schedule between them.

    The sign of a gradient flips where the rate of the last step was above the function.
    """
    steps = np.arange(1, STEPS + 1)
    largest = jnp.asarray(0.3 * np.minimum(1.0, (16 / steps) ** 0.8))

    def run(initial):
        fresh = not isinstance(initial, dict)
        optimizer = scale_by_memory(
            initial,
            kernels=linspace_kernels(1.0, 1) if fresh else None,
            memory_optimizer=agreement_steps(),
            progress=True,
        )

        def step(carry, most):
            state, rate = carry
            ones = jnp.ones(2)
            _, state = optimizer.update(ones, state, grad=(1 - rate / most) * ones)
            rate = get_memory(state)["params"].rates[0]
            return (state, rate), rate

        # What a gradient is about is the rate of the step before.
        before = jnp.append(largest[:1], largest[:-1])
        start = optimizer.init(jnp.ones(2)), 0.0
        (state, _), rates = jax.lax.scan(step, start, before)
        return get_memory(state), rates

    memory, first = run(1e-3)
    _, second = run(memory)
    one = memory["params"]
    number = int(np.log2(STEPS)) + 1
    figure, ax = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
    ax.plot(steps, largest, color="black", lw=1, label="the largest right rate")
    ax.plot(steps, first, color=GREY, label="first run, from 0.001")
    marks = (one.rates * np.exp(one.schedule))[:number]
    ax.plot(MARKS[:number], marks, "o--", color=BLUE, label="its learned schedule")
    ax.plot(steps, second, color=ORANGE, label="the next run")
    ax.set(xlabel="step", ylabel="learning rate", xscale="log", yscale="log")
    ax.legend(loc="lower right", frameon=False)
    _save(figure, "schedule")


def draw_page(page, name):
    """Run the examples of a page and save the figure that they make."""
    results = {}
    exec(doctest.script_from_examples((PAGES / page).read_text()), results)
    _save(results["figure"], name)


def _save(figure, name):
    path = pathlib.Path(__file__).with_name(f"{name}.svg")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw_signs()
    draw_landscape()
    draw_schedule()
    draw_page("how_to/log.md", "logs")
    draw_page("landscapes.md", "memory")
