"""Recordings of a real robot arm, how they are split, and what is to be predicted."""

import hashlib
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems.networks import Lstm
from benchmarks.problems.problem import Problem, squared_error

RECORDINGS = pathlib.Path(__file__).parents[1] / "data" / "kinova_gen3_1khz.npz"
_MD5 = "559155e2ca0d71abaeef0281ed04d090"

WINDOW = 128  # samples of a subsequence
AHEAD = 20  # samples, so 20 ms, over which a change of state is predicted
# A stretch of time: [train | gap | window held out and what lies ahead of it | gap].
_PERIOD, _TRAIN, _GAP = 800, 396, 128
BATCH = 8
STATES = 14
ABSOLUTE, CHANGE = "rnn absolute", "rnn change"
_NETWORK = Lstm(cells=32, width=STATES)


class Recording(NamedTuple):
    """One trajectory at 1 kHz: joint angles and speeds, and torques."""

    states: np.ndarray  # [T, 14] float32: q in rad, qd in rad/s
    torques: np.ndarray  # [T, 7] float32: Nm


class Windows(NamedTuple):
    """Where subsequences may begin: numbers of samples."""

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


def split(length: int) -> Windows:
    """Split a recording into stretches to train on and windows held out.

    What a window to train on touches, its labels included, is at least 128 samples
    away from what a held-out one touches.
    """
    train, held_out = [], []
    for begin in range(0, length, _PERIOD):
        end = min(begin + _TRAIN, length)
        train.append(np.arange(begin, end - WINDOW - AHEAD + 1))
        window = begin + _TRAIN + _GAP
        if window + WINDOW + AHEAD <= length:
            held_out.append(window)
    return Windows(np.concatenate(train), np.array(held_out))


class Series(NamedTuple):
    """Samples in the order of time, and where windows may begin."""

    inputs: jax.Array  # [T, 21]
    labels: jax.Array  # [T, 14]
    variances: jax.Array  # [J] of the labels that are judged
    train: jax.Array  # first samples of windows to train on
    judged: jax.Array  # first samples of windows to judge on
    columns: jax.Array  # [J] which labels are judged


def absolute_arrays(recording: Recording) -> Series:
    """Return the next state as the label, in the units of the recording."""
    labels = recording.states[1:]
    begins = np.arange(len(labels) - WINDOW + 1)
    return Series(
        jnp.asarray(np.concatenate(recording, axis=1)[:-1]),
        jnp.asarray(labels),
        jnp.asarray(labels.var(axis=0)),
        jnp.asarray(begins),
        jnp.asarray(begins[::WINDOW]),
        jnp.arange(STATES),
    )


def change_arrays(recording: Recording) -> Series:
    """Return the change of state over 20 ms, standardised by what is trained on."""
    inputs, states = np.concatenate(recording, axis=1), recording.states
    changes = np.pad(states[AHEAD:] - states[:-AHEAD], ((0, AHEAD), (0, 0)))
    windows = split(len(states))
    rows = np.unique(windows.train[:, None] + np.arange(WINDOW))
    held_out = (windows.held_out[:, None] + np.arange(WINDOW)).ravel()
    inputs = (inputs - inputs[rows].mean(0)) / inputs[rows].std(0)
    labels = (changes - changes[rows].mean(0)) / changes[rows].std(0)
    speeds = np.arange(7, STATES)
    return Series(
        jnp.asarray(inputs, jnp.float32),
        jnp.asarray(labels, jnp.float32),
        jnp.asarray(labels[held_out][:, speeds].var(axis=0), jnp.float32),
        jnp.asarray(windows.train),
        jnp.asarray(windows.held_out),
        jnp.asarray(speeds),
    )


def noise_arrays(like: Series) -> Series:
    """Return an unrelated task: noise of the same shapes and sizes, order destroyed."""
    rng = np.random.default_rng(0)
    inputs, labels = (
        jnp.asarray(
            rng.normal(np.mean(array, axis=0), np.std(array, axis=0), array.shape),
            jnp.float32,
        )
        for array in (np.asarray(like.inputs), np.asarray(like.labels))
    )
    return like._replace(inputs=inputs, labels=labels)


def _predict(params: Any, inputs: jax.Array) -> jax.Array:
    return jnp.asarray(_NETWORK.apply(params, inputs))


def _window(arrays: Series, begins: jax.Array) -> tuple[jax.Array, jax.Array]:
    index = begins[:, None] + jnp.arange(WINDOW)[None]
    return arrays.inputs[index], arrays.labels[index]


def _start(arrays: Series, key: jax.Array) -> tuple[Any, jax.Array]:
    return _NETWORK.init(key, arrays.inputs[None, :1]), key


def _gradients(arrays: Series, params: Any, key: jax.Array, count: jax.Array) -> Any:
    begins = jax.random.choice(jax.random.fold_in(key, count), arrays.train, (BATCH,))
    inputs, labels = _window(arrays, begins)

    def loss_fn(params: Any) -> jax.Array:
        return squared_error(_predict(params, inputs), labels)

    return jax.grad(loss_fn)(params), key


def _measure(arrays: Series, params: Any, key: jax.Array) -> jax.Array:
    """Return the NMSE: squared errors over the variance, mean of the judged labels."""
    del key
    inputs, labels = _window(arrays, arrays.judged)
    squares = jnp.mean((_predict(params, inputs) - labels) ** 2, axis=(0, 1))
    return jnp.mean(squares[arrays.columns] / arrays.variances)


def load_problem(name: str) -> Problem:
    """Return the problem on recording 0; related is recording 1, unrelated is noise.

    All recordings together do not even generalise to the gaps in themselves: ridge
    regression then scores 2.2 on the change, worse than no change.
    """
    recordings = load_recordings()
    form, horizon = {ABSOLUTE: (absolute_arrays, 1000), CHANGE: (change_arrays, 600)}[
        name
    ]
    arrays = form(recordings[0])
    return Problem(
        name,
        arrays,
        _start,
        _gradients,
        _measure,
        horizon,
        every=20,
        related=form(recordings[1]),
        unrelated=noise_arrays(arrays),
    )


def simple_scores(arrays: Series, penalty: float = 1e-3) -> dict[str, float]:
    """Return the NMSE of no change at all and of ridge regression, on what is judged.

    No change: the next state is this state, or the change of state is its mean.
    """
    inputs, labels = (np.asarray(array, np.float64) for array in arrays[:2])
    rows = np.unique(np.asarray(arrays.train)[:, None] + np.arange(WINDOW))
    judged = (np.asarray(arrays.judged)[:, None] + np.arange(WINDOW)).ravel()
    columns = np.asarray(arrays.columns)

    def score(errors: np.ndarray) -> float:
        squares = np.mean(errors[:, columns] ** 2, axis=0)
        return float(np.mean(squares / np.asarray(arrays.variances)))

    mean, std = inputs[rows].mean(0), inputs[rows].std(0)
    features = np.concatenate([(inputs - mean) / std, np.ones((len(inputs), 1))], 1)
    gram = features[rows].T @ features[rows] / len(rows)
    weights = np.linalg.solve(
        gram + penalty * np.eye(len(gram)),
        features[rows].T @ labels[rows] / len(rows),
    )
    still = 0.0 if len(columns) < STATES else inputs[judged, :STATES]
    return {
        "no change": score(labels[judged] - still),
        "ridge": score(labels[judged] - features[judged] @ weights),
    }
