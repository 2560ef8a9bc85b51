import jax
import pytest

# Some tests shard parameters over a mesh of eight.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def no_implicit_broadcasting():
    """Users may forbid it; so the whole suite runs without it."""
    with jax.numpy_rank_promotion("raise"):
        yield
