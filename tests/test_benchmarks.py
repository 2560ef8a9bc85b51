"""The experiments run, are paired, and end with one clear line when they cannot."""

import csv
import gzip
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import linen as nn

from benchmarks.__main__ import main
from benchmarks.experiments import mnist, speed
from benchmarks.experiments.mnist import TaskRun, make_task, train_run
from benchmarks.harness.sweep import averaged, shuffled
from benchmarks.methods import BOUND, MODELS
from benchmarks.problems.digits import SUBSET, batch_loss, load_digits
from benchmarks.problems.networks import LeNet, apply_lenet
from benchmarks.reporting import mnist as mnist_tables
from metalr_optax import get_memory, linspace_kernels, paper_sgd


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_bundled_digits_are_balanced(digits):
    assert digits.train_images.shape == (10_000, 28, 28)
    assert digits.test_images.shape == (2_000, 28, 28)
    assert np.bincount(digits.train_labels).tolist() == [1000] * 10
    assert np.bincount(digits.test_labels).tolist() == [200] * 10
    assert SUBSET.stat().st_size < 3e6


@pytest.fixture(scope="module")
def task(digits):
    return make_task(digits, (1, 4), seeds=2, horizon=3, batch_size=8)


def test_a_task_is_two_digits_and_a_pass_without_repeats(digits, task):
    two = task.lessons[0].two
    assert two.train_images.shape == (2000, 28, 28)
    assert float(two.train_images.max()) == 1.0
    assert two.train_labels.mean() == 0.5
    batches = [one.batches for one in task.lessons]
    assert all(len(set(one.ravel().tolist())) == 24 for one in batches)
    assert not np.array_equal(*batches)
    again = make_task(digits, (1, 4), seeds=1, horizon=3, batch_size=8)
    np.testing.assert_array_equal(again.lessons[0].batches, batches[0])


def test_runs_are_paired_and_a_still_memory_is_sgd(task):
    sgd, _ = train_run(task, "sgd", None, method="sgd")
    run, _ = train_run(task, "new", 0.1, step=0.0)
    np.testing.assert_allclose(run.losses, sgd.losses, rtol=1e-5)
    np.testing.assert_allclose(run.accuracies, sgd.accuracies, atol=2.5 / 400)


def test_a_lesson_is_plain_training(task):
    """The batch's loss before an update, the test images told after it."""
    run, _ = train_run(task, "sgd", None, method="sgd")
    lesson = task.lessons[1]
    two, params = lesson.two, lesson.params

    def logits(params, images):
        return jnp.asarray(LeNet().apply(params, images))

    def loss_fn(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, two.train_images[batch]), two.train_labels[batch]
        ).mean()

    for update, batch in enumerate(lesson.batches):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)
        told = logits(params, two.test_images).argmax(-1) == two.test_labels
        assert run.losses[1, update] == pytest.approx(float(loss), rel=1e-5)
        assert run.accuracies[1, update] == pytest.approx(
            float(told.mean()), abs=2.5 / 400
        )


def test_a_memory_goes_from_run_to_run(task):
    _, learned = train_run(task, "new", 0.1)
    rates = learned["params/Dense_0"].rates
    assert rates.shape == (2, MODELS)
    assert rates.max() > 5e-3
    _, kept = train_run(task, "frozen", 0.1, learned, step=0.0)
    np.testing.assert_array_equal(kept["params/Dense_0"].rates, rates)


def test_controls_keep_the_mean_of_every_layer_and_nothing_else(task):
    _, learned = train_run(task, "new", 0.01)
    for control in (averaged(learned), shuffled(learned)):
        for label, memory in control.items():
            rates = np.asarray(learned[label].rates)
            assert memory.rates.shape == rates.shape
            assert not np.allclose(memory.rates, rates, rtol=1e-2)
            np.testing.assert_allclose(
                np.mean(memory.rates, -1), np.mean(rates, -1), rtol=1e-5
            )
    spread = np.ptp(averaged(learned)["params/Dense_0"].rates, axis=-1)
    np.testing.assert_array_equal(spread, [0.0, 0.0])


