"""The paper's first experiment: its tasks, its runs, its rows."""

import gzip

import chex
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
from benchmarks.problems.digits import (
    SUBSET,
    Digits,
    batch_loss,
    count_errors,
    load_digits,
)
from benchmarks.problems.networks import LeNet, apply_lenet
from benchmarks.reporting import mnist as tables
from metalr_optax import get_memory, linspace_kernels, paper_sgd

SMALL = ["--seeds", "1", "--horizon", "3", "--batch-size", "8"]  # as the task below


@pytest.fixture(scope="module")
def digits():
    """A tenth of the images: compiled without optimisation, a network is slow."""
    return Digits(*(array[::10] for array in load_digits()))


@pytest.fixture(scope="module")
def task(digits):
    return make_task(digits, (1, 4), seeds=2, horizon=3, batch_size=8)


def test_the_bundled_digits_are_balanced():
    digits = load_digits()
    assert digits.train_images.shape == (10_000, 28, 28)
    assert np.bincount(digits.train_labels).tolist() == [1000] * 10
    assert np.bincount(digits.test_labels).tolist() == [200] * 10
    assert SUBSET.stat().st_size < 3e6


def test_a_task_is_two_digits_and_a_pass_without_repeats():
    task = make_task(load_digits(), (1, 4), seeds=2, horizon=3, batch_size=8)
    two = task.lessons[0].two
    assert two.train_images.shape == (2000, 28, 28)
    assert float(two.train_images.max()) == 1.0
    assert two.train_labels.mean() == 0.5
    batches = [one.batches for one in task.lessons]
    assert all(len(set(one.ravel().tolist())) == 24 for one in batches)
    assert not np.array_equal(batches[0], batches[1])
    again = make_task(load_digits(), (1, 4), seeds=1, horizon=3, batch_size=8)
    np.testing.assert_array_equal(again.lessons[0].batches, batches[0])


KERNELS = linspace_kernels(BOUND, MODELS)


@pytest.mark.parametrize(
    ("label", "method", "optimizer"),
    [
        ("sgd", "sgd", optax.sgd(1e-3)),
        ("new", "memory", paper_sgd(kernels=KERNELS, memory_optimizer=optax.sgd(0.1))),
        (
            "new, adam",
            "memory, adam",
            paper_sgd(kernels=KERNELS, memory_optimizer=optax.adam(0.1)),
        ),
    ],
)
def test_a_run_is_plain_training_by_the_rule_of_its_label(
    label, method, optimizer, task
):
    """The batch's loss before an update, the test images told after it."""
    rate = None if label == "sgd" else 0.1
    rows, learned = train_run(task, label, rate, method=method)
    lesson = task.lessons[1]

    @jax.jit
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(batch_loss)(params, lesson.two, batch)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, loss, count_errors(params, lesson.two)

    params, state = lesson.params, optimizer.init(lesson.params)
    for batch, row in zip(
        lesson.batches, rows[rows["seed"] == 1].itertuples(), strict=True
    ):
        params, state, loss, wrong = step(params, state, batch)
        assert float(row.train_loss) == pytest.approx(float(loss), rel=1e-3)
        images = len(lesson.two.test_labels)
        right = 1.0 - float(wrong) / images
        assert float(row.test_accuracy) == pytest.approx(right, abs=1.5 / images)
    if rate is not None:
        for layer, memory in get_memory(state).items():
            assert np.ptp(memory.rates) > 1e-3
            np.testing.assert_allclose(learned[1][layer].rates, memory.rates, rtol=1e-3)


def test_memories_go_from_run_to_run(task):
    _, learned = train_run(task, "new", 0.1)
    _, kept = train_run(task, "frozen", 0.1, learned)
    chex.assert_trees_all_equal_shapes(learned, kept)
    for one, other in zip(learned, kept, strict=True):
        rates = one["params/Dense_0"].rates
        np.testing.assert_array_equal(other["params/Dense_0"].rates, rates)


