"""The problems are what their descriptions say."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.problems import digits, gan, networks, robot, tasks
from benchmarks.problems.robot import AHEAD, WINDOW
from benchmarks.problems.tasks import rosenbrock_height
from benchmarks.reporting.rosenbrock import descend


@pytest.fixture(scope="module")
def recordings():
    return robot.load_recordings()


def test_recordings_are_those_of_the_source(recordings):
    assert [len(one.states) for one in recordings] == [4741, 2294, 4945, 1942, 1942]
    assert all(one.torques.shape == (len(one.states), 7) for one in recordings)
    # The state is (q, qd): the slope of q over 20 ms is qd.
    states = recordings[0].states
    slopes = (states[20:, :7] - states[:-20, :7]) / 0.02
    assert np.corrcoef(slopes.ravel(), states[10:-10, 7:].ravel())[0, 1] > 0.99


def test_a_damaged_recording_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "robot.npz"
    path.write_bytes(robot.RECORDINGS.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(robot, "RECORDINGS", path)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        robot.load_recordings()


def test_nothing_held_out_is_near_what_is_trained_on():
    lengths = [4741, 2294, 1942]
    ends = np.cumsum(lengths)

    def recording(samples):
        return np.searchsorted(ends, samples, side="right")

    windows = robot.split(lengths)
    touched = np.arange(WINDOW + AHEAD)
    train = np.unique(windows.train[:, None] + touched)
    held_out = np.unique(windows.held_out[:, None] + touched)
    assert len(windows.held_out) >= 8
    assert held_out.max() < ends[-1]
    for sample in held_out:
        same = train[recording(train) == recording(sample)]
        assert np.abs(same - sample).min() >= 128
    # No window runs over the end of a recording.
    for begins in windows:
        np.testing.assert_array_equal(
            recording(begins), recording(begins + WINDOW + AHEAD - 1)
        )


def test_targets_are_the_next_state_and_the_change_over_20_ms(recordings):
    absolute = robot.absolute_arrays(recordings[:2])
    states = recordings[1].states
    np.testing.assert_array_equal(absolute.inputs[4740:, :14], states[:-1])
    np.testing.assert_array_equal(absolute.labels[4740:], states[1:])

    change = robot.change_arrays(recordings[:1])
    states = recordings[0].states
    targets = np.asarray(change.labels)[: len(states) - AHEAD]
    changes = states[AHEAD:] - states[:-AHEAD]
    for column in (0, 9):
        assert np.corrcoef(targets[:, column], changes[:, column])[0, 1] > 0.9999
    rows = np.unique(np.asarray(change.train)[:, None] + np.arange(WINDOW))
    np.testing.assert_allclose(np.asarray(change.labels)[rows].std(0), 1.0, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(change.inputs)[rows].mean(0), 0, atol=1e-3)


def test_what_needs_no_network_scores_as_described():
    still = robot.simple_scores(robot.load_problem(robot.ABSOLUTE).data)
    assert still["no change"] == pytest.approx(9.0e-5, rel=0.01)
    change = robot.simple_scores(robot.load_problem(robot.CHANGE).data)
    assert change["no change"] == pytest.approx(1.0, abs=0.01)
    assert change["ridge"] == pytest.approx(0.53, abs=0.01)


def test_an_lstm_is_judged_by_the_nmse(recordings):
    arrays = robot.absolute_arrays(recordings[3:4])
    problem = robot.load_problem(robot.ABSOLUTE)
    params, key = problem.start(arrays, jax.random.key(0))
    silent = jax.tree.map(jnp.zeros_like, params)
    index = np.asarray(arrays.judged)[:, None] + np.arange(WINDOW)
    targets = np.asarray(arrays.labels)
    expected = np.mean((targets[index] ** 2).mean((0, 1)) / targets.var(0))
    measured = problem.measure(arrays, silent, key)
    assert float(measured) == pytest.approx(expected, rel=1e-3)


def test_both_players_descend_their_own_loss_and_k_keeps_the_balance():
    images = np.random.default_rng(0).uniform(size=(32, 28, 28))
    arrays = gan.make_arrays(images, images[:4])
    problem = gan.load_problem()
    params, game = problem.start(arrays, jax.random.key(0))
    game = game._replace(balance=jnp.float32(0.5))

    def reconstruction(discriminator, drawn):
        again = gan.DISCRIMINATOR.apply(discriminator, drawn)
        return jnp.mean((drawn - again) ** 2)

    image_key, latent_key = jax.random.split(jax.random.fold_in(game.key, 3))
    real = arrays.train[jax.random.randint(image_key, (gan.BATCH,), 0, 32)]
    latents = jax.random.uniform(latent_key, (gan.BATCH, gan.LATENT), minval=-1.0)
    fakes = gan.generate(params, latents)
    discriminator = params["discriminator"]
    expected = {
        "generator": jax.grad(
            lambda one: reconstruction(
                discriminator, gan.generate({"generator": one}, latents)
            )
        )(params["generator"]),
        "discriminator": jax.tree.map(
            lambda a, b: a - 0.5 * b,
            jax.grad(reconstruction)(discriminator, real),
            jax.grad(reconstruction)(discriminator, fakes),
        ),
    }
    gradients, after = problem.gradients(arrays, params, game, jnp.array(3))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-8),
        gradients,
        expected,
    )
    losses = (
        float(reconstruction(discriminator, real)),
        float(reconstruction(discriminator, fakes)),
    )
    moved = 0.5 + 0.05 * (0.7 * losses[0] - losses[1])
    assert float(after.balance) == pytest.approx(moved, rel=1e-5)

    held, drawn = arrays.judged, gan.generate(params, arrays.latents)
    real_loss = float(reconstruction(discriminator, held))
    fake_loss = float(reconstruction(discriminator, drawn))
    measured = float(problem.measure(arrays, params, game))
    assert measured == pytest.approx(
        real_loss + abs(0.7 * real_loss - fake_loss), rel=1e-5
    )


def test_rosenbrock_is_the_one_of_the_notebook():
    descent = descend()
    np.testing.assert_array_equal(descent.points[0], [1.5, -0.5])
    assert descent.losses[0] == 756.5
    np.testing.assert_array_equal(descent.rates[0], np.float32(1e-3))
    # Clipped at 10, with the base rate: the first step is 0.01 on either axis.
    np.testing.assert_allclose(descent.points[1], [1.49, -0.49], rtol=1e-6)
    assert descent.losses.min() < 0.1
    assert rosenbrock_height(1.0, 1.0) == 0.0


def test_digits_come_once_and_errors_are_counted():
    problem = digits.load_pair(digits.ONLINE)
    params, order = problem.start(problem.data, jax.random.key(1))
    assert len(set(np.asarray(order).tolist())) == 1000
    assert np.bincount(problem.data.test_labels).tolist() == [200, 200]
    # A network that always says 1 is wrong on all of the other digit.
    said = jax.tree.map(jnp.zeros_like, params)
    said["params"]["Dense_1"]["bias"] = jnp.array([0.0, 1.0])
    assert float(problem.measure(problem.data, said, order)) == 0.5
    said["params"]["Dense_1"]["bias"] = jnp.array([0.0, jnp.nan])
    assert np.isnan(problem.measure(problem.data, said, order))


def test_the_quadratic_has_the_stated_condition_and_height():
    problem = tasks.quadratic()
    curvatures = np.linalg.eigvalsh(np.asarray(problem.data, np.float64))
    assert curvatures[-1] / curvatures[0] == pytest.approx(1000.0, rel=0.01)
    params, extra = problem.start(problem.data, jax.random.key(0))
    gradients, _ = problem.gradients(problem.data, params, extra, jnp.array(0))
    grad = jax.grad(lambda p: problem.data @ p["x"] @ p["x"] / 2)(params)
    np.testing.assert_allclose(gradients["x"], grad["x"], rtol=1e-4, atol=1e-5)
    heights = [
        problem.measure(problem.data, problem.start(problem.data, key)[0], ())
        for key in jax.random.split(jax.random.key(1), 50)
    ]
    assert np.mean(heights) == pytest.approx(1.0, abs=0.15)


def test_noise_of_a_teacher_is_on_what_is_trained_on_only():
    clean, noisy = (tasks.teacher("", noise).data for noise in (0.0, 0.5))
    np.testing.assert_array_equal(clean.inputs, noisy.inputs)
    np.testing.assert_array_equal(clean.judged_labels, noisy.judged_labels)
    assert np.std(noisy.labels - clean.labels) == pytest.approx(0.5, rel=0.02)


def test_the_language_is_source_code_and_the_next_byte_the_target():
    data = tasks.language().data
    np.testing.assert_array_equal(data.inputs[:, 1:], data.labels[:, :-1])
    text = bytes(np.asarray(data.inputs, np.uint8).ravel())
    assert text.startswith(b'"""Stuff to parse AIFF-C and AIFF files.')
    assert len(data.inputs) > 10_000
    judged = bytes(np.asarray(data.judged_inputs[0], np.uint8))
    assert judged not in text


