"""The long tasks are what they say, and their baselines go on where they were."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import __main__ as command
from benchmarks.experiments import long, search
from benchmarks.harness.costs import Cost
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import (
    TUNING_SEED,
    Key,
    append_runs,
    read_runs,
    write_setting,
)
from benchmarks.methods import METHODS, sample_settings
from benchmarks.problems.agent import fallen, push
from benchmarks.problems.long_tasks import LONG, solution
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import SUITE, digits, source_bytes
from benchmarks.reporting import long_runs
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
    monkeypatch.setattr(long, "LONG", {"bowl": lambda: problem})
    return problem


def test_baselines_that_were_stopped_go_on_where_they_were(bowl, tmp_path):
    said = []
    long.run_baselines(tmp_path, ["bowl"], said.append)
    assert said[0].startswith("bowl: 92 runs of ")
    assert said[1].startswith("all baselines: about ")
    path = tmp_path / "long.csv"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 1 + 4 * (20 + 3)
    path.write_text("".join(lines[:-5]) + lines[-5][:9])  # killed in a line
    long.run_baselines(tmp_path, ["bowl"], said.append)
    assert path.read_text() == whole
    assert said[-6] == "bowl: 5 runs of 0.0 s"


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


def test_targets_are_known_once_both_constant_rates_are_tuned(bowl, tmp_path):
    """The rate of the third trial is best; momentum is better than Adam."""
    path = tmp_path / "targets.csv"
    for name, end in (("adam", 4.0), ("adam, decay", 3.0), ("momentum", 2.0)):
        method = next(m for m in long.tuned_methods(bowl) if m.name == name)
        settings = [write_setting(one) for one in sample_settings(method, 20)]
        trials = {
            Key("bowl", name, "fresh", text, TUNING_SEED): np.full(8, 9.0)
            for text in settings
        }
        trials[Key("bowl", name, "fresh", settings[2], TUNING_SEED)] = np.full(8, end)
        for seed in range(3):
            curve = end + seed + np.array([8, 7, 6, 5, 4, 0.5, 0, 0])
            trials[Key("bowl", name, "fresh", settings[2], seed)] = curve
        append_runs(tmp_path / "long.csv", trials)
        long.write_targets(tmp_path, ["bowl"], path)
        known = long.load_targets(path)["bowl"]
        assert ("target" in known) == (name == "momentum")
    assert known == {
        "target": 3.5,  # measure 6 of 8 of the middle seed
        "adam_end": 5.5,
        "adam_decay_end": 4.5,
        "momentum_end": 3.5,
    }


def test_ours_and_what_runs_as_it_comes(bowl, tmp_path):
    long.run(tmp_path, ["bowl"], 1, print, rates=(1e-4,))
    keys = {key[1:] for key in read_runs(tmp_path / "long.csv")}
    ours = ("memory_adam", "memory_adam, decay", "memory_sgd", "memory_sgd, decay")
    peers = {"prodigy": 1.0, "prodigy, decay": 1.0, "schedule_free": 2.5e-3}
    rates = dict.fromkeys(ours, 1e-4) | peers
    assert keys == {
        (name, "fresh", write_setting({"rate": rate}), 0)
        for name, rate in rates.items()
    }


RATES = (*long.RATES, 1e-6, 1e-4)
MISSING = "\N{EN DASH}"


def fake_runs(ends):
    """Return the rows of three seeds per start of methods that end at numbers."""
    runs = {}
    for (name, method), values in ends.items():
        for number, value in enumerate(values):
            start, seed = divmod(number, 3)
            rate = RATES[start] if method.startswith("memory") else 1.0
            text = write_setting({"rate": rate})
            curve = np.array([9.0, *5 * [value]])
            runs[Key(name, method, "fresh", text, seed)] = curve
    # Trials are not compared.
    trial = Key("agent", "adam", "fresh", "rate=1", TUNING_SEED)
    return runs | {trial: np.full(6, 1e-9)}


def rows_of(table):
    """Return task -> cells of a table in Markdown; the heads are at "task"."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return {task: cells for task, *cells in rows}


