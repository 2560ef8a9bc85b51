"""Comparisons are paired, resumable and say what their raw rows say."""

import concurrent.futures
import csv
import shutil
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import methods, peers
from benchmarks.__main__ import main
from benchmarks.experiments.paper import EXPERIMENTS
from benchmarks.harness import sweep
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import (
    COLUMNS,
    TUNING_SEED,
    Key,
    Store,
    append_runs,
    final,
    mend,
    read_runs,
    read_setting,
    updates_to,
    write_setting,
)
from benchmarks.methods import METHODS
from benchmarks.problems.problem import Problem
from benchmarks.reporting import page, statistics, verdicts
from benchmarks.reporting.paper_tables import START_LABELS
from benchmarks.reporting.statistics import Comparison, Outcome

CURVATURES = jnp.array([1.0, 0.2, 3.0])


def _problem(every=2):
    """A noisy quadratic; data is how far away it starts."""

    def start(data, key):
        return {"layer": {"x": data * jax.random.normal(key, (3,))}}, key

    def gradients(data, params, key, count):
        noise = jax.random.normal(jax.random.fold_in(key, count), (3,))
        x = params["layer"]["x"]
        return {"layer": {"x": CURVATURES * x + 0.01 * noise}}, key

    def measure(data, params, key):
        return jnp.sum(CURVATURES * params["layer"]["x"] ** 2)

    far = jnp.float32(1.0)
    return Problem(
        "bowl", far, start, gradients, measure, 20, every, 2.0 * far, 9.0 * far
    )


@pytest.fixture(autouse=True)
def targets(tmp_path, monkeypatch):
    path = tmp_path / "targets.csv"
    shutil.copy(sweep.TARGETS, path)
    with open(path, "a") as file:
        file.write("bowl,0.5,test\n")
    monkeypatch.setattr(sweep, "TARGETS", path)


# The sampler


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda one: one.name)
def test_trials_begin_in_the_middle_and_stay_in_the_space(method):
    settings = methods.sample_settings(method, 20)
    for number, (name, (low, high)) in enumerate(method.space.items()):
        assert np.log10(high / low) > 3.99
        values = np.array([setting[name] for setting in settings])
        assert (values >= low * 0.999).all()
        assert (values <= high * 1.001).all()
        # Halton's first point in the bases 2 and 3.
        share = np.log(values / low) / np.log(high / low)
        assert share[0] == pytest.approx((1 / 2, 1 / 3)[number], abs=1e-3)
        # No fifth of the range is left out.
        assert set((5 * share).astype(int)) == {0, 1, 2, 3, 4}
    assert methods.sample_settings(method, 5) == settings[:5]
    assert set(method.default) == set(method.space)


def test_methods_of_one_number_share_the_sampler():
    sgd, adam = (methods.sample_settings(METHODS[name], 20) for name in ("sgd", "adam"))
    for one, other in zip(sgd, adam, strict=True):
        share = np.log(one["rate"] / 1e-4) / 5
        assert share == pytest.approx(np.log(other["rate"] / 1e-5) / 4, abs=1e-3)


# Peers


def test_rprop_by_hand_and_without_the_delay_of_optax():
    gradients = [2.0, 1.0, -3.0, -1.0, -1.0, 0.0, 4.0]
    # Step sizes 0.1, grows, shrinks and rests, kept after the rest, grows, 0, kept.
    expected = [-0.1, -0.12, 0.0, 0.06, 0.072, 0.0, -0.072]
    ours: Any = peers.rprop(0.1)
    theirs: Any = optax.rprop(0.1)
    state = ours.init(jnp.zeros(()))
    for gradient, update in zip(gradients, expected, strict=True):
        got, state = ours.update(jnp.float32(gradient), state)
        assert float(got) == pytest.approx(update, rel=1e-5)
    first, _ = theirs.update(jnp.float32(2.0), theirs.init(jnp.zeros(())))
    assert float(first) == 0.0, "optax has mended it: use optax.rprop"