def test_damaged_sources_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "sources.xz"
    path.write_bytes(tasks.SOURCES.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(tasks, "SOURCES", path)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        tasks.language()


@pytest.mark.parametrize("name", ["teacher", "classes", "residual", "language"])
def test_a_batch_is_judged_like_what_is_held_out(name):
    problem = tasks.SUITE[name]()
    params, key = problem.start(problem.data, jax.random.key(0))

    def descend(params, count):
        gradients, _ = problem.gradients(problem.data, params, key, count)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), None

    before = problem.measure(problem.data, params, key)
    params, _ = jax.jit(lambda p: jax.lax.scan(descend, p, np.arange(20)))(params)
    assert problem.measure(problem.data, params, key) < 0.97 * before


def test_layers_are_made_in_the_order_that_the_committed_rows_hold_for():
    """Another order draws other parameters from the same seed."""
    images = jnp.zeros((1, 784))
    players: Any = gan.DISCRIMINATOR.init(jax.random.key(0), images)["params"]
    assert [players[f"Dense_{i}"]["kernel"].shape for i in range(4)] == [
        (128, 16),
        (784, 128),
        (128, 784),
        (16, 128),
    ]
    network = networks.Transformer(width=96, layers=1)
    params: Any = network.init(jax.random.key(0), jnp.zeros((1, 8), int))["params"]
    assert params["Dense_0"]["kernel"].shape == (4 * 96, 96)
    assert params["Dense_1"]["kernel"].shape == (96, 4 * 96)
