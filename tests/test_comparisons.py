"""Comparisons are paired, resumable and say what their raw rows say."""

import concurrent.futures
import gzip
import shutil
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import metalr_optax
from benchmarks import methods, peers
from benchmarks.__main__ import main
from benchmarks.experiments import transfer
from benchmarks.harness import choose, sweep
from benchmarks.harness.choose import final, updates_to
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import (
    KEY,
    TUNING_SEED,
    Key,
    Store,
    append_runs,
    read_rows,
    read_setting,
    write_setting,
)
from benchmarks.methods import METHODS
from benchmarks.problems.problem import Problem
from benchmarks.reporting import comparison, page, rows
from benchmarks.reporting.rows import load

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
    shutil.copy(choose.TARGETS, path)
    with open(path, "a") as file:
        file.write("bowl,0.5,test\n")
    monkeypatch.setattr(choose, "TARGETS", path)


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
    whole, said = _sweep(tmp_path / "runs.csv.gz")
    assert len(said) == 2
    starts = {key.start for key in whole.runs if key.method == "paper_sgd"}
    assert starts == set(comparison.STARTS)
    settings = methods.sample_settings(METHODS["sgd"], 5)
    trials = {key.setting for key in whole.runs if key.seed == TUNING_SEED}
    assert {write_setting(one) for one in settings} <= trials
    assert all(key.seed in (0, 1, 2, TUNING_SEED) for key in whole.runs)

    # Cut off in the middle of an append, as by a kill.
    content = (tmp_path / "runs.csv.gz").read_bytes()
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(content[: 2 * len(content) // 3 - 5])
    again, _ = _sweep(cut)
    assert again.runs.keys() == whole.runs.keys()
    for key, curve in Store(cut).runs.items():
        np.testing.assert_allclose(curve, whole.runs[key], rtol=2e-3)

    def no_more(*arguments):
        raise AssertionError("something ran again")

    monkeypatch.setattr(sweep.Trainer, "call", no_more)
    _sweep(tmp_path / "runs.csv.gz")


def test_reloaded_and_control_memories_start_differently(tmp_path):
    store, _ = _sweep(tmp_path / "runs.csv.gz", ["paper_sgd"])
    curves = {
        key.start: curve
        for key, curve in store.runs.items()
        if key.seed == 0 and key.start != "fresh"
    }
    assert set(curves) == set(comparison.STARTS) - {"fresh"}
    assert len({tuple(curve) for curve in curves.values()}) == len(curves)
    still = {key.start for key in store.runs if key.setting.endswith("meta=0")}
    assert still == {"frozen", "constant"}
    # Where a memory comes from, no comparison has been.
    assert sweep.SOURCE_SEED > TUNING_SEED > max(range(10))


def test_runs_of_another_length_are_refused(tmp_path):
    path = tmp_path / "runs.csv.gz"
    append_runs(path, {Key("bowl", "sgd", "fresh", "rate=1", 0): np.ones(3)}, 2)
    with pytest.raises(ValueError, match=r"runs.csv.gz holds .* 3 measures, not 10"):
        _sweep(path)


def test_the_best_trial_is_first_at_the_target_then_lowest():
    method = METHODS["sgd"]
    texts = [write_setting(one) for one in methods.sample_settings(method, 5)]
    curves = np.full((5, 10), 9.0)
    curves[1, 4] = 0.5  # there after 10 updates
    curves[3, 2:] = 0.4  # there after 6
    curves[4, 2:] = 0.3  # as soon, and lower

    def best(trials):
        trial = [("bowl", "sgd", "fresh", text, TUNING_SEED) for text in texts]
        frame = pd.DataFrame(trial, columns=KEY).assign(curve=list(curves))
        return choose.best_trial(choose.judge(frame, 0.5, 2), method, trials)

    assert [best(n) for n in (1, 3, 4, 5)] == [texts[0], texts[1], texts[3], texts[4]]
    assert best(6) == ""  # not all were tried
    # What diverges comes last, however early it was at the target.
    curves[4, -1] = np.nan
    assert best(5) == texts[3]


def test_a_closed_store_keeps_what_is_done_and_stops(tmp_path):
    store = Store(tmp_path / "runs.csv.gz")
    store.close()
    key = Key("bowl", "sgd", "fresh", "rate=1", 0)
    with pytest.raises(concurrent.futures.CancelledError):
        store.add({key: np.array([1.23456789])}, 1)
    # What a sweep chooses by is what the file says.
    assert store.runs[key] == Store(store.path).runs[key] == 1.235


def test_one_that_fails_ends_the_sweep(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sweep.Trainer, "learn", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _sweep(tmp_path / "runs.csv.gz")


# Raw rows


def test_rows_come_back_and_half_an_append_is_cut_off(tmp_path):
    path = tmp_path / "runs.csv.gz"
    key = Key("mnist, one", "adam", "fresh", "rate=0.001", 7)
    other = key._replace(seed=8)
    append_runs(path, {key: np.array([1.0, np.nan, np.inf, 1.2345678e-7])}, 5)
    append_runs(path, {other: np.array([2.0])}, 5)
    back = read_rows(path)
    np.testing.assert_array_equal(back["curve"].iloc[0], [1, np.nan, np.inf, 1.235e-7])
    assert back["every"].tolist() == [5, 5]
    assert set(back["version"]) == {metalr_optax.__version__}
    assert list(Store(path).runs) == [key, other]

    path.write_bytes(path.read_bytes()[:-2])
    assert list(Store(path).runs) == [key]
    append_runs(path, {other: np.array([3.0])}, 5)
    assert Store(path).runs[other].tolist() == [3.0]
    assert not Store(tmp_path / "none.csv.gz").runs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n", "does not hold rows"),
        (gzip.compress(b"a,b\n", mtime=0), "must have the columns problem, method"),
    ],
)
def test_other_files_are_refused_by_path(tmp_path, content, message):
    path = tmp_path / "runs.csv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        Store(path)
    assert str(path) in str(refusal.value)


def test_settings_come_back():
    for method in METHODS.values():
        for setting in methods.sample_settings(method, 20):
            assert read_setting(write_setting(setting)) == setting


def test_never_is_a_value_of_quartiles():
    inf = np.inf
    assert rows.quartiles(np.array([4.0, 1.0, 3.0, 2.0])) == (1.5, 2.5, 3.5)
    assert rows.quartiles(np.array([1.0, 2.0, inf, inf])) == (1.5, inf, inf)
    assert rows.quartiles(np.array([5.0, 1.0, inf]))[1] == 5.0


def test_a_sign_test_leaves_ties_out():
    one, other = [1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, np.inf, 7]
    test = rows.paired_test(one, other)
    assert test[:3] == (6, 0, 1)
    assert test.p == pytest.approx(2 * 0.5**6)
    assert rows.paired_test(one, one).p == 1.0


def test_updates_and_ends():
    curve = np.array([9.0, 3.0, 0.5, 2.0, 1.0, 4.0, 3.0])
    assert updates_to(curve, 0.5, every=10) == 30
    assert updates_to(curve, 0.4, every=10) == np.inf
    assert final(curve) == 2.0
    assert final(np.array([1.0, np.nan])) == np.inf
    assert updates_to(np.array([np.nan, 0.1]), 0.5, every=1) == 2


def test_tables_follow_the_rows(tmp_path):
    names = ["sgd", "momentum", "adam", "paper_sgd", "paper_sgd_m1"]
    store, _ = _sweep(tmp_path / "runs.csv.gz", names, seeds=10)
    runs = {}

    def put(method, start, updates):
        setting = write_setting(METHODS[method].default)
        for seed in range(10):
            curve = np.where(np.arange(10) >= updates // 2 - 1, 0.1, 1.0)
            runs[Key("bowl", method, start, setting, seed)] = curve

    put("adam", "fresh", 10)
    put("paper_sgd", "fresh", 4)
    put("paper_sgd_m1", "fresh", 4)
    put("paper_sgd", "reloaded", 8)
    append_runs(store.path, runs, 2)
    whole = {"bowl": load(store.path)}
    tests = comparison.tests_table(whole["bowl"])
    assert (
        "| paper_sgd : Adam at 0.001 | 4 : 10 | 0.1 : 0.1 | 10 | 0 | 0 | **0" in tests
    )
    assert "| paper_sgd, M=20 : M=1 | 4 : 4 | 0.1 : 0.1 | 0 | 0 | 10 | 1 |" in tests
    assert "| paper_sgd, reloaded : new | 8 : 4 | 0.1 : 0.1 | 0 | 10 | 0 |" in tests
    answers = comparison.answers(whole).splitlines()[2]
    assert answers.startswith("| bowl, paper_sgd | **0.40 (10 : 0)** |")
    assert answers.endswith("| 1.00 (0 : 0) | **2.00 (0 : 10)** |")
    counted = comparison.counts(whole)
    assert "| untuned, beside Adam at 0.001 | 1 | 0 | 0 |" in counted
    assert "| reloaded beside new | 0 | 1 | 0 |" in counted


def test_a_page_is_its_prose_with_its_tables():
    tables = transfer.report(rows.RESULTS)
    expected = (page.PAGES / "transfer.md").read_text()
    assert page.fill("transfer", tables) == expected


def test_the_whole_job_on_a_small_setting(tmp_path, capsys):
    arguments = ["--methods", "sgd", "adam", "--seeds", "2", "--trials", "1"]
    for _ in range(2):
        main(["rosenbrock", *arguments, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "8 runs are done: going on from there" in said
    assert "| Adam | never |" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"rosenbrock.png", "rosenbrock_path.png"}
    assert names == {"rosenbrock.csv.gz", "costs.csv"} | pictures
