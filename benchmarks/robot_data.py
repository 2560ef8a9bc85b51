"""Recordings of a real robot arm, and how they are split."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RECORDINGS = pathlib.Path(__file__).parent / "data" / "kinova_gen3_1khz.npz"
_MD5 = "559155e2ca0d71abaeef0281ed04d090"

WINDOW = 128  # samples of a subsequence
AHEAD = 20  # samples, so 20 ms, over which a change of state is predicted
# A stretch of time: [train | gap | window held out and what lies ahead of it | gap].
_PERIOD, _TRAIN, _GAP = 800, 396, 128


class Recording(NamedTuple):
    """One trajectory at 1 kHz: joint angles and speeds, and torques."""

    states: np.ndarray  # [T, 14] float32: q in rad, qd in rad/s
    torques: np.ndarray  # [T, 7] float32: Nm


class Windows(NamedTuple):
    """Where subsequences may begin: numbers of samples in joined recordings."""

    train: np.ndarray
    held_out: np.ndarray


def load_recordings() -> list[Recording]:
    """Load the five trajectories.

    Raises:
      ValueError: the bundled file is not the original.
    """
    digest = hashlib.md5(RECORDINGS.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != _MD5:
        raise ValueError(f"{RECORDINGS} is damaged: its MD5 is {digest}, not {_MD5}")
    with np.load(RECORDINGS) as arrays:
        return [
            Recording(
                np.concatenate([arrays[f"q_{i}"], arrays[f"qd_{i}"]], axis=1),
                arrays[f"tau_{i}"],
            )
            for i in range(len(arrays["names"]))
        ]


def split(lengths: Sequence[int]) -> Windows:
    """Split joined recordings into stretches to train on and windows held out.

    What a window to train on touches, its targets included, is at least 128 samples
    away from what a held-out one touches. The stretches begin at the same time in every
    recording, so that two runs of one command lie on the same side.
    """
    train, held_out = [], []
    offset = 0
    for length in lengths:
        for begin in range(0, length, _PERIOD):
            end = min(begin + _TRAIN, length)
            train.append(offset + np.arange(begin, end - WINDOW - AHEAD + 1))
            window = begin + _TRAIN + _GAP
            if window + WINDOW + AHEAD <= length:
                held_out.append(offset + window)
        offset += length
    return Windows(np.concatenate(train), np.array(held_out))
