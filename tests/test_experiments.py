"""Every experiment runs as a whole, goes on where it was, and prints its tables."""

import pathlib
import runpy
import sys

import jax.numpy as jnp
import pandas as pd
import pytest
from bowl import bowl, give_target

from benchmarks.__main__ import NAMES, load, main, make_parser
from benchmarks.experiments import next_task, speed
from benchmarks.experiments.search import VARIANTS
from benchmarks.harness.store import KEY
from benchmarks.problems.next_tasks import ALIKE, Move
from metalr_optax import memory_adam

COMMAND = str(pathlib.Path(__file__).parents[1] / "benchmarks" / "__main__.py")
ADAM = next_task.LEARNERS[0]
PARAMS = speed.make_leaves(2000, 1)
CASES = [
    speed.Case("update", PARAMS, [speed.ADAM, *speed.CLIPPED], rounds=1),
    speed.Case("compile", PARAMS, list(speed.CLIPPED), rounds=0),
    speed.Case("progress", PARAMS, [speed.ADAM, *speed.BY_PROGRESS], rounds=1),
    speed.Case("model", PARAMS, [speed.ADAM], 1, gradient=lambda params: params),
]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A bowl takes the place of all tasks, and few methods that of many."""
    tasks, last = {"bowl": bowl}, jnp.float32(2.0)
    move = Move("before to bowl", ALIKE, 2 * (bowl("before"),), bowl(), last, seeds=2)
    growths = {"bowl": lambda: (bowl("small"), bowl())}
    changes = {
        "experiments.rosenbrock.tasks.rosenbrock": bowl,
        "experiments.suite.SUITE": tasks,
        "experiments.suite.LIBRARY": {ADAM.name: ADAM},
        "experiments.suite.PEERS": ("prodigy",),
        "experiments.long.LONG": tasks,
        "experiments.long._OURS": {"memory_adam": memory_adam},
        "reporting.long.LONG": tasks,
        "experiments.search.LONG": tasks,
        "experiments.search.VARIANTS": {
            x: VARIANTS[x] for x in ("the default", "gain 4")
        },
        "reporting.search.TASKS": ("bowl",),
        "experiments.transfer.GROWTHS": growths,
        "reporting.transfer.LEARNERS": ("memory_adam",),
        "experiments.transfer.TRIALS": 1,
        "experiments.next_task.MOVES": {"bowl": lambda: move},
        "reporting.next_task.MOVES": {"bowl": lambda: move},
        "experiments.next_task.LEARNERS": [ADAM],
        "harness.choose.TRIALS": 1,
        "experiments.speed.make_cases": lambda sizes: CASES,
    }
    for name, value in changes.items():
        monkeypatch.setattr(f"benchmarks.{name}", value)
    give_target(monkeypatch, tmp_path)


TUNED = ["--seeds", "2", "--trials", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "expected", "runs"),
    [
        ("long", ["--seeds", "3"], "| bowl | 20 |", 39),
        ("next_task", [], "| all (1) |", 24),
        ("rosenbrock", [*TUNED, "--methods", "sgd", "adam"], "| Adam | ", 8),
        ("search", ["--seeds", "1"], "| gain 4 |", 4),
        ("speed", [], "| clip + lion |", None),
        ("suite", TUNED, "| **memory_adam** from 1e-05 |", 23),
        ("transfer", ["--seeds", "1"], "| memory_adam, end, pooled |", 15),
    ],
)
def test_it_prints_its_tables_and_goes_on(
    name, arguments, expected, runs, small, tmp_path, capsys
):
    out = tmp_path / "new" / "folder"
    command = [name.replace("_", "-"), *arguments, "--out", str(out)]
    main(command)
    assert expected in capsys.readouterr().out
    if runs:
        path = out / f"{name}.csv.gz"
        size = path.stat().st_size
        assert len(pd.read_csv(path).drop_duplicates(KEY)) == runs
        load(name).run(make_parser().parse_args(command), print)
        assert path.stat().st_size == size
    for picture in out.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_help_lists_every_experiment_with_its_time(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in NAMES:
        module = load(name)
        first = module.__doc__.splitlines()[0]
        assert f"{name.replace('_', '-')} {first} ({module.TIME})" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["mnist", "--speed", "3"], "unrecognized arguments: --speed 3"),
        (["mnist", "--seeds", "0"], "must be at least 1, got 0"),
        (["mnist", "--seeds", "many"], "invalid positive value: 'many'"),
        (["mnist", "--horizon", "1000"], "needs 64000 images, but there are 2000"),
        (["mnist", "--data-dir", "/no"], "no MNIST file /no/train-images-idx3-ubyte"),
        (["mnist", "--out", "/dev/null/x"], "/dev/null"),
    ],
)
def test_what_cannot_work_ends_with_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(COMMAND, run_name="__main__")
    # An exit with a text prints it and gives the status 1.
    text = capsys.readouterr().err or str(stop.value.code)
    assert message in text
    assert len(text.strip().splitlines()) == 1
    assert stop.value.code not in (0, None)
