"""The paper's first experiment: its tasks, its runs, its rows."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import linen as nn

from benchmarks.__main__ import main
from benchmarks.experiments import mnist
from benchmarks.experiments.mnist import frame_of, make_task, train_run
from benchmarks.harness.sweep import averaged, shuffled
from benchmarks.methods import BOUND, MODELS
from benchmarks.problems import digits
from benchmarks.problems.digits import batch_loss, count_errors, load_digits
from benchmarks.problems.networks import LeNet, apply_lenet
from benchmarks.problems.problem import Examples
from benchmarks.reporting import mnist as tables
from metalr_optax import get_memory, linspace_kernels, paper_sgd

SMALL = ["--seeds", "2", "--horizon", "3", "--batch-size", "8"]  # as the task below


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(2)(images.reshape(len(images), -1))


@pytest.fixture(scope="module")
def few():
    """Twenty images of each digit, and a linear network: programs compile at once."""
    every = load_digits()
    parts = [
        np.concatenate([np.flatnonzero(labels == digit)[:20] for digit in range(10)])
        for labels in (every.labels, every.judged_labels)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "LeNet", Linear)
        patch.setattr(digits, "LeNet", Linear)
        patch.setattr(digits, "apply_lenet", Linear().apply)
        yield Examples(*(array[parts[n // 2]] for n, array in enumerate(every)))
    mnist._make_runner.cache_clear()


@pytest.fixture(scope="module")
def task(few):
    return make_task(few, (1, 4), seeds=2, horizon=3, batch_size=8)


def test_the_bundled_digits_are_balanced_and_a_task_is_a_pass_without_repeats():
    every = load_digits()
    assert every.inputs.shape == (10_000, 28, 28)
    assert float(every.inputs.max()) == 1.0
    assert np.bincount(every.labels).tolist() == [1000] * 10
    assert np.bincount(every.judged_labels).tolist() == [200] * 10
    first, again = (make_task(every, (1, 4), n, 3, 8).lessons for n in (2, 1))
    assert first[0].two.inputs.shape == (2000, 28, 28)
    assert first[0].two.labels.mean() == 0.5
    assert all(len(set(one.batches.ravel().tolist())) == 24 for one in first)
    assert not np.array_equal(first[0].batches, first[1].batches)
    np.testing.assert_array_equal(again[0].batches, first[0].batches)


@pytest.mark.parametrize(
    ("label", "rule"),
    [("sgd", None), ("new", optax.sgd(0.1)), ("new, adam", optax.adam(0.1))],
)
def test_a_run_is_plain_training_by_the_rule_of_its_label(label, rule, task):
    """The batch's loss before an update, the test images told after it."""
    kernels = linspace_kernels(BOUND, MODELS)
    memory = rule and paper_sgd(kernels=kernels, memory_optimizer=rule)
    optimizer, lesson = memory or optax.sgd(1e-3), task.lessons[1]
    rows, learned = train_run(task, label, rule and 0.1)

    @jax.jit
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(batch_loss)(params, lesson.two, batch)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, loss, count_errors(params, lesson.two)

    params, state = lesson.params, optimizer.init(lesson.params)
    rows = rows[rows["seed"] == 1].astype({"train_loss": float, "test_accuracy": float})
    for batch, row in zip(lesson.batches, rows.itertuples(), strict=True):
        params, state, loss, wrong = step(params, state, batch)
        assert row.train_loss == pytest.approx(float(loss), rel=1e-3)
        assert row.test_accuracy == pytest.approx(1.0 - float(wrong) / 40, abs=1.5 / 40)
    for layer, one in (get_memory(state) if rule else {}).items():
        assert np.ptp(one.rates) > 1e-3
        np.testing.assert_allclose(learned[1][layer].rates, one.rates, rtol=1e-3)


def test_memories_go_from_run_to_run_and_stand_still_if_frozen(task):
    _, learned = train_run(task, "new", 0.1)
    for label, same in (("frozen", True), ("reloaded", False)):
        _, after = train_run(task, label, 0.1, learned)
        for one, other in zip(learned, after, strict=True):
            before, then = (x["params/Dense_0"].rates for x in (one, other))
            assert np.array_equal(before, then) is same


