"""Tests are tested: each of the faults in mutants.txt is noticed by one of them."""

import json
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

import metalr_optax

TESTS = pathlib.Path(__file__).parent
PACKAGE = pathlib.Path(metalr_optax.__file__).parent


class Mutant(NamedTuple):
    module: str
    text: str
    replacement: str
    test: str


LINES = (TESTS / "mutants.txt").read_text().splitlines()
MUTANTS = [Mutant(*line.split("\t")) for line in LINES if not line.startswith("#")]


def test_there_are_twenty_and_each_changes_one_place():
    assert len(set(MUTANTS)) >= 20
    for one in MUTANTS:
        assert (PACKAGE / one.module).read_text().count(one.text) == 1, one


def copy_package(folder):
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignored)


@pytest.mark.slow
def test_every_mutant_is_killed(tmp_path):
    (tmp_path / "sound").mkdir()
    copy_package(tmp_path / "sound")
    for number, one in enumerate(MUTANTS):
        module = copy_package(tmp_path / str(number)) / one.module
        module.write_text(module.read_text().replace(one.text, one.replacement))
    jobs = [["sound", [one.test for one in MUTANTS]]]
    jobs += [[str(number), [one.test]] for number, one in enumerate(MUTANTS)]
    done = subprocess.run(
        [sys.executable, TESTS / "fork_pytest.py"],
        input=json.dumps(
            [
                [str(tmp_path / name), [str(TESTS / test) for test in tests]]
                for name, tests in jobs
            ]
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sound, *mutated = json.loads(done.stdout)
    assert sound == pytest.ExitCode.OK, done.stderr
    for one, status in zip(MUTANTS, mutated, strict=True):
        assert status == pytest.ExitCode.TESTS_FAILED, (status, one)
