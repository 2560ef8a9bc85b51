"""The README and its pages say what is measured, and what there is."""

import pathlib
import re
import tomllib

import numpy as np
import pandas as pd

import metalr_optax
from benchmarks.methods import OURS
from benchmarks.reporting import (
    long,
    mnist,
    next_task,
    rows,
    speed,
    starts,
    suite,
)

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
STARTS = ("reloaded", "new")


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
    tasks = rows.by_problem(rows.RESULTS / "suite.csv.gz")
    networks = rows.by_problem(rows.RESULTS / "transfer.csv.gz")
    given = {
        name: ", ".join(
            f"{rows.paired(rows.fixed(one, name, 'end'), rows.fixed(one, name))} "
            f"on the {network}"
            for network, one in networks.items()
        )
        for name in ("memory_sgd", "memory_adam")
    }
    diverged, ruined = failures(tasks)
    facts = {
        "runs of the two defaults that diverged": diverged,
        "that ended above ten times tuned SGD": ruined,
        "(seeds better : worse)": join(given),
        "a landscape of 21 local models instead of one rate a layer": join(
            {x: landscapes(tasks, x) for x in ("memory_sgd", "memory_adam")}
        ),
        "over that of a clip and the same base": join(
            speed.times(speed.load(rows.RESULTS))
        ),
    }
    for what, measured in facts.items():
        assert f"{what} | {measured} |" in RESULTS
    ends = long.ends_of(long.load(rows.RESULTS))
    moves = next_task.load(rows.RESULTS)
    for page, cells in {
        "suite": suite.headlines(tasks).values(),
        "long": [long.count(ends, *pair) for pair in long.COUNTED[:3]],
        "next_task": [" | ".join(next_task.counts(found)) for found in moves.values()],
    }.items():
        for text in cells:
            assert set(lines_with(text, page)) & set(RESULTS.splitlines())


def lines_with(text, page):
    """Return the lines of tables of a page that have some cells."""
    lines = (ROOT / "docs" / "benchmarks" / f"{page}.md").read_text().splitlines()
    return [line for line in lines if f"| {text} |" in line]


def failures(tasks):
    """Return how many runs of the defaults diverged, and where others are ruined."""
    ours = {
        task: pd.concat(rows.from_rate(one, x, rate) for x in OURS for rate in OURS[x])
        for task, one in tasks.items()
    }
    curves = pd.concat(ours.values())["curve"]
    diverged = sum(not np.isfinite(curve).all() for curve in curves)
    lost = {task: suite.ruined(ours[task], tasks[task]) for task in tasks}
    texts = [f"{number} on {task}" for task, number in lost.items() if number]
    return f"{diverged} of {len(curves)}", ", ".join(texts)


def landscapes(tasks, single):
    """Return on how many tasks twenty-one local models end lower or higher than one."""
    many = f"{single}_m21"
    pairs = [
        (rows.from_rate(x, many, 1e-3), rows.from_rate(x, single, 1e-3))
        for x in tasks.values()
    ]
    signs = [rows.judge(*pair, "end") for pair in pairs]
    return (
        f"ends clearly lower on {signs.count(1)}, higher on {signs.count(-1)} of "
        f"{np.isfinite(signs).sum()} tasks"
    )


def join(values):
    return "; ".join(f"`{name}` {value}" for name, value in values.items())


def test_the_first_result_of_the_paper_is_what_the_raw_rows_say():
    found = pd.read_csv(rows.RESULTS / "mnist.csv")
    for name, cells in mnist.means(found).items():
        assert f"| {mnist.LABELS[name]} | {cells} |" in RESULTS
    updates = mnist.updates_to_goal(found).sort_index()
    assert (updates["sgd", 0.0] == 26).all()
    adam, reloaded, new, reloaded_adam, new_adam = (
        f"{updates[key].mean():.1f}"
        for key in (
            ("adam", 0.0),
            *((f"{start}{rule}", 0.01) for rule in ("", ", adam") for start in STARTS),
        )
    )
    results = " ".join(RESULTS.split())
    assert f"Adam at 0.001, untuned, needs {adam} steps" in results
    assert (
        f"needs {reloaded} steps on average for the last one, a new memory {new}; "
        f"where Adam steps the memory, {reloaded_adam} and {new_adam}. "
        f"Adam at 0.001 needs {adam}, and SGD at 0.001 does not get there."
    ) in results


