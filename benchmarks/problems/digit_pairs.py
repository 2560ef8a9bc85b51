"""Digits 1 vs 4, as a problem for tuned optimizers: batches of 64, or one at a time."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.experiments.sequence import CNN
from benchmarks.problems.digits import Digits, load_digits
from benchmarks.problems.problem import Problem

BATCHES, ONLINE = "mnist batches", "mnist online"
_SETTINGS = {BATCHES: (64, 25, 1), ONLINE: (1, 1000, 20)}  # batch, horizon, every


class Arrays(NamedTuple):
    """Images [N, 28, 28] in [0, 1] and labels 0 and 1."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def _logits(params: Any, images: jax.Array) -> jax.Array:
    return jnp.asarray(CNN().apply(params, images))


def _pair(digits: Digits, one: int, other: int) -> Arrays:
    def select(images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
        chosen = np.isin(labels, (one, other))
        return (
            jnp.asarray(images[chosen] / 255.0, jnp.float32),
            jnp.asarray(labels[chosen] == other, jnp.int32),
        )

    return Arrays(
        *select(digits.train_images, digits.train_labels),
        *select(digits.test_images, digits.test_labels),
    )


def _noise(like: Arrays) -> Arrays:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=like.train_images.shape), jnp.float32)
    return like._replace(
        train_images=images,
        train_labels=jnp.asarray(rng.integers(2, size=len(images)), jnp.int32),
    )


def load_problem(name: str, data_dir: pathlib.Path | None = None) -> Problem:
    """Return 1 vs 4: a pass without repeats, judged by the share of test errors.

    Related is 1 vs 3; unrelated are images of noise with any label.
    """
    digits = load_digits(data_dir)
    batch, horizon, every = _SETTINGS[name]
    pair = _pair(digits, 1, 4)

    def start(arrays: Arrays, key: jax.Array) -> tuple[Any, jax.Array]:
        order = jax.random.permutation(key, len(arrays.train_labels))
        return CNN().init(key, arrays.train_images[:1]), order[: horizon * batch]

    def gradients(arrays: Arrays, params: Any, order: jax.Array, count: Any) -> Any:
        chosen = jax.lax.dynamic_slice_in_dim(order, count * batch, batch)

        def loss_fn(params: Any) -> jax.Array:
            return jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(
                    _logits(params, arrays.train_images[chosen]),
                    arrays.train_labels[chosen],
                )
            )

        return jax.grad(loss_fn)(params), order

    def measure(arrays: Arrays, params: Any, order: jax.Array) -> jax.Array:
        del order
        predicted = jnp.argmax(_logits(params, arrays.test_images), axis=-1)
        # A count, not a mean: its quotient is then exact enough for a target of 2 %.
        wrong = jnp.sum(predicted != arrays.test_labels)
        # A network that is not finite tells nothing.
        broken = ~jnp.isfinite(optax.tree.norm(params))
        return jnp.where(broken, jnp.nan, wrong / len(arrays.test_labels))

    return Problem(
        # Another name, so that runs on more digits do not pass for runs on fewer.
        name if data_dir is None else f"{name} of all",
        pair,
        start,
        gradients,
        measure,
        horizon,
        every,
        related=_pair(digits, 1, 3),
        unrelated=_noise(pair),
    )
