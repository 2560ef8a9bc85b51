"""The long tasks are what they say, and their baselines go on where they were."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from benchmarks.__main__ import main
from benchmarks.experiments import long, search
from benchmarks.harness import choose
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import KEY, Key, Store, append_runs
from benchmarks.methods import METHODS
from benchmarks.problems.agent import fallen, push
from benchmarks.problems.long_tasks import LONG, solution
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import SUITE, digits, source_bytes
from benchmarks.reporting import long as tables
from benchmarks.reporting import search as search_tables
from benchmarks.reporting.rows import RESULTS
from metalr_optax import memory_adam

NEW = (
    "autoencoder",
    "characters",
    "agent",
    "coordinates",
    "physics",
    "noisy labels",
)
ERRORS = ("classes, long", "residual, long", "mnist online, long", "noisy labels")


def train(problem, rates, seeds, updates, every):
    """Return the measures [runs, updates / every] of Adam, and the parameters."""
    problem = problem._replace(horizon=updates, every=every)
    runner = make_runner(problem, METHODS["adam"])
    settings = jnp.array(rates, jnp.float32)[:, None]
    curves, params, _ = runner(problem.data, settings, jnp.array(seeds), None)
    return np.asarray(curves), params


@pytest.mark.parametrize("name", LONG)
def test_a_long_task_has_50_measures_and_8_to_10_times_the_updates(name):
    problem = LONG[name]()
    assert problem.name == name
    assert problem.horizon % problem.every == 0
    assert 40 <= problem.horizon // problem.every <= 60
    short = SUITE.get(name.removesuffix(", long"))
    assert (short is None) == (name in NEW)
    if short is not None:
        assert 8 <= problem.horizon / short().horizon <= 10


def test_every_task_of_the_suite_is_there():
    assert set(LONG) == {*NEW, *(f"{name}, long" for name in SUITE)}


@pytest.mark.parametrize("name", NEW)
def test_a_new_task_begins_to_be_learned_and_its_seed_decides(name):
    curves, params = train(LONG[name](), [3e-3] * 3, [0, 0, 1], 12, 3)
    once, again, other = curves
    assert np.isfinite(once).all()
    assert np.isfinite(optax.tree.norm(params))  # so are all gradients
    assert np.ptp(once) > 0.0
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)
    if name not in ("agent", "physics"):  # those take hundreds of updates
        assert once[-1] < 0.95 * once[0]


@pytest.mark.parametrize("name", [*ERRORS, "agent"])
def test_errors_are_a_share_and_what_is_broken_is_not_judged(name):
    problem = LONG[name]()

    @jax.jit
    def judge(data, factor):
        params, extra = problem.start(data, jax.random.key(0))
        params = jax.tree.map(lambda one: factor * one, params)
        return problem.measure(data, params, extra)

    assert 0.2 < judge(problem.data, 1.0) <= 1.0
    assert jnp.isnan(judge(problem.data, jnp.nan))


def _images(images):
    return {one.tobytes() for one in np.asarray(images).reshape(len(images), -1)}


@pytest.mark.parametrize("name", ["classes, long", "residual, long", "noisy labels"])
def test_classes_are_judged_on_images_held_out(name):
    examples = LONG[name]().data
    assert not _images(examples.inputs) & _images(examples.judged_inputs)


def test_an_autoencoder_is_judged_on_images_held_out_and_one_draw_of_noise():
    problem = LONG["autoencoder"]()
    train, judged = problem.data
    assert not _images(train) & _images(judged)
    params, key = jax.jit(problem.start)(problem.data, jax.random.key(0))
    measure = jax.jit(problem.measure)
    once, again = (
        measure(problem.data, params, jax.random.fold_in(key, run)) for run in range(2)
    )
    assert once == again


def test_characters_are_judged_on_the_last_tenth():
    examples = LONG["characters"]().data
    rows, split = source_bytes(32), len(examples.inputs)
    np.testing.assert_array_equal(examples.inputs, rows[:split, :-1])
    np.testing.assert_array_equal(examples.labels, rows[:split, 1:])
    assert split == len(rows) * 9 // 10
    np.testing.assert_array_equal(examples.judged_inputs, rows[split::64, :-1])


def test_two_in_five_labels_are_drawn_anew_and_none_that_are_judged():
    clean, noisy = digits(), LONG["noisy labels"]().data
    wrong = np.mean(clean.labels != noisy.labels)
    np.testing.assert_allclose(wrong, 0.4 * 0.9, atol=0.01)
    np.testing.assert_array_equal(clean.judged_labels, noisy.judged_labels)
    np.testing.assert_array_equal(clean.inputs, noisy.inputs)


def test_an_image_has_variance_1_so_that_its_mean_scores_1():
    examples = LONG["coordinates"]().data
    assert examples.inputs.shape == (56 * 56, 2)
    np.testing.assert_allclose(np.mean(examples.labels**2), 1.0, rtol=1e-3)


def test_the_equation_alone_leads_to_its_solution():
    """Gradients see -u'' = f and both ends; the judge sees the solution."""
    (curve,), _ = train(LONG["physics"](), [3e-3], [0], 600, 60)
    assert curve[0] > 0.5
    assert curve.min() < 0.01


def test_the_solution_satisfies_the_equation():
    """As differentiated by hand, and by the rule that the network is trained with."""
    points = jnp.linspace(0.0, 1.0, 101)
    ends = np.asarray(jax.jit(solution)(points))[[0, -1]]
    np.testing.assert_allclose(ends, 0.0, atol=1e-5)
    pull = (
        4
        * np.pi**2
        * (np.sin(2 * np.pi * points) + 0.3 * 9 * np.sin(6 * np.pi * points))
    )
    bend = jax.jit(jax.vmap(jax.grad(jax.grad(solution))))(points)
    np.testing.assert_allclose(-bend, pull, atol=1e-3)


def test_a_network_that_is_zero_is_wrong_by_all_of_the_solution():
    problem = LONG["physics"]()
    params, extra = jax.eval_shape(problem.start, problem.data, jax.random.key(0))
    zero = jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), params)
    measure = jax.jit(problem.measure)
    np.testing.assert_allclose(measure(problem.data, zero, extra), 1.0)


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


def test_an_agent_balances_the_pole_at_a_good_rate_only():
    """Two seeds: how soon one is there changes with the rounding of a JAX version."""
    rates, seeds = [1e-2, 1e-2, 1e-5], [1, 2, 0]
    (*good, bad), _ = train(LONG["agent"](), rates, seeds, 480, 30)
    assert np.min(good) < 0.1
    assert bad.min() > 0.7


@pytest.fixture
def bowl(monkeypatch):
    """A task of two numbers takes the place of all others."""

    def start(data, key):
        return jax.random.normal(key, (2,)), data

    problem = Problem(
        "bowl",
        jnp.zeros(()),
        start,
        lambda data, params, extra, count: (params, extra),
        lambda data, params, extra: jnp.sum(params**2),
        40,
        5,
    )
    for module in (long, tables):
        monkeypatch.setattr(module, "LONG", {"bowl": lambda: problem})
    return problem


def test_baselines_and_ours_run_and_go_on_where_they_were(bowl, tmp_path):
    arguments = ["long", "--tasks", "bowl", "--out", str(tmp_path)]
    path, sizes = tmp_path / "long.csv.gz", []
    for more, runs in (["--baselines"], 92), ([], 92 + 9 + 3 * (4 + 2 * 3)):
        main([*arguments, *more])
        assert len(Store(path).runs) == runs
        sizes.append(path.stat().st_size)
        main([*arguments, *more])
        assert path.stat().st_size == sizes[-1]


def test_a_decay_ends_at_zero(bowl):
    methods = {one.name: one for one in long.tuned_methods(bowl)}
    params = jnp.ones(2)

    def steps(name):
        optimizer: Any = methods[name].make(0.1)
        state = optimizer.init(params)
        for _ in range(bowl.horizon):
            updates, state = optimizer.update(params, state, params)
            yield float(jnp.abs(updates).sum())

    for name in ("adam", "momentum"):
        constant, decayed = list(steps(name)), list(steps(f"{name}, decay"))
        share = 1.0 - np.arange(bowl.horizon) / bowl.horizon
        np.testing.assert_allclose(decayed, constant * share, rtol=1e-4)


FRAME = [*KEY, "curve", "every", "version"]


def rows_of(ends, seeds=range(3)):
    """Rows of runs (task, method, rate) that end there."""
    rows = [
        (task, method, "fresh", f"rate={rate:g}", seed, np.full(8, end), 10, "")
        for (task, method, rate), end in ends.items()
        for seed in seeds
    ]
    return choose.judge(pd.DataFrame(rows, columns=FRAME))


def test_ours_stand_over_the_best_adam_where_all_starts_are_there():
    ends = {("physics", "adam", 0.1): 2.0, ("characters", "adam", 0.1): 1.0}
    for task, found in {"physics": (1.0, 3.0), "characters": (2.0, np.inf)}.items():
        for rate, end in zip(tables.RATES, found, strict=True):
            ends[task, "memory_adam", rate] = end
    ends["agent", "adam", 0.1] = ends["agent", "memory_adam", 1e-3] = 0.01
    rows = rows_of(ends)
    ratios = tables.find_ratios(rows, "memory_adam", "adam")
    assert ratios.to_dict() == {"physics": 1.0, "characters": np.inf}
    table = tables.ends_table(rows, tables.CONSTANT)
    assert "| physics | 80 | **2** | **2** | 1 |" in table
    assert f"| agent | 80 | **0.01** | {tables.MISSING} | {tables.MISSING} |" in table
    assert "| characters | 80 | **1** | diverged |" in table
    assert "| 1 of 2 | 1 of 2 |" in tables.counts(rows)
    assert "| characters | diverged |" in tables.missed_table(rows)


def test_a_solved_task_is_level_but_not_by_the_bare_ends():
    ends = {("physics", "adam", 0.1): 1e-6}
    ends |= {("physics", "memory_adam", rate): 1e-4 for rate in tables.RATES}
    assert "| 1 of 1 (0 without tolerances) |" in tables.counts(rows_of(ends))


def test_the_committed_ends_follow_from_the_rows():
    committed = pd.read_csv(tables.__file__.split("reporting")[0] + "long_targets.csv")
    ends = tables.ends_of(tables.load(RESULTS))
    for column, method in (
        ("adam_end", "adam"),
        ("momentum_decay_end", "momentum, decay"),
    ):
        np.testing.assert_allclose(committed[column], ends[method], rtol=1e-3)


def test_the_default_of_the_search_is_the_default_of_the_library():
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.ones(4)}

    def train(optimizer):
        def step(carry, key):
            params, state = carry
            grads = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), 30)
        start = params, optimizer.init(params)
        return jax.jit(lambda: jax.lax.scan(step, start, keys)[0][0])()

    usual, *others = (
        train(search.make(one, 1e-4)) for one in list(search.VARIANTS.values())[:2]
    )
    chex.assert_trees_all_equal(usual, train(memory_adam(initial=1e-4)))
    assert np.any(usual["w"] != others[0]["w"])


def test_variants_stand_over_the_default(tmp_path):
    runs = {
        Key("physics", name, "fresh", f"rate={rate:g}", seed): np.full(6, end)
        for name, end in {"the default": 2.0, "gain 1": 1.0}.items()
        for rate in search_tables.RATES
        for seed in range(3)
    }
    append_runs(tmp_path / "search.csv.gz", runs, 60)
    assert " | 0.5, 0.5 |" in search.report(tmp_path)["search"]
