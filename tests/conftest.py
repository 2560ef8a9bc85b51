import jax
import pytest


@pytest.fixture(autouse=True)
def no_implicit_broadcasting():
    """Users may forbid it; so the whole suite runs without it."""
    with jax.numpy_rank_promotion("raise"):
        yield
