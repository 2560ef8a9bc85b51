"""Pages quote messages as they are raised, and numbers as the rows have them."""

import pathlib
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.reporting import long, next_task, rows, speed, wider
from metalr_optax import (
    get_memory,
    get_rates,
    learn_rates,
    linspace_kernels,
    memory_adam,
    scale_by_memory,
    summarize_memory,
)

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PARAMS = {"a": jnp.ones((4, 2)), "b": jnp.ones(2)}
ADAM = optax.scale_by_adam()
QUOTED = re.findall(r"^### `(.+)`$", (DOCS / "faq.md").read_text(), re.MULTILINE)


def in_page(name, *texts):
    """Return which texts a page has, wherever its lines end."""
    page = " ".join((DOCS / f"{name}.md").read_text().split())
    return [text in page for text in texts]


def update_without_a_leaf():
    state = memory_adam().init(PARAMS)
    memory_adam().update(PARAMS | {"b": None}, state, PARAMS)


def rates_of_a_sample():
    optimizer = learn_rates(optax.lion(1.0), kernels=linspace_kernels(1.0, 3))
    get_rates(optimizer.init(PARAMS))


def dense(inputs):
    return {"dense": {"w": jnp.ones((inputs, 2)), "b": jnp.ones(2)}}


# An array, as `optax.inject_hyperparams` makes of a number.
THREE: Any = jnp.array(3)
AN_OLD_ONE: Any = {"stacked": None}

# The beginning of a message -> what raises it, or warns with it.
CAUSES = {
    "learning_rate up to": lambda: memory_adam(1e-3),
    "initial must be at most": lambda: memory_adam(initial=0.1),
    "initial has rates of": lambda: memory_adam(
        initial=get_memory(memory_adam().init(dense(4)))
    ).init(dense(8)),
    "base_optimizer must descend": lambda: learn_rates(ADAM).init(PARAMS),
    "base_optimizer makes": lambda: learn_rates(optax.adamw(1e-3)).init(PARAMS),
    "base_optimizer must leave": lambda: learn_rates(optax.lbfgs()).init(PARAMS),
    "params must be": lambda: memory_adam().init({"count": jnp.ones(3, jnp.int32)}),
    "updates must have a leaf": update_without_a_leaf,
    "opt_state must contain": lambda: get_memory(ADAM.init(PARAMS)),
    "initial must have": lambda: memory_adam(
        initial=get_memory(memory_adam().init({"a": PARAMS["a"]}))
    ).init(PARAMS),
    "state must be": lambda: memory_adam().update(PARAMS, ADAM.init(PARAMS), PARAMS),
    "memory_adam() has no": lambda: memory_adam(**AN_OLD_ONE),
    "opt_state must be": lambda: summarize_memory(
        jax.vmap(memory_adam().init)({"a": jnp.ones((3, 2))})
    ),
    "evidence_sample must": lambda: scale_by_memory(evidence_sample=THREE),
    "direction must be given": rates_of_a_sample,
}


def without_numbers(text):
    return re.sub(r"-?\d[\d.e-]*", "0", text)


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_faq_quotes_what_is_raised(quoted):
    (cause,) = (cause for begin, cause in CAUSES.items() if quoted.startswith(begin))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            cause()
            (text,) = (str(one.message) for one in warned)
        except (TypeError, ValueError) as error:
            text = str(error)
    assert without_numbers(text).startswith(without_numbers(quoted))


def test_every_cause_has_an_entry():
    assert len(CAUSES) == len(QUOTED)


def test_comparisons_count_as_the_rows_do():
    tasks = rows.by_problem(rows.RESULTS / "suite.csv.gz")
    ends = long.ends_of(long.load(rows.RESULTS))

    def reached(name):
        """Count the tasks with a target within 1.5 times the steps of tuned Adam."""
        count = 0
        for task in tasks.values():
            best = rows.median(rows.tuned(task, "adam")["updates"])
            steps = rows.median(rows.fixed(task, name)["updates"])
            count += bool(np.isfinite(steps) and steps <= 1.5 * best)
        return f"{count} of {len(tasks)}"

    def level(ours, rival):
        ratios = long.find_ratios(ends, ours, rival)
        return f"{(ratios <= 1.02).sum()} of {len(ratios)}"

    lines = [
        f"| `memory_adam` | {reached('memory_adam')} | "
        f"{level('memory_adam', 'adam')} |",
        f"| Prodigy | {reached('prodigy')} | {level('prodigy', 'adam')} |",
        f"| DoWG | {reached('dowg')} | not run |",
        f"| schedule-free AdamW | {reached('schedule_free')} | "
        f"{level('schedule_free', 'adam')} |",
        f"| Mechanic around Adam | {reached('mechanize')} | not run |",
        f"on {level('memory_adam', 'prodigy')}, and of schedule-free AdamW on "
        f"{level('memory_adam', 'schedule_free')}. With a linear decay for both it "
        f"does so beside Prodigy on {level('memory_adam, decay', 'prodigy, decay')}.",
    ]
    assert in_page("compared_with", *lines) == [True] * len(lines)
    averaged = level("memory_adam, average", "adam, decay")
    first = f"or lower, on {level('memory_adam', 'adam')} long tasks"
    no_schedule = f"of Adam with the best of 20 decayed rates on {averaged}."
    assert in_page("results", first, no_schedule) == [True, True]
    below = (ends["memory_adam, average"] < ends["memory_adam"]).sum()
    text = (
        f"or lower, on {averaged}, and lower than the weights it averages on {below} of"
    )
    assert in_page("how_to/average", text) == [True]


