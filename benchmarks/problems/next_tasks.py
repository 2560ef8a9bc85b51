"""Tasks that follow one another, as people have them: a first one, then the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import robot
from benchmarks.problems.digits import BATCHES, load_pair
from benchmarks.problems.problem import Examples, Problem
from benchmarks.problems.tasks import classes, digits, language, residual, teacher

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


def rotated(examples: Examples) -> Examples:
    """Return images turned by 90 degrees."""
    return examples._replace(
        inputs=jnp.rot90(examples.inputs, axes=(1, 2)),
        judged_inputs=jnp.rot90(examples.judged_inputs, axes=(1, 2)),
    )


def noisy(examples: Examples, noise: float = 0.3) -> Examples:
    """Return images in [0, 1] with Gaussian noise on their pixels."""
    rng = np.random.default_rng(0)

    def disturb(images: jax.Array) -> jax.Array:
        drawn = jnp.asarray(rng.normal(size=images.shape), images.dtype)
        return jnp.clip(images + noise * drawn, 0.0, 1.0)

    return examples._replace(
        inputs=disturb(examples.inputs), judged_inputs=disturb(examples.judged_inputs)
    )


def five_digits(examples: Examples, low: int) -> Examples:
    """Return the images of five digits, from `low` on."""
    some, judged = (
        np.asarray(labels) // 5 == low // 5
        for labels in (examples.labels, examples.judged_labels)
    )
    return Examples(
        examples.inputs[some],
        examples.labels[some],
        examples.judged_inputs[judged],
        examples.judged_labels[judged],
    )


def _again(problem: Problem) -> Move:
    data = unlearnable(problem.data)
    return Move(f"{problem.name}, other seed", AGAIN, (problem,), problem, data)


def _from_digits(name: str, kind: str, data: Examples) -> Move:
    first = classes()
    second = first._replace(name=name, data=data)
    return Move(f"digits to {name}", kind, (first,), second, unlearnable(first.data))


def _halves_of_digits() -> Move:
    problem = classes()
    first, second = (
        problem._replace(name=f"digits {low} to {low + 4}", data=data)
        for low, data in ((low, five_digits(digits(), low)) for low in (0, 5))
    )
    label = "digits 0-4 to 5-9"
    return Move(label, ALIKE, (first,), second, unlearnable(first.data))


def _pairs() -> Move:
    second = load_pair(BATCHES)
    first = second._replace(name=f"{BATCHES}, 1 vs 3", data=second.related)
    label = "digits 1, 3 to 1, 4"
    return Move(label, ALIKE, (first,), second, second.unrelated)


def recording(number: int) -> Problem:
    """Return the robot's change of speed in one recording."""
    problem = robot.load_problem(robot.CHANGE)
    if number == 0:
        return problem
    data = robot.change_arrays(robot.load_recordings()[number])
    return problem._replace(name=f"{problem.name} {number}", data=data)


def _robot(*numbers: int) -> Move:
    *first, second = map(recording, numbers)
    label = f"robot, recordings {', '.join(map(str, numbers[:-1]))} to {numbers[-1]}"
    noise = second.unrelated if numbers[-1] == 0 else None
    return Move(label, ALIKE, tuple(first), second, noise, seeds=5)


def _noisy_teacher() -> Move:
    first, second = teacher("teacher"), teacher("noisy teacher", noise=0.5)
    label = "teacher to noisy teacher"
    return Move(label, NOISIER, (first,), second, unlearnable(first.data))


def _halves_of_text() -> Move:
    problem, data = language(), language().data
    half = len(data.inputs) // 2
    first, second = (
        problem._replace(
            name=f"{name} half of language",
            data=data._replace(inputs=data.inputs[part], labels=data.labels[part]),
        )
        for name, part in (
            ("first", slice(None, half)),
            ("second", slice(half, 2 * half)),
        )
    )
    return Move("language, halves", ALIKE, (first,), second, seeds=5)


def moves() -> dict[str, Callable[[], Move]]:
    """Return what is run, by the name of the second task; what takes long is last."""
    return {
        "classes": lambda: _again(classes()),
        "rotated digits": lambda: _from_digits(
            "rotated digits", ALIKE, rotated(digits())
        ),
        "noisy digits": lambda: _from_digits("noisy digits", NOISIER, noisy(digits())),
        "digits 5 to 9": _halves_of_digits,
        "noisy teacher": _noisy_teacher,
        "unequal inputs": lambda: _again(teacher("unequal inputs", spread=10.0)),
        BATCHES: _pairs,
        "residual": lambda: _again(residual()),
        f"{robot.CHANGE} 2": lambda: _robot(1, 2),
        robot.CHANGE: lambda: _robot(1, 2, 3, 0),
        "second half of language": _halves_of_text,
    }
