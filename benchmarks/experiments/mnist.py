"""The paper's first experiment: a CNN learns pairs of digits, one after the other.

The memory is stepped as the paper's equation 6 is written, and by Adam as in the
authors' code: methods that end in ", adam". All controls are of equation 6.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from benchmarks.harness.command import Arguments, Parser, Say, add_seeds, positive
from benchmarks.harness.progress import counted
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import Frame, write_frame
from benchmarks.harness.sweep import Memories, averaged, in_threads, shuffled
from benchmarks.methods import METHODS, MODELS, Method, paper_rule
from benchmarks.problems.digits import batch_loss, count_errors, load_digits, select_two
from benchmarks.problems.networks import LeNet
from benchmarks.problems.problem import Examples, Problem
from benchmarks.reporting import mnist
from benchmarks.reporting.mnist import AUTHORS, META_RATES
from metalr_optax import get_memory, paper_sgd

TIME = "2 minutes"
TASKS = ((1, 2), (1, 3), (1, 4))
# SGD and Adam on each task; new and reloaded memories by two rules, three controls,
# one model.
RUNS = 2 * len(TASKS) + len(META_RATES) * (2 * (2 * len(TASKS) - 1) + 3 + 2)
BASE_RATE = 1e-3


def _by_equation(num: int) -> Method:
    """Return the paper's rule with `num` local models, stepped by equation 6."""
    make = paper_rule(paper_sgd, num, optax.sgd)
    return Method("equation 6", make, {}, {}, has_memory=True)


# By what the label of a run ends with: the first that does.
_METHODS = {
    "sgd": METHODS["sgd"],
    AUTHORS: METHODS["paper_sgd"],
    "adam": METHODS["adam"],
    "_m1": _by_equation(1),
    "": _by_equation(MODELS),
}


class Lesson(NamedTuple):
    """Two digits, and what a seed begins with and sees."""

    two: Examples
    batches: jax.Array  # [horizon, batch size], indices of training images
    params: Any  # the network at the start


class Task(NamedTuple):
    """Two digits to tell apart, a lesson for every seed."""

    name: str
    lessons: list[Lesson]


def make_task(
    digits: Examples, pair: tuple[int, int], seeds: int, horizon: int, batch_size: int
) -> Task:
    """Select two digits; draw a network and an order of the images for every seed."""
    two = select_two(digits, *pair)
    available, needed = len(two.labels), horizon * batch_size
    if needed > available:
        raise ValueError(
            f"a horizon of {horizon} updates of {batch_size} images needs {needed} "
            f"images, but there are {available} of the digits {pair[0]} and {pair[1]}"
        )
    init = jax.jit(lambda key: LeNet().init(key, jnp.zeros((1, 28, 28))))

    def draw(seed: int) -> Lesson:
        order = np.random.default_rng([seed, *pair]).permutation(available)[:needed]
        batches = jnp.asarray(order).reshape(horizon, batch_size)
        return Lesson(two, batches, init(jax.random.key(100 * seed + pair[1])))

    return Task(f"{pair[0]} vs {pair[1]}", [draw(seed) for seed in range(seeds)])


@functools.cache
def _make_runner(kind: str, horizon: int) -> Callable[..., Any]:
    """Return the runner of a lesson; it measures test errors and the batch's loss."""

    def start(lesson: Lesson, key: jax.Array) -> Any:
        # What differs between seeds is in the lesson.
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
    return make_runner(problem, _METHODS[kind])


