"""Which memories an optimizer starts with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalr_optax import checks, memory_checks
from metalr_optax.kernels import linspace_kernels
from metalr_optax.memory import Kernels, Memory

PAPER_KERNELS = linspace_kernels(2.0, 20)

Initial = jax.typing.ArrayLike | Memory | Mapping[str, Memory]


def kernels_of(initial: Initial, kernels: Kernels | None) -> list[Kernels]:
    """Return copies of the kernels that memories start with, which may be donated.

    Concrete kernels that are equal become the same object.
    """
    value: Any = initial
    memories = list(value.values()) if isinstance(value, Mapping) else [value]
    found = [memory.kernels for memory in memories if isinstance(memory, Memory)]
    copies: list[Kernels] = []
    for pair in found or [kernels or PAPER_KERNELS]:
        same = [copy for copy in copies if same_kernels(copy, pair)]
        arrays = [np.array(x) if checks.is_concrete(x) else x for x in pair]
        copies.append(same[0] if same else Kernels(*arrays))
    return copies


def same_kernels(kernels: Kernels, others: Kernels) -> bool:
    """Return whether kernels are equal; traced ones must be the same object."""
    pairs = list(zip(kernels, others, strict=True))
    if not all(checks.is_concrete(array) for pair in pairs for array in pair):
        return kernels is others
    return all(np.array_equal(*pair) for pair in pairs)


def initial_memories(
    initial: Initial, kernels: Kernels, smallest: Any
) -> Callable[[Sequence[str]], list[Memory]]:
    """Return a function from labels to the memories that they start with.

    Without labels it returns a single memory of the right shape.

    Args:
      initial: a rate, a memory, or a memory for each label.
      kernels: of memories that start with a rate.
      smallest: a rate that is allowed.
    """

    def memories(labels: Sequence[str]) -> list[Memory]:
        first: Any = initial
        if isinstance(first, Mapping):
            if labels:
                memory_checks.check_labels("initial", first, labels)
                return [first[label] for label in labels]
            first = smallest
        if not isinstance(first, Memory):
            shape = np.shape(kernels.centers)
            first = Memory(kernels, jnp.broadcast_to(jnp.asarray(first), shape))
        return [first] * max(len(labels), 1)

    return memories
