"""Networks that grow: a small one, and a larger one that learns the same digits."""

from collections.abc import Callable

import flax.linen as nn

from benchmarks.problems.networks import Cnn, Mlp
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import digit_classes

DENSE, CONVOLUTIONAL = "larger mlp", "larger cnn"


def _pair(name: str, small: nn.Module, large: nn.Module) -> tuple[Problem, Problem]:
    return digit_classes(f"{name}, source", small), digit_classes(name, large)


# By the name of the larger network.
GROWTHS: dict[str, Callable[[], tuple[Problem, Problem]]] = {
    DENSE: lambda: _pair(
        DENSE, Mlp((32, 10), nn.relu), Mlp((128, 128, 128, 10), nn.relu)
    ),
    CONVOLUTIONAL: lambda: _pair(CONVOLUTIONAL, Cnn((8,), 32), Cnn((16, 32), 64)),
}
