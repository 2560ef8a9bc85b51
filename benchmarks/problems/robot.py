"""Recordings of a real robot arm, how they are split, and what is to be predicted."""

import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems.networks import Lstm
from benchmarks.problems.problem import DATA, Problem, checked, minimized, squared_error

RECORDINGS = DATA / "kinova_gen3_1khz.npz"
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


class Series(NamedTuple):
    """Samples in the order of time, and where windows may begin."""

    inputs: jax.Array  # [T, 21]
    labels: jax.Array  # [T, 14]
    variances: jax.Array  # [J] of the labels that are judged
    train: jax.Array  # first samples of windows to train on
    judged: jax.Array  # first samples of windows to judge on
    columns: jax.Array  # [J] which labels are judged


def load_recordings() -> list[Recording]:
    """Load the five trajectories.

    Raises:
      ValueError: the bundled file is not the original.
    """
    content = checked(RECORDINGS, RECORDINGS.read_bytes(), _MD5)
    with np.load(io.BytesIO(content)) as arrays:
        return [
            Recording(
                np.concatenate([arrays[f"q_{i}"], arrays[f"qd_{i}"]], axis=1),
                arrays[f"tau_{i}"],
            )
            for i in range(len(arrays["names"]))
        ]


def split(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where windows to train on, and those held out, begin in a recording.

    What a window to train on touches, its labels included, is at least 128 samples
    away from what a held-out one touches.
    """
    begins = np.arange(0, length, _PERIOD)
    ends = np.minimum(begins + _TRAIN, length) - WINDOW - AHEAD + 1
    held_out = begins + _TRAIN + _GAP
    return (
        np.concatenate([np.arange(*one) for one in zip(begins, ends, strict=True)]),
        held_out[held_out + WINDOW + AHEAD <= length],
    )


def samples_of(begins: Any) -> np.ndarray:
    """Return the samples [B, WINDOW] of windows that begin somewhere."""
    return np.asarray(begins)[:, None] + np.arange(WINDOW)


def absolute_arrays(recording: Recording) -> Series:
    """Return the next state as the label, in the units of the recording."""
    inputs, labels = np.concatenate(recording, axis=1)[:-1], recording.states[1:]
    begins = np.arange(len(labels) - WINDOW + 1)
    windows = begins, begins[::WINDOW], np.arange(STATES)
    return Series(*map(jnp.asarray, (inputs, labels, labels.var(axis=0), *windows)))


def change_arrays(recording: Recording) -> Series:
    """Return the change of state over 20 ms, standardised by what is trained on."""
    inputs, states = np.concatenate(recording, axis=1), recording.states
    changes = np.pad(states[AHEAD:] - states[:-AHEAD], ((0, AHEAD), (0, 0)))
    train, judged = split(len(states))
    rows, held_out = np.unique(samples_of(train)), samples_of(judged).ravel()
    inputs = (inputs - inputs[rows].mean(0)) / inputs[rows].std(0)
    labels = (changes - changes[rows].mean(0)) / changes[rows].std(0)
    speeds = np.arange(7, STATES)
    variances = labels[held_out][:, speeds].var(axis=0)
    return Series(
        *(jnp.asarray(one, jnp.float32) for one in (inputs, labels, variances)),
        *map(jnp.asarray, (train, judged, speeds)),
    )


def noise_arrays(like: Series) -> Series:
    """Return an unrelated task: noise of the same shapes and sizes, order destroyed."""
    rng = np.random.default_rng(0)

    def draw(array: Any) -> jax.Array:
        array = np.asarray(array)
        drawn = rng.normal(array.mean(axis=0), array.std(axis=0), array.shape)
        return jnp.asarray(drawn, jnp.float32)

    return like._replace(inputs=draw(like.inputs), labels=draw(like.labels))


def _predict(params: Any, arrays: Series, begins: jax.Array) -> Any:
    """Return what the network says of windows, and the labels."""
    index = begins[:, None] + jnp.arange(WINDOW)[None]
    inputs, labels = arrays.inputs[index], arrays.labels[index]
    return jnp.asarray(_NETWORK.apply(params, inputs)), labels


def _start(arrays: Series, key: jax.Array) -> tuple[Any, jax.Array]:
    return _NETWORK.init(key, arrays.inputs[None, :1]), key


def _loss(params: Any, arrays: Series, key: jax.Array, count: jax.Array) -> jax.Array:
    begins = jax.random.choice(jax.random.fold_in(key, count), arrays.train, (BATCH,))
    return squared_error(*_predict(params, arrays, begins))


def _judge(params: Any, arrays: Series) -> jax.Array:
    """Return the NMSE: squared errors over the variance, mean of the judged labels."""
    outputs, labels = _predict(params, arrays, arrays.judged)
    squares = jnp.mean((outputs - labels) ** 2, axis=(0, 1))
    return jnp.mean(squares[arrays.columns] / arrays.variances)


def load_problem(name: str, number: int = 0) -> Problem:
    """Return the problem on a recording; related is recording 1, unrelated is noise.

    All recordings together do not even generalise to the gaps in themselves: ridge
    regression then scores 2.2 on the change, worse than no change.
    """
    forms = {ABSOLUTE: (absolute_arrays, 1000), CHANGE: (change_arrays, 600)}
    (form, horizon), recordings = forms[name], load_recordings()
    arrays = form(recordings[number])
    name += f" {number}" * (number > 0)
    problem = minimized(name, arrays, _start, _loss, _judge, horizon, 20)
    related = form(recordings[1])
    return problem._replace(related=related, unrelated=noise_arrays(arrays))


def simple_scores(arrays: Series) -> dict[str, float]:
    """Return the NMSE of no change at all and of ridge regression, on what is judged.

    No change: the next state is this state, or the change of state is its mean.
    """
    inputs, labels = (np.asarray(array, np.float64) for array in arrays[:2])
    rows = np.unique(samples_of(arrays.train))
    judged, columns = samples_of(arrays.judged).ravel(), np.asarray(arrays.columns)

    def score(errors: np.ndarray) -> float:
        squares = np.mean(errors[:, columns] ** 2, axis=0)
        return float(np.mean(squares / np.asarray(arrays.variances)))

    mean, std = inputs[rows].mean(0), inputs[rows].std(0)
    features = np.concatenate([(inputs - mean) / std, np.ones((len(inputs), 1))], 1)
    gram = features[rows].T @ features[rows] / len(rows)
    moments = features[rows].T @ labels[rows] / len(rows)
    weights = np.linalg.solve(gram + 1e-3 * np.eye(len(gram)), moments)
    still = 0.0 if len(columns) < STATES else inputs[judged, :STATES]
    return {
        "no change": score(labels[judged] - still),
        "ridge": score(labels[judged] - features[judged] @ weights),
    }
