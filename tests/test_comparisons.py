"""Comparisons are paired and resumable."""

import concurrent.futures
import gzip
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from bowl import bowl, give_target

import metalr_optax
from benchmarks import methods, peers
from benchmarks.harness import choose, progress, store, sweep
from benchmarks.harness.runner import make_runner
from benchmarks.harness.store import TUNING_SEED, Key, Store, append_runs, read_rows
from benchmarks.methods import METHODS
from benchmarks.reporting import comparison

KEY = Key("bowl", "sgd", "fresh", "rate=1", 0)

# The sampler and the peers


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda one: one.name)
def test_trials_begin_in_the_middle_and_stay_in_the_space(method):
    settings = methods.sample_settings(method, 20)
    for number, (name, (low, high)) in enumerate(method.space.items()):
        assert np.log10(high / low) > 3.99
        values = np.array([setting[name] for setting in settings])
        # Halton's first point in the bases 2 and 3; no fifth of the range is left out.
        share = np.log(values / low) / np.log(high / low)
        assert share[0] == pytest.approx((1 / 2, 1 / 3)[number], abs=1e-3)
        assert set((5 * share).astype(int)) == {0, 1, 2, 3, 4}
    assert methods.sample_settings(method, 5) == settings[:5]
    assert set(method.default) == set(method.space)
    texts = map(store.write_setting, settings)
    assert list(map(store.read_setting, texts)) == settings


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


def test_a_method_is_judged_at_the_point_that_it_names():
    """Schedule-free trains one point and is judged at another."""
    problem, method = bowl(), METHODS["schedule_free"]
    own = method._replace(judged=methods.own_parameters)
    judged, trained = (
        make_runner(problem, one)(problem.data, jnp.array([0.1]), 4, None)
        for one in (method, own)
    )
    assert not np.allclose(judged[0], trained[0])
    end = problem.measure(problem.data, judged[1], ())
    np.testing.assert_allclose(judged[0][-1], end, rtol=1e-5)