def test_controls_keep_the_mean_of_every_layer_and_nothing_else():
    rates = np.random.default_rng(0).uniform(size=(2, 20)).astype(np.float32)
    (memory,) = get_memory(paper_sgd().init({"a": jnp.zeros(2)})).values()
    learned = [{"a": memory._replace(rates=one)} for one in rates]
    for control in (averaged(learned), shuffled(learned)):
        for one, before in zip(control, rates, strict=True):
            assert not np.allclose(one["a"].rates, before, rtol=1e-2)
            np.testing.assert_allclose(np.mean(one["a"].rates), before.mean(), 1e-6)
    assert np.ptp(averaged(learned)[1]["a"].rates) == 0.0


def test_lenet_is_a_convolution_a_pool_and_two_dense_layers(task):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, images):
            features = nn.Conv(8, (5, 5), padding="VALID")(images[..., None])
            pooled = nn.relu(nn.max_pool(features, (2, 2), (2, 2)))
            hidden = nn.relu(nn.Dense(128)(pooled.reshape(len(images), -1)))
            return nn.Dense(2)(hidden)

    lesson = task.lessons[0]
    layers = lesson.params["params"]
    kernel = layers["Conv_0"]["kernel"].reshape(5, 5, 1, 8)
    plain = {"params": layers | {"Conv_0": layers["Conv_0"] | {"kernel": kernel}}}
    images = lesson.two.test_images[:32]
    expected = jax.jit(Plain().apply)(plain, images)
    for apply in (LeNet().apply, apply_lenet):
        logits = jax.jit(apply)(lesson.params, images)
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def rows_of(label, rate, curves, task="1 vs 4"):
    return pd.concat(
        frame_of(task, label, rate, seed, np.array(one), np.arange(len(one)))
        for seed, one in enumerate(curves)
    )


def test_tables_show_misses_and_the_papers_figure(tmp_path):
    new = [[0.5, 0.98, 0.9, 1.0], [0.9, 0.9, 0.9, 0.97]]
    frames = [
        rows_of("sgd", None, 2 * [[0.5] * 4], "1 vs 2"),
        rows_of("sgd", None, 2 * [[0.5] * 4]),
        rows_of("new", 0.01, new),
        rows_of("new, adam", 0.01, new),
    ]
    rows = pd.concat(frames)
    assert list(rows) == tables.COLUMNS
    assert rows.iloc[-1].tolist() == ["1 vs 4", "new, adam", 0.01, 1, 4, "0.97", "3"]
    rows.to_csv(tmp_path / "mnist.csv", index=False)
    again = pd.read_csv(tmp_path / "mnist.csv")
    assert tables.updates_to_goal(again).tolist() == [5, 5, 2, 5, 2, 5]
    *_, sgd, new, adam = tables.methods_table(again).splitlines()
    assert sgd == "| SGD at 0.001 | | 5.0 | 5.0 | 2 | 24.7 |"
    assert new == "| new memory, equation 6 | 0.01 | 3.5 | 3.5 | 1 | 14.6 |"
    assert adam.endswith("| 0.01 | 3.5 | 3.5 | 1 | 14.6 |")


@pytest.mark.slow
def test_the_whole_job_on_a_small_setting(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mnist, "load_digits", lambda folder: digits)
    main(["mnist", *SMALL, "--out", str(tmp_path / "new" / "folder")])
    assert "| SGD at 0.001 | | 4.0 | 4.0 | 1 | 24.7 |" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"mnist.csv", "mnist.png"}
    rows = pd.read_csv(tmp_path / "new" / "folder" / "mnist.csv")
    settings = set(
        rows.fillna({"meta_rate": 0.0})[["task", "method", "meta_rate"]].itertuples(
            index=False, name=None
        )
    )
    assert len(rows) == len(settings) * 3
    for meta_rate in tables.META_RATES:
        for method in tables.LABELS:
            rate = 0.0 if method in ("sgd", "adam") else meta_rate
            assert ("1 vs 4", method, rate) in settings
        assert ("1 vs 2", "new", meta_rate) in settings
        assert ("1 vs 3", "reloaded", meta_rate) in settings


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"not digits", "is damaged: its MD5 is"),
        ("train-images-idx3-ubyte.gz", b"not gzip", "cannot read"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(b"x" * 99, mtime=0)[:-9],
            "cannot read",
        ),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"digits", mtime=0), "is damaged"),
    ],
)
def test_damaged_files_are_refused_by_path(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        load_digits(tmp_path)
    assert str(tmp_path / name) in str(refusal.value)
