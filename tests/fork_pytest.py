"""Run pytest in forks of one process, which has imported what tests import.

Run by tests/test_mutants.py as a process of its own. Reads [[folder, [test, ...]], ...]
as JSON from its input: tests, and the folder of the package that they are to test.
Prints the exit statuses as JSON.
"""

import importlib
import json
import os
import sys
import traceback

import pytest

IMPORTED = ("chex", "cloudpickle", "equinox", "flax.nnx", "haiku", "hypothesis.extra")
NOT_FROM_THE_FOLDER = 99


# What is imported before pytest begins has its assertions as they are.
OPTIONS = [
    *("-x", "-q", "-n0", "-p", "no:cacheprovider"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
]


def run_in_fork(folder, tests):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = NOT_FROM_THE_FOLDER
    try:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.path.insert(0, folder)
        found = pytest.main([*OPTIONS, *tests])
        if str(sys.modules["metalr_optax"].__file__).startswith(folder):
            status = int(found)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    jobs = json.load(sys.stdin)
    print(json.dumps([run_in_fork(folder, tests) for folder, tests in jobs]))
