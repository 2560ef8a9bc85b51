"""Learning problems at the lengths people train: 8 to 10 times those of the suite.

Every task of the suite with more updates, classes judged by errors instead of losses,
which rise late on small data sets; and six kinds more: an autoencoder with a
likelihood, characters for a recurrent network, an agent whose targets move, a network
of coordinates, a differential equation with exact gradients, labels with noise.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems import agent, networks, robot, tables
from benchmarks.problems.digits import ONLINE, load_digits, load_pair
from benchmarks.problems.networks import Mlp, Residual
from benchmarks.problems.problem import (
    Examples,
    Problem,
    cross_entropy,
    errors,
    minimized,
    squared_error,
    supervised,
)
from benchmarks.problems.tasks import SUITE, next_bytes

_CODE = 16  # numbers that an autoencoder makes of an image
_CORRUPTED = 0.4  # of the labels
_DENSE = Mlp((64, 64, 10), nn.relu)


def _longer(name: str, horizon: int, every: int) -> Problem:
    name, problem = f"{name}, long", SUITE[name]()
    return problem._replace(name=name, horizon=horizon, every=every)


def _classes(name: str, network: nn.Module, data: Examples) -> Problem:
    return supervised(name, network, data, cross_entropy, 64, 3000, 60, judge=errors)


def autoencoder() -> Problem:
    """Return digits to be coded, judged by minus the evidence bound in nats."""
    digits = load_digits()
    data = digits.inputs.reshape(-1, 784), digits.judged_inputs[::4].reshape(-1, 784)
    network = networks.VariationalAutoencoder(width=256, code=_CODE)

    def bound(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, (len(images), _CODE))
        outputs: Any = network.apply(params, images, noise)
        logits, mean, log_variance = outputs
        told = optax.sigmoid_binary_cross_entropy(logits, images).sum(axis=-1)
        kept = jnp.square(mean) + jnp.exp(log_variance) - log_variance - 1.0
        return jnp.mean(told + 0.5 * kept.sum(axis=-1))

    def start(data: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        return network.init(key, data[0][:1], jnp.zeros((1, _CODE))), key

    def loss(params: Any, data: Any, key: jax.Array, count: jax.Array) -> jax.Array:
        image_key, noise_key = jax.random.split(jax.random.fold_in(key, count))
        chosen = jax.random.randint(image_key, (64,), 0, len(data[0]))
        return bound(params, data[0][chosen], noise_key)

    def judge(params: Any, data: Any) -> jax.Array:
        return bound(params, data[1], jax.random.key(0))

    return minimized("autoencoder", data, start, loss, judge, 3000, 60)


def characters() -> Problem:
    """Return the next byte of Python's sources for an LSTM, windows of 32 bytes."""
    examples, network = next_bytes(32, stride=64), networks.ByteLstm(cells=96, width=32)
    return supervised("characters", network, examples, cross_entropy, 16, 2400, 60)


def coordinates() -> Problem:
    """Return an image of 56 x 56, four digits, as a function of the place.

    Batches of 512 pixels; judged by the squared error over the variance.
    """
    images = np.asarray(load_digits().inputs)[[0, 2500, 5000, 7500]]
    image = np.block([list(images[:2]), list(images[2:])])
    line = np.linspace(-1.0, 1.0, len(image))
    places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    heights = (image.ravel() - image.mean()) / image.std()
    x, y = jnp.asarray(places, jnp.float32), jnp.asarray(heights, jnp.float32)
    examples, network = Examples(x, y, x, y), networks.Waves(waves=64, widths=(64, 64))
    return supervised("coordinates", network, examples, squared_error, 512, 3000, 60)


def solution(x: Any) -> Any:
    """Return what solves the equation of `physics`."""
    return jnp.sin(2 * jnp.pi * x) + 0.3 * jnp.sin(6 * jnp.pi * x)


def _bend(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jax.vmap(jax.grad(jax.grad(function)))(x)


def physics() -> Problem:
    """Return -u'' = f on [0, 1], 0 at both ends, for a tanh network, all points.

    The solution is sin(2 pi x) + .3 sin(6 pi x); judged by the relative error.
    """
    network = Mlp((48, 48, 1), nn.tanh)

    def u(params: Any, x: jax.Array) -> jax.Array:
        return jnp.asarray(network.apply(params, x.reshape(1, 1)))[0, 0]

    def start(points: jax.Array, key: jax.Array) -> tuple[Any, tuple]:
        return network.init(key, points[:1, None]), ()

    def loss(params: Any, points: jax.Array, *others: Any) -> jax.Array:
        residual = _bend(lambda x: u(params, x), points) - _bend(solution, points)
        ends = u(params, points[0]) ** 2 + u(params, points[-1]) ** 2
        return jnp.mean(residual**2) / 1000.0 + ends

    def judge(params: Any, points: jax.Array) -> jax.Array:
        wrong = jax.vmap(lambda x: u(params, x))(points) - solution(points)
        return jnp.sqrt(jnp.mean(wrong**2) / jnp.mean(solution(points) ** 2))

    points = jnp.linspace(0.0, 1.0, 101)
    return minimized("physics", points, start, loss, judge, 3000, 60)


def noisy_labels() -> Problem:
    """Return ten digits, 40 % of the labels drawn anew; judged by clean errors."""
    examples, rng = load_digits(), np.random.default_rng(0)
    drawn = rng.integers(10, size=len(examples.labels))
    wrong = rng.random(len(drawn)) < _CORRUPTED
    labels = jnp.where(wrong, drawn, examples.labels)
    return _classes("noisy labels", _DENSE, examples._replace(labels=labels))


LONG: dict[str, Callable[[], Problem]] = {
    "language, long": lambda: _longer("language", 2400, 60),
    "classes, long": lambda: _classes("classes, long", _DENSE, load_digits()),
    "unequal inputs, long": lambda: _longer("unequal inputs", 4000, 80),
    "agent": agent.load_problem,
    "physics": physics,
    "characters": characters,
    "autoencoder": autoencoder,
    "noisy teacher, long": lambda: _longer("noisy teacher", 4000, 80),
    "residual, long": lambda: _classes("residual, long", Residual(), load_digits()),
    "noisy labels": noisy_labels,
    "coordinates": coordinates,
    "teacher, long": lambda: _longer("teacher", 4000, 80),
    "quadratic, long": lambda: _longer("quadratic", 3000, 60),
    "rosenbrock, long": lambda: _longer("rosenbrock", 1000, 20),
    "mnist online, long": lambda: load_pair(ONLINE, longer=8),
    "rnn change, long": lambda: _longer(robot.CHANGE, 4800, 120),
    "gan, long": lambda: _longer("gan", 8000, 160),
    "recommender": tables.recommender,
    "words": tables.words,
}
