"""Tables of the paper's experiments, as Markdown."""

from collections.abc import Sequence

import numpy as np

from benchmarks.experiments.sequence import AUTHORS, META_RATES, TASKS, TaskRun
from benchmarks.harness.costs import Cost
from benchmarks.harness.store import read_setting
from benchmarks.harness.sweep import BUDGETS
from benchmarks.methods import LABELS, METHODS, WITH_MEMORY, Method, sample_settings
from benchmarks.reporting.statistics import (
    SIGNIFICANT,
    Comparison,
    Outcome,
    fixed,
    median,
    most_tuned,
    paired_test,
    quartiles,
    transferred,
    tuned,
)

GOAL = 0.98
LAST_TASK = f"{TASKS[-1][0]} vs {TASKS[-1][1]}"

# Mean updates on the last task, read off the paper's figure 1 (right), +-3 %; its
# horizon is 25 updates, so 24.7 means all but never.
PAPER_UPDATES = {
    ("sgd", None): 24.7,
    ("adam", None): 14.4,
    ("new", 0.1): 11.7,
    ("new", 0.01): 14.6,
    ("new", 0.001): 17.8,
    ("reloaded", 0.1): 3.2,
    ("reloaded", 0.01): 3.4,
    ("reloaded", 0.001): 4.7,
}
SEQUENCE_LABELS = {
    "sgd": "SGD at 0.001",
    "adam": "Adam at 0.001",
    "new": "new memory, equation 6",
    "reloaded": "reloaded memory, equation 6",
    "new, adam": "new memory, Adam (authors' code)",
    "reloaded, adam": "reloaded memory, Adam (authors' code)",
    "frozen": "reloaded, not learning on",
    "constant": "constant: mean rate of each layer",
    "shuffled": "shuffled within each layer, learning on",
    "new_m1": "new, one local model (M=1)",
    "reloaded_m1": "reloaded, one local model (M=1)",
}
START_LABELS = {
    "reloaded": "reloaded, learning on",
    "frozen": "reloaded, not learning on",
    "constant": "mean rate of each layer, not learning on",
    "shuffled": "shuffled within each layer, learning on",
    "unrelated": "from an unrelated task, learning on",
}


def format_number(value: float) -> str:
    """Return a number of updates or milliseconds."""
    if not np.isfinite(value):
        return "never"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def format_measure(value: float) -> str:
    """Return a measure, where infinity stands for what is not finite."""
    return f"{value:.3g}" if np.isfinite(value) else "not finite"


def ratio(one: float, other: float) -> str:
    """Return a ratio; both sides of it where one is not finite."""
    if np.isfinite(one) and np.isfinite(other) and other > 0:
        return f"{one / other:.2f}"
    return f"{format_number(one)} / {format_number(other)}"


def format_paired(one: np.ndarray, other: np.ndarray) -> str:
    """Return the ratio of medians, and seeds lower : higher; bold where p < .05."""
    test = paired_test(one, other)
    text = f"{ratio(median(one), median(other))} ({test.wins} : {test.losses})"
    return f"**{text}**" if test.p < SIGNIFICANT else text


def format_updates(found: Outcome | None) -> str:
    """Return the median, the quartiles and the misses of updates to the target."""
    if found is None:
        return ""
    low, middle, high = quartiles(found.updates)
    missed = int(np.isinf(found.updates).sum())
    text = format_number(middle)
    if low != high:
        text += f" [{format_number(low)}, {format_number(high)}]"
    return text + (f", {missed} missed" if 0 < missed < len(found.updates) else "")


