"""The paper's first experiment: a CNN learns pairs of digits, one after the other.

Tasks: 1 vs 2, 1 vs 3, 1 vs 4. A new memory starts every task from the base rate, a
reloaded one goes on from the task before. Everything is paired: in one task, one seed
has the same initial network and the same batches under every method.
"""

import argparse
import csv
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.mnist_data import Digits, load_digits
from metalr_optax import (
    Memory,
    get_memory,
    linspace_kernels,
    scale_by_memory,
    set_memory,
)

TASKS = ((1, 2), (1, 3), (1, 4))
META_RATES = (0.1, 0.01, 0.001)
BASE_RATE = 1e-3
BOUND = 2.0
GOAL = 0.98
COLUMNS = (
    "task",
    "method",
    "meta_rate",
    "seed",
    "update",
    "test_accuracy",
    "train_loss",
)


class CNN(nn.Module):
    """The authors' small LeNet: conv 5x5x8, max-pool, dense 128, 2 outputs."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits [B, 2] for images [B, 28, 28] in [0, 1]."""
        # A convolution as patches times a kernel: many networks at once, as under
        # vmap, make of nn.Conv a grouped convolution, which is slow on a CPU.
        patches = jax.lax.conv_general_dilated_patches(
            images[..., None],
            (5, 5),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        features = nn.Dense(8, name="Conv_0")(patches)
        pooled = features.reshape(-1, 12, 2, 12, 2, 8).max((2, 4))
        hidden = nn.relu(nn.Dense(128)(nn.relu(pooled).reshape(-1, 12 * 12 * 8)))
        return nn.Dense(2)(hidden)


class Task(NamedTuple):
    """Two digits to tell apart: images in [0, 1], labels 0 and 1."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array
    batches: jax.Array  # [seeds, horizon, batch size], indices of training images
    params: Any  # initial networks, [seeds, ...]


class Run(NamedTuple):
    """What one method did on one task, for all seeds."""

    task: str
    method: str
    meta_rate: float | None
    accuracies: np.ndarray  # [seeds, horizon], on the test images, after the update
    losses: np.ndarray  # [seeds, horizon], on the batch, before the update


def make_task(
    digits: Digits, pair: tuple[int, int], seeds: int, horizon: int, batch_size: int
) -> Task:
    """Select two digits; draw a network and an order of the images for every seed."""

    def select(images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
        chosen = np.isin(labels, pair)
        return (
            jnp.asarray(images[chosen] / 255.0, jnp.float32),
            jnp.asarray(labels[chosen] == pair[1], jnp.int32),
        )

    train = select(digits.train_images, digits.train_labels)
    test = select(digits.test_images, digits.test_labels)
    available, needed = len(train[1]), horizon * batch_size
    if needed > available:
        raise ValueError(
            f"a horizon of {horizon} updates of {batch_size} images needs {needed} "
            f"images, but there are {available} of the digits {pair[0]} and {pair[1]}"
        )
    orders = [
        np.random.default_rng([seed, *pair]).permutation(available)[:needed]
        for seed in range(seeds)
    ]
    keys = jax.vmap(lambda seed: jax.random.key(100 * seed + pair[1]))(
        jnp.arange(seeds)
    )
    return Task(
        *train,
        *test,
        batches=jnp.asarray(orders).reshape(seeds, horizon, batch_size),
        params=jax.vmap(lambda key: CNN().init(key, train[0][:1]))(keys),
    )


def memory_optimizer(
    meta_rate: jax.typing.ArrayLike, num: int
) -> optax.GradientTransformationExtraArgs:
    """The paper's rule: clip, a memory of `num` local models, a step downhill."""
    return optax.chain(
        optax.clip(BOUND),
        scale_by_memory(
            BASE_RATE,
            kernels=linspace_kernels(BOUND, num),
            memory_optimizer=optax.adam(meta_rate),
        ),
        optax.scale(-1.0),
    )


def train(
    optimizer: optax.GradientTransformation, task: Task, states: optax.OptState
) -> tuple[jax.Array, jax.Array, optax.OptState]:
    """Train the networks of all seeds; return accuracies, losses and last states."""

    def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = CNN().apply(params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    def step(params: Any, state: optax.OptState, batch: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(
            params, task.train_images[batch], task.train_labels[batch]
        )
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    def test(params: Any) -> jax.Array:
        predicted = jnp.argmax(CNN().apply(params, task.test_images), axis=-1)
        return jnp.mean(predicted == task.test_labels)

    def update(carry: Any, batch: jax.Array) -> Any:
        params, state, loss = jax.vmap(step)(*carry, batch)
        # One network at a time: products batched over networks are slow on a CPU.
        return (params, state), (jax.lax.map(test, params), loss)

    (_, states), (accuracies, losses) = jax.lax.scan(
        update, (task.params, states), jnp.swapaxes(task.batches, 0, 1)
    )
    return accuracies.T, losses.T, states


@functools.partial(jax.jit, static_argnames="name")
def train_base(name: str, task: Task) -> tuple[jax.Array, jax.Array]:
    """Train with plain SGD or Adam at the base rate."""
    optimizer = {"sgd": optax.sgd, "adam": optax.adam}[name](BASE_RATE)
    return train(optimizer, task, jax.vmap(optimizer.init)(task.params))[:2]


@functools.partial(jax.jit, static_argnames="num")
def fresh_memory(task: Task, num: int) -> dict[str, Memory]:
    """Return the memory of every seed before anything was learned."""
    return get_memory(jax.vmap(memory_optimizer(0.0, num).init)(task.params))


@functools.partial(jax.jit, static_argnames="num")
def train_memory(
    task: Task, memory: dict[str, Memory], meta_rate: jax.typing.ArrayLike, num: int
) -> tuple[jax.Array, jax.Array, dict[str, Memory]]:
    """Train from a memory; return accuracies, losses and the memory at the end."""
    optimizer = memory_optimizer(meta_rate, num)
    states = set_memory(jax.vmap(optimizer.init)(task.params), memory)
    accuracies, losses, states = train(optimizer, task, states)
    return accuracies, losses, get_memory(states)


def averaged(memory: dict[str, Memory]) -> dict[str, Memory]:
    """Control: every local model of a layer at the mean rate of the layer."""
    return {
        label: one._replace(
            rates=np.broadcast_to(
                np.mean(one.rates, axis=-1, keepdims=True), one.rates.shape
            )
        )
        for label, one in memory.items()
    }


def shuffled(memory: dict[str, Memory]) -> dict[str, Memory]:
    """Control: the same rates in a random order within each layer."""
    rng = np.random.default_rng(0)
    return {
        label: one._replace(rates=rng.permuted(one.rates, axis=-1))
        for label, one in memory.items()
    }


def run_all(tasks: list[Task]) -> Iterator[Run]:
    """Yield every run of the experiment, in the order of the tasks."""
    names = [f"{first} vs {second}" for first, second in TASKS]
    for name, task in zip(names, tasks, strict=True):
        for method in ("sgd", "adam"):
            yield Run(name, method, None, *map(np.asarray, train_base(method, task)))
    for meta_rate in META_RATES:
        yield from run_memory(names, tasks, meta_rate, 20, "")
        yield from run_memory(names, tasks, meta_rate, 1, " M=1")


def run_memory(
    names: list[str], tasks: list[Task], meta_rate: float, num: int, suffix: str
) -> Iterator[Run]:
    """Yield the runs of one memory setting, and the controls on the last task."""

    def run(index: int, method: str, memory: Any, step: float = meta_rate) -> Any:
        accuracies, losses, memory = train_memory(tasks[index], memory, step, num)
        result = map(np.asarray, (accuracies, losses))
        return Run(names[index], method + suffix, meta_rate, *result), memory

    last = len(tasks) - 1
    new, memory = run(0, "new", fresh_memory(tasks[0], num))
    yield new
    for index in range(1, len(tasks)):
        yield run(index, "new", fresh_memory(tasks[index], num))[0]
        if index == last and num > 1:
            yield run(index, "frozen", memory, step=0.0)[0]
            yield run(index, "constant", averaged(memory), step=0.0)[0]
            yield run(index, "shuffled", shuffled(memory))[0]
        reloaded, memory = run(index, "reloaded", memory)
        yield reloaded
