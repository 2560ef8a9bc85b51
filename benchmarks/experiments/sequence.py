"""The paper's first experiment: a CNN learns pairs of digits, one after the other.

Tasks: 1 vs 2, 1 vs 3, 1 vs 4. A new memory starts every task from the base rate, a
reloaded one goes on from the task before. Everything is paired: in one task, one seed
has the same initial network and the same batches under every method.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness.controls import averaged, shuffled
from benchmarks.problems.digits import Digits
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
MODELS = 20


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


class TaskArrays(NamedTuple):
    """Two digits to tell apart: images in [0, 1], labels 0 and 1."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array
    batches: jax.Array  # [seeds, horizon, batch size], indices of training images
    params: Any  # initial networks, [seeds, ...]


class Task(NamedTuple):
    """A task and its name in the results."""

    name: str
    arrays: TaskArrays


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
    arrays = TaskArrays(
        *train,
        *test,
        batches=jnp.asarray(orders).reshape(seeds, horizon, batch_size),
        params=jax.vmap(lambda key: CNN().init(key, train[0][:1]))(keys),
    )
    return Task(f"{pair[0]} vs {pair[1]}", arrays)


def make_optimizer(
    meta_rate: float | jax.Array, num: int
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
    optimizer: optax.GradientTransformation, task: TaskArrays, states: optax.OptState
) -> tuple[jax.Array, jax.Array, optax.OptState]:
    """Train the networks of all seeds; return hits, losses and last states.

    Hits [seeds, horizon] are test images told right after an update, losses
    [seeds, horizon] are those of the batch before it.
    """

    def logits(params: Any, images: jax.Array) -> jax.Array:
        return jnp.asarray(CNN().apply(params, images))

    def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images), labels
        )
        return jnp.mean(losses)

    def step(params: Any, state: optax.OptState, batch: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(
            params, task.train_images[batch], task.train_labels[batch]
        )
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    def test(params: Any) -> jax.Array:
        predicted = jnp.argmax(logits(params, task.test_images), axis=-1)
        # A count, not a mean: 0.98 as a float32 quotient may fall short of 98 %.
        return jnp.sum(predicted == task.test_labels)

    def update(carry: Any, batch: jax.Array) -> Any:
        params, state = carry
        params, state, loss = jax.vmap(step)(params, state, batch)
        # One network at a time: products batched over networks are slow on a CPU.
        return (params, state), (jax.lax.map(test, params), loss)

    (_, states), (hits, losses) = jax.lax.scan(
        update, (task.params, states), jnp.swapaxes(task.batches, 0, 1)
    )
    return hits.T, losses.T, states


@functools.partial(jax.jit, static_argnames="name")
def train_base(name: str, task: TaskArrays) -> tuple[jax.Array, jax.Array]:
    """Train with plain SGD or Adam at the base rate; return hits and losses."""
    optimizer = {"sgd": optax.sgd, "adam": optax.adam}[name](BASE_RATE)
    return train(optimizer, task, jax.vmap(optimizer.init)(task.params))[:2]


@functools.partial(jax.jit, static_argnames="num")
def fresh_memory(task: TaskArrays, num: int) -> dict[str, Memory]:
    """Return the memory of every seed before anything was learned."""
    return get_memory(jax.vmap(make_optimizer(0.0, num).init)(task.params))


@functools.partial(jax.jit, static_argnames="num")
def train_memory(
    task: TaskArrays,
    memory: dict[str, Memory],
    meta_rate: float | jax.Array,
    num: int,
) -> tuple[jax.Array, jax.Array, dict[str, Memory]]:
    """Train from a memory; return hits, losses and the memory at the end."""
    optimizer = make_optimizer(meta_rate, num)
    states = set_memory(jax.vmap(optimizer.init)(task.params), memory)
    hits, losses, states = train(optimizer, task, states)
    return hits, losses, get_memory(states)


def run_all(digits: Digits, seeds: int, horizon: int, batch_size: int) -> Iterator[Run]:
    """Yield every run of the experiment as it is done.

    Raises:
      ValueError: there are not enough images for the horizon.
    """
    tasks = [make_task(digits, pair, seeds, horizon, batch_size) for pair in TASKS]
    for task in tasks:
        for method in ("sgd", "adam"):
            yield make_run(task, method, None, *train_base(method, task.arrays))
    for meta_rate in META_RATES:
        yield from run_memory(tasks, meta_rate)
        yield from run_single(tasks, meta_rate)


def run_memory(tasks: list[Task], meta_rate: float) -> Iterator[Run]:
    """Yield new and reloaded memories on all tasks, and the controls on the last."""
    run, memory = train_run(tasks[0], "new", meta_rate)
    yield run
    for task in tasks[1:]:
        yield train_run(task, "new", meta_rate)[0]
        if task is tasks[-1]:
            yield train_run(task, "frozen", meta_rate, memory, step=0.0)[0]
            yield train_run(task, "constant", meta_rate, averaged(memory), step=0.0)[0]
            yield train_run(task, "shuffled", meta_rate, shuffled(memory))[0]
        run, memory = train_run(task, "reloaded", meta_rate, memory)
        yield run


def run_single(tasks: list[Task], meta_rate: float) -> Iterator[Run]:
    """Yield the control with one local model per layer: its runs on the last task."""
    _, memory = train_run(tasks[0], "new_m1", meta_rate, num=1)
    for task in tasks[1:-1]:
        _, memory = train_run(task, "reloaded_m1", meta_rate, memory, num=1)
    yield train_run(tasks[-1], "new_m1", meta_rate, num=1)[0]
    yield train_run(tasks[-1], "reloaded_m1", meta_rate, memory, num=1)[0]


def train_run(
    task: Task,
    method: str,
    meta_rate: float,
    memory: dict[str, Memory] | None = None,
    *,
    step: float | None = None,
    num: int = MODELS,
) -> tuple[Run, dict[str, Memory]]:
    """Train from a memory, or from a fresh one; return the run and what it learned.

    The memory steps with the meta rate, or with `step` where a control keeps it still.
    """
    if memory is None:
        memory = fresh_memory(task.arrays, num)
    hits, losses, memory = train_memory(
        task.arrays, memory, meta_rate if step is None else step, num
    )
    return make_run(task, method, meta_rate, hits, losses), memory


def make_run(
    task: Task, method: str, meta_rate: float | None, hits: jax.Array, losses: jax.Array
) -> Run:
    """Return hits among the test images as accuracies."""
    accuracies = np.asarray(hits) / len(task.arrays.test_labels)
    return Run(task.name, method, meta_rate, accuracies, np.asarray(losses))
