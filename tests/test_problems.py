"""The problems are what their descriptions say."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.harness.runner import make_runner
from benchmarks.methods import METHODS
from benchmarks.problems import digits, gan, networks, robot, tables, tasks
from benchmarks.problems.agent import fallen, push
from benchmarks.problems.long_tasks import LONG
from benchmarks.problems.robot import AHEAD, WINDOW
from benchmarks.problems.tasks import rosenbrock_height
from benchmarks.reporting.rosenbrock import descend

LEARNED = ("autoencoder", "characters", "coordinates", "noisy labels")


def test_recordings_are_those_of_the_source_and_labels_what_they_are_called():
    recordings = robot.load_recordings()
    assert [len(one.states) for one in recordings] == [4741, 2294, 4945, 1942, 1942]
    assert all(one.torques.shape == (len(one.states), 7) for one in recordings)
    # The state is (q, qd): the slope of q over 20 ms is qd.
    states = recordings[1].states
    changes = states[AHEAD:] - states[:-AHEAD]
    slopes, speeds = changes[:, :7] / 0.02, states[10:-10, 7:]
    assert np.corrcoef(slopes.ravel(), speeds.ravel())[0, 1] > 0.99
    absolute = robot.absolute_arrays(recordings[1])
    np.testing.assert_array_equal(absolute.inputs[:, :14], states[:-1])
    np.testing.assert_array_equal(absolute.labels, states[1:])
    change = robot.change_arrays(recordings[1])
    for column in (0, 9):
        labels = np.asarray(change.labels)[:-AHEAD, column]
        assert np.corrcoef(labels, changes[:, column])[0, 1] > 0.9999
    rows = np.unique(robot.samples_of(change.train))
    np.testing.assert_allclose(np.asarray(change.labels)[rows].std(0), 1.0, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(change.inputs)[rows].mean(0), 0, atol=1e-3)


@pytest.mark.parametrize("length", [4741, 2294, 1942])
def test_nothing_held_out_is_near_what_is_trained_on(length):
    touched = np.arange(WINDOW + AHEAD)
    begins = robot.split(length)
    train, held_out = (np.unique(one[:, None] + touched) for one in begins)
    assert len(begins[1]) >= 2
    assert max(held_out.max(), train.max()) < length
    assert np.abs(held_out[:, None] - train).min() >= 128


def test_the_robot_is_judged_by_the_nmse_and_scores_as_described():
    problem = robot.load_problem(robot.ABSOLUTE)
    still = robot.simple_scores(problem.data)
    assert still["no change"] == pytest.approx(9.0e-5, rel=0.01)
    change = robot.simple_scores(robot.load_problem(robot.CHANGE).data)
    assert change["no change"] == pytest.approx(1.0, abs=0.01)
    assert change["ridge"] == pytest.approx(0.53, abs=0.01)
    params, key = jax.jit(problem.start)(problem.data, jax.random.key(0))
    silent = jax.tree.map(jnp.zeros_like, params)
    labels = np.asarray(problem.data.labels)
    squares = labels[robot.samples_of(problem.data.judged)] ** 2
    expected = np.mean(squares.mean((0, 1)) / labels.var(0))
    measured = jax.jit(problem.measure)(problem.data, silent, key)
    assert float(measured) == pytest.approx(expected, rel=1e-3)


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
    params, order = jax.jit(problem.start)(problem.data, jax.random.key(1))
    assert len(set(np.asarray(order).tolist())) == 1000
    assert np.bincount(problem.data.judged_labels).tolist() == [200, 200]
    measure = jax.jit(problem.measure)
    # A network that always says 1 is wrong on all of the other digit.
    said = jax.tree.map(jnp.zeros_like, params)
    said["params"]["Dense_1"]["bias"] = jnp.array([0.0, 1.0])
    assert float(measure(problem.data, said, order)) == 0.5
    said["params"]["Dense_1"]["bias"] = jnp.array([0.0, jnp.nan])
    assert np.isnan(measure(problem.data, said, order))


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


def test_layers_are_made_in_the_order_that_the_committed_rows_hold_for():
    """Another order draws other parameters from the same seed."""
    images = jnp.zeros((1, 784))
    key, draw = jax.random.key(0), jax.eval_shape
    players: Any = draw(gan.DISCRIMINATOR.init, key, images)["params"]
    assert [players[f"Dense_{i}"]["kernel"].shape for i in range(4)] == [
        (128, 16),
        (784, 128),
        (128, 784),
        (16, 128),
    ]
    network = networks.Transformer(width=96, layers=1)
    params: Any = draw(network.init, key, jnp.zeros((1, 8), int))["params"]
    assert params["Dense_0"]["kernel"].shape == (4 * 96, 96)
    assert params["Dense_1"]["kernel"].shape == (96, 4 * 96)


# Long tasks


def train(problem, runs, updates, every):
    """Return the measures [updates / every] of Adam for each rate and seed."""
    runner = make_runner(
        problem._replace(horizon=updates, every=every), METHODS["adam"]
    )
    return [
        np.asarray(runner(problem.data, jnp.array([rate]), seed, None)[0])
        for rate, seed in runs
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher", "coordinates", "autoencoder"])
def test_a_task_begins_to_be_learned_and_its_seed_decides(name):
    problem = (tasks.SUITE | LONG)[name]()
    once, again, other = train(problem, [(3e-3, 0), (3e-3, 0), (3e-3, 1)], 12, 3)
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)
    assert once[-1] < 0.97 * once[0]


@pytest.mark.parametrize("name", ["classes, long", "mnist online, long", "agent"])
def test_errors_are_a_share_and_what_is_broken_is_not_judged(name):
    problem = LONG[name]()

    @jax.jit
    def judge(data, factor):
        params, extra = problem.start(data, jax.random.key(0))
        params = jax.tree.map(lambda one: factor * one, params)
        return problem.measure(data, params, extra)

    assert 0.2 < judge(problem.data, 1.0) <= 1.0
    assert jnp.isnan(judge(problem.data, jnp.nan))


def test_the_equation_alone_leads_to_its_solution():
    """Gradients see -u'' = f and both ends; the judge sees the solution."""
    (curve,) = train(LONG["physics"](), [(3e-3, 0)], 600, 60)
    assert curve[0] > 0.5
    assert curve.min() < 0.01


def test_a_cart_goes_where_it_is_pushed_and_left_is_like_right():
    states = np.random.default_rng(0).normal(0.0, 0.1, (32, 4))
    actions = np.arange(32) % 2
    move = jax.jit(push)
    ahead, mirrored = move(states, actions), move(-states, 1 - actions)
    np.testing.assert_allclose(mirrored, -ahead, atol=1e-6)
    _, speed, _, turning = np.asarray(move(np.zeros((32, 4)), np.ones(32, int)))[0]
    assert speed > 0 > turning
    states = jnp.array([[0.0, 9, 0.2, 9], [0, 0, 0.21, 0], [-2.5, 0, 0, 0]])
    np.testing.assert_array_equal(jax.jit(fallen)(states), [False, True, True])


def test_an_agent_learns_to_balance_the_pole():
    """Two seeds: how soon one is there changes with the rounding of a JAX version."""
    curves = np.array(train(LONG["agent"](), [(1e-2, 1), (1e-2, 2)], 480, 30))
    assert np.any(curves[0] != curves[1])
    assert np.max(curves) > 0.7
    assert np.min(curves) < 0.1


@pytest.mark.parametrize(
    ("module", "file", "load"),
    [
        (robot, "RECORDINGS", robot.load_recordings),
        (tasks, "SOURCES", tasks.language),
    ],
)
def test_damaged_data_are_refused(module, file, load, tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.write_bytes(getattr(module, file).read_bytes()[:-1] + b"x")
    monkeypatch.setattr(module, file, path)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        load()


def test_long_tasks_are_those_of_the_suite_at_8_to_10_times_the_updates_and_more():
    new = {*LEARNED, "agent", "physics", "recommender", "words"}
    assert set(LONG) == new | {f"{name}, long" for name in tasks.SUITE}
    for name, load in LONG.items():
        problem, short = load(), tasks.SUITE.get(name.removesuffix(", long"))
        assert problem.name == name
        assert problem.horizon % problem.every == 0
        assert 40 <= problem.horizon // problem.every <= 60
        assert short is None or 8 <= problem.horizon / short().horizon <= 10


def test_nothing_judged_is_trained_on_and_noise_is_on_what_is():
    def texts(rows):
        return {one.tobytes() for one in np.asarray(rows).reshape(len(rows), -1)}

    clean, noisy = digits.load_digits(), LONG["noisy labels"]().data
    assert not texts(clean.inputs) & texts(clean.judged_inputs)
    # Two in five labels are drawn anew, a tenth of them as they were.
    wrong = np.mean(clean.labels != noisy.labels)
    np.testing.assert_allclose(wrong, 0.4 * 0.9, atol=0.01)
    np.testing.assert_array_equal(clean.judged_labels, noisy.judged_labels)
    train, judged = LONG["autoencoder"]().data
    assert not texts(train) & texts(judged)
    clean, noisy = (tasks.teacher("", noise).data for noise in (0.0, 0.5))
    np.testing.assert_array_equal(clean.judged_labels, noisy.judged_labels)
    assert np.std(noisy.labels - clean.labels) == pytest.approx(0.5, rel=0.02)


def test_ratings_are_products_and_a_step_touches_few_rows():
    problem = LONG["recommender"]()
    tastes, traits = problem.data
    wide = [jnp.pad(table, ((0, 0), (0, 60))) for table in (tastes, traits)]
    truth: Any = dict(zip(("people", "things"), wide, strict=True))
    assert problem.measure(problem.data, truth, None) < 1e-12
    zeros = jax.tree.map(jnp.zeros_like, truth)
    assert 0.2 < problem.measure(problem.data, zeros, None) < 0.3
    params, key = jax.jit(problem.start)(problem.data, jax.random.key(0))
    gradients, _ = jax.jit(problem.gradients)(problem.data, params, key, 3)
    for gradient in gradients.values():
        assert 50 < np.sum(np.any(gradient != 0, axis=1)) <= 64


def test_word_pairs_are_at_most_two_apart_and_judged_are_held_out():
    pairs = tables.neighbours()
    frequencies = np.bincount(pairs[:, 0])
    assert len(frequencies) == 1000
    # Numbered by frequency, but for the ends of the text.
    assert np.all(np.diff(frequencies.astype(int))[::50] <= 60)
    both = {pair.tobytes() for pair in pairs}
    assert {pair.tobytes() for pair in pairs[:, ::-1].copy()} == both
    problem = LONG["words"]()
    train, judged, drawn = problem.data
    assert len(train) + len(judged) == len(pairs)
    assert drawn.shape == (len(judged), 5)
    params, _ = jax.jit(problem.start)(problem.data, jax.random.key(0))
    # Of zeros every answer is a coin's.
    zeros = jax.tree.map(jnp.zeros_like, params)
    found = problem.measure(problem.data, zeros, None)
    np.testing.assert_allclose(found, 6 * np.log(2), rtol=1e-5)


def test_the_language_is_source_code_and_the_next_byte_the_target():
    data, whole = (tasks.next_bytes(64, stride) for stride in (24, 1))
    np.testing.assert_array_equal(data.inputs[:, 1:], data.labels[:, :-1])
    text = bytes(np.asarray(data.inputs, np.uint8).ravel())
    assert text.startswith(b'"""Stuff to parse AIFF-C and AIFF files.')
    rows = len(whole.inputs) + len(whole.judged_inputs)
    assert len(data.inputs) == rows * 9 // 10 > 10_000
    assert bytes(np.asarray(data.judged_inputs[0], np.uint8)) not in text
    np.testing.assert_array_equal(data.judged_inputs, whole.judged_inputs[::24])


