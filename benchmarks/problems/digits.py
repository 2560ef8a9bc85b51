"""MNIST digits: a bundled subset, or the four original files."""

import gzip
import hashlib
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

SUBSET = pathlib.Path(__file__).parents[1] / "data" / "mnist_subset.npz"
_SUBSET_MD5 = "a9c7fd39008c5ff73deac1c3ceae247c"

# Original file -> MD5 of its unpacked bytes.
_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


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
