"""Before JAX is imported: XLA need not make fast what is only asked to be right."""

import importlib.metadata
import os
import tempfile

import pytest

# A small program compiles in two thirds of the time if it is not split among threads.
# The newest XLA knows no other emitters; the old ones compile in half the time. What is
# chosen outside stays, and programs that tests start do the same. XLA stops at a flag
# that it does not know: none for versions that do not exist yet.
if importlib.metadata.version("jaxlib") < "0.11":
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false",
    )
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "True")

import jax

# Some tests shard parameters over a mesh of eight.
jax.config.update("jax_num_cpu_devices", 8)
# One program is compiled once, whichever test asks for it.
_COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def no_implicit_broadcasting():
    """Users may forbid it; so the whole suite runs without it."""
    with jax.numpy_rank_promotion("raise"):
        yield


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: no process waits for them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
