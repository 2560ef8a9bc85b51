"""The README and its pages say what is measured, and what there is."""

import pathlib
import re
import tomllib

import metalr_optax
from benchmarks.experiments import next_task, sequence, speed
from benchmarks.reporting import (
    headlines,
    library_tables,
    long_runs,
    next_tasks,
    page,
    paper_tables,
)

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()


def find(pattern, text):
    """Return what is in parentheses of the first match; some line has to match."""
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, pattern
    return found[1]


def test_the_versions_it_states_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ci = (ROOT / ".ci" / "run").read_text()
    stated = dict(re.findall(r"^\| (\w+) \| ([\d.]+) ", README, re.MULTILINE))
    assert project["requires-python"] == f">={stated['Python']}"
    for name in ("jax", "optax"):
        pinned = find(rf"{name}==([\d.]+)", ci)
        proper = {"jax": "JAX", "optax": "Optax"}[name]
        assert stated[proper] == pinned
        (floor,) = (
            one for one in project["dependencies"] if one.startswith(f"{name}>=")
        )
        assert pinned.startswith(floor.removeprefix(f"{name}>="))


def test_hooks_have_the_ruff_that_the_tests_have():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    assert find(r"rev: v([\d.]+)", hooks) == find(r"ruff==([\d.]+)", project)


def test_the_changelog_begins_with_this_version():
    folder = pathlib.Path(metalr_optax.__file__).parent
    first = find(r"^## (\S+)", (folder / "CHANGELOG.md").read_text())
    assert first == metalr_optax.__version__


def test_the_results_are_what_the_raw_rows_say():
    tasks = library_tables.load_suite(page.RESULTS)
    speeds = speed.read_rows(page.RESULTS / "speed.csv")
    transfers = library_tables.load_transfer(page.RESULTS)
    counts = long_runs.format_counts(long_runs.load(page.RESULTS))
    assert headlines.format_headlines(tasks) in RESULTS
    assert headlines.format_facts(tasks, transfers, speeds) in RESULTS
    assert counts in RESULTS
    assert counts in README
    steps = next_tasks.load(page.RESULTS)
    for learner in next_task.LEARNERS:
        assert next_tasks.count(steps, learner) in " ".join(RESULTS.split())


def test_the_first_result_of_the_paper_is_what_the_raw_rows_say():
    runs = sequence.read_rows(page.RESULTS / "mnist.csv")
    assert paper_tables.format_rules(runs) in RESULTS
    table = paper_tables.format_sequence(runs)
    assert re.search(r"^SGD at 0.001 +([\d.]+) .* 10 ", table, re.MULTILINE)
    adam = find(r"^Adam at 0.001 +([\d.]+) ", table)
    reloaded, new, reloaded_adam, new_adam = (
        find(rf"^{start} memory, {rule} .*0.01 +([\d.]+)", table)
        for rule in ("equation 6", "Adam")
        for start in ("reloaded", "new")
    )
    results = " ".join(RESULTS.split())
    assert f"Adam at 0.001, untuned, needs {adam} updates" in results
    assert (
        f"needs {reloaded} updates on average for the last one, a new memory {new}; "
        f"where Adam steps the memory, {reloaded_adam} and {new_adam}. "
        f"Adam at 0.001 needs {adam}, and SGD at 0.001 does not get there."
    ) in results


def test_the_page_judges_both_rules_as_the_raw_rows_do():
    runs = sequence.read_rows(page.RESULTS / "mnist.csv")
    last = {
        (run.method, run.meta_rate): paper_tables.updates_to_goal(run)
        for run in runs
        if run.task == paper_tables.LAST_TASK
    }
    holds = {
        (method, rate): last[method, rate].mean()
        <= 1.05 * paper_tables.PAPER_UPDATES["reloaded", rate]
        for method in ("reloaded", "reloaded, adam")
        for rate in sequence.META_RATES
    }
    assert list(holds.values()) == [True, True, False, False, True, True]
    never = 26
    assert (last["reloaded", 0.1] < never).all()
    assert 0 < (last["reloaded, adam", 0.1] == never).sum() < 5
    assert (last["new", 0.001] == never).sum() > 5
    assert last["reloaded", 0.1].mean() < last["reloaded_m1", 0.1].mean()
    for rate in (0.01, 0.001):
        assert last["reloaded_m1", rate].mean() <= last["reloaded", rate].mean()


def test_the_page_on_logs_says_what_they_cost():
    rows = speed.read_rows(page.RESULTS / "speed.csv")
    shares = library_tables.logging_shares(rows)
    assert set(shares) == {"memory_sgd", "memory_adam", "paper_sgd"}
    said = f"at most {100 * max(shares.values()):.1f} % of a training step"
    log = (ROOT / "docs" / "how_to" / "log.md").read_text()
    assert said in " ".join(log.split())


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
