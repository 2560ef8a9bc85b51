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

from benchmarks.harness.arguments import (
    FEW_METHODS,
    FEW_TRIALS,
    add_comparison,
    fill_in,
    positive,
)
from benchmarks.harness.compare import compare
from benchmarks.harness.progress import counted
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import Frame, write_frame
from benchmarks.harness.sweep import averaged, in_threads, shuffled
from benchmarks.methods import BOUND, METHODS, MODELS, Method
from benchmarks.problems.digits import (
    BATCHES,
    ONLINE,
    Digits,
    TwoDigits,
    batch_loss,
    count_errors,
    load_digits,
    load_pair,
    select_two,
)
from benchmarks.problems.networks import LeNet
from benchmarks.problems.problem import Problem
from benchmarks.reporting import mnist
from benchmarks.reporting.mnist import AUTHORS, META_RATES
from metalr_optax import Memory, get_memory, linspace_kernels, paper_sgd

TIME = "2 minutes; with --full as published, 1 hour more"
TASKS = ((1, 2), (1, 3), (1, 4))
# SGD and Adam on each task; new and reloaded memories by two rules, three controls,
# one model.
RUNS = 2 * len(TASKS) + len(META_RATES) * (2 * (2 * len(TASKS) - 1) + 3 + 2)
BASE_RATE = 1e-3
Memories = dict[str, Memory]  # with a leading [seeds]