def test_the_page_judges_both_rules_as_the_raw_rows_do():
    last = mnist.updates_to_goal(pd.read_csv(rows.RESULTS / "mnist.csv"))
    last = last.sort_index()
    holds = {
        (method, rate): last[method, rate].mean()
        <= 1.05 * mnist.of_paper("reloaded", rate)
        for method in ("reloaded", "reloaded, adam")
        for rate in mnist.META_RATES
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
    times = speed.load(rows.RESULTS)
    cnn = times[times["case"].str.startswith("MNIST CNN")].set_index("method")
    names = ["memory_sgd", "memory_adam", "paper_sgd"]
    taken, step = cnn["milliseconds"], cnn["milliseconds"] / cnn["share"]
    shares = [(taken[f"{x}, logged"] - taken[x]) / step[x] for x in names]
    said = f"at most {100 * max(shares):.1f} % of a training step"
    log = (ROOT / "docs" / "how_to" / "log.md").read_text()
    assert said in " ".join(log.split())


def in_readme(*sentences):
    """Return which sentences the README has, wherever its lines end."""
    text = " ".join(README.split())
    return [sentence in text for sentence in sentences]


def test_the_readme_says_what_its_picture_shows():
    ends = starts.ends(rows.load(rows.RESULTS / "starts.csv.gz"))
    ours, averaged, adam, decayed = (
        [f"{end:.3f}" for end in sorted(ends[name])]
        for name in ("memory_adam", "memory_adam, averaged", "adam", "adam, decay")
    )
    assert in_readme(
        f"`memory_adam` ends at {ours[0]} to {ours[-1]} from all five starts, "
        f"Adam with the best of the five rates at {adam[0]}",
        f"averaged weights end at {averaged[0]} to {averaged[-1]}, "
        f"Adam with the best of five rates and a linear decay at {decayed[0]}",
    ) == [True, True]


def test_the_readme_counts_long_runs_as_their_rows_do():
    ends = long.ends_of(long.load(rows.RESULTS))
    level, averaged = (
        long.find_ratios(ends, *pair, bare=True) <= 1.02
        for pair in (("memory_adam", "adam"), ("memory_adam, average", "adam, decay"))
    )
    assert in_readme(
        f"On {level.sum()} of {len(level)} tasks of 1,000 to 8,000 steps it ends "
        "within 2 % of Adam with the best of 20 rates, or lower",
        f"On {averaged.sum()} of the {len(averaged)} tasks they end within 2 % of Adam "
        "with the best of 20 decayed rates, or lower",
    ) == [True, True]


def test_the_readme_says_what_a_step_costs():
    one = speed.in_one_tensor(speed.load(rows.RESULTS))
    one = one.set_index(["method", "size"])

    def value(column, size, name="memory_adam"):
        return one[column][name, size]

    ratios = [f"{value('clipped_ratio', 10**n):.2f}" for n in (4, 6, 7)]
    averaged = [
        f"{value('clipped_ratio', 10**n, 'memory_adam, averaged'):.2f}" for n in (6, 7)
    ]
    bytes_of = [
        f"{value('state_bytes', 10**7, name):.0f}"
        for name in ("adam", "memory_adam", "memory_adam, averaged")
    ]
    more = value("milliseconds", 10**4) - value("milliseconds", 10**4, "clip + adam")
    assert bytes_of[0] == bytes_of[1]
    assert in_readme(
        f"{bytes_of[1]} bytes of state a parameter, as Adam, and {bytes_of[2]} with "
        "averaged weights",
        f"{ratios[0]} times as long as a clip and Adam at 10,000 parameters "
        f"({more:.1f} ms more), {ratios[1]} times at a million and {ratios[2]} times "
        f"at ten million. With averaged weights it takes {averaged[0]} times as long "
        f"at a million and {averaged[1]} times at ten million.",
    ) == [True, True]


def test_the_readme_promises_of_a_transfer_what_was_measured():
    moves = next_task.load(rows.RESULTS)
    adam, sgd = (next_task.counts(moves[name])[0] for name in next_task.LEARNERS)
    assert in_readme(
        f"{adam} (`memory_adam`) and {sgd} (`memory_sgd`) of a fresh one's steps"
    ) == [True]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120
