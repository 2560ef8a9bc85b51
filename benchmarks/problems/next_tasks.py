"""Tasks that follow one another, as people have them: a first one, then the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import robot
from benchmarks.problems.digits import BATCHES, load_digits, load_pair, select
from benchmarks.problems.growths import CONVOLUTIONAL, DENSE, GROWTHS
from benchmarks.problems.problem import Examples, Problem
from benchmarks.problems.tasks import SUITE

AGAIN, ALIKE = "the same task, other seed", "another task of its kind"
NOISIER, LARGER = "more noise", "a larger network"
CLASSES = (AGAIN, ALIKE, NOISIER, LARGER)


class Move(NamedTuple):
    """Tasks that a memory goes through in turn, and the one that it is then used on."""

    label: str
    kind: str  # one of CLASSES
    first: tuple[Problem, ...]
    second: Problem
    unrelated: Any = None  # data for the first network, for a control; None for none
    seeds: int = 10  # fewer where a run takes long


def unlearnable(examples: Examples) -> Examples:
    """Return the same inputs, each with the label of another."""
    order = np.random.default_rng(0).permutation(len(examples.labels))
    return examples._replace(labels=examples.labels[order])


def changed(examples: Examples, change: Callable[[jax.Array], jax.Array]) -> Examples:
    """Return other inputs with the same labels."""
    inputs, judged = change(examples.inputs), change(examples.judged_inputs)
    return examples._replace(inputs=inputs, judged_inputs=judged)


def rotated(examples: Examples) -> Examples:
    """Return images turned by 90 degrees."""
    return changed(examples, lambda images: jnp.rot90(images, axes=(1, 2)))


def noisy(examples: Examples) -> Examples:
    """Return images in [0, 1] with Gaussian noise of .3 on their pixels."""
    rng = np.random.default_rng(0)

    def disturb(images: jax.Array) -> jax.Array:
        drawn = jnp.asarray(rng.normal(size=images.shape), images.dtype)
        return jnp.clip(images + 0.3 * drawn, 0.0, 1.0)

    return changed(examples, disturb)


def _move(label: str, kind: str, first: Problem, second: Problem) -> Move:
    return Move(label, kind, (first,), second, unlearnable(first.data))


def _again(name: str) -> Move:
    problem = SUITE[name]()
    return _move(f"{name}, other seed", AGAIN, problem, problem)


def _from_digits(name: str, kind: str, change: Callable[[Examples], Examples]) -> Move:
    first = SUITE["classes"]()
    second = first._replace(name=name, data=change(first.data))
    return _move(f"digits to {name}", kind, first, second)


def _halves_of_digits() -> Move:
    first, second = (
        SUITE["classes"]()._replace(
            name=f"digits {low} to {low + 4}",
            data=select(load_digits(), range(low, low + 5)),
        )
        for low in (0, 5)
    )
    return _move("digits 0-4 to 5-9", ALIKE, first, second)


def _pairs() -> Move:
    second = load_pair(BATCHES)
    first = second._replace(name=f"{BATCHES}, 1 vs 3", data=second.related)
    return Move("digits 1, 3 to 1, 4", ALIKE, (first,), second, second.unrelated)


def _robot(*numbers: int) -> Move:
    """Return the robot's change of speed in one recording after the other."""
    *first, second = (robot.load_problem(robot.CHANGE, one) for one in numbers)
    label = f"robot, recordings {', '.join(map(str, numbers[:-1]))} to {numbers[-1]}"
    noise = second.unrelated if numbers[-1] == 0 else None
    return Move(label, ALIKE, tuple(first), second, noise, seeds=5)


def _noisy_teacher() -> Move:
    first, second = (SUITE[name]() for name in ("teacher", "noisy teacher"))
    return _move("teacher to noisy teacher", NOISIER, first, second)


def _halves_of_text() -> Move:
    problem = SUITE["language"]()
    data, half = problem.data, len(problem.data.inputs) // 2
    parts = {"first": slice(half), "second": slice(half, 2 * half)}
    first, second = (
        problem._replace(
            name=f"{name} half of language",
            data=data._replace(inputs=data.inputs[part], labels=data.labels[part]),
        )
        for name, part in parts.items()
    )
    return Move("language, halves", ALIKE, (first,), second, seeds=5)


def _larger(name: str, seeds: int, has_unrelated: bool) -> Move:
    small, large = GROWTHS[name]()
    noise = unlearnable(small.data) if has_unrelated else None
    return Move(f"{name}, from a smaller", LARGER, (small,), large, noise, seeds)


# By the name of the second task; what takes long is last.
MOVES: dict[str, Callable[[], Move]] = {
    DENSE: lambda: _larger(DENSE, 10, has_unrelated=True),
    "classes": lambda: _again("classes"),
    "rotated digits": lambda: _from_digits("rotated digits", ALIKE, rotated),
    "noisy digits": lambda: _from_digits("noisy digits", NOISIER, noisy),
    "digits 5 to 9": _halves_of_digits,
    "noisy teacher": _noisy_teacher,
    "unequal inputs": lambda: _again("unequal inputs"),
    BATCHES: _pairs,
    "residual": lambda: _again("residual"),
    f"{robot.CHANGE} 2": lambda: _robot(1, 2),
    robot.CHANGE: lambda: _robot(1, 2, 3, 0),
    "second half of language": _halves_of_text,
    CONVOLUTIONAL: lambda: _larger(CONVOLUTIONAL, 5, has_unrelated=False),
}