def test_the_pages_count_landscapes_as_the_results_do():
    results = (DOCS / "results.md").read_text()
    (text,) = re.findall(r"^\| a landscape of 21 local .*$", results, re.MULTILINE)
    lower, higher, total = (
        sum(map(int, re.findall(pattern, text)))
        for pattern in (r"lower on (\d+)", r"higher on (\d+)", r"of (\d+) tasks")
    )
    assert in_page(
        "faq",
        f"In {total} comparisons with one rate a layer it ends clearly lower in "
        f"{lower} and clearly higher in {higher}",
    ) == [True]


def test_the_page_on_transfer_promises_what_was_measured():
    learners = "memory_adam", "memory_sgd"
    moves = next_task.load(rows.RESULTS)
    adam, sgd = (next_task.counts(moves[name]) for name in learners)
    networks = rows.by_problem(rows.RESULTS / "wider.csv.gz")
    found = [wider.starts(networks[f"attention {width}"]) for width in (512, 1024)]
    lowered, fresh = "memory_adam, 1 / width", "memory_adam, fresh from 0.0001"
    best = [
        min(
            (f"Adam, {rate:g}" for rate in wider.ADAM_RATES),
            key=lambda name, runs=runs: rows.median(runs[name]["updates"]),
        )
        for runs in found
    ]

    def both(names, value, form):
        """Return a median of both networks, as text."""
        pairs = zip(found, names, strict=True)
        medians = (rows.median(runs[name][value]) for runs, name in pairs)
        return " and ".join(form.format(x) for x in medians)

    steps, ends = (
        [both(x, *how) for x in (2 * [lowered], 2 * [fresh], best)]
        for how in (("updates", "{:.0f}"), ("end", "{:.2f}"))
    )
    lines = [
        f"a fresh memory, median | {adam[0]} | {sgd[0]} |",
        f"of four fresh memories, median | {adam[1]} | {sgd[1]} |",
        f"the best fresh memory | {adam[2]} moves | {sgd[2]} |",
        f"| is clearly faster than it | {adam[3]} moves | {sgd[3]} |",
        f"| is clearly slower | {adam[4]} moves | {sgd[4]} |",
        f"on {adam[5]} moves already",
        f"get to the target in {steps[0]} steps, fresh memories in {steps[1]}, Adam at "
        f"the best of six rates in {steps[2]}.",
        f"They end at {ends[0]}; fresh ones at {ends[1]}, that Adam at {ends[2]} (",
    ]
    assert in_page("how_to/transfer", *lines) == [True] * len(lines)


@pytest.mark.parametrize(
    ("what", "method", "size"),
    [
        ("`memory_adam`, 10 million", "memory_adam", 10**7),
        ("`memory_adam`, 1 million", "memory_adam", 10**6),
        ("`memory_sgd`, 10 million", "memory_sgd", 10**7),
        ("`memory_adam` with `average_weights`", "memory_adam, averaged", 10**7),
    ],
)
def test_the_page_on_scale_says_what_a_step_costs(what, method, size):
    found = speed.in_one_tensor(speed.load(rows.RESULTS))
    one = found.set_index(["method", "size"]).loc[(method, size)]
    (line,) = re.findall(
        rf"^\| {re.escape(what)}.* \| ([\d.]+) \| (\d+) \|$",
        (DOCS / "how_to" / "scale.md").read_text(),
        re.MULTILINE,
    )
    assert line == (f"{one['clipped_ratio']:.2f}", f"{one['state_bytes']:.0f}")


def test_the_index_of_the_api_has_every_name_in_a_table_and_every_page():
    index = (DOCS / "api" / "index.md").read_text()
    tables = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \|", index, re.MULTILINE)
    pages = {page.stem: page.read_text() for page in DOCS.glob("api/*.md")}
    del pages["index"]
    assert {
        (name, page)
        for page, text in pages.items()
        for name in re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.MULTILINE)
    } == set(tables)
    assert all(f"\n{page}\n" in index for page in pages)
