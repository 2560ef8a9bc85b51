"""The table of what memories could see beside the value of a direction."""

import pathlib

import numpy as np

from benchmarks.experiments import kernel_inputs
from benchmarks.harness.store import (
    Runs,
    final,
    find,
    read_runs,
    updates_to,
    write_setting,
)
from benchmarks.harness.sweep import load_targets
from benchmarks.problems.tasks import SUITE
from benchmarks.reporting.paper_tables import format_number
from benchmarks.reporting.statistics import SIGNIFICANT, median, paired_test


def format_inputs(folder: pathlib.Path) -> str:
    """Return the table: updates to the target, and ends beside those of one rate."""
    runs = read_runs(folder / f"{kernel_inputs.STEM}.csv")
    lines = [
        "| base | task | " + " | ".join(kernel_inputs.SEEN) + " |",
        "|---|---|" + "---|" * len(kernel_inputs.SEEN),
    ]
    for base in kernel_inputs.BASES:
        for name in kernel_inputs.PROBLEMS:
            cells = [_cell(runs, name, base, seen) for seen in kernel_inputs.SEEN]
            if any(cells):
                lines.append(f"| {base} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(runs: Runs, problem: str, base: str, seen: str) -> str:
    curves, single = (
        _curves(runs, problem, base, one) for one in (seen, kernel_inputs.SEEN[0])
    )
    if len(curves) == 0 or len(curves) != len(single):
        return ""
    target, every = load_targets()[problem], SUITE[problem]().every
    updates = median(np.array([updates_to(one, target, every) for one in curves]))
    ends, others = (np.array([final(one) for one in some]) for some in (curves, single))
    if seen == kernel_inputs.SEEN[0]:
        return f"{format_number(updates)}, ends at {median(ends):.3g}"
    test = paired_test(ends, others)
    ratio = f"{median(ends) / median(others):.2f}"
    ratio = f"**{ratio}**" if test.p < SIGNIFICANT else ratio
    return f"{format_number(updates)}, {ratio} ({test.wins} : {test.losses})"


def _curves(runs: Runs, problem: str, base: str, seen: str) -> np.ndarray:
    method = kernel_inputs.method_of(base, seen)
    found = find(runs, problem, method.name, "fresh", write_setting(method.default))
    return np.array(list(found.values()))