def run_all(tasks: list[Task]) -> Iterator[Frame]:
    """Yield the rows of every run of the experiment as it is done.

    New and reloaded memories by both rules, and with one local model per layer; of
    equation 6 the controls on the last task.
    """
    for task in tasks:
        for label in ("sgd", "adam"):
            yield train_run(task, label)[0]
    for meta_rate, rule in itertools.product(META_RATES, ("", "_m1", AUTHORS)):
        learned: Memories = []
        for task in tasks:
            starts: dict[str, Memories] = {"new": []}
            if task is tasks[-1] and not rule:
                changed = {"constant": averaged(learned), "shuffled": shuffled(learned)}
                starts |= {"frozen": learned, **changed}
            if learned:
                starts["reloaded"] = learned
            for start, memories in starts.items():
                rows, learned = train_run(task, f"{start}{rule}", meta_rate, memories)
                # One local model is a control on the last task alone.
                if rule != "_m1" or task is tasks[-1]:
                    yield rows


def train_run(
    task: Task, label: str, meta_rate: float | None = None, memories: Memories = ()
) -> tuple[Frame, Memories]:
    """Train from memories, or from fresh ones; return the rows and what was learned.

    The memory steps with the meta rate, unless it is a control that stands still.
    """
    kind = next(end for end in _METHODS if label.endswith(end))
    step = 0.0 if label in ("frozen", "constant") else meta_rate
    setting = [BASE_RATE] if meta_rate is None else [BASE_RATE, step]
    runner, method = _make_runner(kind, len(task.lessons[0].batches)), _METHODS[kind]
    fresh = None
    if method.has_memory:
        # With fresh memories given, no second program has to be compiled.
        fresh = get_memory(method.make(*setting).init(task.lessons[0].params))

    def train(seed: int) -> Any:
        memory = memories[seed] if memories else fresh
        results = runner(task.lessons[seed], jnp.array(setting), 0, memory)
        return jax.tree.map(np.asarray, results)

    curves, _, learned = zip(*in_threads(train, range(len(task.lessons))), strict=True)
    errors, losses = np.moveaxis(np.stack(curves), -1, 0)
    images = len(task.lessons[0].two.judged_labels)
    accuracies = (images - errors) / images
    return frame_of(task.name, label, meta_rate, accuracies, losses), list(learned)


def frame_of(
    task: str,
    label: str,
    meta_rate: float | None,
    accuracies: np.ndarray,
    losses: np.ndarray,
) -> Frame:
    """Return a row an update of [seeds, updates]: accuracy after it, loss before it."""
    seeds, updates = np.indices(losses.shape).reshape(2, -1)
    numbers = ([f"{x:.5g}" for x in one.ravel()] for one in (accuracies, losses))
    columns = (task, label, meta_rate, seeds, updates + 1, *numbers)
    return pd.DataFrame(dict(zip(mnist.COLUMNS, columns, strict=True)))


def add_arguments(parser: Parser) -> None:
    """Add what may be asked."""
    add_seeds(parser, seeds=10)
    parser.add_argument(
        "--horizon", type=positive, default=25, help="updates in each of three tasks"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=64, help="images in such an update"
    )
    text = "folder with the four MNIST files instead of the bundled subset"
    parser.add_argument("--data-dir", type=pathlib.Path, help=text)


def run(arguments: Arguments, say: Say) -> None:
    """Run the three tasks with a memory that moves on."""
    digits, frames, tell = load_digits(arguments.data_dir), [], counted(say, RUNS)
    sizes = arguments.seeds, arguments.horizon, arguments.batch_size
    arguments.out.mkdir(parents=True, exist_ok=True)
    say(
        f"{len(TASKS)} tasks, {arguments.seeds} seeds, {arguments.horizon} "
        f"updates of {arguments.batch_size} images each; the first runs compile"
    )
    for rows in run_all([make_task(digits, pair, *sizes) for pair in TASKS]):
        frames.append(rows)
        task, label, rate, *_ = rows.iloc[-1]
        ends = rows[rows["update"] == arguments.horizon]["test_accuracy"]
        end = ends.astype(float).mean()
        tell(f"{task}  {label:<14}{rate or '':>6}  accuracy at the end {end:.3f}")
    write_frame(pd.concat(frames), arguments.out / "mnist.csv")


report = mnist.report
