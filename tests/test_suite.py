"""The suite's tables say what the raw rows say, and a base rate is all that differs."""

import csv
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.experiments import layer_rates, transfer
from benchmarks.experiments.paper import EXPERIMENTS
from benchmarks.experiments.speed import Measurement
from benchmarks.harness import progress, sweep
from benchmarks.harness.costs import Cost
from benchmarks.harness.store import TUNING_SEED, Key, Store, write_setting
from benchmarks.methods import METHODS, OURS, VARIANTS, sample_settings
from benchmarks.problems.problem import Problem
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting import (
    headlines,
    library_figures,
    library_tables,
    long_runs,
    page,
)
from benchmarks.reporting.statistics import Comparison, Outcome
from metalr_optax import adapt_memory, get_memory, memory_sgd

SEEDS = range(10)
ADAM, SGD = (one for one in OURS)
MANY = next(one for one in VARIANTS if one.method.name == "memory_adam_m21")


def _problem(name="bowl"):
    def nothing(*_):
        raise AssertionError("only the rows count")

    return Problem(name, (), nothing, nothing, nothing, 8, 1)


def _put(runs, method, rate, curves):
    for seed, curve in zip(SEEDS, curves, strict=True):
        setting = write_setting({"rate": rate})
        runs[Key("bowl", method.name, "fresh", setting, seed)] = np.array(curve)


def _tune(runs, name, curve):
    method = METHODS[name]
    (setting,) = sample_settings(method, 1)
    runs[Key("bowl", name, "fresh", write_setting(setting), TUNING_SEED)] = curve
    _put(runs, method, setting["rate"], [curve] * len(SEEDS))


def _falling(updates, end):
    """A curve that is at the target of 1 after so many updates, or never, if 0."""
    curve = np.where(np.arange(8) + 1 >= (updates or 9), 0.9, 9.0)
    curve[3:] = np.where(curve[3:] < 1.0, min(end, 1.0), end)
    return curve


@pytest.fixture
def bowl():
    """Tuned Adam is there after 2 updates; tuned SGD never, and ends at 2."""
    runs = {}
    _tune(runs, "adam", _falling(2, 0.5))
    _tune(runs, "sgd", _falling(0, 2.0))
    for start, updates in zip(ADAM.rates, (1, 2, 3, 0), strict=True):
        _put(runs, ADAM.method, start, [_falling(updates, 4.0)] * 10)
    for start, end in zip(SGD.rates, (2.0, 2.08, 3.0, 21.0, np.nan), strict=True):
        _put(runs, SGD.method, start, [_falling(0, end)] * 10)
    return Comparison(_problem(), 1.0, runs)


def test_starts_stand_over_what_was_tuned(bowl):
    adam, sgd = library_tables.format_base_rates([bowl]).split("\n\n")
    assert adam.splitlines()[2:] == [
        "| bowl | 0.50 | 1.00 | 1.50 | never / 2 | 0 of 40 |",
        "| *tasks of at most 1* | 1 of 1 | 1 of 1 | 0 of 1 | 0 of 1 | |",
        "| *tasks of at most 1.5* | 1 of 1 | 1 of 1 | 1 of 1 | 0 of 1 | |",
    ]
    # Ten times as high as tuned SGD, or not finite, is a ruin.
    assert sgd.splitlines()[2:] == [
        "| bowl | 1.00 | 1.04 | 1.50 | 10.50 | never / 2 | 20 of 50 |",
        "| *tasks of at most 1* | 1 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | |",
        "| *tasks of at most 1.05* | 1 of 1 | 1 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | |",
    ]


def test_a_start_that_is_not_all_there_is_left_out(bowl):
    missing = Key("bowl", "memory_adam", "fresh", "rate=0.001", 3)
    del bowl.runs[missing]
    assert "bowl" not in library_tables.format_base_rates([bowl]).split("\n\n")[0]


