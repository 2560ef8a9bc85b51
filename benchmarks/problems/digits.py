"""MNIST digits, a bundled subset or the four original files; two digits as a task."""

import gzip
import hashlib
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.problems.networks import LeNet, apply_lenet
from benchmarks.problems.problem import Problem, cross_entropy

SUBSET = pathlib.Path(__file__).parents[1] / "data" / "mnist_subset.npz"
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


class Digits(NamedTuple):
    """MNIST images [N, 28, 28] and labels [N], uint8, to train and to test on."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits(data_dir: pathlib.Path | None = None) -> Digits:
    """Load the bundled subset, or all of MNIST from a directory.

    Args:
      data_dir: where the four IDX files are, plain or with `.gz`; None for the
        bundled 1,000 training and 200 test images of each digit.

    Raises:
      ValueError: a file is missing or is not the original; names its path.
    """
    if data_dir is not None:
        return Digits(*(_load_idx(data_dir, name) for name in _FILES))
    _check_digest(SUBSET, SUBSET.read_bytes(), _SUBSET_MD5)
    with np.load(SUBSET) as arrays:
        return Digits(*(arrays[name] for name in Digits._fields))


def make_subset(data_dir: pathlib.Path, seed: int = 0) -> None:
    """Write the bundled subset anew from the original files."""
    full = load_digits(data_dir)
    rng = np.random.default_rng(seed)
    train = _choose(full.train_labels, 1000, rng)
    test = _choose(full.test_labels, 200, rng)
    np.savez_compressed(
        SUBSET,
        train_images=full.train_images[train],
        train_labels=full.train_labels[train],
        test_images=full.test_images[test],
        test_labels=full.test_labels[test],
    )


def _choose(labels: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
    """Return the sorted indices of `each` random images of every digit."""
    chosen = [
        rng.choice(np.flatnonzero(labels == digit), each, replace=False)
        for digit in range(10)
    ]
    return np.sort(np.concatenate(chosen))


def _load_idx(data_dir: pathlib.Path, name: str) -> np.ndarray:
    plain, packed = data_dir / name, data_dir / f"{name}.gz"
    try:
        if plain.exists():
            path, content = plain, plain.read_bytes()
        else:
            path, content = packed, gzip.decompress(packed.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"no MNIST file {plain} or {packed.name}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {packed}: {error}") from error
    _check_digest(path, content, _FILES[name])
    is_images = "images" in name
    values = np.frombuffer(content, np.uint8, offset=16 if is_images else 8)
    return values.reshape(-1, 28, 28) if is_images else values


def _check_digest(path: pathlib.Path, content: bytes, expected: str) -> None:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != expected:
        raise ValueError(f"{path} is damaged: its MD5 is {digest}, not {expected}")


class TwoDigits(NamedTuple):
    """Two digits to tell apart: images [N, 28, 28] in [0, 1], labels 0 and 1."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


def select_two(digits: Digits, one: int, other: int) -> TwoDigits:
    """Return all images of two digits."""

    def select(images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
        chosen = np.isin(labels, (one, other))
        return (
            jnp.asarray(images[chosen] / 255.0, jnp.float32),
            jnp.asarray(labels[chosen] == other, jnp.int32),
        )

    return TwoDigits(
        *select(digits.train_images, digits.train_labels),
        *select(digits.test_images, digits.test_labels),
    )


def _noise(like: TwoDigits) -> TwoDigits:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=like.train_images.shape), jnp.float32)
    return like._replace(
        train_images=images,
        train_labels=jnp.asarray(rng.integers(2, size=len(images)), jnp.int32),
    )


def _logits(params: Any, images: jax.Array) -> jax.Array:
    return jnp.asarray(LeNet().apply(params, images))


def batch_loss(params: Any, two: TwoDigits, chosen: jax.Array) -> jax.Array:
    """Return the loss on some images to train on."""
    logits = _logits(params, two.train_images[chosen])
    return cross_entropy(logits, two.train_labels[chosen])


def count_errors(params: Any, two: TwoDigits) -> jax.Array:
    """Return how many test images are told wrong: a count, so it is exact."""
    predicted = jnp.argmax(apply_lenet(params, two.test_images), axis=-1)
    return jnp.sum(predicted != two.test_labels)


def load_pair(name: str, longer: int = 1) -> Problem:
    """Return 1 vs 4: a pass without repeats, judged by the share of test errors.

    Related is 1 vs 3; unrelated are images of noise with any label. A longer one goes
    on from the beginning of the order.
    """
    digits = load_digits()
    batch, horizon, every = _SETTINGS[name]
    horizon, every = longer * horizon, longer * every
    pair = select_two(digits, 1, 4)

    def start(two: TwoDigits, key: jax.Array) -> tuple[Any, jax.Array]:
        order = jax.random.permutation(key, len(two.train_labels))
        return LeNet().init(key, two.train_images[:1]), order[: horizon * batch]

    def gradients(two: TwoDigits, params: Any, order: jax.Array, count: Any) -> Any:
        begin = count * batch % len(order)
        chosen = jax.lax.dynamic_slice_in_dim(order, begin, batch)
        return jax.grad(batch_loss)(params, two, chosen), order

    def measure(two: TwoDigits, params: Any, order: jax.Array) -> jax.Array:
        del order
        # A network that is not finite tells nothing.
        broken = ~jnp.isfinite(optax.tree.norm(params))
        share = count_errors(params, two) / len(two.test_labels)
        return jnp.where(broken, jnp.nan, share)

    return Problem(
        name + ", long" * (longer > 1),
        pair,
        start,
        gradients,
        measure,
        horizon,
        every,
        related=select_two(digits, 1, 3),
        unrelated=_noise(pair),
    )