def test_hypergradient_by_hand():
    rng = np.random.default_rng(0)
    optimizer: Any = peers.hypergradient_adam(0.1, 0.01)
    state = optimizer.init(jnp.zeros(3))
    m, v, direction, rate = np.zeros(3), np.zeros(3), np.zeros(3), 0.1
    for step in range(1, 6):
        gradient = rng.normal(size=3)
        rate += 0.01 * gradient @ direction
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        update, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state)
        np.testing.assert_allclose(update, -rate * direction, rtol=1e-4)


# Running


@pytest.mark.parametrize("name", ["momentum", "schedule_free"])
def test_a_run_is_plain_training(name):
    problem, method = _problem(), METHODS[name]
    curves, params, _ = make_runner(problem, method)(
        problem.data, jnp.array([[0.1], [0.1]]), jnp.array([3, 4]), None
    )
    x, extra = problem.start(problem.data, jax.random.key(4))
    optimizer = method.make(0.1)
    state = optimizer.init(x)
    expected = []
    for count in range(20):
        gradients, extra = problem.gradients(problem.data, x, extra, jnp.array(count))
        updates, state = optimizer.update(gradients, state, x)
        x = cast(Any, optax.apply_updates(x, updates))
        # Schedule-free trains one point and is judged at another.
        judged = x
        if name == "schedule_free":
            judged = cast(Any, optax.contrib.schedule_free_eval_params(state, x))
            assert not np.allclose(judged["layer"]["x"], x["layer"]["x"]) or count < 2
        expected.append(float(problem.measure(problem.data, judged, extra)))
    np.testing.assert_allclose(curves[1], expected[1::2], rtol=1e-3)
    np.testing.assert_allclose(params["layer"]["x"][1], judged["layer"]["x"], rtol=1e-3)
    assert not np.allclose(curves[0], curves[1])


def test_a_still_memory_is_sgd_and_a_given_one_is_used():
    problem = _problem()
    runner = make_runner(problem, METHODS["paper_sgd"])
    seeds = jnp.arange(2)
    still = jnp.array([[0.1, 0.0]] * 2)
    sgd = make_runner(problem, METHODS["sgd"])(
        problem.data, jnp.array([[0.1]] * 2), seeds, None
    )[0]
    curves, _, memory = runner(problem.data, still, seeds, None)
    np.testing.assert_allclose(curves, sgd, rtol=1e-4)
    assert memory["layer"].rates.shape == (2, methods.MODELS)
    # The memory wins over the rate of the setting.
    slow = jnp.array([[1e-5, 0.0]] * 2)
    np.testing.assert_allclose(
        runner(problem.data, slow, seeds, memory)[0], sgd, rtol=1e-4
    )


def _sweep(path, names=("sgd", "paper_sgd"), seeds=3, trials=5):
    store = Store(path)
    said = []
    sweep.run_sweep(
        _problem(), store, [METHODS[name] for name in names], seeds, trials, said.append
    )
    return store, said