def sum_of(*rules: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the sum of rules, of which one with a rate of 0 adds nothing.

    So one compiled program serves all of them.
    """

    def init(params: Any) -> tuple:
        return tuple(rule.init(params) for rule in rules)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, tuple]:
        results = [
            rule.update(updates, part, params)
            for rule, part in zip(rules, state, strict=True)
        ]
        steps, states = zip(*results, strict=True)
        return optax.tree.add(*steps), states

    return optax.GradientTransformation(init, update)


def _with_memory(name: str, num: int) -> Method:
    """Return a method of a base rate, and the meta rates of equation 6 and of Adam."""

    def make(rate: Any, equation: Any, authors: Any) -> optax.GradientTransformation:
        rule = sum_of(optax.sgd(equation), optax.adam(authors))
        kernels = linspace_kernels(BOUND, num)
        return paper_sgd(initial=rate, kernels=kernels, memory_optimizer=rule)

    return Method(name, make, {}, {}, has_memory=True)


_METHODS = {
    "sgd": METHODS["sgd"],
    "adam": METHODS["adam"],
    "memory": _with_memory("memory", MODELS),
    "memory_m1": _with_memory("memory_m1", 1),
}


class TaskRun(NamedTuple):
    """What one method did on one task, for all seeds."""

    task: str
    method: str
    meta_rate: float | None
    accuracies: np.ndarray  # [seeds, horizon], on the test images, after the update
    losses: np.ndarray  # [seeds, horizon], on the batch, before the update


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
) -> Iterator[TaskRun]:
    """Yield every run of the experiment as it is done.

    Raises:
      ValueError: there are not enough images for the horizon.
    """
    tasks = [make_task(digits, pair, seeds, horizon, batch_size) for pair in TASKS]
    for task in tasks:
        for name in ("sgd", "adam"):
            yield train_run(task, name, None, method=name)[0]
    for meta_rate in META_RATES:
        yield from run_memory(tasks, meta_rate)
        yield from run_single(tasks, meta_rate)
        yield from run_memory(tasks, meta_rate, AUTHORS)


def run_memory(
    tasks: list[Task], meta_rate: float, rule: str = ""
) -> Iterator[TaskRun]:
    """Yield new and reloaded memories; of equation 6 the controls on the last task."""
    run, memory = train_run(tasks[0], f"new{rule}", meta_rate)
    yield run
    for task in tasks[1:]:
        yield train_run(task, f"new{rule}", meta_rate)[0]
        if task is tasks[-1] and not rule:
            yield train_run(task, "frozen", meta_rate, memory, step=0.0)[0]
            yield train_run(task, "constant", meta_rate, averaged(memory), step=0.0)[0]
            yield train_run(task, "shuffled", meta_rate, shuffled(memory))[0]
        run, memory = train_run(task, f"reloaded{rule}", meta_rate, memory)
        yield run


def run_single(tasks: list[Task], meta_rate: float) -> Iterator[TaskRun]:
    """Yield the control with one local model per layer: its runs on the last task."""
    single = "memory_m1"
    _, memory = train_run(tasks[0], "new_m1", meta_rate, method=single)
    for task in tasks[1:-1]:
        _, memory = train_run(task, "reloaded_m1", meta_rate, memory, method=single)
    yield train_run(tasks[-1], "new_m1", meta_rate, method=single)[0]
    yield train_run(tasks[-1], "reloaded_m1", meta_rate, memory, method=single)[0]


def train_run(
    task: Task,
    label: str,
    meta_rate: float | None,
    memory: Memories | None = None,
    *,
    step: float | None = None,
    method: str = "memory",
) -> tuple[TaskRun, Memories]:
    """Train from a memory, or from a fresh one; return the run and what it learned.

    The memory steps with the meta rate, or with `step` where a control keeps it still;
    the end of the label says by which rule.
    """
    runner = _make_runner(method, len(task.lessons[0].batches))
    setting = _make_setting(label, meta_rate if step is None else step)
    if memory is None and _METHODS[method].has_memory:
        memory = _make_fresh(task, method, setting)

    def train(seed: int) -> Any:
        given = jax.tree.map(lambda leaf: leaf[seed : seed + 1], memory)
        lesson, no_key = task.lessons[seed], jnp.zeros(1, int)
        curve, _, learned = runner(lesson, jnp.array([setting]), no_key, given)
        return jax.tree.map(np.asarray, (curve, learned))

    parts = in_threads(train, range(len(task.lessons)))
    curves, learned = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    images = len(task.lessons[0].two.test_labels)
    accuracies = (images - curves[..., 0]) / images
    return TaskRun(task.name, label, meta_rate, accuracies, curves[..., 1]), learned


def _make_setting(label: str, meta_rate: float | None) -> tuple[float, ...]:
    """Return the base rate, and the meta rates of equation 6 and of Adam if any."""
    if meta_rate is None:
        return (BASE_RATE,)
    if label.endswith(AUTHORS):
        return BASE_RATE, 0.0, meta_rate
    return BASE_RATE, meta_rate, 0.0


def _make_fresh(task: Task, method: str, setting: tuple[float, ...]) -> Memories:
    """Return new memories. With them given, no second program has to be compiled."""
    optimizer = _METHODS[method].make(*setting)
    fresh = get_memory(optimizer.init(task.lessons[0].params))
    return jax.tree.map(lambda leaf: np.stack([leaf] * len(task.lessons)), fresh)


def frame_of(runs: list[TaskRun]) -> Frame:
    """Return a row a task, method, meta rate, seed and update."""
    rows = [
        (*run[:3], seed, update + 1, f"{one:.5g}", f"{run.losses[seed, update]:.5g}")
        for run in runs
        for (seed, update), one in np.ndenumerate(run.accuracies)
    ]
    return pd.DataFrame(rows, columns=mnist.COLUMNS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what may be asked."""
    add_comparison(parser, seeds=10, where=", with --compare")
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
    parser.add_argument(
        "--compare",
        action="store_true",
        help="then tune and compare methods on the last task",
    )


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Run the three tasks with a memory that moves on; compare if asked to."""
    fill_in(arguments)
    wanted = arguments.compare or arguments.full
    if not wanted and (arguments.trials, arguments.methods) != (
        FEW_TRIALS,
        FEW_METHODS,
    ):
        raise ValueError("--trials and --methods say how to compare: add --compare")
    digits = load_digits(arguments.data_dir)
    arguments.out.mkdir(parents=True, exist_ok=True)
    say(
        f"{len(TASKS)} tasks, {arguments.seeds} seeds, {arguments.horizon} "
        f"updates of {arguments.batch_size} images each; the first runs compile"
    )
    runs, tell = [], counted(say, RUNS)
    settings = arguments.seeds, arguments.horizon, arguments.batch_size
    for one in run_all(digits, *settings):
        runs.append(one)
        rate = "" if one.meta_rate is None else f"{one.meta_rate:g}"
        end = one.accuracies[:, -1].mean()
        tell(f"{one.task}  {one.method:<14}{rate:>6}  accuracy at the end {end:.3f}")
    write_frame(frame_of(runs), arguments.out / "mnist.csv")
    if wanted:
        problems = [load_pair(name, arguments.data_dir) for name in (BATCHES, ONLINE)]
        compare("mnist_tuned", problems, arguments, say)


report = mnist.report