def test_both_players_descend_their_own_loss_and_k_keeps_the_balance():
    images = np.random.default_rng(0).uniform(size=(32, 28, 28))
    arrays, problem = gan.make_arrays(images, images[:4]), gan.load_problem()
    params, game = jax.jit(problem.start)(arrays, jax.random.key(0))
    game = game._replace(balance=jnp.float32(0.5))
    image_key, latent_key = jax.random.split(jax.random.fold_in(game.key, 3))
    real = arrays.train[jax.random.randint(image_key, (gan.BATCH,), 0, 32)]
    latents = jax.random.uniform(latent_key, (gan.BATCH, gan.LATENT), minval=-1.0)

    def losses(generator, discriminator, real, latents):
        fakes = gan.generate({"generator": generator}, latents)
        again: Any = gan.DISCRIMINATOR.apply
        return [jnp.mean((x - again(discriminator, x)) ** 2) for x in (real, fakes)]

    def expect(generator, discriminator):
        def against(discriminator):
            one, other = losses(generator, discriminator, real, latents)
            return one - 0.5 * other

        descend = jax.grad(lambda x: losses(x, discriminator, real, latents)[1])
        return descend(generator), jax.grad(against)(discriminator)

    players = params["generator"], params["discriminator"]
    gradients, after = jax.jit(problem.gradients)(arrays, params, game, 3)
    found = gradients["generator"], gradients["discriminator"]
    expected = jax.jit(expect)(*players)
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-8)
    one, other = map(float, jax.jit(losses)(*players, real, latents))
    balance = 0.5 + 0.05 * (0.7 * one - other)
    assert float(after.balance) == pytest.approx(balance, rel=1e-5)
    one, other = map(float, jax.jit(losses)(*players, arrays.judged, arrays.latents))
    measured = float(jax.jit(problem.measure)(arrays, params, game))
    assert measured == pytest.approx(one + abs(0.7 * one - other), rel=1e-5)
