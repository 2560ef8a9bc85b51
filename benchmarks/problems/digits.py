"""MNIST digits, a bundled subset or the four original files; two digits as a task."""

import functools
import gzip
import io
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems.networks import LeNet, apply_lenet
from benchmarks.problems.problem import (
    DATA,
    Examples,
    Problem,
    checked,
    cross_entropy,
    minimized,
)

SUBSET = DATA / "mnist_subset.npz"
_SUBSET_MD5 = "a9c7fd39008c5ff73deac1c3ceae247c"
# Original file -> MD5 of its unpacked bytes.
_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
BATCHES, ONLINE = "mnist batches", "mnist online"
_SETTINGS = {BATCHES: (64, 25, 1), ONLINE: (1, 1000, 20)}  # batch, horizon, every


@functools.cache
def load_digits(data_dir: pathlib.Path | None = None) -> Examples:
    """Load the bundled subset, or all of MNIST: images in [0, 1] and labels.

    Args:
      data_dir: where the four IDX files are, plain or with `.gz`; None for the
        bundled 1,000 training and 200 test images of each digit.

    Raises:
      ValueError: a file is missing or is not the original; names its path.
    """
    if data_dir is not None:
        arrays = [_load_idx(data_dir, name) for name in _FILES]
    else:
        content = checked(SUBSET, SUBSET.read_bytes(), _SUBSET_MD5)
        with np.load(io.BytesIO(content)) as file:
            parts = "train_images", "train_labels", "test_images", "test_labels"
            arrays = [file[name] for name in parts]
    images = [jnp.asarray(one / 255.0, jnp.float32) for one in arrays[::2]]
    labels = [jnp.asarray(one, jnp.int32) for one in arrays[1::2]]
    return Examples(images[0], labels[0], images[1], labels[1])


def _load_idx(data_dir: pathlib.Path, name: str) -> np.ndarray:
    plain, packed = data_dir / name, data_dir / f"{name}.gz"
    path = plain if plain.exists() else packed
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path is packed else content
    except FileNotFoundError as error:
        raise ValueError(f"no MNIST file {plain} or {packed.name}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    shape, begin = ((-1, 28, 28), 16) if "images" in name else ((-1,), 8)
    values = np.frombuffer(checked(path, content, _FILES[name]), np.uint8, offset=begin)
    return values.reshape(shape)


def select(digits: Examples, wanted: Sequence[int]) -> Examples:
    """Return the images of some digits."""
    train, judged = (np.isin(x, wanted) for x in (digits.labels, digits.judged_labels))
    chosen = train, train, judged, judged
    return Examples(*(array[mask] for array, mask in zip(digits, chosen, strict=True)))


def select_two(digits: Examples, one: int, other: int) -> Examples:
    """Return all images of two digits, with the labels 0 and 1."""
    two = select(digits, (one, other))
    return two._replace(
        labels=jnp.asarray(two.labels == other, jnp.int32),
        judged_labels=jnp.asarray(two.judged_labels == other, jnp.int32),
    )


def _noise(like: Examples) -> Examples:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=like.inputs.shape), jnp.float32)
    labels = jnp.asarray(rng.integers(2, size=len(images)), jnp.int32)
    return like._replace(inputs=images, labels=labels)


def batch_loss(params: Any, two: Examples, chosen: jax.Array) -> jax.Array:
    """Return the loss on some images to train on."""
    logits = jnp.asarray(LeNet().apply(params, two.inputs[chosen]))
    return cross_entropy(logits, two.labels[chosen])


def count_errors(params: Any, two: Examples) -> jax.Array:
    """Return how many test images are told wrong: a count, so it is exact."""
    predicted = jnp.argmax(apply_lenet(params, two.judged_inputs), axis=-1)
    return jnp.sum(predicted != two.judged_labels)


def load_pair(name: str, longer: int = 1) -> Problem:
    """Return 1 vs 4: a pass without repeats, judged by the share of test errors.

    Related is 1 vs 3; unrelated are images of noise with any label. A longer one goes
    on from the beginning of the order.
    """
    digits = load_digits()
    batch, horizon, every = _SETTINGS[name]
    horizon, every = longer * horizon, longer * every
    pair = select_two(digits, 1, 4)

    def start(two: Examples, key: jax.Array) -> tuple[Any, jax.Array]:
        order = jax.random.permutation(key, len(two.labels))
        return LeNet().init(key, two.inputs[:1]), order[: horizon * batch]

    def loss(params: Any, two: Examples, order: jax.Array, count: Any) -> jax.Array:
        begin = count * batch % len(order)
        chosen = jax.lax.dynamic_slice_in_dim(order, begin, batch)
        return batch_loss(params, two, chosen)

    def judge(params: Any, two: Examples) -> jax.Array:
        # A network that is not finite tells nothing.
        broken = ~jnp.isfinite(optax.tree.norm(params))
        share = count_errors(params, two) / len(two.judged_labels)
        return jnp.where(broken, jnp.nan, share)

    name += ", long" * (longer > 1)
    problem = minimized(name, pair, start, loss, judge, horizon, every)
    return problem._replace(related=select_two(digits, 1, 3), unrelated=_noise(pair))