def test_controls_keep_the_mean_of_every_layer_and_nothing_else():
    rates = np.random.default_rng(0).uniform(size=(2, 20)).astype(np.float32)
    (memory,) = get_memory(paper_sgd().init({"a": jnp.zeros(2)})).values()
    learned = [{"a": memory._replace(rates=one)} for one in rates]
    for control in (averaged(learned), shuffled(learned)):
        for one, before in zip(control, rates, strict=True):
            assert not np.allclose(one["a"].rates, before, rtol=1e-2)
            np.testing.assert_allclose(np.mean(one["a"].rates), before.mean(), 1e-6)
    assert np.ptp(averaged(learned)[1]["a"].rates) == 0.0


def test_lenet_is_a_convolution_a_pool_and_two_dense_layers():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, images):
            features = nn.Conv(8, (5, 5), padding="VALID")(images[..., None])
            pooled = nn.relu(nn.max_pool(features, (2, 2), (2, 2)))
            hidden = nn.relu(nn.Dense(128)(pooled.reshape(len(images), -1)))
            return nn.Dense(2)(hidden)

    images = load_digits().judged_inputs[:32]
    params = jax.jit(LeNet().init)(jax.random.key(0), images)
    layers = params["params"]
    kernel = layers["Conv_0"]["kernel"].reshape(5, 5, 1, 8)
    plain = {"params": layers | {"Conv_0": layers["Conv_0"] | {"kernel": kernel}}}
    expected = jax.jit(Plain().apply)(plain, images)
    for apply in (LeNet().apply, apply_lenet):
        np.testing.assert_allclose(jax.jit(apply)(params, images), expected, atol=1e-5)


def test_tables_show_misses_and_the_papers_figure(tmp_path):
    slow, new = 2 * [[0.5] * 4], [[0.5, 0.98, 0.9, 1.0], [0.9, 0.9, 0.9, 0.97]]
    losses = np.tile(np.arange(4), (2, 1))
    rows = pd.concat(
        frame_of(task, label, rate, np.array(accuracies), losses)
        for task, label, rate, accuracies in (
            ("1 vs 2", "sgd", None, slow),
            ("1 vs 4", "sgd", None, slow),
            ("1 vs 4", "new", 0.01, new),
            ("1 vs 4", "new, adam", 0.01, new),
        )
    )
    assert list(rows) == tables.COLUMNS
    assert rows.iloc[-1].tolist() == ["1 vs 4", "new, adam", 0.01, 1, 4, "0.97", "3"]
    rows.to_csv(tmp_path / "mnist.csv", index=False)
    again = pd.read_csv(tmp_path / "mnist.csv")
    assert tables.updates_to_goal(again).tolist() == [5, 5, 2, 5, 2, 5]
    *_, sgd, new, adam = tables.methods_table(again).splitlines()
    assert sgd == "| SGD at 0.001 | | 5.0 | 5.0 | 2 | 24.7 |"
    assert new == "| new memory, equation 6 | 0.01 | 3.5 | 3.5 | 1 | 14.6 |"
    assert adam.endswith("| 0.01 | 3.5 | 3.5 | 1 | 14.6 |")


def test_the_whole_job_on_a_small_setting(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mnist, "load_digits", lambda folder: few)
    out = tmp_path / "new" / "folder"
    main(["mnist", *SMALL, "--out", str(out)])
    expected = "| SGD at 0.001 | |"
    text = capsys.readouterr().out
    assert expected in text
    assert f"({mnist.RUNS} of {mnist.RUNS};" in text
    assert {path.name for path in out.iterdir()} == {"mnist.csv", "mnist.png"}
    rows = pd.read_csv(out / "mnist.csv").fillna({"meta_rate": 0.0})
    runs = rows.groupby(["task", "method", "meta_rate"]).size()
    assert len(runs) == mnist.RUNS
    assert set(runs) == {2 * 3}
    for meta_rate in tables.META_RATES:
        for method in tables.LABELS:
            rate = 0.0 if method in ("sgd", "adam") else meta_rate
            assert ("1 vs 4", method, rate) in runs
        assert ("1 vs 2", "new", meta_rate) in runs
        assert ("1 vs 3", "reloaded", meta_rate) in runs


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("", b"not digits", "is damaged: its MD5 is"),
        (".gz", b"not gzip", "cannot read"),
        (".gz", gzip.compress(b"x" * 99, mtime=0)[:-9], "cannot read"),
        (".gz", gzip.compress(b"digits", mtime=0), "is damaged"),
    ],
)
def test_damaged_files_are_refused_by_path(tmp_path, name, content, message):
    path = tmp_path / f"train-images-idx3-ubyte{name}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        load_digits(tmp_path)
    assert str(path) in str(refusal.value)