def test_a_still_memory_is_sgd_and_a_given_one_is_used():
    problem = bowl()
    runner = make_runner(problem, METHODS["paper_sgd"])
    train = make_runner(problem, METHODS["sgd"])
    sgd = train(problem.data, jnp.array([0.1]), 1, None)[0]
    curve, _, memory = runner(problem.data, jnp.array([0.1, 0.0]), 1, None)
    np.testing.assert_allclose(curve, sgd, rtol=1e-4)
    assert memory["layer"].rates.shape == (methods.MODELS,)
    # The memory wins over the rate of the setting.
    given = runner(problem.data, jnp.array([1e-5, 0.0]), 1, memory)[0]
    np.testing.assert_allclose(given, sgd, rtol=1e-4)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A sweep of few methods on a bowl; returns the store."""
    give_target(monkeypatch, tmp_path)

    def run(name="runs", names=("sgd", "paper_sgd")):
        kept = Store(tmp_path / f"{name}.csv.gz")
        chosen = [METHODS[one] for one in names]
        sweep.run_sweep(bowl(), kept, chosen, 3, 5, lambda text: None)
        return kept

    return run


def test_a_sweep_runs_every_class_and_goes_on_where_it_was(run, tmp_path, monkeypatch):
    whole = run()
    curves = {
        key.start: tuple(curve)
        for key, curve in whole.runs.items()
        if key.method == "paper_sgd" and key.seed == 0 and "meta=0.0" not in key.setting
    }
    assert {key.start for key in whole.runs} == set(comparison.STARTS)
    assert len(set(curves.values())) == len(curves) >= 3
    still = {key.start for key in whole.runs if key.setting.endswith("meta=0")}
    assert still == {"frozen", "constant"}
    settings = methods.sample_settings(METHODS["sgd"], 5)
    trials = {key.setting for key in whole.runs if key.seed == TUNING_SEED}
    assert {store.write_setting(one) for one in settings} <= trials
    assert all(key.seed in (0, 1, 2, TUNING_SEED) for key in whole.runs)
    # Where a memory comes from, no comparison has been.
    assert sweep.SOURCE_SEED > TUNING_SEED > max(range(10))

    # Cut off in the middle of an append, as by a kill.
    content = whole.path.read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(content[: 2 * len(content) // 3 - 5])
    again = run("cut")
    assert again.runs.keys() == whole.runs.keys()
    for key, curve in Store(again.path).runs.items():
        np.testing.assert_allclose(curve, whole.runs[key], rtol=2e-3)

    monkeypatch.setattr(sweep.Trainer, "train", None)  # nothing runs again
    run()


def test_one_that_fails_ends_the_sweep(run, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sweep.Trainer, "train", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run()


def test_runs_of_another_length_are_refused(run, tmp_path):
    append_runs(tmp_path / "runs.csv.gz", {KEY: np.ones(3)}, 2)
    with pytest.raises(ValueError, match=r"runs.csv.gz holds .* 3 measures, not 10"):
        run()


def test_the_best_trial_is_first_at_the_target_then_lowest():
    method = METHODS["sgd"]
    texts = [store.write_setting(one) for one in methods.sample_settings(method, 5)]
    curves = np.full((5, 10), 9.0)
    curves[1, 4] = 0.5  # there after 10 updates
    curves[3, 2:] = 0.4  # there after 6
    curves[4, 2:] = 0.3  # as soon, and lower

    def best(trials):
        trial = [KEY._replace(setting=text, seed=TUNING_SEED) for text in texts]
        frame = pd.DataFrame(trial).assign(curve=list(curves))
        return choose.best_trial(choose.judge(frame, 0.5, 2), method, trials)

    assert [best(n) for n in (1, 3, 4, 5)] == [texts[0], texts[1], texts[3], texts[4]]
    assert best(6) == ""  # not all were tried
    # What diverges comes last, however early it was at the target.
    curves[4, -1] = np.nan
    assert best(5) == texts[3]


def test_updates_and_ends():
    curve = np.array([9.0, 3.0, 0.5, 2.0, 1.0, 4.0, 3.0])
    assert choose.updates_to(curve, 0.5, every=10) == 30
    assert choose.updates_to(curve, 0.4, every=10) == np.inf
    assert choose.updates_to(np.array([np.nan, 0.1]), 0.5, every=1) == 2
    assert choose.final(curve) == 2.0
    assert choose.final(np.array([1.0, np.nan])) == np.inf


# Raw rows


def test_a_closed_store_keeps_what_is_done_and_stops(tmp_path):
    kept = Store(tmp_path / "runs.csv.gz")
    kept.close()
    with pytest.raises(concurrent.futures.CancelledError):
        kept.add({KEY: np.array([1.23456789])}, 1)
    # What a sweep chooses by is what the file says.
    assert kept.runs[KEY] == Store(kept.path).runs[KEY] == 1.235


def test_rows_come_back_and_half_an_append_is_cut_off(tmp_path):
    path = tmp_path / "runs.csv.gz"
    key, other = KEY._replace(problem="mnist, one"), KEY._replace(seed=8)
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


def test_other_files_are_refused_by_path(tmp_path):
    path, table = tmp_path / "runs.csv.gz", b"a,b\n"
    path.write_bytes(table)
    with pytest.raises(ValueError, match=r"runs.csv.gz does not hold rows"):
        Store(path)
    path.write_bytes(gzip.compress(table, mtime=0))
    with pytest.raises(ValueError, match=r"runs.csv.gz must have the columns problem"):
        Store(path)


def test_it_says_how_much_is_done_and_how_long_the_rest_takes(monkeypatch):
    clock, said = iter([0.0, 10.0, 300.0, 400.0]), []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    tell = progress.counted(said.append, 3)
    for name in "abc":
        tell(name)
    assert said == [
        "a (1 of 3; about 20 s left)",
        "b (2 of 3; about 2 min left)",
        "c (3 of 3; about 0 s left)",
    ]
