"""The paper's first experiment: a CNN learns pairs of digits, one after the other.

The memory is stepped as the paper's equation 6 is written, and by Adam as in the
authors' code: methods that end in ", adam". All controls are of equation 6.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from benchmarks.harness.arguments import add_seeds, positive
from benchmarks.harness.progress import counted
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import Frame, write_frame
from benchmarks.harness.sweep import Memories, averaged, in_threads, shuffled
from benchmarks.methods import BOUND, METHODS, MODELS, Method
from benchmarks.problems.digits import (
    Digits,
    TwoDigits,
    batch_loss,
    count_errors,
    load_digits,
    select_two,
)
from benchmarks.problems.networks import LeNet
from benchmarks.problems.problem import Problem
from benchmarks.reporting import mnist
from benchmarks.reporting.mnist import AUTHORS, META_RATES
from metalr_optax import get_memory, linspace_kernels, paper_sgd

TIME = "2 minutes"
TASKS = ((1, 2), (1, 3), (1, 4))
# SGD and Adam on each task; new and reloaded memories by two rules, three controls,
# one model.
RUNS = 2 * len(TASKS) + len(META_RATES) * (2 * (2 * len(TASKS) - 1) + 3 + 2)
BASE_RATE = 1e-3


def _by_equation(name: str, num: int) -> Method:
    """Return the paper's rule with `num` local models, stepped by equation 6."""

    def make(rate: Any, meta: Any) -> optax.GradientTransformation:
        kernels, rule = linspace_kernels(BOUND, num), optax.sgd(meta)
        return paper_sgd(initial=rate, kernels=kernels, memory_optimizer=rule)

    return Method(name, make, {}, {}, has_memory=True)


_METHODS = {
    "sgd": METHODS["sgd"],
    "adam": METHODS["adam"],
    "memory": _by_equation("memory", MODELS),
    "memory, adam": METHODS["paper_sgd"],
    "memory_m1": _by_equation("memory_m1", 1),
}


class Lesson(NamedTuple):
    """Two digits, and what a seed begins with and sees."""

    two: TwoDigits
    batches: jax.Array  # [horizon, batch size], indices of training images
    params: Any  # the network at the start


class Task(NamedTuple):
    """Two digits to tell apart, a lesson for every seed."""

    name: str
    lessons: list[Lesson]


@jax.jit
def _init(key: jax.Array) -> Any:
    return LeNet().init(key, jnp.zeros((1, 28, 28)))


def make_task(
    digits: Digits, pair: tuple[int, int], seeds: int, horizon: int, batch_size: int
) -> Task:
    """Select two digits; draw a network and an order of the images for every seed."""
    two = select_two(digits, *pair)
    available, needed = len(two.train_labels), horizon * batch_size
    if needed > available:
        raise ValueError(
            f"a horizon of {horizon} updates of {batch_size} images needs {needed} "
            f"images, but there are {available} of the digits {pair[0]} and {pair[1]}"
        )

    def draw(seed: int) -> Lesson:
        order = np.random.default_rng([seed, *pair]).permutation(available)[:needed]
        batches = jnp.asarray(order).reshape(horizon, batch_size)
        return Lesson(two, batches, _init(jax.random.key(100 * seed + pair[1])))

    return Task(f"{pair[0]} vs {pair[1]}", [draw(seed) for seed in range(seeds)])


