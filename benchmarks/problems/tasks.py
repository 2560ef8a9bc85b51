"""Learning problems that differ, beside the paper's own.

Full batch: a rotated quadratic and Rosenbrock. Regression: a tanh teacher, without and
with noise on its labels. Classes: ten digits, batches of 64, and a deep residual
network with normalisation on the same digits. Language: a transformer on the bytes of
Python's standard library. And the paper's: one digit at a time, the robot's change of
speed, BEGAN. All are judged on what they are not trained on, where there is such a
thing.
"""

import functools
import hashlib
import lzma
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems import digit_pairs, gan, robot, rosenbrock
from benchmarks.problems.digits import load_digits
from benchmarks.problems.problem import Problem

SOURCES = pathlib.Path(__file__).parents[1] / "data" / "python_stdlib.xz"
_SOURCES_MD5 = "356b6a98b7b84f86f8a51aa69a9cdce2"
_DIMENSIONS, _CONDITION = 100, 1000.0  # of the quadratic
_CONTEXT = 64  # bytes that a language model sees


class Examples(NamedTuple):
    """What a network is trained and judged on."""

    inputs: jax.Array  # [N, ...]
    targets: jax.Array  # [N, ...]
    judged_inputs: jax.Array  # [J, ...]
    judged_targets: jax.Array  # [J, ...]


def squares(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean of squared errors."""
    return jnp.mean((outputs - targets) ** 2)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


class Mlp(nn.Module):
    """Dense layers of the given widths."""

    widths: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return [B, widths[-1]] for x [B, ...]."""
        x = x.reshape(len(x), -1)
        for width in self.widths[:-1]:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Residual(nn.Module):
    """Eight residual blocks, each with a normalisation and two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits [B, 10] for images x [B, 28, 28]."""
        x = nn.Dense(64)(x.reshape(len(x), -1))
        for _ in range(8):
            x += nn.Dense(64)(nn.relu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x))


class Transformer(nn.Module):
    """Two layers of a language model over bytes, about 280,000 parameters."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return logits [B, T, 256] for bytes [B, T]."""
        width = 96
        x: Any = nn.Embed(256, width)(tokens)
        shape = (1, *x.shape[-2:])
        x += self.param("position", nn.initializers.normal(0.02), shape)
        mask = nn.make_causal_mask(tokens)
        for _ in range(2):
            attend = nn.MultiHeadDotProductAttention(num_heads=4)
            x += attend(nn.LayerNorm()(x), mask=mask)
            x += nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
        return nn.Dense(256)(nn.LayerNorm()(x))


def supervised(
    name: str,
    network: nn.Module,
    examples: Examples,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    batch: int,
    horizon: int,
    every: int,
) -> Problem:
    """Return a problem of random batches, judged by the loss on what is held out."""

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return jnp.asarray(network.apply(params, inputs))

    def start(examples: Examples, key: jax.Array) -> tuple[Any, jax.Array]:
        return network.init(key, examples.inputs[:1]), key

    def gradients(examples: Examples, params: Any, key: jax.Array, count: Any) -> Any:
        batch_key = jax.random.fold_in(key, count)
        chosen = jax.random.randint(batch_key, (batch,), 0, len(examples.inputs))
        inputs, targets = examples.inputs[chosen], examples.targets[chosen]

        def loss_fn(params: Any) -> jax.Array:
            return loss(apply(params, inputs), targets)

        return jax.grad(loss_fn)(params), key

    def measure(examples: Examples, params: Any, key: jax.Array) -> jax.Array:
        del key
        return loss(apply(params, examples.judged_inputs), examples.judged_targets)

    return Problem(name, examples, start, gradients, measure, horizon, every)


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
        del count
        return {"x": matrix @ params["x"]}, extra

    def measure(matrix: jax.Array, params: Any, extra: Any) -> jax.Array:
        del extra
        return params["x"] @ matrix @ params["x"] / (2.0 * height)

    return Problem("quadratic", matrix, start, gradients, measure, 300, 5)


def teacher(name: str, noise: float = 0.0, spread: float = 1.0) -> Problem:
    """Return the regression on a tanh network 12-24-4, outputs of variance 1.

    A spread makes inputs of unequal scale, as raw measurements are: from 1 / spread to
    spread, geometrically.
    """
    rng = np.random.default_rng(0)
    hidden, output = rng.normal(size=(12, 24)) / np.sqrt(12), rng.normal(size=(24, 4))
    inputs = rng.normal(size=(5000, 12))
    targets = np.tanh(2.0 * inputs @ hidden) @ output
    targets = (targets - targets.mean(0)) / targets.std(0)
    noisy = targets + noise * rng.normal(size=targets.shape)
    inputs = inputs * np.geomspace(1.0 / spread, spread, 12)
    arrays = (inputs[:4000], noisy[:4000], inputs[4000:], targets[4000:])
    examples = Examples(*(jnp.asarray(one, jnp.float32) for one in arrays))
    network = Mlp((48, 48, 4), nn.tanh)
    return supervised(name, network, examples, squares, 64, 400, 10)


@functools.cache
def _digits() -> Examples:
    digits = load_digits()
    return Examples(
        jnp.asarray(digits.train_images / 255.0, jnp.float32),
        jnp.asarray(digits.train_labels, jnp.int32),
        jnp.asarray(digits.test_images / 255.0, jnp.float32),
        jnp.asarray(digits.test_labels, jnp.int32),
    )


def digit_classes(name: str, network: nn.Module) -> Problem:
    """Return ten digits for a network, in batches of 64."""
    return supervised(name, network, _digits(), _cross_entropy, 64, 300, 10)


def classes() -> Problem:
    """Return ten digits for dense layers 784-64-64-10."""
    return digit_classes("classes", Mlp((64, 64, 10), nn.relu))


def residual() -> Problem:
    """Return ten digits for a deep residual network with normalisation."""
    return digit_classes("residual", Residual())


def language() -> Problem:
    """Return the next byte of Python's sources; judged on the last tenth.

    Raises:
      ValueError: the bundled file is not the original.
    """
    packed = SOURCES.read_bytes()
    digest = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    if digest != _SOURCES_MD5:
        raise ValueError(
            f"{SOURCES} is damaged: its MD5 is {digest}, not {_SOURCES_MD5}"
        )
    text = np.frombuffer(lzma.decompress(packed), np.uint8)
    rows = text[: len(text) // (_CONTEXT + 1) * (_CONTEXT + 1)]
    rows = rows.reshape(-1, _CONTEXT + 1)
    split = len(rows) * 9 // 10
    train, judged = rows[:split], rows[split:][::24]
    arrays = (train[:, :-1], train[:, 1:], judged[:, :-1], judged[:, 1:])
    examples = Examples(*(jnp.asarray(one, jnp.int32) for one in arrays))
    return supervised("language", Transformer(), examples, _cross_entropy, 8, 300, 10)


SUITE: dict[str, Callable[[], Problem]] = {
    "quadratic": quadratic,
    rosenbrock.NAME: rosenbrock.load_problem,
    "teacher": lambda: teacher("teacher"),
    "noisy teacher": lambda: teacher("noisy teacher", noise=0.5),
    "unequal inputs": lambda: teacher("unequal inputs", spread=10.0),
    "classes": classes,
    digit_pairs.ONLINE: lambda: digit_pairs.load_problem(digit_pairs.ONLINE),
    robot.CHANGE: lambda: robot.load_problem(robot.CHANGE),
    gan.NAME: gan.load_problem,
    "language": language,
    "residual": residual,
}