def test_a_sweep_runs_every_class_and_goes_on_where_it_was(tmp_path, monkeypatch):
    whole, said = _sweep(tmp_path / "runs.csv")
    assert len(said) == 2
    starts = {key.start for key in whole.runs if key.method == "paper_sgd"}
    assert starts == {"fresh", *START_LABELS}
    settings = methods.sample_settings(METHODS["sgd"], 5)
    trials = {key.setting for key in whole.runs if key.seed == TUNING_SEED}
    assert {write_setting(one) for one in settings} <= trials
    assert all(key.seed in (0, 1, 2, TUNING_SEED) for key in whole.runs)

    # Cut off in the middle of a line, as by a kill.
    text = (tmp_path / "runs.csv").read_text()
    cut = tmp_path / "cut.csv"
    cut.write_text(text[: 2 * len(text) // 3 - 5])
    again, _ = _sweep(cut)
    assert again.runs.keys() == whole.runs.keys()
    for key, curve in read_runs(cut).items():
        np.testing.assert_allclose(curve, whole.runs[key], rtol=2e-3)

    def no_more(*arguments):
        raise AssertionError("something ran again")

    monkeypatch.setattr(sweep.Trainer, "call", no_more)
    _sweep(tmp_path / "runs.csv")


def test_reloaded_and_control_memories_start_differently(tmp_path):
    store, _ = _sweep(tmp_path / "runs.csv", ["paper_sgd"])
    curves = {
        key.start: curve
        for key, curve in store.runs.items()
        if key.seed == 0 and key.start != "fresh"
    }
    assert len({tuple(curve) for curve in curves.values()}) == len(START_LABELS)
    still = {key.start for key in store.runs if key.setting.endswith("meta=0")}
    assert still == {"frozen", "constant"}
    # Where a memory comes from, no comparison has been.
    assert sweep.SOURCE_SEED > TUNING_SEED > max(range(10))


def test_runs_of_another_length_are_refused(tmp_path):
    path = tmp_path / "runs.csv"
    append_runs(path, {Key("bowl", "sgd", "fresh", "rate=1", 0): np.ones(3)})
    with pytest.raises(ValueError, match=r"runs.csv holds .* 3 measures, not 10"):
        _sweep(path)


def test_the_best_trial_is_first_at_the_target_then_lowest():
    problem, method = _problem(), METHODS["sgd"]
    settings = methods.sample_settings(method, 5)
    curves = np.full((5, 10), 9.0)
    curves[1, 4] = 0.5  # there after 10 updates
    curves[3, 2:] = 0.4  # there after 6
    curves[4, 2:] = 0.3  # as soon, and lower
    rows = {
        Key("bowl", "sgd", "fresh", write_setting(one), TUNING_SEED): curve
        for one, curve in zip(settings, curves, strict=True)
    }
    best = [sweep.best_trial(rows, problem, method, n, 0.5) for n in (1, 3, 4, 5)]
    assert best == [settings[0], settings[1], settings[3], settings[4]]
    assert sweep.trials_done(rows, problem, method) == 5
    # What diverges comes last, however early it was at the target.
    key = Key("bowl", "sgd", "fresh", write_setting(settings[4]), TUNING_SEED)
    rows[key][-1] = np.nan
    assert sweep.best_trial(rows, problem, method, 5, 0.5) == settings[3]


def test_a_closed_store_keeps_what_is_done_and_stops(tmp_path):
    store = Store(tmp_path / "runs.csv")
    store.close()
    key = Key("bowl", "sgd", "fresh", "rate=1", 0)
    with pytest.raises(concurrent.futures.CancelledError):
        store.add({key: np.array([1.23456789])})
    # What a sweep chooses by is what the file says.
    assert store.runs[key] == read_runs(store.path)[key] == 1.235


def test_one_that_fails_ends_the_sweep(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sweep.Trainer, "learn", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _sweep(tmp_path / "runs.csv")


# Raw rows


def test_rows_come_back_and_half_a_line_is_left_out(tmp_path):
    path = tmp_path / "runs.csv"
    key = Key("mnist, one", "adam", "fresh", "rate=0.001", 7)
    other = key._replace(seed=8)
    append_runs(path, {key: np.array([1.0, np.nan, np.inf, 1.2345678e-7])})
    append_runs(path, {other: np.array([2.0])})
    back = read_runs(path)
    np.testing.assert_array_equal(back[key], [1.0, np.nan, np.inf, 1.235e-7])
    assert list(back) == [key, other]

    path.write_bytes(path.read_bytes()[:-2])
    assert list(read_runs(path)) == [key]
    mend(path)
    append_runs(path, {other: np.array([3.0])})
    assert read_runs(path)[other].tolist() == [3.0]
    assert read_runs(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n", "does not begin with the columns problem, method"),
        (",".join(COLUMNS) + "\na,b,c,d,zero,1 2\n", "line 2"),
        (",".join(COLUMNS) + "\na,b\n", "line 2"),
    ],
)
def test_other_files_are_refused_by_path(tmp_path, content, message):
    path = tmp_path / "runs.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_runs(path)
    assert str(path) in str(refusal.value)


def test_settings_come_back():
    for method in METHODS.values():
        for setting in methods.sample_settings(method, 20):
            assert read_setting(write_setting(setting)) == setting


# Statistics


def _outcome(updates):
    updates = np.array(updates, float)
    return Outcome("", np.ones((len(updates), 1)), updates, np.ones(len(updates)))


def test_never_is_a_value_of_quartiles():
    inf = np.inf
    assert statistics.quartiles(np.array([4.0, 1.0, 3.0, 2.0])) == (1.5, 2.5, 3.5)
    assert statistics.quartiles(np.array([1.0, 2.0, inf, inf])) == (1.5, inf, inf)
    assert statistics.quartiles(np.array([5.0, 1.0, inf]))[1] == 5.0


def test_a_sign_test_leaves_ties_out():
    one, other = _outcome([1, 2, 3, 4, 5, 6, 7]), _outcome([2, 3, 4, 5, 6, np.inf, 7])
    test = statistics.sign_test(one, other)
    assert test[:3] == (6, 0, 1)
    assert test.p == pytest.approx(2 * 0.5**6)
    assert statistics.sign_test(one, one).p == 1.0


def test_updates_and_ends():
    curve = np.array([9.0, 3.0, 0.5, 2.0, 1.0, 4.0, 3.0])
    assert updates_to(curve, 0.5, every=10) == 30
    assert updates_to(curve, 0.4, every=10) == np.inf
    assert final(curve) == 2.0
    assert final(np.array([1.0, np.nan])) == np.inf
    assert updates_to(np.array([np.nan, 0.1]), 0.5, every=1) == 2


def test_verdicts_follow_the_rows(tmp_path):
    names = ["sgd", "adam", "paper_sgd", "paper_sgd_m1"]
    store, _ = _sweep(tmp_path / "runs.csv", names)
    seeds = range(10)

    def put(method, start, updates):
        setting = write_setting(METHODS[method].default)
        for seed in seeds:
            curve = np.where(np.arange(10) >= updates // 2 - 1, 0.1, 1.0)
            store.runs[Key("bowl", method, start, setting, seed)] = curve

    put("adam", "fresh", 10)
    put("paper_sgd", "fresh", 4)
    put("paper_sgd_m1", "fresh", 4)
    put("paper_sgd", "reloaded", 8)
    whole = Comparison(_problem(), 0.5, store.runs)
    said = "\n".join(verdicts.say_all(whole, 0.3))
    assert "Adam at 0.001 (the paper: 0.3 times): 4 updates against 10, 0.40" in said
    assert "**the memory is faster** (10 seeds better, 0 worse, 0 equal" in said
    assert "M=20 beside M=1, paper_sgd, fixed: 4 updates against 4, 1.00" in said
    assert "no clear difference (0 seeds better, 0 worse, 10 equal; p = 1)" in said
    assert "beside a new one: 8 updates against 4, 2.00 times: **the other" in said
    against_adam, _, against_one, reloaded = verdicts.summary(whole, "paper_sgd")
    assert against_adam == "**0.40 (10 : 0)**"
    assert against_one == "1.00 (0 : 0)"
    assert reloaded == "**2.00 (0 : 10)**"
    counted = verdicts.count([whole])
    assert (
        "Adam?** Clearly in 1, clearly not in 0, no clear difference in 0" in counted[0]
    )
    assert "new one?** Clearly in 0, clearly not in 1" in counted[3]


# The page and its targets


def test_the_page_says_what_the_raw_rows_say():
    assert page.make_page() == page.PAGE.read_text()


def test_targets_follow_from_the_committed_rows(tmp_path):
    with open(sweep.TARGETS, newline="") as file:
        rows = {row["problem"]: row for row in csv.DictReader(file)}
    checked = 0
    for experiment in EXPERIMENTS.values():
        path = tmp_path / "rows.csv"
        shutil.copy(page.RESULTS / f"{experiment.stem}.csv", path)
        size = path.stat().st_size
        for problem in experiment.load(None):
            row = rows[problem.name]
            if not row["source"].startswith("paper"):
                target, source = sweep.baseline_target(problem, Store(path))
                assert float(row["target"]) == pytest.approx(target, rel=1e-3)
                assert row["source"] == source
                assert path.stat().st_size == size, "something had to be run"
                checked += 1
    assert checked == 3


def test_the_whole_job_on_a_small_setting(tmp_path, capsys):
    arguments = ["--methods", "sgd", "adam", "--seeds", "2", "--trials", "1"]
    for _ in range(2):
        main(["rosenbrock", *arguments, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "8 runs are done: going on from there" in said
    assert "| Adam | never |" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"rosenbrock.png", "rosenbrock_path.png"}
    assert names == {"rosenbrock.csv", "rosenbrock_cost.csv"} | pictures