def test_headlines_count_tasks_and_failures(bowl):
    lines = headlines.format_headlines([bowl]).splitlines()
    assert lines[0].endswith("| 1e-05 | 0.0001 | 0.001 | 0.01 | 0.1 |")
    assert [line.split(" | ")[1:] for line in lines[2:]] == [
        ["1 of 1", "1 of 1", "0 of 1", "0 of 1", "refused |"],
        ["1 of 1", "1 of 1", "1 of 1", "0 of 1", "refused |"],
        ["1 of 1", "0 of 1", "0 of 1", "0 of 1", "0 of 1 |"],
        ["1 of 1", "1 of 1", "0 of 1", "0 of 1", "0 of 1 |"],
    ]
    _put(bowl.runs, MANY.method, 1e-3, [[9.0] * 8] * 10)
    times = [
        Measurement(
            "update", "cpu", size, 1, "memory_sgd", 1, 2.0, 0, ratio, 0, 8, 9, 0, 1
        )
        for size, ratio in ((10**6, 1.25), (10**7, 9.0))
    ]
    facts = headlines.format_facts([bowl], [], times).splitlines()[2:]
    assert [fact.split(" | ")[1] for fact in facts] == [
        "10 of 90 |",
        "20 on bowl |",
        "`memory_sgd` ; `memory_adam`  |",
        "`memory_sgd` ends clearly lower on 0, higher on 0 of 0 tasks; `memory_adam` "
        "ends clearly lower on 0, higher on 1 of 1 tasks |",
        "`memory_sgd` 1.25 |",
    ]


def test_pairs_are_compared_seed_by_seed(bowl):
    ends = [0.1] * 9 + [0.9]
    _put(bowl.runs, ADAM.method, 1e-3, [[end] * 8 for end in [0.2] * 10])
    _put(bowl.runs, MANY.method, 1e-3, [[end] * 8 for end in ends])
    row = library_tables.format_variants([bowl]).splitlines()[-1]
    assert row == "| bowl |  | **0.50 (9 : 1)** |  |  |"
    _put(bowl.runs, MANY.method, 1e-3, [[end] * 8 for end in [0.1] * 8 + [0.9] * 2])
    row = library_tables.format_variants([bowl]).splitlines()[-1]
    assert row == "| bowl |  | 0.50 (8 : 2) |  |  |"


def test_a_task_shows_every_start_and_what_it_costs(bowl):
    costs = [Cost("bowl", "memory_adam", 0.25, 12.0), Cost("other", "adam", 9.0, 8.0)]
    lines = library_tables.format_task(bowl, costs).splitlines()
    assert lines[0] == "**bowl**: target 1, 10 seeds, 8 updates"
    assert len(lines) == 4 + len(ADAM.rates) + len(SGD.rates) + 2
    assert (
        "| **memory_adam** from 0.001 | 3 | 1.50 | 1 | 0.50 |  | 0.25 | 12 |" in lines
    )
    assert lines[4 + 8].startswith("| **memory_sgd** from 0.1 | never | never / 2 |")
    assert "| 10 | | |" in lines[4 + 8]


def test_a_profile_is_over_the_best_one(bowl):
    over = library_figures.profile([bowl, bowl])
    np.testing.assert_allclose(over["memory_adam"], 1.5)
    np.testing.assert_allclose(over["adam"], 1.0)
    assert np.isinf([over["sgd"], over["prodigy"], over["memory_sgd"]]).all()


def test_starts_are_drawn_as_they_ended(bowl, tmp_path):
    (setting,) = sample_settings(METHODS["adam"], 1)
    trials = library_figures.trial_ends(bowl, "adam")
    assert list(trials.items()) == [(pytest.approx(setting["rate"]), 0.5)]
    _put(bowl.runs, SGD.method, 1e-3, [[end] * 8 for end in range(1, 11)])
    ends = library_figures.base_rate_ends(bowl, "memory_sgd")
    assert tuple(ends) == SGD.rates
    assert ends[1e-3] == (3.5, 5.5, 7.5)
    assert ends[1e-1] == (np.inf, np.inf, np.inf)
    _tune(bowl.runs, "momentum", _falling(0, 1e6))
    library_figures.draw_base_rates([bowl], tmp_path / "starts.png")
    assert (tmp_path / "starts.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [(1.0, 4.0, "0.25"), (np.inf, 4.0, "never / 4"), (2.0, np.inf, "2 / never")],
)
def test_a_ratio_of_what_never_happened_shows_both(one, other, text):
    assert library_tables.ratio(one, other) == text


def test_ruined_is_ten_times_the_end_of_tuned_sgd():
    def ends(*values):
        return Outcome("", np.ones((1, 1)), np.ones(1), np.array(values))

    tuned = ends(1.0, 1.0, 50.0)
    assert library_tables.ruined(ends(9.9, 10.1, np.inf, np.nan), tuned) == 3


