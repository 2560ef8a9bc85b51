"""The tasks of the suite: learning problems that differ, and the paper's own.

Full batch: a rotated quadratic and Rosenbrock. Regression: a tanh teacher, without and
with noise on its labels. Classes: ten digits, batches of 64, and a deep residual
network with normalisation on the same digits. Language: a transformer on the bytes of
Python's standard library. And the paper's: one digit at a time, the robot's change of
speed, BEGAN. All are judged on what they are not trained on, where there is such a
thing.
"""

import lzma
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import gan, robot
from benchmarks.problems.digits import ONLINE, load_digits, load_pair
from benchmarks.problems.networks import Mlp, Residual, Transformer
from benchmarks.problems.problem import (
    DATA,
    Examples,
    Problem,
    checked,
    cross_entropy,
    minimized,
    squared_error,
    supervised,
)

SOURCES = DATA / "python_stdlib.xz"
_SOURCES_MD5 = "356b6a98b7b84f86f8a51aa69a9cdce2"
_DIMENSIONS, _CONDITION = 100, 1000.0  # of the quadratic
ROSENBROCK, ROSENBROCK_START = "rosenbrock", (1.5, -0.5)


def quadratic() -> Problem:
    """Return x' A x / 2 of condition 1,000, rotated, from a normal start.

    Judged relative to the mean height of a start.
    """
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(_DIMENSIONS, _DIMENSIONS)))
    curvatures = np.geomspace(1.0 / _CONDITION, 1.0, _DIMENSIONS)
    matrix = jnp.asarray(rotation * curvatures @ rotation.T, jnp.float32)
    height = float(curvatures.sum()) / 2.0

    def start(matrix: jax.Array, key: jax.Array) -> tuple[Any, tuple]:
        return {"x": jax.random.normal(key, (len(matrix),))}, ()

    def gradients(matrix: jax.Array, params: Any, extra: Any, count: Any) -> Any:
        return {"x": matrix @ params["x"]}, extra

    def measure(matrix: jax.Array, params: Any, extra: Any) -> jax.Array:
        return params["x"] @ matrix @ params["x"] / (2.0 * height)

    return Problem("quadratic", matrix, start, gradients, measure, 300, 5)


def rosenbrock_height(x1: jax.typing.ArrayLike, x2: jax.typing.ArrayLike) -> jax.Array:
    """Return the height of the surface; its lowest point is (1, 1)."""
    return (1.0 - jnp.asarray(x1)) ** 2 + 100.0 * (x2 - jnp.asarray(x1) ** 2) ** 2


def rosenbrock() -> Problem:
    """Return the descent into the valley, from near the notebook's start."""

    def start(data: None, key: jax.Array) -> tuple[Any, tuple]:
        x1, x2 = jnp.array(ROSENBROCK_START) + 0.1 * jax.random.normal(key, (2,))
        return {"x1": x1, "x2": x2}, ()

    def height(params: dict[str, jax.Array], *others: Any) -> jax.Array:
        return rosenbrock_height(**params)

    return minimized(ROSENBROCK, None, start, height, height, 100, 2)


def teacher(name: str, noise: float = 0.0, spread: float = 1.0) -> Problem:
    """Return the regression on a tanh network 12-24-4, outputs of variance 1.

    A spread makes inputs of unequal scale, as raw measurements are: from 1 / spread to
    spread, geometrically.
    """
    rng = np.random.default_rng(0)
    hidden, output = rng.normal(size=(12, 24)) / np.sqrt(12), rng.normal(size=(24, 4))
    inputs = rng.normal(size=(5000, 12))
    labels = np.tanh(2.0 * inputs @ hidden) @ output
    labels = (labels - labels.mean(0)) / labels.std(0)
    noisy = labels + noise * rng.normal(size=labels.shape)
    inputs = inputs * np.geomspace(1.0 / spread, spread, 12)
    arrays = (inputs[:4000], noisy[:4000], inputs[4000:], labels[4000:])
    examples = Examples(*(jnp.asarray(one, jnp.float32) for one in arrays))
    network = Mlp((48, 48, 4), nn.tanh)
    return supervised(name, network, examples, squared_error, 64, 400, 10)


def digit_classes(name: str, network: nn.Module) -> Problem:
    """Return ten digits for a network, in batches of 64."""
    return supervised(name, network, load_digits(), cross_entropy, 64, 300, 10)


def read_sources() -> bytes:
    """Return Python's sources.

    Raises:
      ValueError: the bundled file is not the original.
    """
    packed = checked(SOURCES, SOURCES.read_bytes(), _SOURCES_MD5)
    return lzma.decompress(packed)


def next_bytes(length: int, stride: int) -> Examples:
    """Return rows of Python's sources, each byte labelled by the one after it.

    Judged are the last tenth of the rows, one in every `stride`.

    Raises:
      ValueError: the bundled file is not the original.
    """
    text = np.frombuffer(read_sources(), np.uint8)
    number = len(text) // (length + 1)
    rows = jnp.asarray(text[: number * (length + 1)].reshape(number, -1), jnp.int32)
    train, judged = rows[: number * 9 // 10], rows[number * 9 // 10 :: stride]
    return Examples(train[:, :-1], train[:, 1:], judged[:, :-1], judged[:, 1:])


def language() -> Problem:
    """Return the next byte of Python's sources; judged on the last tenth."""
    examples = next_bytes(64, stride=24)
    network = Transformer(width=96, layers=2)  # about 280,000 parameters
    return supervised("language", network, examples, cross_entropy, 8, 300, 10)


SUITE: dict[str, Callable[[], Problem]] = {
    "quadratic": quadratic,
    ROSENBROCK: rosenbrock,
    "teacher": lambda: teacher("teacher"),
    "noisy teacher": lambda: teacher("noisy teacher", noise=0.5),
    "unequal inputs": lambda: teacher("unequal inputs", spread=10.0),
    "classes": lambda: digit_classes("classes", Mlp((64, 64, 10), nn.relu)),
    ONLINE: lambda: load_pair(ONLINE),
    robot.CHANGE: lambda: robot.load_problem(robot.CHANGE),
    gan.NAME: gan.load_problem,
    "language": language,
    "residual": lambda: digit_classes("residual", Residual()),
}