def format_comparison(comparison: Comparison, costs: Sequence[Cost]) -> str:
    """Return the comparison of all methods as Markdown."""
    problem = comparison.problem.name
    cost = {one.method: one for one in costs if one.problem == problem}
    lines = [
        "| method | one fixed setting | 1 trial | 5 trials | 20 trials | end, fixed "
        "| end, most trials | ms per update | ms to the target, most trials "
        "| state, bytes per parameter |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS.values():
        name = method.name
        plain, best = fixed(comparison, name), most_tuned(comparison, name)
        if plain is None:
            continue
        cells = [LABELS[name], format_updates(plain)]
        cells += [format_updates(tuned(comparison, name, one)) for one in BUDGETS]
        cells += [format_measure(median(plain.finals))]
        cells += [format_measure(median(best.finals)) if best else ""]
        if name in cost:
            one = cost[name]
            steps = median(best.updates) if best else np.inf
            cells += [
                f"{one.milliseconds:.3g}",
                format_number(steps * one.milliseconds),
                f"{one.state_bytes:.2f}",
            ]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_settings(comparison: Comparison) -> str:
    """Return the spaces, the fixed settings and what the trials chose, as Markdown."""
    lines = ["| method | space, log-uniform | fixed | 1 | 5 | 20 trials |"]
    edges = False
    lines.append("|---|---|---|---|---|---|")
    for method in METHODS.values():
        plain = fixed(comparison, method.name)
        if plain is None:
            continue
        space = ", ".join(
            f"{name} {low:g} to {high:g}" for name, (low, high) in method.space.items()
        )
        chosen = [tuned(comparison, method.name, budget) for budget in BUDGETS]
        texts = [
            found.setting + _edge(method, found.setting) if found else ""
            for found in chosen
        ]
        edges = edges or any("*" in text for text in texts)
        cells = [LABELS[method.name], space, plain.setting, *texts]
        lines.append(f"| {' | '.join(cells)} |")
    if edges:
        lines.append("\n\\* the lowest or the highest that is ever tried")
    return "\n".join(lines)


def _edge(method: Method, setting: str) -> str:
    """Return a mark if a number is the lowest or highest of all that may be tried."""
    tried = sample_settings(method, max(BUDGETS))
    for name, value in read_setting(setting).items():
        values = [one[name] for one in tried]
        if value in (min(values), max(values)):
            return " \\*"
    return ""


def format_reloaded(comparison: Comparison) -> str:
    """Return new, reloaded and control memories as Markdown; updates, then the end."""
    lines = [
        "| start of the memory | " + " | ".join(LABELS[one] for one in WITH_MEMORY),
        "|---|" + "---|" * len(WITH_MEMORY),
    ]
    lines[0] += " |"
    for start, label in {"fresh": "new", **START_LABELS}.items():
        cells = []
        for name in WITH_MEMORY:
            found = (
                fixed(comparison, name)
                if start == "fresh"
                else transferred(comparison, name, start)
            )
            end = f"; end {format_measure(median(found.finals))}" if found else ""
            cells.append(format_updates(found) + end)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def updates_to_goal(run: TaskRun) -> np.ndarray:
    """Return per seed the updates until the goal; a miss counts as horizon + 1."""
    reached = run.accuracies >= GOAL
    horizon = reached.shape[1]
    return np.where(reached.any(1), reached.argmax(1) + 1, horizon + 1)


def format_rules(runs: list[TaskRun]) -> str:
    """Return what both rules of a memory need on the last task, as Markdown."""
    found = {(run.method, run.meta_rate): run for run in runs if run.task == LAST_TASK}
    rates = " | ".join(f"{rate:g}" for rate in META_RATES)
    lines = [f"| meta rate | {rates} |", "|---|" + "---|" * len(META_RATES)]
    for start in ("reloaded", "new"):
        for method in (start, start + AUTHORS):
            cells = [_format_mean(found[method, rate]) for rate in META_RATES]
            lines.append(f"| {SEQUENCE_LABELS[method]} | {' | '.join(cells)} |")
        paper = " | ".join(f"{PAPER_UPDATES[start, rate]}" for rate in META_RATES)
        lines.append(f"| {start} memory, the paper's figure 1 | {paper} |")
    return "\n".join(lines)


def _format_mean(run: TaskRun) -> str:
    """Return the mean updates to the goal, and how many runs never got there."""
    updates = updates_to_goal(run)
    seeds, horizon = run.accuracies.shape
    missed = int((updates > horizon).sum())
    return f"{updates.mean():.1f}" + f" ({missed} of {seeds} never)" * bool(missed)


def format_sequence(runs: list[TaskRun]) -> str:
    """Return the updates to the goal on the last task, beside the paper's figures."""
    last = [run for run in runs if run.task == LAST_TASK]
    seeds, horizon = last[0].accuracies.shape
    lines = [
        f"Updates until {GOAL:.0%} test accuracy on {LAST_TASK}, {seeds} seeds; "
        f"a miss counts as {horizon + 1}",
        f"{'method':<40}{'meta rate':>10}{'mean':>7}{'median':>8}{'misses':>8}"
        f"{'paper, mean':>13}",
    ]
    for run in last:
        updates = updates_to_goal(run)
        meta_rate = "" if run.meta_rate is None else f"{run.meta_rate:g}"
        paper = PAPER_UPDATES.get((run.method.removesuffix(AUTHORS), run.meta_rate), "")
        lines.append(
            f"{SEQUENCE_LABELS[run.method]:<40}{meta_rate:>10}{updates.mean():>7.1f}"
            f"{np.median(updates):>8.1f}{(updates > horizon).sum():>8}{paper:>13}"
        )
    return "\n".join(line.rstrip() for line in lines)
