"""Controls: what a learned memory is worth without its landscape."""

from collections.abc import Mapping

import numpy as np

from metalr_optax import Memory


def averaged(memory: Mapping[str, Memory]) -> dict[str, Memory]:
    """Return every local model of a layer at the mean rate of the layer."""
    return {
        label: one._replace(
            rates=np.broadcast_to(
                np.mean(one.rates, axis=-1, keepdims=True), one.rates.shape
            )
        )
        for label, one in memory.items()
    }


def shuffled(memory: Mapping[str, Memory]) -> dict[str, Memory]:
    """Return the same rates in a random order within each layer."""
    rng = np.random.default_rng(0)
    return {
        label: one._replace(rates=rng.permuted(one.rates, axis=-1))
        for label, one in memory.items()
    }
