"""Networks that grow: a small one, and a larger one that learns the same digits."""

import flax.linen as nn

from benchmarks.problems.networks import Cnn, Mlp
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import digit_classes

DENSE, CONVOLUTIONAL = "larger mlp", "larger cnn"


def load_growths() -> dict[str, tuple[Problem, Problem]]:
    """Return pairs of a small network and a larger one, by the name of the larger."""
    networks = {
        DENSE: (Mlp((32, 10), nn.relu), Mlp((128, 128, 128, 10), nn.relu)),
        CONVOLUTIONAL: (Cnn((8,), 32), Cnn((16, 32), 64)),
    }
    return {
        name: (digit_classes(f"{name}, source", small), digit_classes(name, large))
        for name, (small, large) in networks.items()
    }
