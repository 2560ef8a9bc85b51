"""Tables of which a step touches few rows: two that are multiplied, and words."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems.problem import Problem, minimized
from benchmarks.problems.tasks import read_sources

_PEOPLE, _THINGS, _WIDTH, _RANK = 600, 3000, 64, 4
_WORDS, _REACH, _NEGATIVES = 1000, 2, 5


def recommender() -> Problem:
    """Return ratings of pairs, each the product of a row of two tables.

    The ratings have rank 4 and a variance of 1/4; judged by the squared error on pairs
    that are drawn anew.
    """
    rng = np.random.default_rng(0)
    tastes, traits = (
        jnp.asarray(rng.normal(0.0, 0.5, (rows, _RANK)), jnp.float32)
        for rows in (_PEOPLE, _THINGS)
    )

    def start(data: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        keys = jax.random.split(key)
        people = 0.125 * jax.random.normal(keys[0], (_PEOPLE, _WIDTH))
        things = 0.125 * jax.random.normal(keys[1], (_THINGS, _WIDTH))
        return {"people": people, "things": things}, key

    def error(params: Any, data: Any, key: jax.Array, pairs: int) -> jax.Array:
        keys = jax.random.split(key)
        i = jax.random.randint(keys[0], (pairs,), 0, _PEOPLE)
        j = jax.random.randint(keys[1], (pairs,), 0, _THINGS)
        ratings = jnp.sum(data[0][i] * data[1][j], axis=-1)
        told = jnp.sum(params["people"][i] * params["things"][j], axis=-1)
        return jnp.mean((told - ratings) ** 2)

    def loss(params: Any, data: Any, key: jax.Array, count: jax.Array) -> jax.Array:
        return error(params, data, jax.random.fold_in(key, count), 64)

    def judge(params: Any, data: Any) -> jax.Array:
        return error(params, data, jax.random.key(0), 4096)

    return minimized("recommender", (tastes, traits), start, loss, judge, 5000, 100)


def neighbours() -> np.ndarray:
    """Return pairs [N, 2] of words of Python's sources at most two apart.

    Only the thousand most frequent words count; they are numbered by frequency.

    Raises:
      ValueError: the bundled file is not the original.
    """
    words = re.findall(r"[a-z]+", read_sources().decode("latin-1").lower())
    vocabulary = [word for word, _ in Counter(words).most_common(_WORDS)]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    text = np.array([numbers[word] for word in words if word in numbers], np.int32)
    pairs = [np.stack([text[k:], text[:-k]], axis=1) for k in range(1, _REACH + 1)]
    return np.concatenate([*pairs, *(pair[:, ::-1] for pair in pairs)])


def words() -> Problem:
    """Return word vectors from neighbours, with negatives drawn at random.

    Frequencies follow Zipf's law: half of the steps' rows are of some tens of words.
    The tables start standard normal. Judged by the loss on pairs that are held out,
    with fixed negatives.
    """
    rng = np.random.default_rng(0)
    pairs = rng.permutation(neighbours())
    drawn = rng.integers(_WORDS, size=(4096, _NEGATIVES))
    data = tuple(map(jnp.asarray, (pairs[4096:], pairs[:4096], drawn)))

    def start(data: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        keys = jax.random.split(key)
        shape = (_WORDS, 100)
        inputs, outputs = (jax.random.normal(one, shape) for one in keys)
        return {"inputs": inputs, "outputs": outputs}, key

    def cost(params: Any, pairs: jax.Array, negatives: jax.Array) -> jax.Array:
        word = params["inputs"][pairs[:, 0]][:, None]
        near = params["outputs"][pairs[:, 1]][:, None]
        far = params["outputs"][negatives]
        good = jax.nn.softplus(-jnp.sum(word * near, axis=-1)).sum(axis=-1)
        return jnp.mean(good + jax.nn.softplus(jnp.sum(word * far, -1)).sum(axis=-1))

    def loss(params: Any, data: Any, key: jax.Array, count: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, count))
        chosen = jax.random.randint(keys[0], (32,), 0, len(data[0]))
        negatives = jax.random.randint(keys[1], (32, _NEGATIVES), 0, _WORDS)
        return cost(params, data[0][chosen], negatives)

    def judge(params: Any, data: Any) -> jax.Array:
        return cost(params, data[1], data[2])

    return minimized("words", data, start, loss, judge, 8000, 160)