@pytest.mark.parametrize("one", OURS, ids=lambda one: one.method.name)
def test_a_start_is_the_base_rate_and_nothing_else(one):
    params = {"layer": jnp.zeros(3)}
    for start in one.rates:
        memory = get_memory(one.method.make(start).init(params))
        for rates in jax.tree.leaves({name: m.rates for name, m in memory.items()}):
            np.testing.assert_allclose(rates, start, rtol=1e-6)


def test_targets_of_the_suite_follow_from_its_rows(tmp_path):
    with open(sweep.TARGETS, newline="") as file:
        rows = {row["problem"]: row for row in csv.DictReader(file)}
    path = tmp_path / "suite.csv"
    shutil.copy(page.RESULTS / path.name, path)
    size = path.stat().st_size
    elsewhere = {
        one.name for name in EXPERIMENTS for one in EXPERIMENTS[name].load(None)
    }
    own = [name for name in SUITE if name not in elsewhere]
    assert len(own) == 7
    for name in own:
        found = sweep.baseline_target(SUITE[name](), Store(path))
        assert float(rows[name]["target"]) == pytest.approx(found[0], rel=1e-3)
        assert rows[name]["source"] == found[1]
    assert path.stat().st_size == size, "something had to be run"


def test_a_small_network_starts_a_larger_one():
    growths = transfer.load_growths()
    for growth in growths:
        small, large = (
            memory_sgd(initial=0.25).init(
                problem.start(problem.data, jax.random.key(0))[0]
            )
            for problem in (growth.small, growth.large)
        )
        memory = get_memory(small)
        assert len(get_memory(large)) > len(memory)
        adapted = adapt_memory(memory, large)
        assert all(one.rates == np.float32(0.25) for one in adapted.values())
    # Every start begins with the memory that its name says.
    landscape = {
        label: one._replace(rates=np.geomspace(1e-3, 1e-1, 21) * (1 + number))
        for number, (label, one) in enumerate(
            get_memory(
                MANY.method.make(1e-3).init(
                    {"Dense_0": jnp.zeros(3), "Dense_1": jnp.zeros(3)}
                )
            ).items()
        )
    }
    state = MANY.method.make(1e-3).init({f"Dense_{i}": jnp.zeros(3) for i in range(3)})
    first = transfer._fit("early", landscape, state)["Dense_0"].rates
    np.testing.assert_allclose(first, landscape["Dense_0"].rates, rtol=1e-5)
    mean = transfer._fit("end, mean", landscape, state)
    np.testing.assert_allclose(mean["Dense_0"].rates, np.mean(first), rtol=1e-4)
    np.testing.assert_allclose(mean["Dense_2"].rates, 2 * np.mean(first), rtol=1e-4)
    pooled = transfer._fit("early, pooled", landscape, state)
    for one in pooled.values():
        np.testing.assert_allclose(one.rates, np.sqrt(2) * first, rtol=1e-4)


@pytest.mark.slow
def test_the_whole_job_on_a_small_task(tmp_path, capsys):
    arguments = ["--seeds", "1", "--tasks", "rosenbrock", "--out", str(tmp_path)]
    main(["suite", *arguments])
    said = capsys.readouterr().out
    for label in ("**memory_adam** from 1e-05", "SGD, best of 5", "Prodigy"):
        assert f"| {label}" in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "suite.csv",
        "suite_cost.csv",
    }


def test_rates_of_layers_are_followed_and_drawn(tmp_path):
    problem = SUITE["teacher"]()._replace(horizon=30)
    rows = layer_rates.follow(problem, points=5)
    assert {one.layer for one in rows} == {f"params/Dense_{i}" for i in range(3)}
    assert sorted({one.updates for one in rows}) == [1, 2, 5, 12, 30]
    climbed = [one.rate for one in rows if one.layer == "params/Dense_0"]
    assert climbed[0] == layer_rates.START < climbed[1] < climbed[2]
    library_figures.draw_layer_rates(rows, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 10_000
    some = [layer_rates.Row("a, long", "x", at, rate) for at, rate in ((1, 4), (2, 1))]
    others = [layer_rates.Row("b", "y", at, rate) for at, rate in ((1, 2), (2, 8))]
    assert long_runs.say_lowest([*some, *others]) == "a 0.25, b 1"


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