def test_one_local_model_is_one_scalar_per_layer(task):
    _, learned = train_run(task, "new_m1", 0.01, method="memory_m1")
    assert learned["params/Dense_0"].rates.shape == (2, 1)


@pytest.mark.parametrize(
    ("label", "rule"), [("new", optax.sgd), ("new, adam", optax.adam)]
)
def test_the_label_says_which_rule_steps_the_memory(label, rule, task):
    _, learned = train_run(task, label, 0.1)
    lesson = task.lessons[0]
    optimizer = paper_sgd(
        kernels=linspace_kernels(BOUND, MODELS), memory_optimizer=rule(0.1)
    )

    @jax.jit
    def step(params, state, batch):
        grads = jax.grad(batch_loss)(params, lesson.two, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = lesson.params, optimizer.init(lesson.params)
    for batch in lesson.batches:
        params, state = step(params, state, batch)
    for layer, memory in get_memory(state).items():
        assert np.ptp(memory.rates) > 1e-3
        np.testing.assert_allclose(learned[layer].rates[0], memory.rates, rtol=1e-3)


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
    expected = np.asarray(Plain().apply(plain, images))
    for apply in (LeNet().apply, apply_lenet):
        logits = np.asarray(apply(lesson.params, images))
        np.testing.assert_allclose(logits, expected, atol=1e-5)


RUNS = [
    TaskRun("1 vs 2", "sgd", None, np.full((2, 4), 0.5), np.full((2, 4), 0.7)),
    TaskRun("1 vs 4", "sgd", None, np.full((2, 4), 0.5), np.full((2, 4), 0.7)),
    TaskRun(
        "1 vs 4",
        "new",
        0.01,
        np.array([[0.5, 0.98, 0.9, 1.0], [0.9, 0.9, 0.9, 0.97]]),
        np.arange(8.0).reshape(2, 4),
    ),
]


def test_the_table_shows_misses_and_the_papers_figure(tmp_path):
    frame = mnist.frame_of([*RUNS, RUNS[-1]._replace(method="new, adam")])
    frame.to_csv(tmp_path / "mnist.csv", index=False)
    again = pd.read_csv(tmp_path / "mnist.csv")
    assert mnist_tables.updates_to_goal(again).tolist() == [5, 5, 2, 5, 2, 5]
    *_, sgd, new, adam = mnist_tables.methods_table(again).splitlines()
    assert sgd == "| SGD at 0.001 | | 5.0 | 5.0 | 2 | 24.7 |"
    assert new == "| new memory, equation 6 | 0.01 | 3.5 | 3.5 | 1 | 14.6 |"
    assert adam.endswith("| 0.01 | 3.5 | 3.5 | 1 | 14.6 |")


def test_rows_hold_every_number():
    rows = mnist.frame_of(RUNS)
    assert list(rows) == mnist_tables.COLUMNS
    assert len(rows) == 3 * 2 * 4
    assert rows.iloc[-1].tolist() == ["1 vs 4", "new", 0.01, 1, 4, "0.97", "7"]


def test_updates_are_timed_beside_adam(tmp_path):
    params = speed.make_leaves(20_000, 1)
    methods = [("adam", 0), *speed.CLIPPED]
    methods += [("paper_sgd", 4), ("paper_sgd, one by one", 4)]
    cases = [
        speed.Case("update", params, methods, rounds=1),
        speed.training_case("model", params, lambda params: params, 2)._replace(
            methods=methods[:5], rounds=1
        ),
    ]
    rows = [one for case in cases for one in speed.run_case(case)]
    adam, clip_adam, clip_momentum, clip_lion, ours, dense = rows[:6]
    assert clip_adam.clipped_ratio == clip_momentum.clipped_ratio == 1.0
    assert clip_lion.clipped_ratio == 1.0
    assert (clip_adam.state_leaves, clip_momentum.state_leaves) == (3, 1)
    assert (adam.ratio, adam.state_bytes, adam.share) == (1.0, 8.0002, 0.0)
    assert ours.state_bytes == pytest.approx(4.0, abs=0.1)
    assert ours.milliseconds > 0
    # The dense way stores one activation per coordinate at a time.
    assert dense.temporary_bytes > ours.temporary_bytes > 0
    assert all(0 < one.share < 1 for one in rows[6:])

    (compiled, *_) = speed.compile_case(speed.Case("compile", params, methods[1:2], 0))
    assert compiled.compile_seconds > 0
    assert np.isnan(compiled.milliseconds)
    speed.frame_of([*rows, compiled]).to_csv(tmp_path / "speed.csv", index=False)
    assert "paper_sgd, one by one" in speed.report(tmp_path)["sizes"]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_models_have_the_leaves_and_parameters_they_say():
    for leaves in (1, 10, 100):
        tree = jax.tree.leaves(speed.make_leaves(10**6, leaves))
        assert len(tree) == leaves
        assert sum(leaf.size for leaf in tree) == pytest.approx(10**6, rel=0.1)


@pytest.mark.slow
def test_the_whole_job_on_a_small_setting(tmp_path, capsys):
    arguments = ["--seeds", "2", "--horizon", "2", "--batch-size", "4"]
    main(["mnist", *arguments, "--out", str(tmp_path / "new" / "folder")])
    out = capsys.readouterr().out
    files = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"mnist.csv", "mnist.png"}
    assert "Updates until 98% test accuracy on 1 vs 4, 2 seeds" in out
    with open(tmp_path / "new" / "folder" / "mnist.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    settings = {(row["task"], row["method"], row["meta_rate"]) for row in rows}
    assert len(rows) == len(settings) * 2 * 2
    for meta_rate in ("0.1", "0.01", "0.001"):
        for method in mnist_tables.LABELS:
            rate = "" if method in ("sgd", "adam") else meta_rate
            assert ("1 vs 4", method, rate) in settings
        assert ("1 vs 2", "new", meta_rate) in settings
        assert ("1 vs 3", "reloaded", meta_rate) in settings
    picture = (tmp_path / "new" / "folder" / "mnist.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


@pytest.mark.parametrize(
    ("asked", "trials"), [([], []), (["--compare"], [5]), (["--full"], [20])]
)
def test_mnist_compares_when_it_is_asked_to(asked, trials, tmp_path, monkeypatch):
    """What is tuned and compared is tested elsewhere."""
    monkeypatch.setattr(mnist, "run_all", lambda *_: iter([RUNS[-1]]))
    monkeypatch.setattr(mnist, "report", lambda _: {})
    compared = []
    monkeypatch.setattr(mnist, "compare", lambda *some: compared.append(some[2].trials))
    main(["mnist", *asked, "--out", str(tmp_path)])
    assert compared == trials


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speed", "3"], "unrecognized arguments: --speed 3"),
        (["--seeds", "0"], "must be at least 1, got 0"),
        (["--seeds", "many"], "invalid positive value: 'many'"),
        (["--horizon", "1000"], "needs 64000 images, but there are 2000"),
        (["--data-dir", "/nowhere"], "no MNIST file /nowhere/train-images-idx3-ubyte"),
        (
            ["--trials", "20"],
            "--trials and --methods say how to compare: add --compare",
        ),
        (["--out", "/dev/null/x"], "/dev/null"),
    ],
)
def test_what_cannot_work_ends_with_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["mnist", *arguments])
    # An exit with a text prints it and gives the status 1.
    text = capsys.readouterr().err or str(stop.value.code)
    assert message in text
    assert len(text.strip().splitlines()) == 1
    assert stop.value.code not in (0, None)


def test_the_command_itself_ends_with_a_status():
    command = [sys.executable, "-m", "benchmarks", "nonsense"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "invalid choice: 'nonsense'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


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