@functools.cache
def _make_runner(method: str, horizon: int) -> Callable[..., Any]:
    """Return the runner of a lesson; it measures test errors and the batch's loss."""

    def start(lesson: Lesson, key: jax.Array) -> Any:
        del key  # what differs between seeds is in the lesson
        return lesson.params, jnp.zeros(())

    def gradients(lesson: Lesson, params: Any, loss: Any, count: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(batch_loss)(
            params, lesson.two, lesson.batches[count]
        )
        return grads, loss

    def measure(lesson: Lesson, params: Any, loss: jax.Array) -> jax.Array:
        # A count, not a share: 0.98 as a float32 quotient may fall short of 98 %.
        return jnp.stack([count_errors(params, lesson.two), loss])

    problem = Problem("mnist pairs", None, start, gradients, measure, horizon, every=1)
    return make_runner(problem, _METHODS[method])


def run_all(
    digits: Digits, seeds: int, horizon: int, batch_size: int
) -> Iterator[Frame]:
    """Yield the rows of every run of the experiment as it is done.

    Raises:
      ValueError: there are not enough images for the horizon.
    """
    tasks = [make_task(digits, pair, seeds, horizon, batch_size) for pair in TASKS]
    for task in tasks:
        for name in ("sgd", "adam"):
            yield train_run(task, name, method=name)[0]
    for meta_rate in META_RATES:
        yield from run_memory(tasks, meta_rate)
        yield from run_single(tasks, meta_rate)
        yield from run_memory(tasks, meta_rate, AUTHORS)


def run_memory(tasks: list[Task], meta_rate: float, rule: str = "") -> Iterator[Frame]:
    """Yield new and reloaded memories; of equation 6 the controls on the last task."""

    def train(task: Task, label: str, memories: Any = None) -> tuple[Frame, Memories]:
        return train_run(task, label + rule, meta_rate, memories, f"memory{rule}")

    rows, learned = train(tasks[0], "new")
    yield rows
    for task in tasks[1:]:
        yield train(task, "new")[0]
        if task is tasks[-1] and not rule:
            yield train(task, "frozen", learned)[0]
            yield train(task, "constant", averaged(learned))[0]
            yield train(task, "shuffled", shuffled(learned))[0]
        rows, learned = train(task, "reloaded", learned)
        yield rows


def run_single(tasks: list[Task], meta_rate: float) -> Iterator[Frame]:
    """Yield the control with one local model per layer: its runs on the last task."""
    learned = None
    for task in tasks[:-1]:
        single = train_run(task, "reloaded_m1", meta_rate, learned, "memory_m1")
        learned = single[1]
    yield train_run(tasks[-1], "new_m1", meta_rate, None, "memory_m1")[0]
    yield train_run(tasks[-1], "reloaded_m1", meta_rate, learned, "memory_m1")[0]


def train_run(
    task: Task,
    label: str,
    meta_rate: float | None = None,
    memories: Memories | None = None,
    method: str = "memory",
) -> tuple[Frame, Memories]:
    """Train from memories, or from fresh ones; return the rows and what was learned.

    The memory steps with the meta rate, unless it is a control that stands still.
    """
    step = 0.0 if label in ("frozen", "constant") else meta_rate
    setting = [BASE_RATE] if meta_rate is None else [BASE_RATE, step]
    runner = _make_runner(method, len(task.lessons[0].batches))
    if memories is None and _METHODS[method].has_memory:
        # With fresh memories given, no second program has to be compiled.
        state = _METHODS[method].make(*setting).init(task.lessons[0].params)
        memories = [get_memory(state)] * len(task.lessons)

    def train(seed: int) -> Any:
        memory = None if memories is None else memories[seed]
        results = runner(task.lessons[seed], jnp.array(setting), 0, memory)
        return jax.tree.map(np.asarray, results)

    parts = in_threads(train, range(len(task.lessons)))
    images = len(task.lessons[0].two.test_labels)
    frames = []
    for seed, (curve, *_) in enumerate(parts):
        accuracies = (images - curve[:, 0]) / images
        ran = task.name, label, meta_rate, seed
        frames.append(frame_of(*ran, accuracies, losses=curve[:, 1]))
    return pd.concat(frames), [learned for *_, learned in parts]


def frame_of(
    task: str,
    label: str,
    meta_rate: float | None,
    seed: int,
    accuracies: np.ndarray,
    losses: np.ndarray,
) -> Frame:
    """Return a row an update: accuracy on test images after it, loss before it."""
    numbers = ([f"{x:.5g}" for x in values] for values in (accuracies, losses))
    columns = (task, label, meta_rate, seed, np.arange(1, len(losses) + 1), *numbers)
    return pd.DataFrame(dict(zip(mnist.COLUMNS, columns, strict=True)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what may be asked."""
    add_seeds(parser, seeds=10)
    parser.add_argument(
        "--horizon", type=positive, default=25, help="updates in each of three tasks"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=64, help="images in such an update"
    )
    parser.add_argument(
        "--data-dir",
        type=pathlib.Path,
        help="folder with the four MNIST files instead of the bundled subset",
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run the three tasks with a memory that moves on."""
    digits = load_digits(arguments.data_dir)
    arguments.out.mkdir(parents=True, exist_ok=True)
    say(
        f"{len(TASKS)} tasks, {arguments.seeds} seeds, {arguments.horizon} "
        f"updates of {arguments.batch_size} images each; the first runs compile"
    )
    frames, tell = [], counted(say, RUNS)
    settings = arguments.seeds, arguments.horizon, arguments.batch_size
    for rows in run_all(digits, *settings):
        frames.append(rows)
        task, method, rate, *_ = rows.iloc[-1]
        ends = rows[rows["update"] == arguments.horizon]["test_accuracy"]
        end = ends.astype(float).mean()
        tell(f"{task}  {method:<14}{rate or '':>6}  accuracy at the end {end:.3f}")
    write_frame(pd.concat(frames), arguments.out / "mnist.csv")


report = mnist.report