def test_the_tables_of_long_runs_say_what_the_rows_say():
    runs = fake_runs(
        {
            ("agent", "adam"): [0.1, 0.3, 0.2],
            ("agent", "memory_adam"): [0.5, 0.1, 0.1, 0.1, 0.2, 0.5],
            ("physics", "adam"): [1.0, 2.0, np.nan],
            ("physics", "memory_adam"): [0.5, 0.6],  # a seed and a start are missing
            ("characters", "adam"): [np.nan, np.nan, 1.0],
            ("characters", "schedule_free"): [4.0, 5.0],  # a seed is missing
            ("characters", "memory_adam"): [3.0] * 6,
        }
    )
    table = rows_of(long_runs.format_ends(runs, long_runs.CONSTANT))
    assert table["task"] == [
        *("updates", "Adam, best", "schedule-free", "**memory_adam**"),
        "memory_adam / Adam",
    ]
    assert table["agent"] == ["2400", "0.2", MISSING, "**0.15**", "0.75"]
    assert table["physics"] == ["3000", "**2**", *3 * [MISSING]]
    assert table["characters"] == ["2400", "diverged", MISSING, "**3**", MISSING]
    assert table["autoencoder"] == ["3000", *4 * [MISSING]]
    assert len(table) == 2 + len(LONG)


def test_a_table_without_ours_has_no_ratio_and_one_without_rows_no_column():
    runs = fake_runs({("mnist online, long", "adam, decay"): [0.0] * 3})
    table = rows_of(long_runs.format_ends(runs, long_runs.DECAYED))
    assert table["task"] == ["updates", "Adam, best"]
    assert table["mnist online"] == ["8000", "**0**"]
    assert rows_of(long_runs.format_ends({}, long_runs.DECAYED))["task"] == ["updates"]
    assert long_runs.say_all(runs) == ""


def test_a_ratio_to_an_end_of_0_is_left_out():
    ends = {"adam, decay": [0.0] * 3, "memory_adam, decay": [0.1] * 6}
    runs = fake_runs({("agent", name): values for name, values in ends.items()})
    table = rows_of(long_runs.format_ends(runs, long_runs.DECAYED))
    assert table["agent"] == ["2400", "**0**", "0.1", MISSING]


def test_a_start_with_fewer_seeds_than_the_other_is_not_compared():
    runs = fake_runs({("agent", "memory_adam"): [0.1] * 5})
    assert long_runs.end_of(runs, "agent", "memory_adam") is None


def test_every_start_stands_over_the_best_adam():
    ends = [4.0] * 3 + [2.0] * 3 + [1.0] * 3 + [2.05, 2.1, 9.0]
    ours = fake_runs({("gan, long", "memory_adam"): ends})
    tuned = fake_runs({("gan, long", "adam"): [2.0] * 3})
    table = rows_of(long_runs.format_starts(ours | tuned))
    assert table["from"] == ["1e-06", "1e-05", "0.0001", "0.001"]
    assert table["gan"] == ["0.5", "2", "1.05", "1"]
    assert table["agent"] == [MISSING] * 4
    assert table["*within 2 %, or lower*"] == ["1 of 1", "0 of 1", "0 of 1", "1 of 1"]
    assert table["*within 10 %, or lower*"] == ["1 of 1", "0 of 1", "1 of 1", "1 of 1"]
    # What starts elsewhere is in no other table.
    assert long_runs.end_of(ours, "gan, long", "memory_adam") == 3.0


def test_a_solved_task_is_level_and_a_lost_one_is_named():
    runs = fake_runs(
        {
            ("agent", "adam"): [1e-8] * 3,
            ("agent", "memory_adam"): [0.02] * 6,
            ("physics", "adam"): [1e-9] * 3,
            ("physics", "memory_adam"): [3e-3] * 6,
            ("characters", "adam"): [1.0] * 3,
            ("characters", "memory_adam"): [1.05] * 6,
            ("autoencoder", "adam"): [100.0] * 3,
            ("autoencoder", "memory_adam"): [np.nan] * 6,
            ("gan, long", "adam"): [1.0] * 3,
            ("gan, long", "memory_adam"): [0.5] * 6,
            ("coordinates", "memory_adam"): [0.5] * 6,  # nothing to compare with
        }
    )
    assert long_runs.say(runs, "memory_adam", "adam") == (
        "`memory_adam` ends within 2 % of the best constant Adam, or lower, on 2 of 5 "
        "tasks, within 10 % on 3 (by the bare ends, on 1 and 2). Behind it on: "
        "physics (3.00 times its end), characters (1.05 times its end), "
        "autoencoder (diverged)."
    )


def test_what_is_ahead_of_prodigy_is_counted_by_the_medians():
    ends = {
        "agent": ([1e-9] * 3, [0.01, 0.01, 0.01, 0.01, 0.9, 0.9]),  # both solved
        "physics": ([0.5, 0.1, 9.0], [0.4] * 6),
        "characters": ([1.0, 9.0, 9.0], [8.0, 8.0, 8.0, 8.0, 10.0, 10.0]),
        "autoencoder": ([1.0] * 3, [1.001] * 6),
        "gan, long": ([np.nan] * 3, [1.0] * 6),
        "noisy labels": ([1.0] * 3, [np.nan] * 6),
    }
    runs = fake_runs(
        {
            (name, method): values
            for name, both in ends.items()
            for method, values in zip(("prodigy", "memory_adam"), both, strict=True)
        }
    )
    assert long_runs.say_order(runs, "memory_adam", "prodigy") == (
        "By the medians `memory_adam` ends ahead of Prodigy on 3 of 6 tasks, behind it "
        "on 2, level on 1."
    )


def test_the_command_ends_with_the_tables_and_takes_baselines_from_those_published(
    tmp_path, monkeypatch, capsys
):
    published, out = tmp_path / "published", tmp_path / "out"
    published.mkdir()
    ends = {"adam": [0.2] * 3, "memory_adam": [0.1] * 6, "prodigy": [0.1] * 3}
    rows = fake_runs({("agent", name): values for name, values in ends.items()})
    append_runs(published / "long.csv", rows)

    def run(folder, names, seeds, say):
        folder.mkdir()
        mine = fake_runs({(names[0], "memory_adam"): [0.4] * 6})
        append_runs(folder / "long.csv", mine)

    monkeypatch.setattr(command.page, "RESULTS", published)
    monkeypatch.setattr(long, "run", run)
    command.main(["suite", "--long", "--tasks", "agent", "--out", str(out)])
    said = capsys.readouterr().out
    assert "| agent | 2400 | **0.2** | 0.4 | 2 |" in said
    assert "Behind it on: agent (2.00 times its end)." in said


def test_a_picture_of_long_runs_is_drawn_of_what_there_is(tmp_path):
    """Runs that broke are there too."""
    name = "unequal inputs, long"
    measures = LONG[name]().horizon // LONG[name]().every
    curve = np.linspace(1.0, 0.01, measures)
    broken = np.where(np.arange(measures) < 9, curve, np.nan)
    runs = {
        Key(name, method, "fresh", f"rate={rate}", seed): one
        for method, rates in {
            "adam": [1],
            "memory_adam": ["1e-05", "0.001"],
            "prodigy": [1],
        }.items()
        for rate in rates
        for seed, one in enumerate([curve, broken, broken])
    }
    long_runs.draw(runs, tmp_path / "long.png")
    assert (tmp_path / "long.png").stat().st_size > 10_000


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
    runs = {}
    for name, ends in {"the default": (2.0, 4.0), "gain 1": (1.0, 5.0)}.items():
        for rate, end in zip(search.RATES, ends, strict=True):
            text = write_setting({"rate": rate})
            for seed in range(3):
                curve = np.array([9.0, *5 * [end + seed - 1]])
                runs[Key("physics", name, "fresh", text, seed)] = curve
                runs[Key("agent", name, "fresh", text, seed)] = curve
    append_runs(tmp_path / "search.csv", runs)
    table = rows_of(long_runs.format_search(tmp_path))
    assert len(table) == 2 + len(search.VARIANTS)
    nothing = f"{MISSING}, {MISSING}"
    assert table["gain 1"] == [*[nothing] * 4, "0.5, 1.25", "1, 5"]
    assert table["the default"] == [*[nothing] * 4, "1, 1", "2, 4"]
    assert table["gain 4"] == [f"{MISSING}, {MISSING}"] * 6


def test_costs_are_beside_those_of_adam():
    costs = [
        Cost("a, long", "adam", 2.0, 8.0),
        Cost("a, long", "memory_adam", 3.0, 8.5),
        Cost("b", "adam", 1.0, 8.0),
        Cost("b", "memory_adam", 1.0, 9.5),
    ]
    lines = long_runs.format_costs(costs).splitlines()
    assert lines[0] == "| task | Adam, ms | memory_adam |"
    assert lines[2:] == [
        "| a | 2 | 1.50 |",
        "| b | 1 | 1.00 |",
        "| *median* | | 1.25 |",
        "| *bytes of state a parameter* | 8.0 | 9.0 |",
    ]
